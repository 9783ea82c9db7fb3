"""Settings of the attacks that measure robust accuracy."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from sat_ray.attacks.cascade import STEPS, TARGETS
from sat_ray.attacks.spec import Gradient
from sat_ray.utils.bounds import Bounds, Count, Seed, Slots, Steps, StepSize, check_fields
from sat_ray.utils.names import check_name

Strong = Literal["all", "none"]


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
    """What the attack climbs: the model (float32), or a copy in fp16 (for GPUs) or bf16 (for GPUs
    and CPUs that have it), in compiled kernels (minutes at the start of every worker), or both.
    That is another attack; the model itself, in float32, says what is broken."""
    strong: Strong = "all"
    """Which models meet the strong attacks too (APGD on cross-entropy, then targeted APGD on DLR,
    as in AutoAttack): all of them, or none. They attack what survives PGD. Ranking, statistics and
    champion rest on the strong verdict; without it, on PGD's."""
    strong_steps: Steps = STEPS
    """Steps of each run of a strong attack; AutoAttack takes 100."""
    strong_targets: Annotated[int, Bounds(1, 1_000_000)] = TARGETS
    """Most classes that the targeted strong attack moves towards, likeliest first; AutoAttack takes
    9."""
    corruptions: bool = False
    """Also count the right answers under 15 common corruptions at 5 severities (noise, blur,
    weather, digital), computed from the test images that are evaluated: 75 forward passes each."""
    slots: Slots = 64
    """Images in every model call; hundreds are faster for a small network. Part of the numerical
    environment."""
    shard_size: Count = 450
    """Most test images in one evaluation task."""
    images: Count | None = None
    """Most images of each split that are evaluated, drawn by the seed, the same for every model;
    None for all of them."""
    seed: Seed = 0
    """Seed of the random starts, and of the draw of images."""

    def __post_init__(self) -> None:
        check_name(self.gradient, get_args(Gradient), field="evaluation.gradient")
        check_fields(self, prefix="evaluation.")

    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages that evaluate trained models, in their order."""
        strong = self.strong != "none"
        wanted = {
            "validate": strong,
            "evaluate": True,
            "strong": strong,
            "corruptions": self.corruptions,
        }
        return tuple(name for name, runs in wanted.items() if runs)

    def evaluated(self, count: int) -> int:
        """Return how many of the `count` images of a split are evaluated."""
        return count if self.images is None else min(self.images, count)

    def shards(self, count: int) -> int:
        """Return into how many tasks a split of `count` images is cut."""
        return -(-self.evaluated(count) // self.shard_size)
