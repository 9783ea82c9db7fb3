"""What a person is shown while a stage runs."""

import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sweeps import filled

from sat_ray.data.sources.registry import DATASETS
from sat_ray.integrations.command_line import driver as driver_module
from sat_ray.integrations.command_line.checks.prepared import left_out, other_counts
from sat_ray.integrations.command_line.driver import Driver
from sat_ray.integrations.command_line.parsing import parse
from sat_ray.integrations.ray import tasks
from sat_ray.report import console as progress
from sat_ray.report.console import Reporter
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.tasks import EVALUATE, Dataset


def dataset(*corrupt: dict[str, Any]) -> Dataset:
    """Describe a dataset that lacks some images."""
    return Dataset(uri="/data/pictures", hash="0", manifest={"corrupt": list(corrupt)})


def test_a_log_says_how_many_shards_are_written_and_how_long_it_may_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    shown = Reporter().stage("prepare", None)
    for second, written in (
        (1.0, (0, None)),
        (10.0, (2, 620)),
        (31.0, (31, 620)),
        (32.0, (32, 620)),
    ):
        now[0] = second
        shown.update_shards(*written)
    assert capsys.readouterr().out == "[00:31] prepare 31/620 about 9.8 min left\n"


def test_a_terminal_shows_a_bar_whose_length_becomes_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        progress, "Console", lambda **settings: Console(force_terminal=True, width=100, quiet=True)
    )
    reporter = Reporter()
    shown = reporter.stage("prepare", None)
    shown.update_shards(0, None)
    assert reporter.bars.tasks[0].total is None
    shown.update_shards(7, 20)
    assert (reporter.bars.tasks[0].completed, reporter.bars.tasks[0].total) == (7, 20)


def committed(name: str, **payload: Any) -> Record:
    """Return a record as a stage commits it."""
    return Record(
        stage="s",
        key=name,
        inputs={},
        payload={"name": name} | payload,
        code={},
        created=0.0,
        seconds=1.0,
    )


def test_a_log_says_best_speed_and_time_left_and_counts_only_what_this_run_computes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    shown = Reporter().stage("train", 39, reused=30)
    old = [
        committed(f"old-{i}", val_robust_accuracy=0.1, train_images_per_second=9.0)
        for i in range(30)
    ]
    new = [
        committed(
            f"silu-s{i}",
            val_robust_accuracy=0.2 + 0.1 * i,
            train_images_per_second=1000.0 + 200 * i,
        )
        for i in range(3)
    ]
    for second, done, came in (
        (1.0, 30, old),
        (60.0, 33, new),
        (61.0, 33, []),
        (85.0, 33, []),
        (200.0, 33, []),
    ):
        now[0] = second
        shown.update(done, came)
    lines = capsys.readouterr().out.splitlines()
    known = "train 33/39 best val robust 40.0 % (silu-s2) · 1,200 images/s per training"
    assert lines == [
        "[00:00] train: 9 of 39 to do",
        f"[01:00] {known} · about 2.0 min left",
        f"[01:25] {known} · about 95 s left",  # less with every second, though nothing has come
        f"[03:20] {known} · taking longer than those before",
    ]


def test_an_evaluation_shows_images_attacked_per_second_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        progress, "Console", lambda **settings: Console(force_terminal=True, width=100, quiet=True)
    )
    reporter = Reporter()
    shown = reporter.stage("evaluate", 4)
    for second, done, came in (
        (1.0, 0, []),
        (10.0, 2, [committed("a", n=450), committed("b", n=450)]),
    ):
        now[0] = second
        shown.update(done, came)
    assert reporter.bars.tasks[0].fields["note"] == "90.0 images/s"
    assert reporter.bars.tasks[0].fields["left"] == "about 10 s left"


