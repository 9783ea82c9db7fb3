"""The full typed description of a sweep. A recipe is a function that returns one; the command line overrides its fields."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.attacks import AttackSpec, Gradient, strong_attacks
from sat_ray.attacks.cascade import STEPS, TARGETS
from sat_ray.data.images import ENCODINGS, LARGEST_SIDE, Storing
from sat_ray.data.loading import Loading
from sat_ray.data.sources.base import Source
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.card import CardSettings
from sat_ray.models.spec import STEMS, check_model_name, check_zero_gamma
from sat_ray.storage.s3_path import SCHEME
from sat_ray.storage.store import Storage, check_address
from sat_ray.sweep.search.search_space import (
    Configuration,
    parse_choice,
    parse_pair,
    without_repeats,
)
from sat_ray.threat import ThreatModel
from sat_ray.training.progressive_resizing import check_resizing
from sat_ray.training.settings import TrainingSettings, check_even
from sat_ray.utils.bounds import (
    MOST_WORKERS,
    BelowOne,
    Bounds,
    Count,
    Epochs,
    Gpus,
    Seed,
    Share,
    Slots,
    Steps,
    StepSize,
    Width,
    Workers,
    check_fields,
)
from sat_ray.utils.import_string import check_confirmed, is_reference, stored_names
from sat_ray.utils.names import check_name
from sat_ray.utils.precision import check_accelerator
from sat_ray.utils.serialization import from_json, to_json

Strong = Literal["all", "none"]
TABLE1_PAIRS = (
    "relu/relu_smooth_backward",
    "relu_smooth_backward/relu",
    "relu_smooth_backward/relu_smooth_backward",
)
RENAMED = {
    "evaluation.lanes": "evaluation.slots",
    "lanes": "slots",
    "search.seed": "search.seeds",
    "training.sentinel_every": "training.guard_every",
    "training.sentinel_images": "training.guard_images",
    "training.sentinel_limit": "training.guard_limit",
}
"""Fields that had another name in an earlier version, and the name that they have now."""
SEARCHED = tuple(name for name in ACTIVATIONS if name != "relu_smooth_backward")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    dataset: str = "digits"
    """Name of a dataset in sat_ray/data/sources/registry.py, or module:function of your own (docs/bring-your-own.md)."""
    path: str = ""
    """Folder of the images as they were downloaded: s3://bucket/folder, or a local one that is the same on every node that prepares them;
    not needed once they are prepared."""
    download: bool = False
    """Fetch the official files of mnist, fashion_mnist, cifar10 or cifar100 where they are not there, into data.path, or without one into
    ~/.cache/sat_ray; torchvision's checksums are checked."""
    image_size: Annotated[int, Bounds(0, LARGEST_SIDE)] = 0
    """Side of the stored squares: the short side is resized to it and the centre kept; 0 leaves images as they are."""
    encoding: Literal["raw", "jpeg"] = "raw"
    """How images that come in files are stored: raw pixels, or jpeg (quality 92, full colour) in about a tenth of the space."""
    corrupt_share: BelowOne = 0.0
    """Share of the images that may be unreadable: they are left out and listed in the manifest."""
    enlarged_share: Share = 0.0
    """Share of the images whose short side may be less than image_size: they are enlarged, which adds work and no detail."""
    rows_per_shard: Count = 512
    """Images in one Parquet shard."""
    loading: Loading = "auto"
    """Where training takes images from: resident (memory, the accelerator's where there is one), streaming (the shards, decoded ahead of
    use), or auto: streaming above 4 GiB of pixels. The images are the same."""

    def __post_init__(self) -> None:
        check_address(self.path, field="data.path")
        check_name(self.encoding, ENCODINGS, field="data.encoding")
        check_name(self.loading, get_args(Loading), field="data.loading")
        check_fields(self, prefix="data.")
        source = dataset_source(self.dataset)
        self._check_download(source)
        if not source.encoded and (self.image_size or self.encoding != "raw"):
            raise ValueError(
                f"data.image_size and encoding are {self.image_size}, {self.encoding}; allowed for {self.dataset}: 0, raw; "
                "its images are stored as they are"
            )

    def _check_download(self, source: Source) -> None:
        """Raise ValueError where there is nothing to download, or no folder to download it to."""
        if self.download and not source.downloader:
            raise ValueError(
                f"data.download must be False for {self.dataset}, got True: "
                "only mnist, fashion_mnist, cifar10 and cifar100 can be downloaded"
            )
        if self.download and self.path.startswith(SCHEME):
            raise ValueError(
                f"data.path must be a local folder with --data.download, got {self.path}; download into a local folder and copy it"
            )

    def storing(self) -> Storing:
        """Return how images that come in files are stored."""
        return Storing(image_size=self.image_size, encoding=self.encoding)

    def shape(self) -> tuple[int, int, int] | None:
        """Return (C, H, W) of the images as they will be stored, None where that is known only after a look."""
        return (
            (3, self.image_size, self.image_size)
            if self.image_size
            else dataset_source(self.dataset).shape
        )

    def identity(self) -> dict[str, Any]:
        """Return what says which images these are, as JSON: where a known dataset lies does not matter, an image folder is its path."""
        dropped = {"corrupt_share", "download", "enlarged_share", "loading"}
        if not dataset_source(self.dataset).anonymous:
            dropped.add("path")
        return {name: value for name, value in to_json(self).items() if name not in dropped}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network; its activation is what the sweep varies."""

    name: str = "small_resnet"
    """A residual network (resnet50, resnext50_32x8d, ...), an EfficientNet (efficientnet_b0 to b7, efficientnet_l1), a network for 32-pixel
    images (preact_resnet18, wide_resnet28_10, wide_resnet34_10), small_resnet, or module:function of your own."""
    width: Width = 12
    """Channels of the first layer of small_resnet, or of a network of your own that takes it; the others have widths of their own."""
    stem: str = "imagenet"
    """First layer of residual networks: imagenet (7x7, stride 2) or small (3x3, stride 1, for 32-pixel images); of EfficientNets: stride 2
    or 1."""
    zero_gamma: bool = False
    """Start the last BatchNorm of each block at 0."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="model.")
        check_model_name(self.name, field="model.name")
        check_name(self.stem, STEMS, field="model.stem")
        check_zero_gamma(self.name, self.zero_gamma)


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
    rungs: tuple[Epochs, ...] = (3, 6)
    """Epochs after which the alphas of one activation are compared; the last is the longest trial. A first one below half of the last
    prefers the alphas that learn fastest."""
    reduction: Annotated[int, Bounds(2, 1_000_000)] = 2
    """One in `reduction` alphas of an activation goes on after a rung."""
    samples: Annotated[int, Bounds(1, 1_000_000)] = 24
    """Trials drawn by asha and optuna."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds that each point of the grid is trained with; alphas are compared by the mean over them. asha and optuna take one, which is
    the sampler's, too."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="search.")
        if not self.configurations():
            raise ValueError(
                "search.activations and search.pairs are both empty; allowed: at least one activation"
            )
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(
                f"search.rungs is {self.rungs}; allowed: growing whole numbers of epochs, for example 3 6"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"search.seeds must be at least one seed, each once, got {self.seeds}")
        if self.method != "grid" and len(self.seeds) > 1:
            raise ValueError(
                f"search.seeds must be one seed with --search.method {self.method}, got {self.seeds}; the grid takes several"
            )

    def configurations(self) -> tuple[Configuration, ...]:
        """Return every point of the grid, each function once, in the order given."""
        return without_repeats(self._named())

    def repeated(self) -> tuple[str, ...]:
        """Name the points left out because another name of the same function is in the grid."""
        left_out = set(self._named()) - set(self.configurations())
        return tuple(dict.fromkeys(one.name for one in self._named() if one in left_out))

    def _named(self) -> list[Configuration]:
        singles = [
            one
            for text in self.activations
            for one in parse_choice(text, field="search.activations")
        ]
        pairs = [parse_pair(text, field="search.pairs") for text in self.pairs]
        return [*singles, *pairs]


@dataclass(frozen=True, kw_only=True)
class FinalSettings:
    """What is trained to the end for the leaderboard: the best alpha of each activation, and the pairs."""

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of each configuration; fewer than three support no claim."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="final.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"final.seeds is {self.seeds}; allowed: at least one seed, each once")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The attack that robust accuracy is measured with."""

    steps: Steps = 200
    """Gradient steps of PGD."""
    step_size: StepSize = 1 / 255
    """Length of one step, in [0, 1] pixels; k/255 may be written."""
    restarts: Steps = 1
    """Random starts."""
    final_iterate: bool = False
    """Add the paper's rule as an attack of its own: only the last iterate counts."""
    gradient: Gradient = "float32"
    """Where gradients come from: the model itself (float32), or a copy of it: bf16, for GPUs and
    CPUs that have bfloat16; fp16, for GPUs, in compiled kernels (which take minutes at the start of
    every worker). With a copy it is another attack. A point counts as broken only if the model
    itself misclassifies it in float32."""
    strong: Strong = "all"
    """Which models meet the strong attacks too (APGD on cross-entropy, then targeted APGD on DLR, as in AutoAttack): all of them, or
    none. They attack what survives PGD. Ranking, statistics and champion rest on the strong verdict; without it, on PGD's."""
    strong_steps: Steps = STEPS
    """Steps of each run of a strong attack; AutoAttack takes 100."""
    strong_targets: Annotated[int, Bounds(1, 1_000_000)] = TARGETS
    """Most classes that the targeted strong attack moves towards, likeliest first; AutoAttack takes 9."""
    slots: Slots = 64
    """Images in every model call; part of the numerical environment."""
    shard_size: Count = 450
    """Most test images in one evaluation task."""
    images: Count | None = None
    """Most images of each split that are evaluated, drawn by the seed, the same for every model; None for all of them."""
    seed: Seed = 0
    """Seed of the random starts, and of the draw of images."""

    def __post_init__(self) -> None:
        check_name(self.gradient, get_args(Gradient), field="evaluation.gradient")
        check_fields(self, prefix="evaluation.")

    def evaluated(self, count: int) -> int:
        """Return how many of the `count` images of a split are evaluated."""
        return count if self.images is None else min(self.images, count)

    def shards(self, count: int) -> int:
        """Return into how many tasks a split of `count` images is cut."""
        return -(-self.evaluated(count) // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What each part asks of the Ray cluster; never part of a result's identity."""

    train_workers: Workers = 2
    """Data-parallel workers of the train stage."""
    fewest_train_workers: Annotated[int, Bounds(0, MOST_WORKERS)] = 0
    """Go on with as few as this many when workers are lost and cannot be replaced, same global batch; 0: wait for all of them."""
    cpus_per_worker: Workers = 1
    """CPUs (and threads) of each training worker."""
    gpus_per_worker: Annotated[int, Bounds(0, MOST_WORKERS)] = 0
    """GPUs of each training worker."""
    cpus_per_trial: Workers = 1
    """CPUs (and threads) of each search trial."""
    gpus_per_trial: Gpus = 0
    """GPUs of each search trial."""
    cpus_per_evaluation: Workers = 1
    """CPUs (and threads) of each evaluation task."""
    gpus_per_evaluation: Gpus = 0
    """GPUs of each evaluation task; fractions share one."""
    share_gpus: bool = False
    """Let the first evaluation task have its GPU alone, and as many of the others share one (up to 4) as its memory then shows to fit."""
    images_per_second: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Training images per second of one accelerator, attack included, as measured on images as stored: for the hours of --dry-run; 0 where
    not known."""
    accelerator: str = ""
    """Model of the GPUs as it should appear in the records, for example H200; empty on CPUs."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="resources.")
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
        gpus = {
            name: getattr(self, name)
            for name in ("gpus_per_trial", "gpus_per_worker", "gpus_per_evaluation")
        }
        if len({bool(self.accelerator), *(count > 0 for count in gpus.values())}) > 1:
            given = ", ".join(f"{name} {count:g}" for name, count in gpus.items())
            raise ValueError(
                f"resources.accelerator is {self.accelerator!r} with {given}; allowed: the GPUs' name (H200) and GPUs for all three, or "
                "neither, since results of different devices are not compared"
            )


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What accelerators cost; never part of a result's identity."""

    price_per_accelerator_hour: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Price of one GPU (on CPUs: of one worker process) for an hour; 0: no money is reported."""
    currency: str = "USD"
    """Name of the currency, for tables."""
    budget: Annotated[float | None, Bounds(0, 1e12, above=True)] = None
    """--budget for short: what the search may spend, in the currency where there is a price, else in accelerator-hours. Once its committed
    trials have taken that, no other starts; those that run are finished, and the sweep goes on with what there is. None: no limit."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="cost.")
        if not self.currency.isalpha():
            raise ValueError(
                f"cost.currency is {self.currency!r}; allowed: letters, for example EUR"
            )

    def money(self, accelerator_seconds: float) -> float | None:
        """Return what these accelerator-seconds cost; None without a price."""
        return (
            accelerator_seconds / 3600 * self.price_per_accelerator_hour
            if self.price_per_accelerator_hour
            else None
        )

    def budget_seconds(self) -> float | None:
        """Return the budget in accelerator-seconds; None without one."""
        return (
            None
            if self.budget is None
            else 3600 * self.budget / (self.price_per_accelerator_hour or 1.0)
        )

    def amount(self, accelerator_seconds: float) -> str:
        """Spell accelerator-seconds in the unit of the budget, `5.31 USD` or `1.2 accelerator-hours`."""
        money = self.money(accelerator_seconds)
        return (
            f"{accelerator_seconds / 3600:,.3g} accelerator-hours"
            if money is None
            else f"{money_text(money)} {self.currency}"
        )


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
        check_fields(self, prefix="")
        self.training.attack(self.threat_model)
        self.training.validation_attacks(self.threat_model, num_classes=2)
        self.evaluation_attacks()
        if self.training.warmup_epochs > self.training.epochs:
            raise ValueError(
                f"training.warmup_epochs must be a number from 0 to training.epochs, {self.training.epochs}, "
                f"got {self.training.warmup_epochs:g}; a longer one never reaches the learning rate"
            )
        check_even(self.training, world_size=self.resources.train_workers)
        check_accelerator(self.training.precision, self.resources.accelerator)
        if (shape := self.data.shape()) is not None:
            check_resizing(self.training, shape)

    def evaluation_attacks(self) -> list[AttackSpec]:
        """Return the attacks of the evaluate stage, before views are chosen."""
        e = self.evaluation
        exact = AttackSpec(
            threat_model=self.threat_model,
            steps=e.steps,
            step_size=e.step_size,
            restarts=e.restarts,
        )
        spec = dataclasses.replace(exact, gradient=e.gradient, name="")
        return (
            [spec, dataclasses.replace(exact, final_iterate=True, name="")]
            if e.final_iterate
            else [spec]
        )

    def strong_attacks(self, num_classes: int) -> list[AttackSpec]:
        """Return the attacks behind the strong verdict, before views are chosen; [] where no model meets any."""
        e = self.evaluation
        if e.strong == "none":
            return []
        return strong_attacks(
            self.threat_model,
            num_classes=num_classes,
            steps=e.strong_steps,
            targets=e.strong_targets,
            gradient=e.gradient,
        )

    def trial_training(self) -> TrainingSettings:
        """Return the training of a search trial: the whole schedule, squeezed into the longest rung; validated at the rungs."""
        return dataclasses.replace(
            self.training, epochs=self.search.rungs[-1], validate_every=self.search.rungs[-1]
        )

    def semantic(self) -> dict[str, Any]:
        """Return what determines the results, as JSON: everything but the resources and their price."""
        value: dict[str, Any] = to_json(self)
        del value["resources"], value["cost"]
        return value | {"data": self.data.identity()}


def code_named(config: Any) -> list[str]:
    """Return every `module:function` that a stored config names, without making objects of it."""
    search, model, data = (_part(config, name) for name in ("search", "model", "data"))
    activations = [
        word
        for text in _words(search.get("activations"))
        for word in (text, text.rpartition(":")[0])
    ]
    pairs = [word for text in _words(search.get("pairs")) for word in text.split("/")]
    others = _words([model.get("name"), data.get("dataset")])
    names = {name for name in (*others, *activations, *pairs) if is_reference(name)}
    return sorted(name for name in names if name.partition(":")[0] not in ACTIVATIONS)


def _part(config: Any, name: str) -> dict[str, Any]:
    """Return a part of a stored config, empty where something else stands there."""
    found = config.get(name) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _words(value: Any) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def stored_config(storage: Storage) -> SweepConfig:
    """Read the config of the sweep in a folder.

    Raises FileNotFoundError where there is none, UnconfirmedCodeError where it names code that no
    person named, other ValueErrors where it is no config of today.
    """
    source = storage.full("config.json")
    try:
        value = storage.read_json("config.json")
    except ValueError as error:
        raise _unreadable(source, error) from None
    check_confirmed(code_named(value), source=source)
    return config_of(value, source=source)


def config_of(value: Any, *, source: str) -> SweepConfig:
    """Make a config of the JSON values in `source`; one line where they are none."""
    try:
        with stored_names():
            if renamed := _renamed(value):
                raise ValueError(
                    f"an earlier version wrote it: {renamed}; start the sweep again under another --name"
                )
            config: SweepConfig = from_json(SweepConfig, value)
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(source, error) from None
    return config


def _renamed(value: Any) -> str:
    """Name the fields of a stored config that have another name today; empty where there are none."""
    old = [
        name
        for name in RENAMED
        if "." in name and name.partition(".")[2] in _part(value, name.partition(".")[0])
    ]
    return ", ".join(f"{name} is now {RENAMED[name]}" for name in old)


def _unreadable(source: str, error: Exception) -> ValueError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(f"{source} cannot be read as a sweep's config ({reason})")


Recipe = Callable[[], SweepConfig]
