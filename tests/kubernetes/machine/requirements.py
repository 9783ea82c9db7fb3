"""Refuse early, in one line, what this machine lacks."""

import importlib.util
import os
import shutil
from pathlib import Path

from .settings import MEMORY_NEEDED_GIB

# program: the Debian package that has it
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "socat": "socat",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "sysctl": "procps",
    "curl": "curl",
}
CNI_PLUGINS = Path("/usr/lib/cni")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "systemd")


def missing() -> str | None:
    """Return one line about what is missing and what to do, or None."""
    if os.geteuid() != 0:
        return "a Kubernetes needs root (network namespaces, cgroups, mounts): run it as root"
    if shutil.which("go") is None:
        return "go is not on PATH: install Go >= 1.25; the binaries are built from Go modules"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if not (CNI_PLUGINS / "bridge").exists():
        absent.append("bridge (CNI)")
    if absent:
        packages = {PROGRAMS.get(name, "containernetworking-plugins") for name in absent}
        return (
            f"{', '.join(absent)} not found: apt-get install --no-install-recommends "
            f"{' '.join(sorted(packages))}"
        )
    if importlib.util.find_spec("swift") is None:
        return "swift, the S3 server, is not installed: use the Python of `make setup`"
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if available < MEMORY_NEEDED_GIB << 20:
        return (
            f"{available / 2**20:.1f} GiB of memory are available, and the cluster needs "
            f"{MEMORY_NEEDED_GIB}: end other programs first"
        )
    controllers = [name for name in CONTROLLERS if not Path(f"/sys/fs/cgroup/{name}").exists()]
    if controllers:
        return (
            f"the cgroup v1 hierarchies {', '.join(controllers)} are not mounted: only this "
            "layout was tried (each in /sys/fs/cgroup/NAME)"
        )
    return None
