"""Check RAY_ADDRESS before Ray is imported: Ray waits many minutes for a cluster that is away."""

import os
import re
import socket
import time

from sat_ray.storage.uris import redacted

VARIABLE = "RAY_ADDRESS"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""What an HTTP/2 client sends first, with an empty SETTINGS frame; Ray's servers use gRPC."""
SETTINGS = 4  # the type of the frame that an HTTP/2 server answers with
SECONDS = 10.0
ADDRESSES = "HOST:PORT of the cluster's head (port 6379), auto, or local for a private Ray"


def check_address(address: str, *, timeout_seconds: float = SECONDS) -> None:
    """Raise ValueError, within `timeout_seconds` or little more, where no Ray answers there."""
    shown = redacted(address)
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"{VARIABLE} is {shown}, which is an address to submit jobs to; either submit the "
            f"command: ray job submit --address {shown} --working-dir . -- python ..., or set "
            f"{VARIABLE} to the HOST:PORT of the cluster's head (port 6379)"
        )
    if address == "auto":  # Ray looks on this machine, and fails at once if there is none
        return
    found = re.fullmatch(
        r"(ray://)?(?P<host>[^/:\s]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})", address
    )
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f"{VARIABLE} must be the address of a Ray, got {shown}; use {ADDRESSES}")
    reason = _reason(found["host"].strip("[]"), int(found["port"]), timeout_seconds)
    if reason:
        raise ValueError(
            f"{VARIABLE} is {shown}, and no Ray answers there ({reason}); start the cluster, "
            f"correct the variable, or unset it for a private Ray on this machine"
        )


def _reason(host: str, port: int, timeout_seconds: float) -> str:
    """Return why no Ray answers, "" where one does. With TLS only a connection is tried."""
    deadline = time.monotonic() + timeout_seconds
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""
            connection.sendall(PREFACE)
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            header = connection.recv(9, socket.MSG_WAITALL)
    except TimeoutError:
        return f"nothing within {timeout_seconds:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if len(header) == 9 and header[3] == SETTINGS:
        return ""
    return "another program listens on this port"
