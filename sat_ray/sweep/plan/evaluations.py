"""The evaluations of a sweep, as they follow from its config and its trained models."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sat_ray.attacks.spec import AttackSpec
from sat_ray.sweep.records.store import Record, Records, Stage, numerical_environment
from sat_ray.sweep.search.model_selection import Validated, ranked
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import (
    CORRUPTIONS,
    STRONG,
    VALIDATE,
    CardTask,
    Dataset,
    EvaluationTask,
    through_every_backward,
    user_defined_names,
)

if TYPE_CHECKING:
    from sat_ray.sweep.config import SweepConfig


def attacks_for(config: "SweepConfig", configuration: SearchPoint) -> tuple[AttackSpec, ...]:
    """Return the attacks that count for a configuration.

    They go through the true backward pass, and through the smooth one where training used it.
    """
    return tuple(
        spec
        for base in config.evaluation_attacks()
        for spec in through_every_backward(base, configuration)
    )


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
    configuration = SearchPoint.of(trained.payload)
    strong = _strong_attacks_on(config, dataset, trained)
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


def open_tasks(tasks: Iterable[EvaluationTask], records: Records) -> Iterator[EvaluationTask]:
    """Yield the tasks whose keys are neither committed nor those of an earlier task.

    In the place of one that is committed, the task that it builds on, where that one's record is
    gone: a person moved it away, or its outcomes were lost.
    """
    known: dict[Stage, set[str]] = {}

    def begun(task: EvaluationTask) -> bool:
        if task.stage not in known:
            known[task.stage] = set(records.keys(task.stage))
        before = task.key in known[task.stage]
        known[task.stage].add(task.key)
        return before

    for task in tasks:  # a task also does the one that it builds on
        wanted = [one for one in (task, task.after) if one is not None and not begun(one)]
        yield from wanted[:1]
