"""What `pipelines/evaluate.py --model` can be asked for."""

from dataclasses import dataclass, replace
from typing import Literal

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.config import ResourceSettings
from sat_ray.threat import ThreatModel

LANES_PER_SHARD = 4


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """A model, images, and the attack that is to be survived."""

    model: str = ""
    """Checkpoint folder of sat_ray, MLflow model (models:/..., runs:/... or its folder), torch.export file (.pt2), or module:function."""
    data: str = ""
    """Prepared dataset (has a manifest.json), folder of images (one sub-folder per class), or .npz of images (uint8) and labels."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation."""
    epsilon: float = 8 / 255
    """Radius in [0, 1] pixels; k/255 may be written."""
    attack: Literal["pgd", "cascade"] = "pgd"
    """pgd, or the cascade of APGD on cross-entropy, targeted APGD on DLR, and Square, each on the survivors of those before it."""
    steps: int | None = None
    """Steps of pgd (200) or of each APGD run of the cascade (100)."""
    step_size: float | None = None
    """Length of one step of pgd, in [0, 1] pixels (1/255); the cascade finds its own."""
    restarts: int | None = None
    """Random starts of pgd (1)."""
    queries: int | None = None
    """Queries of Square in the cascade (5000)."""
    gradient: Literal["float32", "bf16"] = "float32"
    """bf16: differentiate a bfloat16 copy (another attack; faster on GPUs and CPUs that have it); float32 says what is broken."""
    split: str = "test"
    """Split of a prepared dataset; image folders and .npz files are a test split."""
    images: int | None = None
    """Evaluate this many images, drawn by the seed; all of them where not given."""
    image_size: int | None = None
    """Resize the short side of an image folder's images to this and crop the centre."""
    seed: int = 0
    """Seed of the random starts, and of the draw of images."""
    lanes: int = 64
    """Images in every model call; part of the numerical environment."""
    shard_size: int | None = None
    """Most images in one task; four times the lanes where not given."""
    storage: str = ""
    """Folder or s3://bucket/prefix for everything that is written; empty: SAT_RAY_STORAGE, else ./runs."""
    name: str = ""
    """Folder of this evaluation under STORAGE; empty: model, data and a hash of everything that determines the result."""
    tracking_uri: str = ""
    """Where MLflow model URIs are looked up; empty: MLFLOW_TRACKING_URI, else sqlite:///STORAGE/mlflow.db."""
    allow_pickle: bool = False
    """Load an MLflow model that is pickled, or a .pt2 file with pickled parts: this runs whatever code they hold."""
    card: bool = False
    """Compute the robustness card too, for a PGD of these steps: PASS, or FLAG with reasons."""
    cpus_per_task: int = 1
    """CPUs (and threads) of each task."""
    gpus_per_task: float = 0
    """GPUs of each task; fractions share one."""
    accelerator: str = ""
    """Model of the GPUs as it should appear in the records, for example H200; empty on CPUs."""
    on_code_change: Literal["refuse", "reuse", "rerun"] = "refuse"
    """Shards evaluated by other code than today's: refuse to start, reuse them, or move them aside and compute anew."""

    def __post_init__(self) -> None:
        for field, low in (("images", 1), ("lanes", 1), ("shard_size", 1), ("cpus_per_task", 1), ("gpus_per_task", 0)):
            value = getattr(self, field)
            if value is not None and value < low:
                raise ValueError(f"--{field.replace('_', '-')} is {value}; allowed: a whole number >= {low}")
        if bool(self.accelerator) != (self.gpus_per_task > 0):
            raise ValueError(
                f"--accelerator is {self.accelerator!r} with --gpus-per-task {self.gpus_per_task:g}; allowed: both (H200 and 1), or neither"
            )
        unused = ("step_size", "restarts") if self.attack == "cascade" else ("queries",)
        if given := [field for field in unused if getattr(self, field) is not None]:
            raise ValueError(f"--{given[0].replace('_', '-')} means nothing to --attack {self.attack}; leave it out")

    @property
    def threat_model(self) -> ThreatModel:
        """Return the allowed set."""
        return ThreatModel(self.norm, self.epsilon)

    @property
    def resources(self) -> ResourceSettings:
        """Return what a task asks of the cluster."""
        return ResourceSettings(
            cpus_per_evaluation=self.cpus_per_task, gpus_per_evaluation=self.gpus_per_task, accelerator=self.accelerator
        )

    def pgd(self) -> AttackSpec:
        """Return the PGD that these options describe, with float32 gradients; beside the cascade, the one whose claim the card examines."""
        steps = self.steps if self.steps is not None and self.attack == "pgd" else 200
        return AttackSpec(threat_model=self.threat_model, steps=steps, step_size=self.step_size or 1 / 255, restarts=self.restarts or 1)

    def _with_gradient(self, spec: AttackSpec) -> AttackSpec:
        return spec if spec.algorithm == "square" else replace(spec, gradient=self.gradient, name="")

    def attacks(self, *, num_classes: int) -> list[AttackSpec]:
        """Return the attacks in their order."""
        if self.attack == "pgd":
            return [self._with_gradient(self.pgd())]
        budgets = {"steps": self.steps, "queries": self.queries}
        given = {name: count for name, count in budgets.items() if count is not None}
        return [self._with_gradient(spec) for spec in cascade(self.threat_model, num_classes=num_classes, **given)]
