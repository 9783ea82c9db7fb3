"""What a sweep has to compute: the tasks that follow from its config and its records."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sat_ray.attacks.spec import AttackSpec
from sat_ray.data.choices import check_augmentation, check_extra_count, extra_images
from sat_ray.data.class_names import extra_labels
from sat_ray.data.shards.manifest import SCHEMA_VERSION
from sat_ray.models.spec import ModelSpec, require_spread
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import Record, Records, Stage, numerical_environment
from sat_ray.sweep.search.model_selection import Validated, ranked
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.sweep.tasks import (
    CORRUPTIONS,
    SEARCH,
    STRONG,
    TRAIN,
    VALIDATE,
    CardTask,
    Dataset,
    EvaluationTask,
    TrainingTask,
    through_every_backward,
    user_defined_names,
)
from sat_ray.training.progressive_resizing import check_resizing
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.code_hash import code_hashes
from sat_ray.utils.import_string import is_reference, slug
from sat_ray.utils.serialization import content_hash

if TYPE_CHECKING:
    from sat_ray.sweep.config import DataSettings, SweepConfig
    from sat_ray.sweep.execute.initial_weights import InitialWeights


def dataset_uri(config: "SweepConfig", root: Storage) -> str:
    """Return the folder of the sweep's dataset; sweeps of the same data share it."""
    return data_uri(config.data, root)


def data_uri(data: "DataSettings", root: Storage) -> str:
    """Return the folder of a dataset."""
    name = data.dataset
    code = (
        {"code": code_hashes((name.partition(":")[0],))} if is_reference(name) else {}
    )  # other code, perhaps other images
    key = content_hash({"data": data.identity(), "schema": SCHEMA_VERSION, **code})[:8]
    return root.full(f"data/{slug(name)}-{key}")


def prepared_dataset(config: "SweepConfig", root: Storage) -> Dataset | None:
    """Open the sweep's dataset, with its extra images; None where any of it is not prepared.

    CorruptShardError names what is damaged, ValueError what does not fit.
    """
    dataset = Dataset.open(dataset_uri(config, root))
    more = config.data.extra_data()
    if dataset is None or more is None:
        return dataset
    extra = Dataset.open(data_uri(more, root))
    return None if extra is None else with_extra(dataset, extra)


def with_extra(dataset: Dataset, extra: Dataset) -> Dataset:
    """Return a dataset with extra images; ValueError where these have another shape or classes."""
    extra_labels(dataset.manifest, extra.manifest)
    return replace(dataset, extra=extra)


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


def attacks_for(config: "SweepConfig", configuration: SearchPoint) -> tuple[AttackSpec, ...]:
    """Return the attacks that count for a configuration.

    They go through the true backward pass, and through the smooth one where training used it.
    """
    return tuple(
        spec
        for base in config.evaluation_attacks()
        for spec in through_every_backward(base, configuration)
    )


def card_tasks(
    config: "SweepConfig",
    dataset: Dataset,
    trained: Sequence[Record],
    strong: Mapping[str, float],
) -> list[CardTask]:
    """Describe the cards of the candidates for champion, best by validation first.

    A candidate is the best seed of a configuration.

    strong: of `strong_on_validation`, by model name; {} in a sweep without strong attacks, which
    ranks by training's own validation.
    """
    configurations = [SearchPoint.of(record.payload) for record in trained]
    scored = [
        Validated(
            configuration.name,
            record.payload["seed"],
            strong.get(record.payload["name"], record.payload["val_robust_accuracy"]),
        )
        for configuration, record in zip(configurations, trained, strict=True)
    ]
    return [
        CardTask(
            checkpoint=trained[index].payload["path"],
            checkpoint_sha256=trained[index].payload["sha256"],
            name=trained[index].payload["name"],
            attack=replace(config.evaluation_attacks()[0], gradient="float32", name=""),
            configuration=configurations[index],
            settings=config.card,
            seed=config.evaluation.seed,
            slots=config.evaluation.slots,
            dataset=dataset,
            environment=_evaluation_environment(config),
            user_defined=tuple(
                user_defined_names(configurations[index], model=config.model.name, dataset=dataset)
            ),
        )
        for _, index in ranked(scored)[: config.card.candidates]
    ]


def strong_attacks_for(
    config: "SweepConfig",
    configuration: SearchPoint,
    *,
    num_classes: int,
) -> tuple[AttackSpec, ...]:
    """Return the strong attacks on a configuration, through every backward pass of its training.

    () where no model meets any.
    """
    bases = config.strong_attacks(num_classes)
    return tuple(spec for base in bases for spec in through_every_backward(base, configuration))


def evaluation_tasks(
    config: "SweepConfig", dataset: Dataset, trained: Record
) -> list[EvaluationTask]:
    """Cut the test split of one trained model into shards for the evaluate stage."""
    attacks = attacks_for(config, SearchPoint.of(trained.payload))
    return _tasks(config, dataset, trained, split="test", attacks=attacks)


