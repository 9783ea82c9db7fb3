"""The sweep that faults are put into: its command, where it stands, what it left,
and what must hold afterwards.
"""

import io
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sweeps import numbers

from faults.parts import BUCKET, ROOT, S3, Cluster, Mlflow

FLAGS = (
    *(
        "digits_smoke",
        "--search.activations",
        "parametric_softplus:5,10",
        "--search.pairs",
        "--search.rungs",
        "1",
    ),
    *("--final.seeds", "0", "--resources.train-workers", "2", "--training.epochs", "4"),
    *(
        "--evaluation.steps",
        "200",
        "--evaluation.step-size",
        "2/255",
        "--evaluation.images",
        "899",
        "--evaluation.shard-size",
        "225",
    ),
    *(
        "--card.images",
        "16",
        "--card.restarts",
        "2",
        "--card.cascade-steps",
        "3",
        "--card.cascade-queries",
        "20",
    ),
)
WORKING = {
    "search": r"ray::ImplicitFunc\.train",
    "train": r"ray::RayTrainWorker",
    "evaluate": r"ray::evaluate_and_commit",
}
"""Titles of the processes that do the work of a stage."""
LIMIT_SECONDS = 900.0
ALL_IMAGES, TEST_IMAGES = 1797, 899  # of digits


@dataclass
class Left:
    """What a sweep left: leaderboard rows without measured times, outcomes by file,
    seconds of each stage, committed work.
    """

    rows: list[dict[str, Any]]
    outcomes: dict[str, bytes]
    stages: dict[str, float]
    seconds: float
    units: dict[str, int] = field(default_factory=dict)


class Victim:
    """One sweep in storage of its own."""

    def __init__(self, name: str, cluster: Cluster, s3: S3, mlflow: Mlflow, *, log: Path) -> None:
        self.name, self.cluster, self.s3, self.mlflow, self.log = name, cluster, s3, mlflow, log
        self.process: subprocess.Popen[bytes]
        self.began = 0.0

    def start(self) -> None:
        """Start the driver on the head; the same command again goes on with the sweep."""
        command = self.cluster.head.host.command(
            [sys.executable, str(ROOT / "pipelines" / "sweep.py"), *FLAGS, "--name", self.name]
        )
        variables = self.cluster.environment | {
            "RAY_ADDRESS": self.cluster.address,
            "SAT_RAY_STORAGE": f"s3://{BUCKET}/runs",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=variables | {"PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.began = self.began or time.time()

    @property
    def ended(self) -> bool:
        """Say whether the driver has ended."""
        return self.process.poll() is not None

    def said(self) -> str:
        """Return what the driver printed."""
        return self.log.read_text(errors="replace")

    def over(self, stage: str) -> bool:
        """Say whether a stage has ended, or the whole sweep."""
        return self.ended or f"] {stage} done in" in self.said()

    def names(self, folder: str) -> dict[str, float]:
        """Return the files of a folder below the sweep's, with the time that each was written."""
        found = self.s3.client().list_objects_v2(
            Bucket=BUCKET, Prefix=f"runs/{self.name}/{folder}/"
        )
        return {
            one["Key"].rpartition("/")[2]: one["LastModified"].timestamp()
            for one in found.get("Contents", [])
        }

    def read(self, path: str) -> bytes:
        """Return a file of the sweep."""
        return bytes(
            self.s3.client()
            .get_object(Bucket=BUCKET, Key=f"runs/{self.name}/{path}")["Body"]
            .read()
        )

    def finish(self) -> Left:
        """Wait for the end and return what is left;
        AssertionError where the sweep failed or took too long.
        """
        status = self.process.wait(timeout=LIMIT_SECONDS)
        assert status == 0, f"sweep {self.name} ended with {status}:\n{self.said()[-3000:]}"
        said = re.findall(r"\] (\w+) done in (\d+) s", self.said())
        return Left(
            rows=numbers(json.loads(self.read("leaderboard.json"))),
            outcomes={name: self.read(f"outcomes/{name}") for name in self.names("outcomes")},
            stages={stage: float(seconds) for stage, seconds in said},
            seconds=time.time() - self.began,
            units={stage: len(self.names(f"state/{stage}")) for stage in WORKING},
        )

    def longest(self, stage: str) -> float:
        """Return the seconds that the longest unit of a stage took, from its records."""
        return max(
            float(json.loads(self.read(f"state/{stage}/{name}"))["seconds"])
            for name in self.names(f"state/{stage}")
        )

    def committed(self, stage: str) -> list[float]:
        """Return when the units of a stage were committed and, in training,
        when its checkpoints were written.
        """
        states = self.names("state/progress") if stage == "train" else {}
        written = [when for name, when in states.items() if name.endswith(".safetensors")]
        return sorted([*self.names(f"state/{stage}").values(), *written])


def faults_of(
    left: Left, undisturbed: Left, name: str, mlflow: Mlflow, cluster: Cluster
) -> list[str]:
    """Say in a sentence each what does not hold after a disturbed sweep;
    [] where everything does.
    """
    found = (
        []
        if left.rows == undisturbed.rows
        else ["the leaderboard's numbers differ from those of the undisturbed run"]
    )
    if left.outcomes != undisturbed.outcomes:
        found.append("outcome files differ from those of the undisturbed run, bit for bit")
    found += [
        f"outcomes {file}: {words}"
        for file, data in left.outcomes.items()
        if (words := _lost_or_doubled(data))
    ]
    if left.units != undisturbed.units:
        found.append(f"committed units are {left.units}, undisturbed {undisturbed.units}")
    return found + _runs_left(name, mlflow) + _groups_left(cluster)


def _lost_or_doubled(data: bytes) -> str:
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    first = Counter(
        row["image_id"] for row in rows if row["restart"] == 0
    )  # every image, clean errors too, has one row there
    doubled = [image for image, count in first.items() if count > 1]
    lost = TEST_IMAGES - len(first.keys() & set(range(ALL_IMAGES)))
    return f"{lost} images lost, {len(doubled)} doubled" if lost or doubled else ""


ASK = """
import json, sys, mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("digits_smoke").experiment_id
runs = client.search_runs([experiment], max_results=5000)
print(json.dumps([[run.info.status, run.data.tags["sat_ray.key"]] for run in runs]))
"""


def _runs_left(name: str, mlflow: Mlflow) -> list[str]:
    command = [sys.executable, "-c", ASK]
    from faults.parts import clean_environment

    done = subprocess.run(
        command,
        env=clean_environment(**mlflow.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [
        (status, key)
        for status, key in json.loads(done.stdout.splitlines()[-1])
        if f"/{name}" in key
    ]
    running = [key for status, key in runs if status != "FINISHED"]
    doubled = [key for key, count in Counter(key for _, key in runs).items() if count > 1]
    return [f"MLflow run {key} is not FINISHED" for key in running] + [
        f"MLflow run {key} is there twice" for key in doubled
    ]


GROUPS = """
import json, ray
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
print(json.dumps([one["state"] for one in ray.util.placement_group_table().values()]))
"""


def _groups_left(cluster: Cluster) -> list[str]:
    command = cluster.head.host.command(
        [sys.executable, "-c", GROUPS.format(address=cluster.address)]
    )
    done = subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, check=True
    )
    left = [state for state in json.loads(done.stdout.splitlines()[-1]) if state != "REMOVED"]
    return [f"{len(left)} placement groups are left"] if left else []
