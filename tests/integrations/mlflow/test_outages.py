"""Servers that go away and come back: what is repeated and for how long, and what is not."""

import os
import time
from types import SimpleNamespace

import pytest
import s3_server

from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.errors import NoAnswerError, is_outage
from sat_ray.storage import outages
from sat_ray.storage.store import Storage

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Return a folder on an S3 server that is away, with a second of patience."""
    for name, value in (
        s3_server.environment(0) | {"AWS_ENDPOINT_URL": NOBODY}
    ).items():  # boto3 remembers keys: those of all tests
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 1.0)
    return Storage.at("s3://tests-bucket/away")


def test_a_server_that_stays_away_ends_in_its_own_error_when_patience_is_over(
    unreachable: Storage,
) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        unreachable.read("x")
    assert 0.5 <= time.monotonic() - began < 200


def test_work_goes_on_when_the_server_comes_back(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3.write("x", b"1")
    there = os.environ["AWS_ENDPOINT_URL"]

    def comes_back(seconds: float) -> None:
        os.environ["AWS_ENDPOINT_URL"] = there

    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    monkeypatch.setattr(
        outages, "time", SimpleNamespace(monotonic=time.monotonic, sleep=comes_back)
    )
    assert Storage(s3.uri).commit("y", b"2")  # a commit makes its client anew at every attempt
    assert s3.read("y") == b"2"
    assert f"{s3.uri} does not answer; trying for 300 s" in caplog.text


def test_a_refusal_is_not_repeated(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.STRANGER)
    began = time.monotonic()
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        Storage(f"{s3.uri}/other").read("x")
    missing = Storage("s3://no-such-bucket/x")
    with pytest.raises(Exception, match="NoSuchBucket"):
        missing.commit("x", b"1")
    assert time.monotonic() - began < 200  # OUTAGE_SECONDS are 300


def test_a_tracker_that_is_away_is_told_from_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(mlflow.MlflowException) as away:
        mlflow.MlflowClient(NOBODY).create_run("0")
    assert is_outage(away.value)
    with pytest.raises(NoAnswerError) as no_answer:
        MlflowTracker(NOBODY, experiment="e", artifact_root=None)
    assert is_outage(no_answer.value)
    assert not is_outage(mlflow.MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST))
    assert not is_outage(ValueError("a bad value")) and not is_outage(KeyError("a mistake of ours"))
