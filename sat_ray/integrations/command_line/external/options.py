"""The options of `evaluate --model`."""

import shlex
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sat_ray.attacks.cascade import QUERIES, STEPS, TARGETS, autoattack, cascade
from sat_ray.attacks.spec import AttackSpec, Gradient
from sat_ray.data.images import LARGEST_SIDE
from sat_ray.integrations.command_line.option_values import UsageError
from sat_ray.integrations.command_line.process.invocation import invocation
from sat_ray.sweep.config.resources import ResourceSettings
from sat_ray.threat import ThreatModel
from sat_ray.utils.bounds import (
    Bounds,
    Count,
    Gpus,
    Seed,
    Slots,
    Steps,
    StepSize,
    Workers,
    check_fields,
)
from sat_ray.utils.import_string import is_reference

if TYPE_CHECKING:
    from torch import nn

SHARDS, SLOTS_PER_SHARD = 16, (4, 16)
SLOTS = 64
PGD_STEPS = 200
MEANT_FOR = {
    "steps": ("pgd", "apgd", "fab", "cascade", "autoattack"),
    "step_size": ("pgd",),
    "loss": ("pgd", "apgd"),
    "targets": ("pgd", "apgd", "fab"),
    "queries": ("square", "cascade", "autoattack"),
}
IN_FLOAT32 = ("fab", "square", "autoattack")
CASCADES = ("cascade", "autoattack")
# what --protocol robustbench decides itself
FIXED = (
    "attack",
    "steps",
    "step_size",
    "loss",
    "targets",
    "restarts",
    "queries",
    "gradient",
    "stop_when_width",
)


def exact_text(value: object) -> str:
    """Write a value so that the command line reads it back as it was; k/255 where it is one."""
    k = round(255 * value) if isinstance(value, float) else 0
    return f"{k}/255" if k and k / 255 == value else str(value)


