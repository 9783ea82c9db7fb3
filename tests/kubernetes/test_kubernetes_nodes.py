"""The usual installation, overlays/autoscaling, on several nodes with PostgreSQL and S3 outside.

It needs `KUBERNETES_NODES=system,cpu,cpu make kubernetes-up`; the sizes of the overlay are those of
fitting.py. Nodes get a label or a device only, so that each scenario finds them as it needs them.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from comparison import SEARCH, TRAINING, Left, disturbed
from installation import devices, install, label
from scenarios import (
    NAMESPACE,
    WORKER,
    Submission,
    environment,
    head_pod,
    is_ready,
    kubectl,
    pods,
    record,
    until,
)

from tests.kubernetes.machine import node, processes
from tests.kubernetes.machine.settings import Node, node_memory_gib

pytestmark = pytest.mark.kubernetes

AWAY_SECONDS = 60
POOLS = {"node1": "system", "node2": "cpu", "node3": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def installation() -> Iterator[None]:
    """Install the overlay in place of what is there."""
    found = kubectl("get", "nodes", "-o", "name").split()
    if len(found) < len(POOLS):
        pytest.skip("one node: KUBERNETES_NODES=system,cpu,cpu make kubernetes-up")
    with install("autoscaling"):
        yield


@pytest.fixture(autouse=True)
def nodes() -> Iterator[None]:
    """Give every node its pool, and take it back from a drain."""
    for name, pool in POOLS.items():
        label(name, pool)
    yield
    for name in POOLS:
        kubectl("uncordon", name)
        devices(name, 0)


def test_workers_run_on_the_nodes_of_their_pool(sweep: Submission, alone: Left) -> None:
    """Submit to a head alone: two workers on two nodes, every file on S3, no GPU node wanted."""
    places = []

    def look() -> None:
        until(lambda: len(_placed(WORKER)) == 2, what="two workers", seconds=600)
        places.extend(_placed(WORKER))

    disturbed("several nodes: undisturbed", sweep, alone, during=SEARCH, do=look)
    assert sorted(places) == [("cpu", "node2"), ("cpu", "node3")]


def test_a_drained_node_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Drain a node with a worker during the training, as an upgrade of the node does."""
    # The pod of the fixture `alone` has no controller, so a drain would refuse the whole node.
    flags = ("--delete-emptydir-data", "--timeout=300s", f"--pod-selector={WORKER}")
    disturbed(
        "several nodes: node drained",
        sweep,
        alone,
        during=TRAINING,
        do=lambda: kubectl("drain", _busy_node(), *flags),
    )


@pytest.mark.parametrize("part", ["kubelet", "containerd"])
def test_a_killed_agent_of_a_node_changes_no_number(
    sweep: Submission, alone: Left, part: str
) -> None:
    """Kill the agent of a node with a worker, and start it again after a minute."""

    def kill() -> None:
        broken = _node(_busy_node())
        pid = processes.running(f"{broken.name}-{part}")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        time.sleep(AWAY_SECONDS)
        node.start_runtime(broken)
        node.start_agents(broken, memory_gib=node_memory_gib())

    disturbed(f"several nodes: {part} killed", sweep, alone, during=TRAINING, do=kill)


def test_a_worker_ended_for_its_memory_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Let the kernel end a worker's raylet because its pod takes more than its limit."""
    killed = []

    def fill() -> None:
        worker = pods(WORKER)[0]["metadata"]["name"]
        # The kernel ends the process with the highest score. The raylet is given the most, and what
        # fills the pod's memory is spread over many processes.
        code = """
import os, pathlib, time
for place in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (place / "comm").read_text().strip() == "raylet":
            (place / "oom_score_adj").write_text("1000")
    except OSError:
        pass
for _ in range(40):
    if os.fork() == 0:
        kept = bytearray(b"x") * (64 << 20)
        time.sleep(20)
        os._exit(0)
    time.sleep(0.05)
time.sleep(20)
"""
        kubectl("-n", NAMESPACE, "exec", worker, "--", "python", "-c", code, check=False)
        killed.append(worker)
        until(
            lambda: worker not in [one["metadata"]["name"] for one in pods(WORKER)],
            what="the end of the worker's pod",
        )

    disturbed("several nodes: worker ended for its memory", sweep, alone, during=TRAINING, do=fill)
    assert killed


def test_work_for_gpus_gets_spot_pods_first_and_work_for_cpus_none() -> None:
    """Ask Ray for a GPU where one spot node has one, then where only an on-demand node has one."""
    until(lambda: not pods(WORKER), what="no workers of an earlier sweep")
    label("node3", "gpu-spot")
    devices("node3", 1)
    with _gpu_task() as task:
        until(lambda: _running(WORKER), what="a worker")
        assert _placed(WORKER) == [("gpu-spot", "node3")]
        assert "gpu-spot" in task.communicate(timeout=300)[0]
    until(lambda: not pods(WORKER), what="no workers")
    label("node3", "gpu-on-demand")
    began = time.monotonic()
    with _gpu_task() as task:
        until(lambda: _placed(WORKER), what="a pod of spot")
        assert _placed(WORKER) == [("gpu-spot", None)]
        until(lambda: _running(WORKER), what="a pod that runs", seconds=1500)
        waited = time.monotonic() - began
        assert ("gpu-on-demand", "node3") in _placed(WORKER)
        assert "gpu-on-demand" in task.communicate(timeout=300)[0]
    record("spot pod pending", seconds_until_on_demand=round(waited))
    until(lambda: not pods(WORKER), what="no workers", seconds=900)


@contextmanager
def _gpu_task() -> Iterator[subprocess.Popen[str]]:
    """Run a task that wants a GPU from the head; it prints the label of its node."""
    code = """
import ray
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_gpus=1)
def where():
    return ray.get_runtime_context().get_node_labels()
print(ray.get(where.remote()))
"""
    where = ("kubectl", "-n", NAMESPACE, "exec", head_pod(), "--", "python", "-c", code)
    with subprocess.Popen(where, stdout=subprocess.PIPE, text=True, env=environment()) as task:
        yield task


def _node(name: str) -> Node:
    return Node(int(name.removeprefix("node")), POOLS[name])


def _busy_node() -> str:
    """Return the name of a node that has a worker."""
    return next(name for _, name in _placed(WORKER) if name)


def _running(selector: str) -> list[str]:
    return [one["metadata"]["name"] for one in pods(selector) if is_ready(one)]


def _placed(selector: str) -> list[tuple[str, str | None]]:
    """Return group and node of every pod; no node for one that waits for it."""
    return [
        (one["metadata"]["labels"]["ray.io/group"], one["spec"].get("nodeName"))
        for one in pods(selector)
    ]
