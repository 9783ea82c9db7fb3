"""What a sweep has to compute: every unit of work with its key, derived from the config and the hashes of its inputs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.spec import true_and_smooth
from sat_ray.augmentation import check_augmentation
from sat_ray.card import CardSettings
from sat_ray.config import SweepConfig, content_hash, to_json
from sat_ray.configuration import Configuration
from sat_ray.data.loading import Loading
from sat_ray.data.shards import MANIFEST, SCHEMA_VERSION, manifest_hash
from sat_ray.models import ModelSpec
from sat_ray.reference import is_reference, slug
from sat_ray.resizing import check_resizing
from sat_ray.selection import Validated, ranked
from sat_ray.source_code import code_hashes
from sat_ray.stages import OWN, Record, Records, Stage, numerical_environment, record_key
from sat_ray.storage import Storage
from sat_ray.threat import ThreatModel
from sat_ray.training_settings import TrainingSettings

SEARCH = Stage("search", 1, ("sat_ray.jobs",))
TRAIN = Stage("train", 1, ("sat_ray.jobs",))
EVALUATE = Stage("evaluate", 1, ("sat_ray.jobs",))
CARD = Stage("card", 1, ("sat_ray.jobs",))
STAGES = (SEARCH, TRAIN, EVALUATE, CARD)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared dataset. uri: its folder; hash: of its manifest, which covers every shard."""

    uri: str
    hash: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, uri: str) -> "Dataset | None":
        """Read the manifest in a folder; None where there is none."""
        try:
            manifest = Storage.at(uri).read_json(MANIFEST)
        except FileNotFoundError:
            return None
        return cls(uri=uri, hash=manifest_hash(manifest), manifest=manifest)


def dataset_uri(config: SweepConfig, root: Storage) -> str:
    """Return the folder of the sweep's dataset; sweeps of the same data share it."""
    name = config.data.dataset
    code = {"code": code_hashes((name.partition(":")[0],))} if is_reference(name) else {}  # other code, perhaps other images
    key = content_hash({"data": config.data.identity(), "schema": SCHEMA_VERSION, **code})[:8]
    return root.full(f"data/{slug(name)}-{key}")


def own_names(configuration: Configuration, *, model: str, dataset: "Dataset") -> list[str]:
    """Return the names, module:function, of the user's own code that a training rests on."""
    named = (configuration.activation, configuration.attacker_activation, model, str(dataset.manifest.get("dataset", "")))
    return sorted({name for name in named if is_reference(name)})


def _named(own: Sequence[str]) -> dict[str, Any]:
    return {OWN: list(own)} if own else {}


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Train one configuration with one seed up to an epoch. `inputs` says what determines the result, and `loading` is none of it."""

    stage: Stage
    configuration: Configuration
    seed: int
    until: int
    model: ModelSpec
    training: TrainingSettings
    threat_model: ThreatModel
    lanes: int
    dataset: Dataset
    environment: dict[str, Any]
    loading: Loading = "auto"

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the weights."""
        return _named(own_names(self.configuration, model=self.model.name, dataset=self.dataset)) | {
            "configuration": self.configuration.to_json(),
            "seed": self.seed,
            "until": self.until,
            "model": to_json(self.model),
            "training": to_json(self.training),
            "threat_model": to_json(self.threat_model),
            "dataset": self.dataset.hash,
            "environment": self.environment,
        }

    @property
    def key(self) -> str:
        """Name the record."""
        return record_key(self.stage, self.inputs)

    @property
    def name(self) -> str:
        """Name the job for people and files."""
        return f"{self.configuration.slug}-s{self.seed}"

    def at(self, until: int) -> "TrainingJob":
        """Return the same job up to another epoch."""
        return replace(self, until=until)


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Attack one shard of a split with one model.

    kind: what is at `checkpoint`, see `sat_ray.model_source`; checkpoint_sha256: the digest of its contents; first, last: rows of the
    split, or, where `sample` is a number, of that many images drawn from it by the seed; cascade: each attack takes what survived those
    before it; own: names of the user's own code that the model is made of.
    """

    checkpoint: str
    checkpoint_sha256: str
    name: str
    attacks: tuple[AttackSpec, ...]
    first: int
    last: int
    seed: int
    lanes: int
    dataset: Dataset
    environment: dict[str, Any]
    kind: str = "checkpoint"
    split: str = "test"
    sample: int | None = None
    cascade: bool = False
    own: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the outcomes; what a sweep never asks for is named only where it was asked for."""
        unusual = {"split": self.split != "test", "sample": self.sample is not None, "cascade": self.cascade, OWN: bool(self.own)}
        return {name: getattr(self, name) for name, named in unusual.items() if named} | {
            "weights": self.checkpoint_sha256,
            "attacks": [to_json(spec) for spec in self.attacks],
            "rows": [self.first, self.last],
            "seed": self.seed,
            "dataset": self.dataset.hash,
            "environment": self.environment,
        }

    @property
    def key(self) -> str:
        """Name the record."""
        return record_key(EVALUATE, self.inputs)


