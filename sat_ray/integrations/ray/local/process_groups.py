"""How the workers of a training find each other: on one machine in a private folder, else as Ray
Train does it.

torch.distributed's TCPStore listens on every interface and answers whoever connects. On one machine
no port is needed: a file does, in a folder that only this user may enter, and gloo and nccl are
kept on the loopback interface. On several machines the store listens on the node of rank 0; network
policies or security groups have to keep strangers away."""

import os
import socket
import uuid
from dataclasses import dataclass
from typing import Any

from sat_ray.integrations.ray.local.session_folders import GROUPS

GROUP_FOLDER = "SAT_RAY_GROUP_FOLDER"


def local_group_environment(folder: str) -> dict[str, str]:
    """Return what the workers of a private Ray are told. folder: the session's, of this user
    alone."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    loopback = {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]} if names else {}
    return {GROUP_FOLDER: f"{folder}/{GROUPS}"} | loopback


def group_config(backend: str, *, timeout_s: int) -> Any:
    """Return Ray Train's description of a process group. backend: gloo or nccl."""
    from ray.train.torch import TorchConfig

    folder = os.environ.get(GROUP_FOLDER, "")
    if not folder:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return _local_config(backend, timeout_s=timeout_s, folder=folder)


def _local_config(backend: str, *, timeout_s: int, folder: str) -> Any:
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch import config as internal

    class LocalBackend(internal._TorchBackend):
        """Set up a process group through a file."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            """Let every worker join; a group that is started again meets in another file."""
            worker_group.execute(internal._set_torch_distributed_env_vars)
            meeting = f"file://{folder}/{uuid.uuid4().hex}"
            joining = [
                worker_group.execute_single_async(
                    rank,
                    internal._setup_torch_process_group,
                    backend=backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=meeting,
                    timeout_s=timeout_s,
                )
                for rank in range(len(worker_group))
            ]
            ray.get(joining)

    @dataclass
    class LocalConfig(TorchConfig):
        """A process group whose workers are on one machine."""

        @property
        def backend_cls(self) -> Any:
            """Return how it is set up."""
            return LocalBackend

    return LocalConfig(backend=backend, timeout_s=timeout_s)
