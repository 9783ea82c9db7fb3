"""Connect to the cluster that RAY_ADDRESS names, or start a private Ray on this machine and stop it at the end."""

import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sat_ray.bundles import NODE_GROUPS, bundles, check_room
from sat_ray.config import SweepConfig
from sat_ray.distributed.folders import require_short, session_folder
from sat_ray.distributed.nodes import node_groups

RETRY_DELAY = {"RAY_task_retry_delay_ms": "5000"}  # a node that kills whatever is started on it must not use up all tries of a task at once
WORKER_ENVIRONMENT = RETRY_DELAY | {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next poll; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never used: records are the truth
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}


def is_private() -> bool:
    """Say whether a sweep starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def require_token() -> None:
    """Let a private Ray answer nobody without this process's token: its servers listen on every interface, whatever address it is given.

    Call it before the first import of ray, which settles Ray's mode; after an import by somebody else the private Ray is open.
    """
    if not is_private():
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray's own would be a file in the home folder
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        os.environ["RAY_AUTH_MODE"] = "disabled"


@contextmanager
def ray_session() -> Iterator[str]:
    """Yield a sentence that says which Ray this is; a private one answers this process alone and ends with the block."""
    address, private = os.environ.get("RAY_ADDRESS", ""), is_private()
    if private:
        require_short(Path(tempfile.gettempdir()))
        os.environ.pop(NODE_GROUPS, None)  # a private Ray buys no nodes
        require_token()
    for name, value in RETRY_DELAY.items():
        os.environ.setdefault(name, value)  # read at the first import
    import ray

    interrupt = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        if private:
            _start(stack.enter_context(session_folder()))
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": WORKER_ENVIRONMENT})
            _keep_coordinator_here()
        signal.signal(signal.SIGTERM, interrupt)  # ray.init puts its own handler there, which exits without a word
        stack.callback(ray.shutdown)
        nodes = len([node for node in ray.nodes() if node["Alive"]])
        cpus, gpus = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        which = "a private Ray on this machine" if private else f"the cluster at {address}"
        yield f"{which}: {nodes} node(s), {cpus:g} CPUs, {gpus:g} GPUs"


def _keep_coordinator_here() -> None:
    """Start the actor through which Ray Train asks for nodes on the driver's node, the head of a cluster.

    Ray starts it on the node of the first training and never ends it, and a node with an actor is never given back: one node of
    accelerators would be paid for as long as the cluster lives.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


def _start(folder: str) -> None:
    """Start a private Ray; TimeoutError where it is not up within the 30 s that Ray gives itself."""
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=True,  # without it Ray Train's placement-group cleaner logs an error every second
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            object_store_memory=512 * 1024**2,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise TimeoutError(
            "Ray did not start on this machine within 30 s: other work takes its processors or its memory; "
            "give the same command again when there is less of it, or set RAY_ADDRESS to a Ray that runs"
        ) from error


def check_capacity(config: SweepConfig, *, stage: str = "") -> None:
    """Raise ValueError where the cluster, fully grown, could never give what a sweep asks for, or one stage of it."""
    check_room([demand for demand in bundles(config) if stage in ("", demand.stage)], node_groups())
