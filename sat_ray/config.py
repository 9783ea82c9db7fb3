"""The full typed description of a sweep. A recipe is a function that returns one; the command line overrides its fields."""

import dataclasses
import hashlib
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sat_ray.activations import ACTIVATIONS
from sat_ray.attacks import AttackSpec, Gradient
from sat_ray.card import CardSettings
from sat_ray.configuration import Configuration, parse_choice, parse_pair, without_repeats
from sat_ray.data.images import ENCODINGS, LARGEST_SIDE, Storing
from sat_ray.data.loading import Loading
from sat_ray.data.sources import dataset_source
from sat_ray.models.spec import STEMS, check_model_name, check_zero_gamma
from sat_ray.names import check_name
from sat_ray.precision import check_accelerator
from sat_ray.resizing import check_resizing
from sat_ray.storage import json_bytes
from sat_ray.threat import ThreatModel
from sat_ray.training_settings import TrainingSettings, check_even

TABLE1_PAIRS = ("relu/relu_smooth_backward", "relu_smooth_backward/relu", "relu_smooth_backward/relu_smooth_backward")
SEARCHED = tuple(name for name in ACTIVATIONS if name != "relu_smooth_backward")


def _at_least(settings: object, low: int, *names: str, section: str) -> None:
    for name in names:
        if getattr(settings, name) < low:
            raise ValueError(f"{section}.{name} is {getattr(settings, name)}; allowed: a whole number >= {low}")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    dataset: str = "digits"
    """Name of a dataset in sat_ray/data/sources.py, or module:function of your own (docs/bring-your-own.md)."""
    path: str = ""
    """Folder of the images as they were downloaded: s3://bucket/folder, or a local one that is the same on every node that prepares them;
    not needed once they are prepared."""
    image_size: int = 0
    """Side of the stored squares: the short side is resized to it and the centre kept; 0 leaves images as they are."""
    encoding: Literal["raw", "jpeg"] = "raw"
    """How images that come in files are stored: raw pixels, or jpeg (quality 92, full colour) in about a tenth of the space."""
    corrupt_share: float = 0.0
    """Share of the images that may be unreadable: they are left out and listed in the manifest."""
    enlarged_share: float = 0.0
    """Share of the images whose short side may be less than image_size: they are enlarged, which adds work and no detail."""
    rows_per_shard: int = 512
    """Images in one Parquet shard."""
    loading: Loading = "auto"
    """Where training takes images from: resident (memory, the accelerator's where there is one), streaming (the shards, decoded ahead of
    use), or auto: streaming above 4 GiB of pixels. The images are the same."""

    def __post_init__(self) -> None:
        source = dataset_source(self.dataset)
        _at_least(self, 1, "rows_per_shard", section="data")
        if not 0 <= self.image_size <= LARGEST_SIDE:
            raise ValueError(f"data.image_size is {self.image_size}; allowed: 0 to {LARGEST_SIDE}, 0 for images as they are")
        check_name(self.encoding, ENCODINGS, field="data.encoding")
        check_name(self.loading, get_args(Loading), field="data.loading")
        if not 0 <= self.corrupt_share < 1:
            raise ValueError(f"data.corrupt_share is {self.corrupt_share:g}; allowed: [0, 1)")
        if not 0 <= self.enlarged_share <= 1:
            raise ValueError(f"data.enlarged_share is {self.enlarged_share:g}; allowed: [0, 1]")
        if not source.encoded and (self.image_size or self.encoding != "raw"):
            raise ValueError(
                f"data.image_size and encoding are {self.image_size}, {self.encoding}; allowed for {self.dataset}: 0, raw; "
                "its images are stored as they are"
            )

    def storing(self) -> Storing:
        """Return how images that come in files are stored."""
        return Storing(image_size=self.image_size, encoding=self.encoding)

    def shape(self) -> tuple[int, int, int] | None:
        """Return (C, H, W) of the images as they will be stored, None where that is known only after a look."""
        return (3, self.image_size, self.image_size) if self.image_size else dataset_source(self.dataset).shape

    def identity(self) -> dict[str, Any]:
        """Return what says which images these are, as JSON: where a known dataset lies does not matter, an image folder is its path."""
        dropped = {"corrupt_share", "enlarged_share", "loading"} | (set() if dataset_source(self.dataset).anonymous else {"path"})
        return {name: value for name, value in to_json(self).items() if name not in dropped}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network; its activation is what the sweep varies."""

    name: str = "small_resnet"
    """A residual network (resnet50, resnext50_32x8d, ...), an EfficientNet (efficientnet_b0 to b7, efficientnet_l1), a network for 32-pixel
    images (preact_resnet18, wide_resnet28_10, wide_resnet34_10), small_resnet, or module:function of your own."""
    width: int = 12
    """Channels of the first layer of small_resnet, or of a network of your own that takes it; the others have widths of their own."""
    stem: str = "imagenet"
    """First layer of residual networks: imagenet (7x7, stride 2) or small (3x3, stride 1, for 32-pixel images); of EfficientNets: stride 2
    or 1."""
    zero_gamma: bool = False
    """Start the last BatchNorm of each block at 0."""

    def __post_init__(self) -> None:
        check_model_name(self.name, field="model.name")
        check_name(self.stem, STEMS, field="model.stem")
        check_zero_gamma(self.name, self.zero_gamma)
        _at_least(self, 1, "width", section="model")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How activation and alpha are searched."""

    method: Literal["grid", "asha", "optuna"] = "grid"
    """grid: every alpha of each activation, halved at each rung; asha: random alphas, stopped asynchronously; optuna: TPE over alpha."""
    activations: tuple[str, ...] = SEARCHED
    """Activations to compare: a name (its own alphas) or name:alpha,alpha; module:function of your own, and perhaps :alpha,alpha. Of two
    names of one function one is trained."""
    pairs: tuple[str, ...] = TABLE1_PAIRS
    """activation/attacker_activation rows trained beside them: the paper's Table 1."""
    rungs: tuple[int, ...] = (3, 6)
    """Epochs after which the alphas of one activation are compared; the last is the longest trial. A first one below half of the last
    prefers the alphas that learn fastest."""
    reduction: int = 2
    """One in `reduction` alphas of an activation goes on after a rung."""
    samples: int = 24
    """Trials drawn by asha and optuna."""
    seed: int = 0
    """Seed of the trials' training and of the sampler."""

    def __post_init__(self) -> None:
        if not self.configurations():
            raise ValueError("search.activations and search.pairs are both empty; allowed: at least one activation")
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"search.rungs is {self.rungs}; allowed: growing whole numbers of epochs, for example 3 6")
        _at_least(self, 2, "reduction", section="search")
        _at_least(self, 1, "samples", section="search")

    def configurations(self) -> tuple[Configuration, ...]:
        """Return every point of the grid, each function once, in the order given."""
        return without_repeats(self._named())

    def repeated(self) -> tuple[str, ...]:
        """Name the points left out because another name of the same function is in the grid."""
        left_out = set(self._named()) - set(self.configurations())
        return tuple(dict.fromkeys(one.name for one in self._named() if one in left_out))

    def _named(self) -> list[Configuration]:
        singles = [one for text in self.activations for one in parse_choice(text, field="search.activations")]
        pairs = [parse_pair(text, field="search.pairs") for text in self.pairs]
        return [*singles, *pairs]


