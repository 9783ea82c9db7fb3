"""Connect to the cluster that RAY_ADDRESS names, or start a private Ray on this machine and stop it at the end."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from sat_ray.config import SweepConfig

WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next poll; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never used: records are the truth
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}


@contextmanager
def ray_session() -> Iterator[str]:
    """Yield a sentence that says which Ray this is; a private one listens on loopback only and ends with the block."""
    address = os.environ.get("RAY_ADDRESS", "")
    private = not address or address == "local"
    if private:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else can reach it; the default would write a token into the home folder
    import ray

    if private:
        folder = tempfile.mkdtemp(prefix="sat_ray-")  # short: Ray puts unix sockets here, and their names may have 107 bytes
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
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": WORKER_ENVIRONMENT})
    try:
        nodes = len([node for node in ray.nodes() if node["Alive"]])
        cpus, gpus = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        which = "a private Ray on this machine" if private else f"the cluster at {address}"
        yield f"{which}: {nodes} node(s), {cpus:g} CPUs, {gpus:g} GPUs"
    finally:
        ray.shutdown()
        if private:
            shutil.rmtree(folder, ignore_errors=True)


def check_capacity(config: SweepConfig) -> None:
    """Raise ValueError where the cluster, fully grown, could never hold what the sweep asks for at once."""
    most = _largest_cluster()
    r = config.resources
    demands = {
        "resources.train_workers": (r.train_workers * r.cpus_per_worker, r.train_workers * r.gpus_per_worker),
        "resources.cpus_per_trial": (r.cpus_per_trial, r.gpus_per_trial),
        "resources.cpus_per_evaluation": (r.cpus_per_evaluation, r.gpus_per_evaluation),
    }
    for field, (cpus, gpus) in demands.items():
        if cpus > most["CPU"] or gpus > most["GPU"]:
            raise ValueError(
                f"{field}: {cpus:g} CPUs and {gpus:g} GPUs at once, but this cluster can never hold more than {most['CPU']:g} CPUs and "
                f"{most['GPU']:g} GPUs; lower it (for example --resources.train-workers {max(1, int(most['CPU']))}) or use a larger cluster"
            )


def _largest_cluster() -> dict[str, float]:
    """Return the CPUs and GPUs that the cluster can grow to: an autoscaler's maximum, else what is there."""
    import ray
    from ray._private.state import state as cluster_state

    now = ray.cluster_resources()
    try:
        most = cluster_state.get_max_resources_from_cluster_config() or {}
    except (AttributeError, RuntimeError):  # no public way to ask; without an autoscaler there is nothing to add
        most = {}
    return {name: float(max(now.get(name, 0), most.get(name, 0))) for name in ("CPU", "GPU")}
