"""How a model is trained: the fields of a recipe, checked when they are set."""

from dataclasses import dataclass
from typing import Annotated

from sat_ray.attacks import PGD, AttackSpec
from sat_ray.data.augmentation import AUGMENTATIONS
from sat_ray.threat import ThreatModel
from sat_ray.training.optimization.schedules import SCHEDULES
from sat_ray.utils.bounds import (
    BelowOne,
    Bounds,
    Count,
    Epochs,
    Share,
    Steps,
    StepSize,
    check_fields,
)
from sat_ray.utils.names import check_name
from sat_ray.utils.precision import PRECISIONS

OBJECTIVES = ("cross_entropy", "trades")
SMALLEST_SIDE = 8  # pixels of the smallest images that training may begin with


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained."""

    epochs: Epochs = 20
    """Passes over the training split."""
    global_batch_size: Count = 64
    """Images in one update, over all workers."""
    batchnorm_group_size: Count = 32
    """Images that share BatchNorm statistics and one forward pass: a divisor of the global batch, whatever the number of workers."""
    shuffle_window: Count = 65536
    """Images among which each next one is drawn at random; a training split no larger is shuffled as a whole in every epoch, a larger one
    shard by shard."""
    augmentation: str = "none"
    """How training images are changed at random: none, crop_flip (padded by 4 pixels, cropped, flipped: CIFAR) or resized_crop_flip (a part
    of 8 to 100 % of the area is enlarged, then flipped: ImageNet)."""
    resize_start: Annotated[int, Bounds(0, 4096)] = 0
    """Side of the images of the first epochs, in pixels; it grows to that of the stored ones (the longer side in proportion). 0: all images
    are as stored. Validation and evaluation always use those."""
    resize_ramp: Share = 0.75
    """Share of the epochs after which training images are as stored."""
    resize_step: Annotated[int, Bounds(1, 4096)] = 32
    """Pixels by which the side grows at a time; a small number for small images."""
    learning_rate: Annotated[float, Bounds(0, 1e30, above=True)] = 0.2
    """Peak learning rate of SGD; what is too large for a network ends in a loss of NaN, and that stops the training."""
    alpha_learning_rate: Annotated[float, Bounds(0, 1_000_000, above=True)] = 1.0
    """That of learned alphas, in units of it."""
    momentum: BelowOne = 0.9
    """Nesterov momentum, in [0, 1)."""
    weight_decay: Annotated[float, Bounds(0, 1000)] = 5e-4
    """On convolution and linear weights only."""
    gradient_clip: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Longest gradient over all weights (L2); 0 for no limit."""
    ema_decay: BelowOne = 0.0
    """Decay of an average of the weights, which is then what is validated and saved, in [0, 1); 0 for none."""
    label_smoothing: BelowOne = 0.0
    """In the update's loss only, in [0, 1)."""
    schedule: str = "linear"
    """Of the learning rate: constant, cosine, step, linear or one_cycle."""
    warmup_epochs: Annotated[float, Bounds(0, 100_000)] = 2.0
    """Epochs over which the learning rate rises to its peak."""
    precision: str = "float32"
    """Of the forward and backward passes: float32, or bf16 (autocast; validation stays float32)."""
    compile: bool = False
    """Compile the attacker's view and the model with torch.compile: minutes at the start of a training, other kernels (so other bits), less
    memory traffic. Needs a C++ compiler, on GPUs Triton. Validation is not compiled."""
    objective: str = "cross_entropy"
    """What the update minimizes: cross_entropy of adversarial images, or trades."""
    trades_beta: Annotated[float, Bounds(0, 1_000_000, above=True)] = 6.0
    """Weight of the KL divergence in trades."""
    trades_noise: Annotated[float, Bounds(0, 1, above=True)] = 0.001
    """Standard deviation of the noise from which trades' attack starts, in [0, 1] pixels."""
    attack_steps: Steps = 1
    """Gradient steps of the inner maximization; 1 is the paper's fast training."""
    attack_step_size: StepSize | None = None
    """Length of one of them, in [0, 1] pixels; None for epsilon, of several for 1.5 epsilon / attack_steps each."""
    attack_random_start: bool = True
    """Start the inner maximization at a random point of the ball."""
    attack_replays: Annotated[int, Bounds(0, 1_000_000)] = 0
    """Free adversarial training: this many updates on each batch, whose backward passes move the images too; 0 for the usual attack."""
    epsilon_warmup: Share = 0.0
    """Share of the epochs over which the training attack's epsilon and step size grow from 0."""
    alpha_start: Annotated[float, Bounds(0, 1_000_000, above=True)] = 1.0
    """Alpha of the first epoch, in units of the configured one, towards which it then moves; activations without one ignore it."""
    alpha_ramp: Share = 0.5
    """Share of the epochs after which alpha is the configured one."""
    guard_every: Annotated[int, Bounds(0, 10**9)] = 0
    """Steps between two looks for catastrophic overfitting (PGD-10 on held-out images); 0 for none."""
    guard_images: Count = 256
    """Images of the validation split that they use."""
    guard_limit: Annotated[int, Bounds(0, 1_000_000)] = 3
    """Times that training is rolled back and given a weaker or finer attack before it gives up."""
    validate_every: Epochs = 5
    """Epochs between validations."""
    validation_steps: Steps = 10
    """Gradient steps of each attack on the validation split: PGD on cross-entropy, then targeted APGD on its survivors."""
    validation_step_size: StepSize | None = None
    """Length of one step of PGD, in [0, 1] pixels; None for epsilon / 4."""
    validation_targets: Annotated[int, Bounds(0, 1_000_000)] = 3
    """Classes that targeted APGD moves towards, the likeliest first; 0 for PGD alone, which also rewards hidden gradients."""

    def __post_init__(self) -> None:
        check_name(self.schedule, SCHEDULES, field="training.schedule")
        check_name(self.augmentation, AUGMENTATIONS, field="training.augmentation")
        check_name(self.precision, PRECISIONS, field="training.precision")
        check_name(self.objective, OBJECTIVES, field="training.objective")
        check_fields(self, prefix="training.")
        if self.batchnorm_group_size < 2 or self.global_batch_size % self.batchnorm_group_size:
            raise ValueError(
                f"training.batchnorm_group_size is {self.batchnorm_group_size}; allowed: a divisor >= 2 of global_batch_size "
                f"({self.global_batch_size})"
            )
        if self.compile and self.alpha_start != 1:
            raise ValueError(
                "training.compile is True; allowed: False, or alpha_start 1: every new alpha would be compiled anew"
            )
        if 0 != self.resize_start < SMALLEST_SIDE:
            raise ValueError(
                f"training.resize_start is {self.resize_start}; allowed: 0, or a whole number >= {SMALLEST_SIDE}"
            )
        if self.attack_replays and (
            self.attack_steps > 1 or self.objective != "cross_entropy" or self.guard_every
        ):
            raise ValueError(
                f"training.attack_replays is {self.attack_replays}; allowed: 0, or attack_steps 1, objective cross_entropy and no guard"
            )

    def passes_per_image(self) -> int:
        """Return the forward and backward passes that one image takes in one epoch: the attack's and the update's."""
        if self.attack_replays:
            return self.attack_replays
        return self.attack_steps + (2 if self.objective == "trades" else 1)

    def attack(self, threat_model: ThreatModel) -> PGD:
        """Build the inner maximization."""
        step_size = self.attack_step_size
        if step_size is None:
            step_size = threat_model.epsilon * min(1.0, 1.5 / self.attack_steps)
        return PGD(
            threat_model=threat_model,
            steps=self.attack_steps,
            step_size=step_size,
            use_random_start=self.attack_random_start,
        )

    def validation_attacks(
        self, threat_model: ThreatModel, *, num_classes: int
    ) -> list[AttackSpec]:
        """Describe the attacks that validation and model choice use, each on the survivors of those before.

        PGD on cross-entropy alone also rewards models whose gradients vanish where the loss saturates. The difference of two logits
        does not saturate, so a few steps of targeted APGD on it remove most of that advantage (docs/explanation/science.md has the figures).
        """
        step_size = (
            threat_model.epsilon / 4
            if self.validation_step_size is None
            else self.validation_step_size
        )
        pgd = AttackSpec(
            threat_model=threat_model, steps=self.validation_steps, step_size=step_size
        )
        targets = min(self.validation_targets, num_classes - 1)
        if targets < 1:
            return [pgd]
        targeted = AttackSpec(
            threat_model=threat_model,
            algorithm="apgd",
            steps=self.validation_steps,
            loss="margin",
            targets=targets,
        )
        return [pgd, targeted]


def groups_of(settings: TrainingSettings, *, rank: int, world_size: int) -> slice:
    """Return which BatchNorm groups of each update a process trains, as even a share as there is; ValueError where some get none."""
    groups = settings.global_batch_size // settings.batchnorm_group_size
    if world_size > groups:
        raise ValueError(
            f"{world_size} workers cannot share {_groups(settings)}; allowed: at most {groups} workers"
        )
    return slice(groups * rank // world_size, groups * (rank + 1) // world_size)


def check_even(settings: TrainingSettings, *, world_size: int) -> None:
    """Raise ValueError where a number of workers that was asked for would leave some of them waiting for others in every update."""
    groups = settings.global_batch_size // settings.batchnorm_group_size
    if groups % world_size:
        raise ValueError(
            f"{world_size} workers cannot share {_groups(settings)} evenly; allowed: a divisor of {groups}"
        )


def _groups(settings: TrainingSettings) -> str:
    size, group = settings.global_batch_size, settings.batchnorm_group_size
    return f"{size // group} BatchNorm groups (global_batch_size {size} / batchnorm_group_size {group})"
