"""Let Ray's own autoscaler (v2) buy nodes for the real `pipelines/sweep.py` and give them back.

    joined_seconds    from the start of the command until the driver has joined the cluster
    asked_seconds     until the autoscaler has requested its first node
    up_seconds        until all nodes were up
    sweep_seconds     until the command had ended
    empty_seconds     from then until the last node was gone, the idle timeout included

A node is a process of this machine with one (logical) CPU, so buying one costs nothing and starting
it costs seconds: this measures what the sweep requests and releases, not how fast a cloud is. The
head has no CPUs, as in cluster/, and every connection needs the token of the cluster. The sweep is
digits_smoke; --quick: a smaller one.
"""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import psutil

NODES, IDLE_SECONDS, POLL_SECONDS = 2, 15.0, 0.5
PATIENCE_SECONDS = 900.0  # for the head to start and for nodes to go, on a machine that may be busy
MEMORY = 100 * 1024**2  # of a node's object store
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
GROUP = "cpu"
JOINED = "] Ray: "  # what the driver prints once it has joined
SMALLER = (
    *(
        "--name",
        "smaller",
        "--search.activations",
        "relu",
        "parametric_softplus:5,10",
        "--search.pairs",
        "--search.rungs",
        "1",
        "2",
    ),
    *(
        "--final.seeds",
        "0",
        "--training.epochs",
        "2",
        "--evaluation.steps",
        "10",
        "--evaluation.step-size",
        "16/255",
    ),
)
HEAD_ID = "f" * 51 + "00000"  # what Ray's provider of local nodes calls the head
COMMANDS = (
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
)


@dataclass(frozen=True)
class Seen:
    """The state of the autoscaler at one time.

    seconds: since the command's start; asked: nodes requested and not up; up: nodes of the group.
    """

    seconds: float
    asked: int
    up: int


class AutoscalingRay:
    """A head without CPUs and an autoscaler that may start up to NODES nodes on this machine.

    It ends only the processes that it started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, common.free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.processes: dict[int, psutil.Process] = {}

    def start(self) -> None:
        """Start the head and wait until its autoscaler answers."""
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(_autoscaler_config(self.address)))
        words = [
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--num-cpus=0",
            "--num-gpus=0",
            f"--object-store-memory={MEMORY}",
        ]
        words += [
            f"--port={self.port}",
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.folder}",
            f"--autoscaling-config={config}",
        ]
        words += ["--include-dashboard=false", f"--ray-client-server-port={common.free_port()}"]
        local = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        local |= {
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_raylet_start_wait_time_s": "120",
        }
        with (self.folder / "head.log").open("wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", *words]
            started = subprocess.Popen(
                command,
                env=common.environment(**ONE_THREAD, **self.environment, **local),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.head = psutil.Process(started.pid)
        os.environ |= self.environment  # before the first import of ray, which fixes its mode
        _until(self._answers, what=f"the autoscaler of the head; see {self.folder}/head.log")

    def look(self) -> tuple[int, int]:
        """Return how many nodes are requested but not up yet, and how many are up."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        self._remember()
        status = get_cluster_status(self.address)
        up = [
            node
            for node in (*status.active_nodes, *status.idle_nodes)
            if node.ray_node_type_name == GROUP
        ]
        launching = sum(
            launch.count for launch in status.pending_launches if launch.ray_node_type_name == GROUP
        )
        return launching + sum(
            node.ray_node_type_name == GROUP for node in status.pending_nodes
        ), len(up)

    def raylets(self) -> int:
        """Count the node processes that run, the head included."""
        self._remember()
        return sum(
            process.name() == "raylet"
            for process in self.processes.values()
            if process.is_running()
        )

    def stop(self) -> None:
        """End every process of the cluster."""
        self._remember()
        for process in self.processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self.processes.values()), timeout=10)

    def _remember(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self.head, *self.head.children(recursive=True)):
                self.processes.setdefault(process.pid, process)

    def _answers(self) -> bool:
        if not self.head.is_running() or self.head.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(
                f"the head did not start: {(self.folder / 'head.log').read_text()[-2000:]}"
            )
        if "Ray runtime started" not in (self.folder / "head.log").read_text():
            return False
        with contextlib.suppress(
            Exception
        ):  # Ray raises many kinds of errors while the autoscaler starts
            return self.look() == (0, 0)
        return False


