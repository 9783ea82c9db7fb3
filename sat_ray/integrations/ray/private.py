"""Every private name of Ray that this project uses, with the reason; no other file has one.

Ray may change them without notice; a test fails where one is gone. The arguments of ray.init with
an underscore are documented there and stay with their caller.
"""

import signal
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

GROUP_START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""The variable for how long Ray Train waits for the workers of a group; only its error names it."""
CONNECT_TRIES = "RAY_gcs_server_port_wait_time_s"
"""The variable for how often Ray tries to reach a cluster, 30 s each; only its source names it."""


def draining_nodes() -> Collection[str]:
    """Return the ids of the nodes that take no more work and are about to go.

    Ray Train reads the same; its public `get_preemption_info` works inside its workers alone.
    """
    import ray

    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return found.keys()


def ended_jobs() -> tuple[str, ...]:
    """Return the ids of the jobs whose driver has ended; the public list needs a dashboard."""
    import ray

    return tuple(job["JobID"] for job in ray._private.state.jobs() if job["IsDead"])


def keep_coordinator_here() -> None:
    """Start the actor through which Ray Train requests nodes on this node, the head of a cluster.

    Ray starts it on the node of the first training and never ends it, and a node with an actor is
    never given back: one node of accelerators would be paid for as long as the cluster lives.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


@contextmanager
def on_loopback_alone() -> Iterator[None]:
    """Let a Ray that starts inside the block, at 127.0.0.1, listen on the loopback interface alone.

    Ray replaces a loopback address by one that others reach, and then listens on every interface,
    unless it was built for a system whose clusters it does not support.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def signals_after_connecting() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait while a ray.init inside the block connects this process.

    For half a second a handler of Ray's own, in C++, would print addresses and abort, and an
    exception in Python would leave half a connection, with which the process crashes at its end.
    """
    from ray._private import ray_constants, worker

    connect, without = worker.connect, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    heard = [one for one, handler in handlers.items() if handler != signal.SIG_IGN]

    def whole(*arguments: Any, **named: Any) -> Any:
        arrived: list[int] = []
        for one in heard:
            signal.signal(one, lambda number, frame: arrived.append(number))
        try:
            return connect(*arguments, **named)
        finally:
            # ray.init has put its own there for SIGTERM, which exits without a message
            for one, handler in handlers.items():
                signal.signal(one, handler)
            if arrived:
                raise KeyboardInterrupt

    worker.connect, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = whole, True
    try:
        yield
    finally:
        worker.connect, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = connect, without


def keep_keys_back() -> None:
    """Keep Ray Tune from naming the S3 keys in the runtime environment of its actors.

    Ray writes that environment to a log; every node has keys of its own.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def keep_text(key: str, text: str) -> None:
    """Keep a text under a key for as long as the cluster lives.

    Ray has no public place for one that needs neither a disk nor an actor, which would hold a node.
    """
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, text)


def kept_text(key: str) -> str:
    """Return the text that is kept under a key; "" where there is none."""
    from ray.experimental import internal_kv

    kept = internal_kv._internal_kv_get(key)
    return kept.decode() if kept else ""


def discard_text(key: str) -> None:
    """Keep nothing under a key any more."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key)


def group_through_files(backend: str, *, timeout_s: int, folder: str) -> Any:
    """Return Ray Train's description of a process group whose workers meet in a folder.

    Ray Train's own has a server on a port instead, and no public choice. backend: gloo or nccl.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import (
        _set_torch_distributed_env_vars,
        _setup_torch_process_group,
        _TorchBackend,
    )

    class FileBackend(_TorchBackend):
        """Set up a process group through a file."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            """Let every worker join; a group that is started again meets in another file."""
            worker_group.execute(_set_torch_distributed_env_vars)
            settings = {
                "backend": backend,
                "world_size": len(worker_group),
                "init_method": f"file://{folder}/{uuid.uuid4().hex}",
                "timeout_s": timeout_s,
            }
            joining = [
                worker_group.execute_single_async(
                    rank, _setup_torch_process_group, world_rank=rank, **settings
                )
                for rank in range(len(worker_group))
            ]
            ray.get(joining)

    @dataclass
    class FileConfig(TorchConfig):
        """A process group whose workers are on one machine."""

        @property
        def backend_cls(self) -> Any:
            """Return how it is set up."""
            return FileBackend

    return FileConfig(backend=backend, timeout_s=timeout_s)
