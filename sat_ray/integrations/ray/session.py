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

from sat_ray.integrations.ray.address import VARIABLE, check_address
from sat_ray.integrations.ray.local.process_groups import GROUP_FOLDER, local_group_environment
from sat_ray.integrations.ray.local.session_folders import RAY, require_short, session_folder
from sat_ray.integrations.ray.nodes import node_groups
from sat_ray.storage.uris import redacted
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.records.renewed_lease import LEASE
from sat_ray.sweep.resources import NODE_GROUPS, bundles, check_room

RETRY_DELAY = {
    "RAY_task_retry_delay_ms": "5000"
}  # a node that kills whatever is started on it must not use up all tries of a task at once
WORKER_ENVIRONMENT = (
    RETRY_DELAY
    | {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next poll; the default is 2 s
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never used: records are the truth
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
)


def is_private() -> bool:
    """Say whether a sweep starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def require_token() -> None:
    """Let a private Ray answer nobody without this process's token: other users of the machine reach its ports.

    Call it before the first import of ray, which settles Ray's mode; after an import by somebody else the private Ray is open.
    """
    if not is_private():
        return
    os.environ.setdefault(
        "RAY_AUTH_TOKEN", secrets.token_hex(32)
    )  # Ray's own would be a file in the home folder
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
    else:
        check_address(address)
    for name, value in RETRY_DELAY.items():
        os.environ.setdefault(name, value)  # read at the first import
    import ray

    interrupt = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        if private:
            folder = stack.enter_context(session_folder())
            _start(folder)
            os.environ |= {GROUP_FOLDER: local_group_environment(folder)[GROUP_FOLDER]}
            stack.callback(os.environ.pop, GROUP_FOLDER, None)
        else:
            _join(address)
            _keep_coordinator_here()
        signal.signal(
            signal.SIGTERM, interrupt
        )  # ray.init puts its own handler there, which exits without a word
        stack.callback(ray.shutdown)
        nodes = len([node for node in ray.nodes() if node["Alive"]])
        cpus, gpus = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        which = (
            "a private Ray on this machine" if private else f"the cluster at {redacted(address)}"
        )
        yield f"{which}: {nodes} node(s), {cpus:g} CPUs, {gpus:g} GPUs"


def _join(address: str) -> None:
    """Connect to a cluster; ValueError, in one line, where it refuses this driver."""
    import ray

    environment = {"env_vars": _worker_environment()}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=environment,
        )
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        reason = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise ValueError(
            f"{VARIABLE} is {address}, and Ray refuses this driver: {reason}"
        ) from error


def _worker_environment() -> dict[str, str]:
    """Return what every worker needs in its environment: with it each checks the driver's lease."""
    return WORKER_ENVIRONMENT | {name: os.environ[name] for name in (LEASE,) if name in os.environ}


def _keep_coordinator_here() -> None:
    """Start the actor through which Ray Train asks for nodes on the driver's node, the head of a cluster.

    Ray starts it on the node of the first training and never ends it, and a node with an actor is never given back: one node of
    accelerators would be paid for as long as the cluster lives.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


def _start(folder: str) -> None:
    """Start a private Ray on the loopback interface; TimeoutError where it is not up within the 30 s that Ray gives itself."""
    import ray
    from ray._private import ray_constants

    # Ray replaces a loopback address by one that others reach, and then listens on every interface,
    # unless it was built for a system whose clusters it does not support.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
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
            runtime_env={"env_vars": _worker_environment() | local_group_environment(folder)},
            _temp_dir=f"{folder}/{RAY}",
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise TimeoutError(
            "Ray did not start on this machine within 30 s: other work takes its processors or its memory; "
            "give the same command again when there is less of it, or set RAY_ADDRESS to a Ray that runs"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def check_capacity(config: SweepConfig, *, stage: str = "") -> None:
    """Raise ValueError where the cluster, fully grown, could never give what a sweep asks for, or one stage of it."""
    check_room([demand for demand in bundles(config) if stage in ("", demand.stage)], node_groups())
