"""The tasks of every stage: a training, a shard to attack, a card.

Each with the key of all that determines its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sat_ray.attacks.spec import AttackSpec, true_and_smooth
from sat_ray.data.choices import Loading
from sat_ray.data.shards.manifest import manifest_hash, read_manifest
from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.models.architectures.timm_names import is_timm, timm_version
from sat_ray.models.spec import ModelSpec
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.shapes import (
    CardRecord,
    CorruptionsRecord,
    ShardRecord,
    TrainingRecord,
)
from sat_ray.sweep.records.store import SURVIVORS_OF, USER_DEFINED, Stage, record_key
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.serialization import to_json

if TYPE_CHECKING:  # it loads torch
    from sat_ray.sweep.execute.initial_weights import InitialWeights

CODE = tuple(f"sat_ray.sweep.execute{part}" for part in ("", ".evaluation", ".training"))
# Version 2 of search and train: val/robust_accuracy is that of a cascade, no longer that of PGD on
# cross-entropy alone.
SEARCH = Stage("search", 2, CODE, TrainingRecord)
TRAIN = Stage("train", 2, CODE, TrainingRecord)
VALIDATE = Stage("validate", 1, CODE, ShardRecord)
EVALUATE = Stage("evaluate", 1, CODE, ShardRecord)
STRONG = Stage("strong", 1, CODE, ShardRecord)
CARD = Stage("card", 3, CODE, CardRecord)  # version 3: the epsilon curve ends with the whole ball
CORRUPTIONS = Stage("corruptions", 1, CODE, CorruptionsRecord)
STAGES = (SEARCH, TRAIN, VALIDATE, EVALUATE, STRONG, CORRUPTIONS, CARD)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared dataset. uri: its folder; hash: of its manifest, which covers every shard.

    extra: a second dataset whose train split is trained on as well.
    """

    uri: str
    hash: str
    manifest: dict[str, Any]
    extra: "Dataset | None" = None

    @classmethod
    def open(cls, uri: str) -> "Dataset | None":
        """Read the manifest in a folder; None where there is none.

        CorruptShardError names one that is damaged.
        """
        try:
            manifest = read_manifest(Storage.at(uri))
        except FileNotFoundError:
            return None
        return cls(uri=uri, hash=manifest_hash(manifest), manifest=manifest)


def user_defined_names(configuration: SearchPoint, *, model: str, dataset: "Dataset") -> list[str]:
    """Return the names, module:function, of the user's own code that a training rests on."""
    named = (
        configuration.activation,
        configuration.attacker_activation,
        model,
        str(dataset.manifest.get("dataset", "")),
        str(dataset.extra.manifest.get("dataset", "")) if dataset.extra else "",
    )
    return sorted({name for name in named if is_reference(name)})


def _named(user_defined: Sequence[str]) -> dict[str, Any]:
    return {USER_DEFINED: list(user_defined)} if user_defined else {}


def task_name(configuration: SearchPoint, seed: int) -> str:
    """Name a training for people and files."""
    return f"{configuration.slug}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """Train one configuration with one seed up to an epoch.

    `inputs` says what determines the result, and `loading` is none of it. initial_weights: what it
    starts from, None for random weights.
    """

    stage: Stage
    configuration: SearchPoint
    seed: int
    until: int
    model: ModelSpec
    training: TrainingSettings
    threat_model: ThreatModel
    slots: int
    dataset: Dataset
    environment: dict[str, Any]
    loading: Loading = "auto"
    initial_weights: "InitialWeights | None" = None
    extra_share: float = 0.0

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the weights."""
        named = _named(
            user_defined_names(self.configuration, model=self.model.name, dataset=self.dataset)
        )
        extra = self.dataset.extra
        if extra is not None:
            named["extra"] = {"dataset": extra.hash, "share": self.extra_share}
        if self.initial_weights is not None:
            named["initial_weights"] = self.initial_weights.sha256
        if is_timm(self.model.name):
            named["timm"] = timm_version()
        return named | {
            "configuration": self.configuration.to_json(),
            "seed": self.seed,
            "until": self.until,
            "model": {name: to_json(one) for name, one in self.model.described().items()},
            "training": self.training.identity(),
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
        """Name the task for people and files."""
        return task_name(self.configuration, self.seed)

    def at(self, until: int) -> "TrainingTask":
        """Return the same task up to another epoch."""
        return replace(self, until=until)


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Attack one shard of a split with one model.

    kind: what is at `checkpoint`, see `sat_ray.evaluation.external.loading`; checkpoint_sha256: the
    digest of its contents; weights: a file of weights for the network of a function, "" for none;
    first, last: rows of the split, or, where `sample` is a number, of that many images drawn from
    it by the seed; cascade: each attack takes what survived those before it; user_defined: names of
    the user's own code that the model is made of. stage: EVALUATE for the test split, VALIDATE for
    the choice of the champion, STRONG for strong attacks on what survived `after`: the same rows
    under the attacks before, which are evaluated first; CORRUPTIONS, without attacks, for common
    corruptions; label_order: the model's class of each label, where the dataset has the same
    classes in another order; shuffled: the images come in a random order drawn by the seed, so that
    the first of them are a sample.
    """

    checkpoint: str
    checkpoint_sha256: str
    name: str
    attacks: tuple[AttackSpec, ...]
    first: int
    last: int
    seed: int
    slots: int
    dataset: Dataset
    environment: dict[str, Any]
    kind: str = "checkpoint"
    weights: str = ""
    split: str = "test"
    sample: int | None = None
    cascade: bool = False
    user_defined: tuple[str, ...] = ()
    stage: Stage = EVALUATE
    after: "EvaluationTask | None" = None
    label_order: tuple[int, ...] = ()
    shuffled: bool = False

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the outcomes.

        What no sweep uses is named only where it is used.
        """
        before = {SURVIVORS_OF: self.after.key} if self.after is not None else {}
        reordered = {"label_order": list(self.label_order)} if self.label_order else {}
        unusual = {
            "split": self.split != "test",
            "sample": self.sample is not None,
            "cascade": self.cascade,
            "shuffled": self.shuffled,
        }
        return (
            {name: getattr(self, name) for name, named in unusual.items() if named}
            | _named(self.user_defined)
            | before
            | reordered
            | {
                "weights": self.checkpoint_sha256,
                "attacks": [to_json(spec) for spec in self.attacks],
                "rows": [self.first, self.last],
                "seed": self.seed,
                "dataset": self.dataset.hash,
                "environment": self.environment,
            }
        )

    @property
    def key(self) -> str:
        """Name the record."""
        return record_key(self.stage, self.inputs)


@dataclass(frozen=True, kw_only=True)
class CardTask:
    """Make the robustness card of one trained model on the validation split."""

    checkpoint: str
    checkpoint_sha256: str
    name: str
    attack: AttackSpec
    configuration: SearchPoint
    settings: CardSettings
    seed: int
    slots: int
    dataset: Dataset
    environment: dict[str, Any]
    user_defined: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the card."""
        return _named(self.user_defined) | {
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


def through_every_backward(spec: AttackSpec, configuration: SearchPoint) -> list[AttackSpec]:
    """Return an attack through the true backward pass, and the smooth one if training used it."""
    alpha = configuration.alpha if configuration.alpha is not None else configuration.attacker_alpha
    return true_and_smooth(
        spec,
        activation=configuration.activation,
        attacker_activation=configuration.attacker_activation,
        alpha=alpha,
    )
