"""What is done to a running sweep: one function per kind,
in a table. Each returns how many units of work it interrupted.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from faults.parts import S3, Mlflow, Node, Postgres, until
from faults.victim import WORKING, Victim

STAGES = ("search", "train", "evaluate")


@dataclass
class Scene:
    """Everything that a fault may touch. outage: seconds that a server stays away."""

    victim: Victim
    s3: S3
    mlflow: Mlflow
    postgres: Postgres | None
    random: random.Random
    outage: float

    def at_work(self, title: str) -> list[tuple[Node, int]]:
        """Return the processes with such a title and their nodes."""
        return [
            (node, pid) for node in self.victim.cluster.everyone() for pid in node.workers(title)
        ]


def _kill(scene: Scene, title: str) -> int:
    _, pid = scene.random.choice(until(lambda: scene.at_work(title), what=title))
    os.kill(pid, signal.SIGKILL)
    return 1


def train_worker(scene: Scene) -> int:
    """Kill one of the training workers."""
    return _kill(scene, WORKING["train"])


def trial(scene: Scene) -> int:
    """Kill the actor of a search trial."""
    return _kill(scene, r"ray::ImplicitFunc")


def evaluation_worker(scene: Scene) -> int:
    """Kill a worker in the middle of a shard."""
    return _kill(scene, WORKING["evaluate"])


def stage(scene: Scene) -> int:
    """Kill the task that runs the search, while its trials train."""
    trials = len(scene.at_work(WORKING["search"]))
    _kill(scene, r"ray::search")
    return trials


def train_stage(scene: Scene) -> int:
    """Kill the task that runs the training stage, while its workers train."""
    return _kill(scene, r"ray::train\b")


def train_controller(scene: Scene) -> int:
    """Kill the controller of the training workers."""
    return _kill(scene, r"ray::TrainController")


def evaluate_stage(scene: Scene) -> int:
    """Kill the task that runs the evaluation, while its shards are attacked."""
    shards = len(scene.at_work(WORKING["evaluate"]))
    _kill(scene, r"ray::evaluate\b(?!_)")
    return shards


def node(scene: Scene) -> int:
    """Cut the power of a worker node; another joins ten seconds later."""
    lost = scene.random.choice(scene.victim.cluster.nodes)
    scene.victim.cluster.crash(lost)
    time.sleep(10)
    scene.victim.cluster.add()
    return 1


def drain(scene: Scene) -> int:
    """Announce to a worker node that it goes in twenty seconds; another joins then."""
    lost = scene.random.choice(scene.victim.cluster.nodes)
    (service,) = lost.workers(r"\S+ -m ray\.scripts\.scripts start")
    os.kill(service, signal.SIGTERM)
    until(lambda: lost.process.poll() is not None, what="the end of a node that drains")
    scene.victim.cluster.crash(lost)
    scene.victim.cluster.add()
    return 1


def head(scene: Scene) -> int:
    """Cut the power of every node, start a new cluster, and give the same command again."""
    scene.victim.cluster.down()
    scene.victim.process.wait()
    scene.victim.cluster.up()
    scene.victim.start()
    return 2


def mlflow_down(scene: Scene) -> int:
    """Kill the MLflow server and start it again after the outage."""
    scene.mlflow.kill()
    time.sleep(scene.outage)
    scene.mlflow.start()
    return 0


def s3_down(scene: Scene) -> int:
    """Kill the S3 server and start it again after the outage."""
    scene.s3.kill()
    time.sleep(scene.outage)
    scene.s3.start()
    return 0


def postgres_restart(scene: Scene) -> int:
    """Stop PostgreSQL at once, closing every connection, and start it again."""
    assert scene.postgres is not None
    scene.postgres.restart()
    return 0


def slow_node(scene: Scene) -> int:
    """Let a worker node run a tenth of the time for half a minute."""
    host = scene.random.choice(scene.victim.cluster.nodes).host
    for _ in range(30):
        host.signal(signal.SIGSTOP)
        time.sleep(0.9)
        host.signal(signal.SIGCONT)
        time.sleep(0.1)
    return 0


def full_disk(scene: Scene) -> int:
    """Fill a worker node's disk to the last byte, for as long as the outage."""
    disk = scene.random.choice(scene.victim.cluster.nodes).host.disk()
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    time.sleep(scene.outage)
    ballast.unlink()
    return 0


def network_cut(scene: Scene) -> int:
    """Drop every packet between the two worker nodes during the outage, and no other packet."""
    one, other = (node.host for node in scene.victim.cluster.nodes)
    one.cut(other)
    time.sleep(scene.outage)
    one.cut(other, on=False)
    return 0


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    stage: where it strikes; bound: of the work that it makes be done again; alone: in a sweep of
    its own; lasting: as long as its stage.
    """

    name: str
    stage: str
    inject: Callable[[Scene], int]
    bound: str
    alone: bool = False
    lasting: bool = False


TRIAL, CHECKPOINT, SHARD, NOTHING = (
    "one rung of the trial",
    "one validation interval of the job",
    "one shard",
    "nothing",
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("trial", "search", trial, TRIAL),
        Kind("train-worker", "train", train_worker, CHECKPOINT),
        Kind("evaluation-worker", "evaluate", evaluation_worker, SHARD),
        Kind("stage", "search", stage, "one rung of each trial that runs"),
        Kind("train-stage", "train", train_stage, CHECKPOINT),
        Kind("train-controller", "train", train_controller, CHECKPOINT),
        Kind("evaluate-stage", "evaluate", evaluate_stage, "each shard that was attacked"),
        Kind("node", "train", node, CHECKPOINT),
        Kind(
            "drain",
            "train",
            drain,
            "the work since the last check for an announcement, seconds",
        ),
        Kind("mlflow-down", "evaluate", mlflow_down, NOTHING),
        Kind("s3-down", "search", s3_down, NOTHING),
        Kind("network-cut", "train", network_cut, CHECKPOINT),
        Kind("postgres-restart", "evaluate", postgres_restart, NOTHING),
        Kind("slow-node", "search", slow_node, NOTHING),
        Kind("full-disk", "train", full_disk, NOTHING, lasting=True),
        Kind("head", "evaluate", head, "one shard of each evaluation task that runs", alone=True),
    )
}


def at_work(victim: Victim, stage: str) -> bool:
    """Wait until processes of a stage work and, but for the search, something of it is stored;
    False where it was over before.
    """

    def found() -> str:
        if victim.over(stage):
            return "over"
        works = any(node.workers(WORKING[stage]) for node in victim.cluster.everyone())
        return "working" if works and (stage == "search" or victim.committed(stage)) else ""

    answer = until(found, what=f"work of the stage {stage}", seconds=2400)
    time.sleep(0.5)
    return bool(answer == "working")