def strong_tasks(config: "SweepConfig", dataset: Dataset, trained: Record) -> list[EvaluationTask]:
    """Describe the strong attacks on what survives each task of `evaluation_tasks`.

    [] where no model meets any.
    """
    attacks = _strong_attacks_on(config, dataset, trained)
    return [
        replace(task, attacks=attacks, stage=STRONG, cascade=True, after=task)
        for task in evaluation_tasks(config, dataset, trained)
        if attacks
    ]


def corruption_tasks(
    config: "SweepConfig", dataset: Dataset, trained: Record
) -> list[EvaluationTask]:
    """Cut the test split of one trained model for the accuracy under common corruptions.

    [] where it is not measured. Raises ValueError for images that are neither gray nor RGB.
    """
    if CORRUPTIONS.name not in config.evaluation.stages():
        return []
    if (channels := dataset.manifest["shape"][0]) not in (1, 3):
        raise ValueError(
            f"evaluation.corruptions must be False for images of {channels} channels, got True: "
            "the corruptions are of gray and RGB images"
        )
    tasks = _tasks(config, dataset, trained, split="test", attacks=())
    return [replace(task, stage=CORRUPTIONS) for task in tasks]


def validation_tasks(
    config: "SweepConfig", dataset: Dataset, trained: Record
) -> list[EvaluationTask]:
    """Cut the validation split of one trained model, for PGD and the strong attacks in one cascade.

    The champion is chosen by what that cascade leaves. [] where no model meets strong attacks.
    """
    configuration, strong = (
        SearchPoint.of(trained.payload),
        _strong_attacks_on(config, dataset, trained),
    )
    if not strong:
        return []
    pgd = through_every_backward(config.evaluation_attacks()[0], configuration)
    tasks = _tasks(config, dataset, trained, split="val", attacks=(*pgd, *strong))
    return [replace(task, stage=VALIDATE, cascade=True) for task in tasks]


def strong_on_validation(
    config: "SweepConfig",
    dataset: Dataset,
    trained: Sequence[Record],
    records: Records,
) -> dict[str, float] | None:
    """Return the share of validation images that survive PGD and the strong attacks, by model.

    {} in a sweep without strong attacks, None where some of it is not committed.
    """
    found: dict[str, float] = {}
    for record in trained:
        shards = [
            records.find(VALIDATE, task.key) for task in validation_tasks(config, dataset, record)
        ]
        made = [shard.payload for shard in shards if shard is not None]
        if len(made) < len(shards):
            return None
        if made:
            images = sum(payload["n"] for payload in made)
            found[record.payload["name"]] = sum(payload["robust"] for payload in made) / images
    return found


def _strong_attacks_on(
    config: "SweepConfig", dataset: Dataset, trained: Record
) -> tuple[AttackSpec, ...]:
    classes = len(dataset.manifest["class_names"])
    return strong_attacks_for(config, SearchPoint.of(trained.payload), num_classes=classes)


def _tasks(
    config: "SweepConfig",
    dataset: Dataset,
    trained: Record,
    *,
    split: str,
    attacks: tuple[AttackSpec, ...],
) -> list[EvaluationTask]:
    """Cut a split, or the images drawn from it, into tasks of nearly equal size."""
    count = dataset.manifest["splits"][split]
    evaluated = config.evaluation.evaluated(count)
    configuration = SearchPoint.of(trained.payload)
    task = EvaluationTask(
        checkpoint=trained.payload["path"],
        checkpoint_sha256=trained.payload["sha256"],
        name=trained.payload["name"],
        attacks=attacks,
        first=0,
        last=0,
        seed=config.evaluation.seed,
        slots=config.evaluation.slots,
        dataset=dataset,
        environment=_evaluation_environment(config),
        split=split,
        sample=evaluated if evaluated < count else None,
        user_defined=tuple(
            user_defined_names(configuration, model=config.model.name, dataset=dataset)
        ),
    )
    bounds = shard_bounds(evaluated, config.evaluation.shard_size)
    return [replace(task, first=first, last=last) for first, last in bounds]


def shard_bounds(count: int, shard_size: int) -> list[tuple[int, int]]:
    """Cut `count` rows into spans (first, last) of nearly equal size, at most `shard_size`."""
    shards = -(-count // shard_size)
    return list(itertools.pairwise(count * i // shards for i in range(shards + 1)))


def _evaluation_environment(config: "SweepConfig") -> dict[str, Any]:
    asked = config.resources
    return numerical_environment(
        accelerator=asked.accelerator,
        threads=asked.cpus_per_evaluation,
        slots=config.evaluation.slots,
    )


def planned_trials(config: "SweepConfig") -> int:
    """Return how many records the grid will commit; for asynchronous search, the most it can."""
    if config.search.method != "grid":
        return config.search.samples * len(config.search.rungs)
    sizes, total = [len(group.members) for group in groups(config.search.points())], 0
    for number in range(len(config.search.rungs)):
        total += sum(size for size in sizes if number == 0 or size > 1)
        sizes = [max(1, -(-size // config.search.reduction)) for size in sizes]
    return total * len(config.search.seeds)