def test_images_per_second_count_each_shard_once_however_often_the_driver_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    words = ["digits_smoke", "--storage", str(tmp_path)]
    driver = Driver(parse(words, RECIPES, default=DEFAULT, about=""))
    records = driver.sweep.records

    def look(ref: object, *, seconds: float) -> bool:
        """Commit a shard of 100 images before the second look; end after the fifth."""
        now[0] += 2.0
        if now[0] == 4.0:
            payload = {"name": "silu-s0", "n": 100}
            records.commit(EVALUATE, "a" * 32, **filled(EVALUATE, payload), seconds=1.0)
        return now[0] > 10.0

    monkeypatch.setattr(tasks, "wait", look)
    monkeypatch.setattr(driver_module, "TRACK_SECONDS", math.inf)  # MLflow is not written here
    shown = driver.reporter.stage("evaluate", 4)
    with driver_lease(driver.command.storage) as driver.lease:
        driver._watch("evaluate", None, shown)
    assert shown.done == 1 and shown.images == 100


def test_the_start_of_a_stage_is_no_part_of_its_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 39 trainings of 10 s each the first ends after 66 s, because the workers start first."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "time", lambda: 1_000.0 + now[0])
    shown = Reporter().stage("train", 39)
    first = dataclasses.replace(committed("silu-s0"), seconds=10.0, created=1_065.0)
    for second, done, came in ((1.0, 0, []), (66.0, 1, [first])):
        now[0] = second
        shown.update(done, came)
    assert capsys.readouterr().out.endswith("train 1/39 about 7.0 min left\n")


def test_a_log_says_that_a_stage_works_though_nothing_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    shown = Reporter().stage("card", 2, at_most=True)
    for second in (1.0, 30.0, 31.0, 90.0):
        now[0] = second
        shown.update(0, [])
    assert capsys.readouterr().out.splitlines() == [
        "[00:00] card: 2 of at most 2 to do",
        "[00:30] card 0/2 30 s so far",
        "[01:30] card 0/2 90 s so far",
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_narrow_terminal_cuts_the_note_and_neither_counts_nor_times(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(
        file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(progress, "Console", lambda **settings: console)
    reporter = Reporter()
    shown = reporter.stage("evaluate", 1200)
    name = "parametric_softplus-a10-attacker-relu_smooth_backward-a10-s0"
    shown.update(0, [])
    shown.update(7, [committed(name, val_robust_accuracy=0.4, train_images_per_second=12_345.0)])
    console.print(reporter.bars.get_renderable())
    (line,) = [line for line in screen.getvalue().splitlines() if "evaluate" in line]
    assert (
        "7/1200" in line and re.search(r"\d:\d\d:\d\d", line) and re.search(r"about .* left", line)
    )
    assert len(line) <= width


def test_a_bar_goes_when_its_stage_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        progress, "Console", lambda **settings: Console(force_terminal=True, width=100, quiet=True)
    )
    reporter = Reporter()
    first, second = reporter.stage("train", 2), reporter.stage("card", 1)
    first.end()
    assert [task.description for task in reporter.bars.tasks] == ["card"]
    second.end()
    assert not reporter.bars.tasks


@pytest.mark.parametrize(
    ("name", "classes", "lacking", "said"),
    [
        ("imagenet", 999, 0, ["imagenet has 1,000 classes, this one 999"]),
        ("imagenet", 1000, 0, []),
        ("cifar10", 10, 24, ["cifar10 has 60,000 images, this one 59,976"]),
        ("image_folder", 7, 0, []),
    ],
)
def test_a_dataset_without_some_of_its_classes_or_images_is_pointed_out(
    name: str, classes: int, lacking: int, said: list[str]
) -> None:
    manifest = {
        "dataset": name,
        "class_names": [str(number) for number in range(classes)],
        "splits": {"train": DATASETS[name].images - lacking},
    }
    assert other_counts(dataclasses.replace(dataset(), manifest=manifest)) == said


def test_corrupt_images_are_named_when_the_dataset_is_there() -> None:
    one = {"image_id": 11, "image": "n01443537_3.JPEG", "reason": "cannot identify image file"}
    assert left_out(dataset()) == left_out(dataclasses.replace(dataset(), manifest={})) == ""
    assert left_out(dataset(one)) == (
        "corrupt images left out, 1: n01443537_3.JPEG (cannot identify image file); all are "
        "listed in /data/pictures/manifest.json"
    )
    assert "3 more; all are listed" in left_out(dataset(*[one] * 6))
