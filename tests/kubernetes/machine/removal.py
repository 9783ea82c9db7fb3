"""End everything that the cluster started, and remove what it wrote and mounted."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import network, node, processes
from .settings import CGROUP, STATE, Node


def remove() -> None:
    """Remove the cluster; nothing happens where none is."""
    for found in _nodes():
        for part in ("kubelet", "netpol", "proxy"):
            processes.stop(f"{found.name}-{part}")
        node.end_containers(found)
    _end_groups()
    for name in processes.names():
        processes.stop(name)
    _unmount()
    network.disconnect()
    _remove_groups()
    node.restore_tunables()
    shutil.rmtree(STATE, ignore_errors=True)


def _nodes() -> list[Node]:
    """Return the nodes that exist, whatever is configured now."""
    return [Node(int(folder.name[4:]), "") for folder in STATE.glob("node[0-9]*")]


def _end_groups() -> None:
    """End what is left in the cluster's cgroups: only containers are ever put there."""
    for _ in range(50):
        listed = Path("/sys/fs/cgroup/pids", CGROUP).rglob("cgroup.procs")
        pids = {int(pid) for file in listed for pid in file.read_text().split()}
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def _unmount() -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(mounts):
        if place.startswith(f"{STATE}/"):
            subprocess.run(["umount", "--lazy", place], check=False)


def _remove_groups() -> None:
    for hierarchy in node.HIERARCHIES.iterdir():
        root = hierarchy / CGROUP
        groups = sorted(root.rglob("*/"), key=lambda path: len(path.parts), reverse=True)
        for group in [*groups, root]:
            if group.is_dir():
                group.rmdir()
