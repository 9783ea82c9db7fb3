"""The trainings of a sweep, as they follow from its config: trials and finalists."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sat_ray.data.choices import check_augmentation, check_extra_count, extra_images
from sat_ray.models.spec import ModelSpec, require_spread
from sat_ray.sweep.records.store import Stage, numerical_environment
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.sweep.tasks import SEARCH, TRAIN, Dataset, TrainingTask
from sat_ray.training.progressive_resizing import check_resizing
from sat_ray.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sat_ray.sweep.config import SweepConfig
    from sat_ray.sweep.execute.initial_weights import InitialWeights


def training_task(
    config: "SweepConfig",
    dataset: Dataset,
    configuration: SearchPoint,
    *,
    stage: Stage,
    seed: int,
    training: TrainingSettings,
) -> TrainingTask:
    """Describe one training of the sweep.

    Raises ValueError where the images are too small for its augmentation or its first size.
    """
    manifest = dataset.manifest
    resources = config.resources
    images = config.images_per_epoch(manifest["splits"]["train"])
    if training.global_batch_size > images:
        raise ValueError(
            f"training.global_batch_size must be at most the {images} training images, "
            f"got {training.global_batch_size}"
        )
    check_augmentation(training.augmentation, manifest["shape"], randaugment=training.randaugment)
    check_resizing(training, manifest["shape"])
    if dataset.extra is not None:
        group = training.batchnorm_group_size
        of_group = extra_images(config.data.extra_share, group)
        check_extra_count(
            dataset.extra.manifest["splits"]["train"],
            needed=of_group * training.global_batch_size // group,
        )
    require_spread(manifest["std"])
    threads = resources.cpus_per_worker if stage is TRAIN else resources.cpus_per_trial
    environment = numerical_environment(
        accelerator=resources.accelerator,
        threads=threads,
        slots=config.evaluation.slots,
        compiled=training.compile,
    )
    spec = _model_spec(config, manifest, configuration)
    return TrainingTask(
        stage=stage,
        configuration=configuration,
        seed=seed,
        until=training.epochs,
        model=spec,
        initial_weights=_initial_weights(config, spec),
        training=training,
        threat_model=config.threat_model,
        slots=config.evaluation.slots,
        dataset=dataset,
        environment=environment,
        loading=config.data.loading,
        extra_share=config.data.extra_share,
    )


def _initial_weights(config: "SweepConfig", spec: ModelSpec) -> "InitialWeights | None":
    if not config.model.initial_weights:
        return None
    from sat_ray.sweep.execute.initial_weights import initial_weights  # loads torch

    return initial_weights(config.model.initial_weights, spec)


def _model_spec(
    config: "SweepConfig", manifest: dict[str, Any], configuration: SearchPoint
) -> ModelSpec:
    return ModelSpec(
        name=config.model.name,
        activation=configuration.activation,
        alpha=configuration.alpha,
        num_classes=len(manifest["class_names"]),
        in_channels=manifest["shape"][0],
        stem=config.model.stem,
        width=config.model.width,
        mean=tuple(manifest["mean"]),
        std=tuple(manifest["std"]),
        zero_gamma=config.model.zero_gamma,
        **config.model.of_timm(manifest["shape"]),
    )


def trial_task(
    config: "SweepConfig",
    dataset: Dataset,
    configuration: SearchPoint,
    *,
    seed: int | None = None,
) -> TrainingTask:
    """Describe one search trial, up to the longest rung. seed: None for the search's first."""
    return training_task(
        config,
        dataset,
        configuration,
        stage=SEARCH,
        seed=config.search.seeds[0] if seed is None else seed,
        training=config.trial_training(),
    )


def final_tasks(
    config: "SweepConfig", dataset: Dataset, finalists: Sequence[SearchPoint]
) -> list[TrainingTask]:
    """Describe every training of the leaderboard, one per finalist and seed."""
    return [
        training_task(config, dataset, finalist, stage=TRAIN, seed=seed, training=config.training)
        for seed in config.final.seeds
        for finalist in finalists
    ]


def planned_trials(config: "SweepConfig") -> int:
    """Return how many records the grid will commit; for asynchronous search, the most it can."""
    if config.search.method != "grid":
        return config.search.samples * len(config.search.rungs)
    sizes, total = [len(group.members) for group in groups(config.search.points())], 0
    for number in range(len(config.search.rungs)):
        total += sum(size for size in sizes if number == 0 or size > 1)
        sizes = [max(1, -(-size // config.search.reduction)) for size in sizes]
    return total * len(config.search.seeds)
