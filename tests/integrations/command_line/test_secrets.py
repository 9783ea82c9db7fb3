"""A login in an address is refused or left out, before it can reach a record, a report or a
message."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import parsed, pipeline

from sat_ray.integrations.command_line.export import Asked as ExportOptions
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.parsing import parse_options
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import check_address
from sat_ray.sweep.config import DataSettings
from sat_ray.utils.settings_json import from_json


@pytest.mark.parametrize(
    "words",
    [
        ["--tracking-uri", "http://me:planted@mlflow:5000"],
        ["--tracking-uri=http://me:planted@mlflow:5000"],
    ],
)
def test_the_command_that_a_report_shows_has_no_login(words: list[str]) -> None:
    command = parsed("digits", "--storage", "/somewhere", *words)
    assert command.tracking_uri == "http://me:planted@mlflow:5000"
    assert "planted" not in " ".join(command.argv)
    assert (
        command.argv[:3] == ("digits", "--storage", "/somewhere")
        and "mlflow:5000" in command.argv[-1]
    )


SECRET = [
    "s3://key:planted@bucket/sweeps",
    "s3://key:pl/planted@bucket/sweeps",
    "s3://key:12/planted@bucket/sweeps",
    "s3://key%3Aplanted%40bucket/sweeps",
    "S3://key:planted@bucket/sweeps",
    " s3://key:planted@bucket/sweeps",
    "s3:/key:planted@bucket/sweeps",
    "s3:///key:planted@bucket/sweeps",
    "s3://bucket/sweeps?secret_key=planted",
    "s3://bucket/sweeps#planted",
    "https://bucket.s3.amazonaws.com/train?X-Amz-Signature=planted",
    "https://me:planted@host/data",
    "https://me:80/planted@host/data",
    "hdfs://me:planted@host/data",
    "file://me:planted@host/data",
]
OPTIONS = {
    "--storage": ["digits"],
    "--data.path": ["digits", "--data.dataset", "cifar10"],
}


@pytest.mark.parametrize("uri", SECRET)
def test_an_address_with_a_login_is_refused_by_every_option_without_showing_it(uri: str) -> None:
    refusals: list[Callable[[], object]] = [
        lambda: Storage.at(uri),
        lambda: DataSettings(dataset="cifar10", path=uri),
        lambda: from_json(DataSettings, {"dataset": "cifar10", "path": uri}),
        lambda: parse_options(["--model", uri], ExternalOptions(), about=""),
        lambda: parse_options([f"--data={uri}"], ExternalOptions(), about=""),
        lambda: parse_options([uri], ExportOptions(), about=""),
    ]
    for option, words in OPTIONS.items():
        refusals += [
            lambda words=words, option=option: parsed(*words, option, uri),
            lambda words=words, option=option: parsed(*words, f"{option}={uri}"),
        ]
    for refuse in refusals:
        with pytest.raises(
            ValueError, match=r"must be an address without login and settings.*AWS_\* variables"
        ) as caught:
            refuse()
        assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/user@host/x",
        "s3://my.bucket",
        "models:/digits@champion",
        "runs:/abc/model",
        "/a?b#c@d",
        "a:b",
        "file:///data",
    ],
)
def test_an_address_without_a_login_is_no_secret(address: str) -> None:
    check_address(address, field="model")
    assert parse_options(["--model", address], ExternalOptions(), about="").model == address


def test_a_dry_run_shows_no_login(tmp_path: Path) -> None:
    words = ("digits", "--data.dataset", "cifar10", "--data.path", SECRET[0], "--dry-run")
    done = pipeline("sweep", *words, "--storage", str(tmp_path))
    assert done.returncode == 2 and "planted" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_search_trial_is_not_described_by_the_keys_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes the runtime environment of every actor to a log."""
    from ray.tune.execution import class_cache

    from sat_ray.integrations.ray.private import keep_keys_back

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")

    class Trainable:
        """Stands for any."""

    assert "planted" in str(vars(class_cache._ActorClassCache().get(Trainable))), (
        "Ray no longer does that: keep_keys_back can go"
    )
    keep_keys_back()
    assert "planted" not in str(vars(class_cache._ActorClassCache().get(Trainable)))