@dataclass(frozen=True, kw_only=True)
class ExternalOptions:
    """A model, images, and the attack that is to be survived."""

    model: str = ""
    """Checkpoint folder of sat_ray, MLflow model (models:/..., runs:/... or its folder),
    torch.export file (.pt2), or module:function."""
    weights: str = ""
    """File of weights, local or s3://, for the network that module:function returns: .safetensors
    or what torch.save wrote. It is read without running code."""
    weights_entry: str = ""
    """Entry of that file that holds the weights, for example state_dict; empty: where they fit,
    averaged ones (EMA) first."""
    data: str = ""
    """Prepared dataset (has a manifest.json), folder of images (one sub-folder per class), or
    .npz of images (uint8) and labels."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation."""
    epsilon: StepSize = 8 / 255
    """Radius in [0, 1] pixels; k/255 may be written."""
    protocol: Literal["none", "robustbench"] = "none"
    """robustbench: AutoAttack's standard version on the first images in their stored order, with an
    entry for that leaderboard and a file that loads the model there."""
    attack: Literal["pgd", "apgd", "fab", "square", "cascade", "autoattack"] = "pgd"
    """pgd; apgd, which finds its own step size; fab, which looks for the nearest misclassified
    point; square, which needs no gradient; the cascade of APGD on cross-entropy, targeted APGD on
    DLR, and Square, each on the survivors before it; or autoattack, which has targeted FAB too."""
    steps: Steps | None = None
    """Steps of pgd (200), of apgd and fab, or of each of their runs in a cascade (100)."""
    step_size: StepSize | None = None
    """Length of one step of pgd, in [0, 1] pixels (1/255, or a twentieth of epsilon where that is
    longer)."""
    loss: Literal["cross_entropy", "dlr", "margin"] | None = None
    """What pgd and apgd climb (cross_entropy)."""
    targets: Annotated[int, Bounds(0, 1_000_000)] | None = None
    """Run pgd, apgd or fab towards each of this many likeliest other classes in turn (0: away from
    the label; fab: 9)."""
    restarts: Steps = 1
    """Random starts of every attack. A single one of fab is the image itself."""
    queries: Steps | None = None
    """Queries of Square (5000)."""
    gradient: Gradient = "float32"
    """Where gradients come from: the model itself (float32), or a copy of it: bf16, for GPUs and
    CPUs that have bfloat16; fp16, for GPUs, in compiled kernels (which take minutes at the start of
    every worker). With a copy it is another attack. A point counts as broken only if the model
    itself misclassifies it in float32."""
    split: str = "test"
    """Split of a prepared dataset; image folders and .npz files are a test split."""
    images: Count | None = None
    """Evaluate this many images, drawn by the seed (--protocol robustbench: the first ones); all of
    them where not given."""
    stop_when_width: Annotated[float | None, Bounds(0, 1, above=True)] = None
    """Attack the images in random order, and stop once the anytime 95 % interval of the robust
    accuracy on all of them is at most this wide, for example 0.05."""
    image_size: Annotated[int, Bounds(1, LARGEST_SIDE)] | None = None
    """Resize the short side of an image folder's images to this and crop the centre."""
    image_crop: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Share of the short side that these squares are: 0.875 with --image-size 224 resizes to 256
    first."""
    seed: Seed = 0
    """Seed of the random starts, and of the draw of images."""
    slots: Slots | None = None
    """Images in every model call; part of the numerical environment. Where not given 64, or on CPUs
    up to 256 for a small network."""
    shard_size: Count | None = None
    """Most images in one task; where not given a sixteenth of them, but at least 4 and at most 16
    times the slots: large shards keep slots full for longer, small ones end at the same time."""
    storage: str = ""
    """Folder or s3://bucket/prefix for everything that is written; empty: SAT_RAY_STORAGE, else
    ./runs."""
    name: str = ""
    """Folder of this evaluation under STORAGE; empty: model, data and a hash of everything that
    determines the result."""
    tracking_uri: str = ""
    """Where MLflow model URIs are looked up; empty: MLFLOW_TRACKING_URI, else
    sqlite:///STORAGE/mlflow.db."""
    allow_pickle: bool = False
    """Load an MLflow model that is pickled, or a .pt2 file with pickled parts: this runs whatever
    code they hold."""
    allow_code: tuple[str, ...] = ()
    """Names, module:function, of code that the checkpoint may name and this command may import."""
    card: bool = False
    """Compute the robustness card too, for a PGD of these steps: PASS, or FLAG with reasons."""
    cpus_per_task: Workers = 1
    """CPUs (and threads) of each task."""
    gpus_per_task: Gpus = 0
    """GPUs of each task; fractions share one."""
    accelerator: str = ""
    """Model of the GPUs as it should appear in the records, for example H200; empty on CPUs."""
    on_code_change: Literal["refuse", "reuse", "rerun"] = "refuse"
    """Shards evaluated by other code than today's: refuse to start, reuse them, or move them aside
    and compute anew."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")
        if bool(self.accelerator) != (self.gpus_per_task > 0):
            raise ValueError(
                "--accelerator and --gpus-per-task must be given together (H200 and 1), got "
                f"{self.accelerator!r} and {self.gpus_per_task:g}"
            )
        if self.weights_entry and not self.weights:
            raise ValueError("--weights-entry means nothing without --weights; give both, or none")
        if self.weights and self.model and not is_reference(self.model):
            raise ValueError(
                "--weights needs --model module:function, which returns their network, "
                f"got --model {self.model}"
            )
        self._check_protocol()
        if self.image_crop != 1 and self.image_size is None:
            raise ValueError("--image-crop means nothing without --image-size; give both, or none")
        if self.attack in IN_FLOAT32 and self.gradient != "float32":
            raise ValueError(
                f"--gradient {self.gradient} means nothing to --attack {self.attack}, which takes "
                "none or float32; leave it out"
            )
        if self.attack == "autoattack" and self.restarts > 1:
            raise ValueError(
                "--restarts means nothing to --attack autoattack, which has one start of each "
                "attack; leave it out, or choose cascade"
            )
        for field, attacks in MEANT_FOR.items():
            if getattr(self, field) is not None and self.attack not in attacks:
                flag = f"--{field.replace('_', '-')}"
                raise ValueError(
                    f"{flag} means nothing to --attack {self.attack}; "
                    f"leave it out, or choose {' or '.join(attacks)}"
                )

    def _check_protocol(self) -> None:
        """Raise ValueError where an option is given that the protocol decides itself."""
        if self.protocol == "none":
            return
        defaults = {field.name: field.default for field in fields(self)}
        for name in FIXED:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"--protocol {self.protocol} decides --{name.replace('_', '-')}; leave it out, "
                    "or give --attack autoattack without --protocol"
                )

    @property
    def in_cascade(self) -> bool:
        """Return whether each attack takes the survivors of those before it."""
        return self.protocol != "none" or self.attack in CASCADES

    def check_complete(self) -> None:
        """Raise ValueError where the model, the data or a legal attack is missing."""
        for field in ("model", "data"):
            if not getattr(self, field):
                raise UsageError(
                    f"--{field} is missing; --model URI and --data URI are needed (all: --help)"
                )
        self.attacks(num_classes=10)  # these two refuse bad steps and sizes
        self.examined()

    def command(self) -> str:
        """Return the command that these options came from, without defaults.

        The tracker's address is left out: it may hold a login.
        """
        words = invocation("evaluate")
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value != field.default and field.name != "tracking_uri":
                values = value if isinstance(value, tuple) else (value,)
                words += [flag] if value is True else [flag, *map(exact_text, values)]
        return shlex.join(words)

    @property
    def threat_model(self) -> ThreatModel:
        """Return the allowed set."""
        return ThreatModel(self.norm, self.epsilon)

    @property
    def image_resize(self) -> int:
        """Return what the short side of images is resized to; 0 for --image-size itself."""
        uncut = self.image_crop == 1 or self.image_size is None
        return 0 if uncut else round((self.image_size or 0) / self.image_crop)

    @property
    def resources(self) -> ResourceSettings:
        """Return what a task takes of the cluster."""
        return ResourceSettings(
            cpus_per_evaluation=self.cpus_per_task,
            gpus_per_evaluation=self.gpus_per_task,
            accelerator=self.accelerator,
        )

    @property
    def rows(self) -> int:
        """Return the images in every model call, for one model once --slots is settled."""
        return self.slots or SLOTS

    def with_slots(self, model: "nn.Module", shape: tuple[int, ...]) -> "ExternalOptions":
        """Return the options with --slots settled for a model. shape: (C, H, W) of an image."""
        if self.slots or self.gpus_per_task:
            return replace(self, slots=self.rows)
        from sat_ray.evaluation.engine.call_size import rows_for
        from sat_ray.evaluation.inputs import device_of

        return replace(self, slots=rows_for(model, shape, device=device_of(model), fewest=SLOTS))

    def images_per_shard(self, n: int) -> int:
        """Return the most images in one task, of n in all."""
        fewest, most = (self.rows * times for times in SLOTS_PER_SHARD)
        return self.shard_size or min(max(-(-n // SHARDS), fewest), most)

    def examined(self) -> AttackSpec:
        """Return the PGD whose claim the card examines: untargeted, with float32 gradients.

        It has these steps and starts where --attack is pgd.
        """
        plain: dict[str, Any] = {"steps": PGD_STEPS, "step_size": self._step_size}
        if self.attack == "pgd":
            plain |= {"steps": self._count("steps", PGD_STEPS), "restarts": self.restarts}
        return AttackSpec(threat_model=self.threat_model, **plain)

    def attacks(self, *, num_classes: int) -> list[AttackSpec]:
        """Return the attacks in their order."""
        attack = "autoattack" if self.protocol != "none" else self.attack
        steps = self._count("steps", PGD_STEPS if attack == "pgd" else STEPS)
        queries = self._count("queries", QUERIES)
        if attack == "autoattack":
            return autoattack(
                self.threat_model, num_classes=num_classes, steps=steps, queries=queries
            )
        common: dict[str, Any] = {"threat_model": self.threat_model, "restarts": self.restarts}
        if attack == "cascade":
            found = cascade(**common, num_classes=num_classes, steps=steps, queries=queries)
        elif attack == "square":
            found = [AttackSpec(**common, algorithm="square", steps=queries)]
        elif attack == "fab":
            targets = TARGETS if self.targets is None else self.targets
            start = self.restarts > 1
            found = [
                AttackSpec(
                    **common, algorithm="fab", steps=steps, targets=targets, random_start=start
                )
            ]
        else:
            found = [self._climbing(common, steps=steps)]
        return [
            spec if spec.algorithm in IN_FLOAT32 else replace(spec, gradient=self.gradient, name="")
            for spec in found
        ]

    def _climbing(self, common: dict[str, Any], *, steps: int) -> AttackSpec:
        """Return PGD or APGD."""
        return AttackSpec(
            **common,
            algorithm="apgd" if self.attack == "apgd" else "pgd",
            steps=steps,
            step_size=None if self.attack == "apgd" else self._step_size,
            loss=self.loss or "cross_entropy",
            targets=self.targets or 0,
        )

    @property
    def _step_size(self) -> float:
        return max(1 / 255, self.epsilon / 20) if self.step_size is None else self.step_size

    def _count(self, field: str, default: int) -> int:
        given: int | None = getattr(self, field)
        return default if given is None else given