@dataclass(frozen=True, kw_only=True)
class FinalSettings:
    """What is trained to the end for the leaderboard: the best alpha of each activation, and the pairs."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each configuration; fewer than three support no claim."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"final.seeds is {self.seeds}; allowed: at least one seed, each once")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The attack that robust accuracy is measured with."""

    steps: int = 200
    """Gradient steps of PGD."""
    step_size: float = 1 / 255
    """Length of one step, in [0, 1] pixels; k/255 may be written."""
    restarts: int = 1
    """Random starts."""
    final_iterate: bool = False
    """Add the paper's rule as an attack of its own: only the last iterate counts."""
    gradient: Gradient = "float32"
    """What the attack climbs: the model (float32), or a copy in fp16 (for GPUs) or bf16 (for GPUs and CPUs that have it), in compiled
    kernels (minutes at the start of every worker), or both. That is another attack; the model itself, in float32, says what is broken."""
    lanes: int = 64
    """Images in every model call; part of the numerical environment."""
    shard_size: int = 450
    """Most test images in one evaluation task."""
    seed: int = 0
    """Seed of the random starts."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "restarts", "lanes", "shard_size", section="evaluation")


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What each part asks of the Ray cluster; never part of a result's identity."""

    train_workers: int = 2
    """Data-parallel workers of the train stage."""
    fewest_train_workers: int = 0
    """Go on with as few as this many when workers are lost and cannot be replaced, same global batch; 0: wait for all of them."""
    cpus_per_worker: int = 1
    """CPUs (and threads) of each training worker."""
    gpus_per_worker: int = 0
    """GPUs of each training worker."""
    cpus_per_trial: int = 1
    """CPUs (and threads) of each search trial."""
    gpus_per_trial: float = 0
    """GPUs of each search trial."""
    cpus_per_evaluation: int = 1
    """CPUs (and threads) of each evaluation task."""
    gpus_per_evaluation: float = 0
    """GPUs of each evaluation task; fractions share one."""
    share_gpus: bool = False
    """Let the first evaluation task have its GPU alone, and as many of the others share one (up to 4) as its memory then shows to fit."""
    images_per_second: float = 0.0
    """Training images per second of one accelerator, attack included, as measured on images as stored: for the hours of --dry-run; 0 where
    not known."""
    accelerator: str = ""
    """Model of the GPUs as it should appear in the records, for example H200; empty on CPUs."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_workers", "cpus_per_worker", "cpus_per_trial", "cpus_per_evaluation", section="resources")
        _at_least(
            self,
            0,
            "images_per_second",
            "fewest_train_workers",
            "gpus_per_worker",
            "gpus_per_trial",
            "gpus_per_evaluation",
            section="resources",
        )
        if self.share_gpus and self.gpus_per_evaluation != 1:
            raise ValueError(
                f"resources.share_gpus is set and resources.gpus_per_evaluation is {self.gpus_per_evaluation:g}; allowed: 1, of which each "
                "task then takes the share that it needs"
            )
        if self.fewest_train_workers > self.train_workers:
            raise ValueError(
                f"resources.fewest_train_workers is {self.fewest_train_workers}; allowed: 0 to train_workers {self.train_workers}"
            )

    def require_accelerator(self) -> None:
        """Raise ValueError where some stages have GPUs and others have none, or the GPUs have no name."""
        gpus = {name: getattr(self, name) for name in ("gpus_per_trial", "gpus_per_worker", "gpus_per_evaluation")}
        if len({bool(self.accelerator), *(count > 0 for count in gpus.values())}) > 1:
            given = ", ".join(f"{name} {count:g}" for name, count in gpus.items())
            raise ValueError(
                f"resources.accelerator is {self.accelerator!r} with {given}; allowed: the GPUs' name (H200) and GPUs for all three, or "
                "neither, since results of different devices are not compared"
            )


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What accelerators cost; never part of a result's identity."""

    price_per_accelerator_hour: float = 0.0
    """Price of one GPU (on CPUs: of one worker process) for an hour; 0: no money is reported."""
    currency: str = "USD"
    """Name of the currency, for tables."""
    budget: float | None = None
    """--budget for short: what the search may spend, in the currency where there is a price, else in accelerator-hours. Once its committed
    trials have taken that, no other starts; those that run are finished, and the sweep goes on with what there is. None: no limit."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.price_per_accelerator_hour) and self.price_per_accelerator_hour >= 0):
            raise ValueError(f"cost.price_per_accelerator_hour is {self.price_per_accelerator_hour:g}; allowed: a number >= 0")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise ValueError(f"cost.budget is {self.budget:g}; allowed: a number > 0, or None for no limit")
        if not self.currency.isalpha():
            raise ValueError(f"cost.currency is {self.currency!r}; allowed: letters, for example EUR")

    def money(self, accelerator_seconds: float) -> float | None:
        """Return what these accelerator-seconds cost; None without a price."""
        return accelerator_seconds / 3600 * self.price_per_accelerator_hour if self.price_per_accelerator_hour else None

    def budget_seconds(self) -> float | None:
        """Return the budget in accelerator-seconds; None without one."""
        return None if self.budget is None else 3600 * self.budget / (self.price_per_accelerator_hour or 1.0)

    def amount(self, accelerator_seconds: float) -> str:
        """Spell accelerator-seconds in the unit of the budget, `5.31 USD` or `1.2 accelerator-hours`."""
        money = self.money(accelerator_seconds)
        return f"{accelerator_seconds / 3600:,.3g} accelerator-hours" if money is None else f"{money_text(money)} {self.currency}"


def money_text(value: float) -> str:
    """Spell an amount of money, `5.31`; small ones with two digits that say something, `0.0040`."""
    return f"{value:,.2f}" if round(value, 2) >= 0.1 or value == 0 else f"{value:#.2g}"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Everything that determines a sweep's results, and the resources it asks for."""

    recipe: str
    """Name of the recipe this started from."""
    threat_model: ThreatModel
    """What the attacker may do: norm and epsilon."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    final: FinalSettings = field(default_factory=FinalSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    card: CardSettings = field(default_factory=CardSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    cost: CostSettings = field(default_factory=CostSettings)

    def __post_init__(self) -> None:
        self.training.attack(self.threat_model)
        self.training.validation_attack(self.threat_model)
        self.evaluation_attacks()
        check_even(self.training, world_size=self.resources.train_workers)
        check_accelerator(self.training.precision, self.resources.accelerator)
        if (shape := self.data.shape()) is not None:
            check_resizing(self.training, shape)

    def evaluation_attacks(self) -> list[AttackSpec]:
        """Return the attacks of the evaluate stage, before views are chosen."""
        e = self.evaluation
        exact = AttackSpec(threat_model=self.threat_model, steps=e.steps, step_size=e.step_size, restarts=e.restarts)
        spec = dataclasses.replace(exact, gradient=e.gradient, name="")
        return [spec, dataclasses.replace(exact, final_iterate=True, name="")] if e.final_iterate else [spec]

    def trial_training(self) -> TrainingSettings:
        """Return the training of a search trial: the whole schedule, squeezed into the longest rung; validated at the rungs."""
        return dataclasses.replace(self.training, epochs=self.search.rungs[-1], validate_every=self.search.rungs[-1])

    def semantic(self) -> dict[str, Any]:
        """Return what determines the results, as JSON: everything but the resources and their price."""
        value: dict[str, Any] = to_json(self)
        del value["resources"], value["cost"]
        return value | {"data": self.data.identity()}


def to_json(value: Any) -> Any:
    """Turn settings into plain JSON values, the same for equal settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are one setting and must have one hash
    return value


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild settings of a type from `to_json`; ValueError names an unknown field."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        for name in value:
            check_name(name, hints, field=f"field of {kind.__name__}")
        return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(from_json(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        return from_json(next(k for k in typing.get_args(kind) if k is not type(None)), value)
    return float(value) if kind is float else value


def content_hash(value: Any) -> str:
    """Return the sha256 of a JSON value."""
    return hashlib.sha256(json_bytes(to_json(value))).hexdigest()


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted names: {"training": {"epochs": 5}} -> {"training.epochs": 5}."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat
