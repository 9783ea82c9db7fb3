"""Hosts on one machine: network namespaces with an address and a disk of their own, on one bridge;
needs root on Linux.

Everything lives in namespaces of this process, so nothing outlasts it and nothing of it can meet
other work on the machine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BRIDGE, NETWORK = "faults0", "10.99.0"
OUTSIDE = f"{NETWORK}.1"  # where the servers listen that are not part of the cluster
INSIDE = "SAT_RAY_FAULTS_INSIDE"
# an Ethernet address that nobody has: a route that drops would be an error at the sender
NOWHERE = "02:00:00:00:00:01"
DISK = "/mnt"  # of every host: its own tmpfs
TOOLS = ("unshare", "nsenter", "ip", "mount", "hostname")
SETUP = """
hostname {name}
mount -t tmpfs -o size={mib}m tmpfs {disk}
printf '127.0.0.1 localhost\\n{address} {name}\\n' > {disk}/hosts
mount --bind {disk}/hosts /etc/hosts
echo up
exec sleep infinity
"""


def missing() -> str:
    """Say what this machine lacks for hosts of its own; "" if nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    return "".join(f"{tool} is not installed; " for tool in TOOLS if shutil.which(tool) is None)


def enter() -> None:
    """Start this very command again in network, mount and process namespaces of its own,
    which end with it; returns there.
    """
    if os.environ.get(INSIDE):
        _ip("link", "set", "lo", "up")
        subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True
        )  # ip keeps its names there
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        return
    flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvpe(
        "unshare", ["unshare", *flags, sys.executable, *sys.argv], os.environ | {INSIDE: "1"}
    )


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Host:
    """A machine with an address, a name that resolves to it, and a disk mounted at DISK. number: 2
    to 254, the end of its address.
    """

    def __init__(self, role: str, number: int) -> None:
        self.name, self.number, self.address = f"{role}{number}", number, f"{NETWORK}.{number}"
        self.link, self.nic = f"cable{number}", f"nic{number}"
        _ip("netns", "add", self.name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", self.nic)
        _ip("link", "set", self.link, "master", BRIDGE, "up")
        _ip("link", "set", self.nic, "netns", self.name)
        for words in (
            f"address add {self.address}/24 dev {self.nic}",
            f"link set {self.nic} up",
            "link set lo up",
        ):
            _ip("-n", self.name, *words.split())
        script = SETUP.format(name=self.name, address=self.address, disk=DISK, mib=512)
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-ec", script]
        self.init = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True
        )  # holds the namespaces open
        assert self.init.stdout is not None and self.init.stdout.readline() == "up\n", (
            f"{self.name} did not start"
        )

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` on this host."""
        return [
            "nsenter",
            "--target",
            str(self.init.pid),
            "--net",
            "--uts",
            "--mount",
            "--",
            *words,
        ]

    def processes(self) -> list[int]:
        """Return the ids of all processes that run on it."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def crash(self) -> None:
        """Pull the cable and kill everything at once: its peers are told nothing,
        as when a machine loses power.
        """
        _ip("link", "set", self.link, "down")
        while self.processes():
            self.signal(signal.SIGKILL)

    def cut(self, other: "Host", *, on: bool = True) -> None:
        """Lose every packet between two hosts, and tell neither; on=False mends it."""
        for here, there in ((self, other), (other, self)):
            way = (
                "neigh",
                "replace" if on else "del",
                there.address,
                "lladdr",
                NOWHERE,
                "dev",
                here.nic,
            )
            _ip("-n", here.name, *way, *(("nud", "permanent") if on else ()))

    def disk(self) -> Path:
        """Return the path of its disk, as seen from outside."""
        return Path(f"/proc/{self.init.pid}/root{DISK}")
