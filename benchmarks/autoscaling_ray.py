"""A Ray cluster on this machine whose autoscaler (v2) starts and stops nodes by itself."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import psutil

NODES, IDLE_SECONDS, POLL_SECONDS = 2, 15.0, 0.5
PATIENCE_SECONDS = 900.0  # for the head to start and for nodes to go, on a machine that may be busy
MEMORY = 100 * 1024**2  # of a node's object store
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
GROUP = "cpu"
HEAD_ID = "f" * 51 + "00000"  # what Ray's provider of local nodes calls the head
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup")
STARTS = ("head_start_ray", "worker_start_ray")


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
        words = ["start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
        words += ["--disable-usage-stats", "--include-dashboard=false"]
        words += [f"--object-store-memory={MEMORY}", f"--temp-dir={self.folder}"]
        words += ["--node-ip-address=127.0.0.1", f"--port={self.port}"]
        words += [
            f"--autoscaling-config={config}",
            f"--ray-client-server-port={common.free_port()}",
        ]
        local = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
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
        until(self._answers, what=f"the autoscaler of the head; see {self.folder}/head.log")

    def look(self) -> tuple[int, int]:
        """Return how many nodes are requested but not up yet, and how many are up."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        self._remember()
        status = get_cluster_status(self.address)
        up = [*status.active_nodes, *status.idle_nodes]
        launching = sum(one.count for one in status.pending_launches if _of_group(one))
        return launching + sum(map(_of_group, status.pending_nodes)), sum(map(_of_group, up))

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
        # Ray raises many kinds of errors while the autoscaler starts
        with contextlib.suppress(Exception):
            return self.look() == (0, 0)
        return False


def _of_group(node: Any) -> bool:
    return bool(node.ray_node_type_name == GROUP)


def _autoscaler_config(address: str) -> dict[str, Any]:
    """Return what `ray start --autoscaling-config` reads: nodes are started as processes."""
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
    empty: dict[str, Any] = {f"{name}_commands": [] for name in (*COMMANDS, *STARTS)}
    empty |= {name: {} for name in ("auth", "docker", "file_mounts")}
    empty |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
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


def until(true: Callable[[], bool], *, what: str) -> None:
    """Wait until something is true; TimeoutError names it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


@contextmanager
def autoscaling_ray() -> Iterator[AutoscalingRay]:
    """Start the cluster, and end it with the block."""
    # the name is short, for the sockets below it
    with tempfile.TemporaryDirectory(prefix="sat_ray-", ignore_cleanup_errors=True) as folder:
        cluster = AutoscalingRay(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
