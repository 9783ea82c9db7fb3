"""What each stage of a sweep takes of a Ray cluster.

The same bundles are used at run time, printed by --dry-run, and given to Ray's scheduler by the
tests of the manifests.
"""

from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.sources.user_defined import counted
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.config.resources import Resources
from sat_ray.sweep.resources.nodes import Demand
from sat_ray.sweep.search.search_space import groups

STAGE_RESOURCES: Resources = {"CPU": 0}  # a stage itself mostly waits for what it started
SHARD_RESOURCES: Resources = {"CPU": 1}  # of a task that prepares one shard of a dataset


def bundles(config: SweepConfig) -> list[Demand]:
    """Return everything that a sweep takes of the cluster, in the order of its stages.

    `count` is the most that may wait at once.
    """
    asked = config.resources
    models = len(groups(config.search.points())) * len(config.final.seeds)
    source = counted(dataset_source(config.data.dataset), config.data.path)
    shards = config.evaluation.shards(source.test)
    trials = (
        len(config.search.points()) if config.search.method == "grid" else config.search.samples
    )
    return [
        Demand(stage="prepare", field="data.dataset", resources=SHARD_RESOURCES),
        Demand(
            stage="search",
            field="resources.cpus_per_trial",
            resources=asked.trial(),
            count=trials,
        ),
        Demand(
            stage="train",
            field=f"resources.train_{'groups' if asked.train_groups > 1 else 'workers'}",
            resources=asked.worker(),
            count=asked.train_workers,
            gang=True,
            at_once=asked.train_groups,
        ),
        Demand(
            stage="evaluate",
            field="resources.cpus_per_evaluation",
            resources=asked.evaluation(),
            count=models * shards,
            shared=asked.share_gpus,
        ),
        Demand(
            stage="card",
            field="resources.cpus_per_evaluation",
            resources=asked.evaluation(),
            count=models * config.evaluation.shards(source.val)
            if "validate" in config.evaluation.stages()
            else 1,
        ),
        Demand(stage="report", field="report", resources=STAGE_RESOURCES),
    ]


def most_evaluations(config: SweepConfig) -> int:
    """Return the most records that the evaluate stage can commit."""
    each = next(demand.count for demand in bundles(config) if demand.stage == "evaluate")
    return each * len(set(config.evaluation.stages()) - {"validate"})
