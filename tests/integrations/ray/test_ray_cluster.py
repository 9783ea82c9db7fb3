"""A real Ray of two nodes, one of them with (logical) GPUs: where work without GPUs goes,
and what the metrics pages show.
"""

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listeners import free_port
from small_rays import OBJECT_STORE, cluster_of_one_node
from sweeps import filled

from sat_ray.integrations.ray.prometheus import SweepMetrics, training_shown
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.resources.nodes import POOL_LABEL
from sat_ray.sweep.tasks import EVALUATE, SEARCH, TRAIN
from sat_ray.training.loop import EpochReport, TrainingState

pytestmark = pytest.mark.fault  # minutes: a Ray of several nodes
POOLS = ("gpu-spot", "cpu")
DEADLINE_SECONDS, REPORT_MS = 150.0, 3000  # a gauge not set again within two reports is gone


@pytest.fixture(scope="module")
def metrics_pages() -> Iterator[list[str]]:
    """Start a GPU node as the head and a CPU node beside it;
    return the addresses of their metrics pages.
    """
    ports = [free_port() for _ in POOLS]
    settings: dict[str, Any] = {"num_cpus": 2, "object_store_memory": OBJECT_STORE}
    labels = [{POOL_LABEL: pool} for pool in POOLS]
    head = settings | {"num_gpus": 1, "labels": labels[0], "metrics_export_port": ports[0]}
    head |= {
        "include_dashboard": True,
        "dashboard_port": free_port(),
        "_system_config": {"metrics_report_interval_ms": REPORT_MS},
    }
    with cluster_of_one_node(**head) as cluster:
        import ray

        cluster.add_node(**settings, labels=labels[1], metrics_export_port=ports[1])
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield [f"http://127.0.0.1:{port}/metrics" for port in ports]


def pool_here() -> str:
    """Return the pool of the node that this runs on."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return str(next(node["Labels"][POOL_LABEL] for node in ray.nodes() if node["NodeID"] == here))


def test_work_without_gpus_goes_to_cpu_nodes_alone_though_gpu_nodes_have_idle_cpus(
    metrics_pages: list[str], tmp_path: Path
) -> None:
    from ray import tune

    from sat_ray.integrations.ray.search.trials import run_trials
    from sat_ray.integrations.ray.tasks import result, stage_task

    stages = [stage_task(pool_here, name=f"stage {number}") for number in range(4)]
    assert {result(ref) for ref in stages} == {"cpu"}

    def trial(config: dict[str, Any]) -> None:
        (tmp_path / f"{config['number']}-{pool_here()}").touch()
        tune.report({"val_robust_accuracy": 0.0})

    space = {"number": tune.grid_search(list(range(3)))}
    run_trials(trial, space, ResourceSettings())
    assert sorted(path.name for path in tmp_path.glob("?-*")) == ["0-cpu", "1-cpu", "2-cpu"]
    run_trials(trial, {"number": 9}, ResourceSettings(gpus_per_trial=0.5))
    assert [path.name for path in tmp_path.glob("9-*")] == ["9-gpu-spot"]


def commit_toy_sweep(records: Records, *, scores: dict[str, float]) -> None:
    """Commit a trial and a training for each activation, and one evaluation shard;
    10 accelerator-seconds each.
    """
    for activation, score in scores.items():
        payload = {
            "configuration": {"activation": activation},
            "name": activation,
            "until": 1,
            "accelerator_seconds": 10.0,
        }
        for stage, value in ((SEARCH, score - 0.1), (TRAIN, score)):
            records.commit(
                stage,
                activation,
                **filled(stage, payload | {"val_robust_accuracy": value}),
                seconds=10.0,
            )
    records.commit(EVALUATE, "shard", **filled(EVALUATE, {}), seconds=10.0)


def test_the_metrics_pages_show_a_sweep_under_the_names_that_the_dashboard_queries(
    metrics_pages: list[str], tmp_path: Path
) -> None:
    import ray

    records = Records(Storage.at(tmp_path / "digits-1"))
    commit_toy_sweep(records, scores={"relu": 0.3})
    metrics = SweepMetrics(RECIPES["digits_smoke"](), Records(records.storage), planned_shards=24)
    commit_toy_sweep(records, scores={"silu": 0.5, "gelu": 0.4})

    @ray.remote(num_cpus=1)
    def train(uri: str) -> None:
        with training_shown(Records(Storage(uri)), trial=True) as after_epoch:
            after_epoch(
                EpochReport(
                    epoch=0, metrics={"throughput/images_per_second": 123.0}, state=TrainingState()
                )
            )
            time.sleep(600)

    running = [train.remote(records.storage.uri) for _ in range(2)]
    expected = {
        'ray_sat_ray_val_robust_accuracy{activation="relu"}': 0.3,
        'ray_sat_ray_val_robust_accuracy{activation="silu"}': 0.5,
        'ray_sat_ray_val_robust_accuracy{activation="gelu"}': 0.4,
        # two trials and two trainings; what was there at the start is not counted again
        "ray_sat_ray_accelerator_seconds_total{}": 40.0,
        # of 6 models with 2 shards each, for PGD and for the strong attacks
        "ray_sat_ray_evaluation_shards_left{}": 23.0,
        "ray_sat_ray_trials_running{}": 2.0,
        "ray_sat_ray_train_images_per_second{}": 246.0,
    }
    try:
        assert _await(metrics_pages, metrics, expected) == expected
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
    gone = {
        name: value
        for name, value in expected.items()
        if "running" not in name and "per_second" not in name
    }
    assert (
        _await(metrics_pages, metrics, gone) == gone
    )  # a killed process takes what it showed with it
    metrics.planned_shards = 4  # the search has left two models
    fewer = gone | {"ray_sat_ray_evaluation_shards_left{}": 3.0}
    assert _await(metrics_pages, metrics, fewer) == fewer


def _await(pages: list[str], metrics: SweepMetrics, expected: dict[str, float]) -> dict[str, float]:
    deadline, found = time.monotonic() + DEADLINE_SECONDS, dict[str, float]()
    while found != expected and time.monotonic() < deadline:
        time.sleep(0.5)
        metrics.update()
        found = _shown(pages)
    return found


def _shown(pages: list[str]) -> dict[str, float]:
    """Return our metrics summed over processes and nodes, by name and activation, as `sum by
    (sweep, activation)` would.
    """
    sums: dict[str, float] = {}
    for page in pages:
        text = urllib.request.urlopen(page, timeout=10).read().decode()
        for name, labels, value in re.findall(
            r'(?m)^(ray_sat_ray_\w+)\{(.*sweep="digits-1".*)\} (\S+)$', text
        ):
            tag = "".join(re.findall(r'activation="\w+"', labels))
            sums[f"{name}{{{tag}}}"] = sums.get(f"{name}{{{tag}}}", 0.0) + float(value)
    return sums