def _autoscaler_config(address: str) -> dict[str, Any]:
    """Return what `ray start --autoscaling-config` reads;
    the provider starts nodes as processes.
    """
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": HEAD_ID,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    }
    group = {
        "resources": {"CPU": 1, "object_store_memory": MEMORY},
        "labels": {"sat-ray/pool": "cpu"},
    }
    types = {
        GROUP: group | {"node_config": {}, "min_workers": 0, "max_workers": NODES},
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    }
    empty: dict[str, Any] = {f"{name}_commands": [] for name in COMMANDS}
    empty |= {
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    return empty | {
        "cluster_name": "local",
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "max_workers": NODES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "file_mounts_sync_continuously": False,
    }


def _until(true: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


@contextmanager
def autoscaling_ray() -> Iterator[AutoscalingRay]:
    """Start the cluster, and end it with the block."""
    with tempfile.TemporaryDirectory(
        prefix="sat_ray-", ignore_cleanup_errors=True
    ) as folder:  # short, for the sockets below it
        cluster = AutoscalingRay(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@dataclass(frozen=True)
class Watched:
    """A sweep that was watched. joined, ended: seconds since the command's start; seen:
    until the last node was gone.
    """

    seen: list[Seen]
    joined: float
    ended: float


def run_sweep(cluster: AutoscalingRay, storage: Path, options: tuple[str, ...]) -> Watched:
    """Run the sweep as a driver of the cluster,
    then wait until no node is left. RuntimeError if the sweep fails.
    """
    groups = json.dumps([{"pool": "cpu", "nodes": NODES, "CPU": 1}])
    to_it = {"RAY_ADDRESS": cluster.address, "SAT_RAY_NODE_GROUPS": groups}
    environment = common.environment(**ONE_THREAD, **cluster.environment, **to_it)
    command = [
        sys.executable,
        str(common.ROOT / "pipelines" / "sweep.py"),
        "digits_smoke",
        "--storage",
        str(storage),
        *options,
    ]
    log, seen, joined, started = cluster.folder / "sweep.log", list[Seen](), 0.0, time.monotonic()

    def look() -> Seen:
        seen.append(Seen(round(time.monotonic() - started, 1), *cluster.look()))
        return seen[-1]

    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ) as sweep,
    ):
        while sweep.poll() is None:
            joined = joined or (look().seconds if JOINED in log.read_text() else 0.0)
            look()
            time.sleep(POLL_SECONDS)
    ended = round(time.monotonic() - started, 1)
    print(log.read_text(), flush=True)
    if sweep.returncode:
        raise RuntimeError(f"the sweep ended with exit status {sweep.returncode}")
    _until(lambda: look().up == 0 and seen[-1].asked == 0, what="the last node to go")
    _until(lambda: cluster.raylets() == 1, what="the processes of the last node to end")
    return Watched(seen, joined, ended)


def figures_of(watched: Watched) -> dict[str, float]:
    """Return the five times; RuntimeError if not all nodes came up."""
    seen, ended = watched.seen, watched.ended
    asked = next((one.seconds for one in seen if one.asked or one.up), None)
    full = next((one.seconds for one in seen if one.up == NODES), None)
    if asked is None or full is None:
        raise RuntimeError(
            f"the autoscaler never had {NODES} nodes: at most {max(one.up for one in seen)}"
        )
    times = {
        "joined_seconds": watched.joined,
        "asked_seconds": asked,
        "up_seconds": full,
        "sweep_seconds": ended,
    }
    return times | {"empty_seconds": round(seen[-1].seconds - ended, 1)}


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", type=Path, metavar="FOLDER", help="keep the files of the sweep here"
    )


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, smoke=False, more=_own_options)
    about = common.machine()
    with (
        tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as scratch,
        autoscaling_ray() as cluster,
    ):
        before = cluster.look()
        watched = run_sweep(
            cluster, options.storage or Path(scratch), SMALLER if options.quick else ()
        )
    seen = watched.seen
    changes = [
        seen[0],
        *(
            now
            for last, now in itertools.pairwise(seen)
            if (last.asked, last.up) != (now.asked, now.up)
        ),
    ]
    details = {
        "nodes_before": before[1],
        "most_nodes": max(one.up for one in seen),
        "nodes_after": seen[-1].up,
        "idle_timeout_seconds": IDLE_SECONDS,
        "changes": {f"{number:02d}": asdict(one) for number, one in enumerate(changes)},
    }
    common.finish(
        "autoscaling: from no node to a sweep and back",
        figures_of(watched),
        details,
        about,
        path=options.json,
    )


if __name__ == "__main__":
    main()
