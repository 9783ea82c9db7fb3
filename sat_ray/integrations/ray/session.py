"""Connect to the cluster that RAY_ADDRESS names, or start a private Ray here and stop it after."""

import logging
import os
import secrets
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sat_ray.integrations.ray.address import VARIABLE, check_address
from sat_ray.integrations.ray.local.process_groups import GROUP_FOLDER, local_group_environment
from sat_ray.integrations.ray.local.session_folders import RAY, require_short, session_folder
from sat_ray.integrations.ray.nodes import node_groups
from sat_ray.integrations.ray.private import (
    CONNECT_TRIES,
    GROUP_START_SECONDS,
    keep_coordinator_here,
    on_loopback_alone,
    signals_after_connecting,
)
from sat_ray.storage.uris import redacted
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.records.renewed_lease import LEASE
from sat_ray.sweep.resources.bundles import bundles
from sat_ray.sweep.resources.nodes import NODE_GROUPS, check_room

# a node that kills whatever is started on it must not use up all tries of a task at once
RETRY_DELAY = {"RAY_task_retry_delay_ms": "5000"}
WORKER_ENVIRONMENT = {
    **RETRY_DELAY,
    # a report waits for the next poll; the default is 2 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    GROUP_START_SECONDS: "600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's own snapshots are never used: records are the truth
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}
# no node of a private Ray is announced to go, so that no process of each training has to look
OF_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def is_private() -> bool:
    """Say whether a sweep starts a Ray of its own."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def require_token() -> None:
    """Let a private Ray answer nobody without this process's token.

    Other users of the machine reach its ports. Call it before the first import of ray, which
    settles Ray's mode; where something else imported ray before, the private Ray is open.
    """
    if not is_private():
        return
    # Ray's own would be a file in the home folder
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        os.environ["RAY_AUTH_MODE"] = "disabled"


@contextmanager
def ray_session() -> Iterator[str]:
    """Yield a sentence that says which Ray this is.

    A private one answers this process alone and ends with the block.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    private = is_private()
    if private:
        require_short(Path(tempfile.gettempdir()))
        os.environ.pop(NODE_GROUPS, None)  # a private Ray buys no nodes
        require_token()
    else:
        check_address(address)
    for name, value in RETRY_DELAY.items():
        os.environ.setdefault(name, value)  # read at the first import
    import ray

    with ExitStack() as stack:
        if private:
            folder = stack.enter_context(session_folder())
            _start(folder)
            os.environ |= {GROUP_FOLDER: local_group_environment(folder)[GROUP_FOLDER]}
            stack.callback(os.environ.pop, GROUP_FOLDER, None)
        else:
            _join(address)
            keep_coordinator_here()
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
    # the address answered just now; with Ray's default of 20, ten minutes where a token is wrong
    os.environ.setdefault(CONNECT_TRIES, "4")
    try:
        with signals_after_connecting():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=environment,
            )
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise ValueError(
            f"{VARIABLE} is {redacted(address)}, and Ray refuses this driver: {refusal(error)}"
        ) from error


def refusal(error: Exception) -> str:
    """Return in one line why Ray refuses a driver; what to do where its token is the reason."""
    with_causes = "".join(traceback.format_exception(error))
    if "AuthenticationError" in with_causes:
        return (
            "it has another token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _worker_environment() -> dict[str, str]:
    """Return what every worker needs in its environment: with it each checks the driver's lease."""
    return WORKER_ENVIRONMENT | {name: os.environ[name] for name in (LEASE,) if name in os.environ}


def _start(folder: str) -> None:
    """Start a private Ray on the loopback interface.

    TimeoutError where it is not up within the 30 s that Ray gives itself.
    """
    import ray

    environment = _worker_environment() | local_group_environment(folder) | OF_ONE_MACHINE
    try:
        with on_loopback_alone(), signals_after_connecting():
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                # ten processes that nobody looks at; what they would clean up after a killed
                # training `remove_orphans` does
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                object_store_memory=512 * 1024**2,
                runtime_env={"env_vars": environment},
                _temp_dir=f"{folder}/{RAY}",
                _node_ip_address="127.0.0.1",
            )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise TimeoutError(
            "Ray did not start on this machine within 30 s: other work takes its processors or its "
            "memory; give the same command again when there is less of it, or set RAY_ADDRESS to a "
            "Ray that runs"
        ) from error


def check_capacity(config: SweepConfig, *, stage: str = "") -> None:
    """Raise ValueError where the cluster, fully grown, has no room for a sweep or one stage."""
    check_room([demand for demand in bundles(config) if stage in ("", demand.stage)], node_groups())
