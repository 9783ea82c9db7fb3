"""What a sweep on the cluster left, compared with the same image in one pod without a cluster."""

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scenarios import NAMESPACE, Submission, head_pod, kubectl, python_in, record
from sweeps import numbers

from tests.kubernetes.machine.addons import storage_client

SEARCH, TRAINING, EVALUATION = r"\] search: ", r"\] train: ", r"\] evaluate: "
# From the line of the training until its workers are at work.
INTO_TRAINING_SECONDS = 12
DONE = re.compile(r"\] (\w+) done in .*: (\d+) computed, (\d+) reused")


@dataclass
class Left:
    """What a sweep left: rows without measured times, and outcome files by name."""

    rows: list[dict[str, Any]]
    outcomes: dict[str, bytes]

    @classmethod
    def of(cls, contents: dict[str, bytes]) -> "Left":
        """Take the files of a sweep by their names in its folder."""
        outcomes = {name: file for name, file in contents.items() if name.startswith("outcomes/")}
        return cls(numbers(json.loads(contents["leaderboard.json"])), outcomes)


def left_in(pod: str, folder: str, *, namespace: str = NAMESPACE) -> Left:
    """Return what the sweep in a folder that this pod mounts has left."""
    code = f"""
import base64, json, pathlib
folder = pathlib.Path({folder!r})
outcomes = [one for one in (folder / "outcomes").rglob("*") if one.is_file()]
contents = {{}}
for one in [folder / "leaderboard.json", *outcomes]:
    contents[str(one.relative_to(folder))] = base64.b64encode(one.read_bytes()).decode()
print(json.dumps(contents))
"""
    printed = json.loads(python_in(pod, code, namespace=namespace).splitlines()[-1])
    return Left.of({name: base64.b64decode(text) for name, text in printed.items()})


def left_by(name: str) -> Left:
    """Return what a sweep left in the storage that the cluster's ConfigMap names."""
    setting = ("configmap", "sat-ray-environment", "-o", "jsonpath={.data.SAT_RAY_STORAGE}")
    storage = kubectl("-n", NAMESPACE, "get", *setting)
    if not storage.startswith("s3://"):
        return left_in(head_pod(), f"{storage}/{name}")
    bucket, _, prefix = f"{storage.removeprefix('s3://')}/{name}/".partition("/")
    client = storage_client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    wanted = ("leaderboard.json", "outcomes/")
    return Left.of(
        {
            key.removeprefix(prefix): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
            if key.removeprefix(prefix).startswith(wanted)
        }
    )


def begin(sweep: Submission, *, stage: str) -> None:
    """Start a sweep and wait until a stage has begun; a training, until it has computed a while."""
    sweep.start().wait_for(stage)
    if stage == TRAINING:
        time.sleep(INTO_TRAINING_SECONDS)


def disturbed(
    scenario: str, sweep: Submission, alone: Left, *, during: str, do: Callable[[], None]
) -> None:
    """Do something once a stage has begun, and compare what the sweep leaves."""
    begin(sweep, stage=during)
    do()
    finish(scenario, sweep, alone)


def again(scenario: str, first: Submission, alone: Left) -> None:
    """Give the same command until it is not refused: a job that still runs holds the sweep."""
    first.stop_observing()
    for attempt in range(10):
        head_pod()
        log = first.log.with_name(f"again-{attempt}.log")
        second = Submission(first.name, (), log, began=first.began, events=first.events).start()
        if second.process.wait(timeout=2400) == 0:
            counts = {
                stage: f"{reused} of {int(made) + int(reused)}"
                for stage, made, reused in DONE.findall(second.said())
            }
            reused = ", ".join(f"{stage} {count}" for stage, count in counts.items())
            finish(scenario, second, alone, reused=reused)
            return
        second.stop_observing()
        time.sleep(20)
    raise AssertionError(f"{scenario}: the same command never succeeded: {second.said()[-3000:]}")


def finish(scenario: str, sweep: Submission, alone: Left, **more: Any) -> None:
    """Wait for the sweep's end and for its last worker's; compare what it left."""
    try:
        sweep.finish()
        sweep.wait_for_no_workers()
        left = left_by(sweep.name)
        record(scenario, **sweep.measured(), equal_numbers=left == alone, **more)
    finally:
        sweep.stop_observing()
    assert left.rows == alone.rows
    assert left.outcomes == alone.outcomes
