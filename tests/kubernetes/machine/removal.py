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
    network.disconnect()
    _remove_groups()
    node.restore_tunables()
    left = _unmount()
    if left:
        raise SystemExit(f"{', '.join(left)} could not be unmounted: unmount them, then again")
    shutil.rmtree(STATE, ignore_errors=True)


def _nodes() -> list[Node]:
    """Return the nodes that exist, whatever is configured now."""
    folders = [file for file in STATE.glob("node[0-9]*") if file.is_dir()]
    return [Node(int(folder.name.removeprefix("node")), "") for folder in folders]


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


def _unmount() -> list[str]:
    """Unmount everything below the cluster's folder; return what stays mounted."""
    for place in reversed(_mounts()):
        subprocess.run(["umount", place], check=False)
    return _mounts()


def _mounts() -> list[str]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [place for place in mounts if place.startswith(f"{STATE}/")]


def _remove_groups() -> None:
    for hierarchy in node.HIERARCHIES.iterdir():
        root = hierarchy / CGROUP
        groups = sorted(root.rglob("*/"), key=lambda path: len(path.parts), reverse=True)
        for group in [*groups, root]:
            if group.is_dir():
                group.rmdir()