@dataclass(frozen=True, kw_only=True)
class CardTask:
    """Make the robustness card of one trained model on the validation split."""

    checkpoint: str
    checkpoint_sha256: str
    name: str
    attack: AttackSpec
    configuration: Configuration
    settings: CardSettings
    seed: int
    lanes: int
    dataset: Dataset
    environment: dict[str, Any]
    own: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the card."""
        return _named(self.own) | {
            "weights": self.checkpoint_sha256,
            "attack": to_json(self.attack),
            "configuration": self.configuration.to_json(),
            "settings": to_json(self.settings),
            "seed": self.seed,
            "dataset": self.dataset.hash,
            "environment": self.environment,
        }

    @property
    def key(self) -> str:
        """Name the record."""
        return record_key(CARD, self.inputs)

    def variants(self, spec: AttackSpec) -> list[AttackSpec]:
        """Return the attack through every backward pass that training used."""
        return through_every_backward(spec, self.configuration)


def training_job(
    config: SweepConfig, dataset: Dataset, configuration: Configuration, *, stage: Stage, seed: int, training: TrainingSettings
) -> TrainingJob:
    """Describe one training of the sweep. Raises ValueError where the images are too small for its augmentation or its first size."""
    manifest, resources = dataset.manifest, config.resources
    check_augmentation(training.augmentation, manifest["shape"])
    check_resizing(training, manifest["shape"])
    spec = ModelSpec(
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
    )
    threads = resources.cpus_per_worker if stage is TRAIN else resources.cpus_per_trial
    environment = numerical_environment(
        accelerator=resources.accelerator, threads=threads, lanes=config.evaluation.lanes, compiled=training.compile
    )
    return TrainingJob(
        stage=stage,
        configuration=configuration,
        seed=seed,
        until=training.epochs,
        model=spec,
        training=training,
        threat_model=config.threat_model,
        lanes=config.evaluation.lanes,
        dataset=dataset,
        environment=environment,
        loading=config.data.loading,
    )


def trial_job(config: SweepConfig, dataset: Dataset, configuration: Configuration) -> TrainingJob:
    """Describe one search trial, up to the longest rung."""
    return training_job(config, dataset, configuration, stage=SEARCH, seed=config.search.seed, training=config.trial_training())


def final_jobs(config: SweepConfig, dataset: Dataset, finalists: Sequence[Configuration]) -> list[TrainingJob]:
    """Describe every training of the leaderboard, one per finalist and seed."""
    return [
        training_job(config, dataset, finalist, stage=TRAIN, seed=seed, training=config.training)
        for seed in config.final.seeds
        for finalist in finalists
    ]


def attacks_for(config: SweepConfig, configuration: Configuration) -> tuple[AttackSpec, ...]:
    """Return the attacks that count for a configuration: through the true backward pass, and the smooth one where it was trained with."""
    return tuple(spec for base in config.evaluation_attacks() for spec in through_every_backward(base, configuration))


def through_every_backward(spec: AttackSpec, configuration: Configuration) -> list[AttackSpec]:
    """Return an attack through the true backward pass, and through the smooth one where training used one."""
    alpha = configuration.alpha if configuration.alpha is not None else configuration.attacker_alpha
    return true_and_smooth(spec, activation=configuration.activation, attacker_activation=configuration.attacker_activation, alpha=alpha)


def card_tasks(config: SweepConfig, dataset: Dataset, trained: Sequence[Record]) -> list[CardTask]:
    """Describe the cards of the candidates for champion, best by validation first: one model, the best seed, per configuration."""
    configurations = [Configuration.of(record.payload) for record in trained]
    scored = [
        Validated(configuration.name, record.payload["seed"], record.payload["val_robust_accuracy"])
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
            lanes=config.evaluation.lanes,
            dataset=dataset,
            environment=_evaluation_environment(config),
            own=tuple(own_names(configurations[index], model=config.model.name, dataset=dataset)),
        )
        for _, index in ranked(scored)[: config.card.candidates]
    ]


def evaluation_tasks(config: SweepConfig, dataset: Dataset, trained: Record) -> list[EvaluationTask]:
    """Cut the test split of one trained model into shards of nearly equal size."""
    configuration = Configuration.of(trained.payload)
    task = EvaluationTask(
        checkpoint=trained.payload["path"],
        checkpoint_sha256=trained.payload["sha256"],
        name=trained.payload["name"],
        attacks=attacks_for(config, configuration),
        first=0,
        last=0,
        seed=config.evaluation.seed,
        lanes=config.evaluation.lanes,
        dataset=dataset,
        environment=_evaluation_environment(config),
        own=tuple(own_names(configuration, model=config.model.name, dataset=dataset)),
    )
    bounds = shard_bounds(dataset.manifest["splits"]["test"], config.evaluation.shard_size)
    return [replace(task, first=first, last=last) for first, last in bounds]


def shard_bounds(count: int, shard_size: int) -> list[tuple[int, int]]:
    """Cut `count` rows into spans (first, last) of nearly equal size, none longer than `shard_size`."""
    shards = -(-count // shard_size)
    return list(itertools.pairwise(count * i // shards for i in range(shards + 1)))


def _evaluation_environment(config: SweepConfig) -> dict[str, Any]:
    asked = config.resources
    return numerical_environment(accelerator=asked.accelerator, threads=asked.cpus_per_evaluation, lanes=config.evaluation.lanes)


@dataclass(frozen=True)
class Group:
    """The configurations that compete for one place on the leaderboard: the alphas of one activation, or one pair."""

    members: tuple[Configuration, ...]


def groups(configurations: Sequence[Configuration]) -> list[Group]:
    """Gather the configurations that differ in alpha alone, in the order of their first member."""
    found: dict[tuple[str, str], list[Configuration]] = {}
    for one in configurations:
        found.setdefault((one.activation, one.attacker_activation), []).append(one)
    return [Group(tuple(members)) for members in found.values()]


def promote(group: Group, scores: dict[Configuration, tuple[float, float]], *, reduction: int) -> Group:
    """Keep the best 1 / reduction of a group (at least one) by (robust, clean) score; ties go to the earlier configuration."""
    ranked = sorted(group.members, key=lambda one: (tuple(-v for v in scores[one]), group.members.index(one)))
    return Group(tuple(ranked[: max(1, -(-len(ranked) // reduction))]))


def planned_trials(config: SweepConfig) -> int:
    """Return how many records the grid will commit; for asynchronous search, the most it can."""
    if config.search.method != "grid":
        return config.search.samples * len(config.search.rungs)
    sizes, total = [len(group.members) for group in groups(config.search.configurations())], 0
    for number in range(len(config.search.rungs)):
        total += sum(size for size in sizes if number == 0 or size > 1)
        sizes = [max(1, -(-size // config.search.reduction)) for size in sizes]
    return total


def longest_trials(records: Records) -> list[Record]:
    """Return the longest record of every trial, oldest trial first."""
    longest: dict[str, Record] = {}
    for record in records.all(SEARCH):
        name = record.payload["name"]
        if name not in longest or record.payload["until"] > longest[name].payload["until"]:
            longest[name] = record
    return list(longest.values())
