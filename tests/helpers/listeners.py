"""Which addresses this process and all its descendants listen on, from /proc."""

import contextlib
import os
import socket
from collections import defaultdict
from pathlib import Path

LISTEN = "0A"
IPV4_IN_IPV6 = "0000000000000000FFFF0000"
IPV6_LOOPBACK = "00000000000000000000000001000000"


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening() -> set[tuple[str, str, int]]:
    """Return (program, address in /proc's spelling, port) of every socket that waits for
    connections."""
    sockets = _sockets()
    found: set[tuple[str, str, int]] = set()
    for process in _descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            program = (process / "comm").read_text().strip()
            for link in (process / "fd").iterdir():
                found |= {(program, *sockets[inode]) for inode in _inode(link) if inode in sockets}
    return found


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches an address in /proc's spelling."""
    if len(address) == 8:
        return address.endswith("7F")
    return address == IPV6_LOOPBACK or (address.startswith(IPV4_IN_IPV6) and address.endswith("7F"))


def _inode(link: Path) -> list[str]:
    """Return the number of an open socket; nothing for a file, or where it was closed meanwhile."""
    try:
        target = os.readlink(link)
    except OSError:
        return []
    return [target[len("socket:[") : -1]] if target.startswith("socket:[") else []


def _sockets() -> dict[str, tuple[str, int]]:
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            if words[3] == LISTEN:
                found[words[9]] = (address, int(port, 16))
    return found


def _descendants(root: int) -> list[Path]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    waiting, found = [root], []
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        found.append(Path(f"/proc/{process}"))
    return found
