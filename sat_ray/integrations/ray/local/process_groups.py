"""How the workers of a training find each other.

torch.distributed's TCPStore listens on every interface and answers whoever connects. On one machine
no port is needed: a file does, in a folder that only this user may enter, and gloo and nccl are
kept on the loopback interface. On several machines Ray Train's own way is used, where the store
listens on the node of rank 0; network policies or security groups have to keep strangers away.
"""

import os
import socket
from typing import Any

from sat_ray.integrations.ray.local.session_folders import GROUPS
from sat_ray.integrations.ray.private import group_through_files

GROUP_FOLDER = "SAT_RAY_GROUP_FOLDER"


def local_group_environment(folder: str) -> dict[str, str]:
    """Return the environment of a private Ray's workers. folder: the session's."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    loopback = {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]} if names else {}
    return {GROUP_FOLDER: f"{folder}/{GROUPS}"} | loopback


def group_config(backend: str, *, timeout_s: int) -> Any:
    """Return Ray Train's description of a process group. backend: gloo or nccl."""
    from ray.train.torch import TorchConfig

    folder = os.environ.get(GROUP_FOLDER, "")
    if not folder:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return group_through_files(backend, timeout_s=timeout_s, folder=folder)
