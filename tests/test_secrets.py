"""A login in an address is refused or left out, before it can reach a record, a report or a message."""

import pytest

from pipelines.recipes import DEFAULT, RECIPES
from sat_ray.cli import parse
from sat_ray.storage import Storage


@pytest.mark.parametrize("words", [["--tracking-uri", "http://me:planted@mlflow:5000"], ["--tracking-uri=http://me:planted@mlflow:5000"]])
def test_the_command_that_a_report_shows_has_no_login(words: list[str]) -> None:
    command = parse(["digits", "--storage", "/somewhere", *words], RECIPES, default=DEFAULT, about="")
    assert command.tracking_uri == "http://me:planted@mlflow:5000"
    assert "planted" not in " ".join(command.argv)
    assert command.argv[:3] == ("digits", "--storage", "/somewhere") and "mlflow:5000" in command.argv[-1]


@pytest.mark.parametrize("uri", ["s3://key:planted@bucket/sweeps", "s3://bucket/sweeps?secret_key=planted"])
def test_a_storage_address_with_a_login_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(ValueError, match=r"storage holds a login or settings; allowed: s3://bucket/prefix, .*AWS_\* variables") as caught:
        Storage.at(uri)
    assert "planted" not in str(caught.value)


def test_a_search_trial_is_not_described_by_the_keys_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes the runtime environment of every actor to a log."""
    from ray.tune.execution import class_cache

    from sat_ray.distributed.trials import keep_keys_back

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")

    class Trainable:
        """Stands for any."""

    assert "planted" in str(vars(class_cache._ActorClassCache().get(Trainable))), "Ray no longer does that: keep_keys_back can go"
    keep_keys_back()
    assert "planted" not in str(vars(class_cache._ActorClassCache().get(Trainable)))
