"""What a person is shown while a dataset is prepared."""

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from pipelines import progress
from pipelines.driver import left_out
from pipelines.progress import Reporter
from sat_ray.plan import Dataset


def dataset(*corrupt: dict[str, Any]) -> Dataset:
    """Describe a dataset that lacks some images."""
    return Dataset(uri="/data/pictures", hash="0", manifest={"corrupt": list(corrupt)})


def test_a_log_says_how_many_shards_are_written_and_how_long_it_may_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    shown = Reporter().stage("prepare", None)
    for second, written in ((1.0, (0, None)), (10.0, (2, 620)), (31.0, (31, 620)), (32.0, (32, 620))):
        now[0] = second
        shown.update_shards(*written)
    assert capsys.readouterr().out == "[00:31] prepare 31/620 about 589 s left\n"


def test_a_terminal_shows_a_bar_whose_length_becomes_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **settings: Console(force_terminal=True, width=100, quiet=True))
    reporter = Reporter()
    shown = reporter.stage("prepare", None)
    shown.update_shards(0, None)
    assert reporter.bars.tasks[0].total is None
    shown.update_shards(7, 20)
    assert (reporter.bars.tasks[0].completed, reporter.bars.tasks[0].total) == (7, 20)


def test_corrupt_images_are_named_when_the_dataset_is_there() -> None:
    one = {"image_id": 11, "image": "n01443537_3.JPEG", "reason": "cannot identify image file"}
    assert left_out(dataset()) == left_out(dataclasses.replace(dataset(), manifest={})) == ""
    assert left_out(dataset(one)) == (
        "corrupt images left out, 1: n01443537_3.JPEG (cannot identify image file); all are listed in /data/pictures/manifest.json"
    )
    assert "3 more; all are listed" in left_out(dataset(*[one] * 6))
