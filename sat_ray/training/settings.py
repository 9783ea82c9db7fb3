"""How a model is trained: the fields of a recipe, checked when they are set."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from sat_ray.attacks.spec import AttackSpec
from sat_ray.data.choices import AUGMENTATIONS, STRONGEST
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
from sat_ray.utils.serialization import fields_in_use, to_json

if TYPE_CHECKING:
    from sat_ray.attacks.pgd import PGD

OBJECTIVES = ("cross_entropy", "trades", "mart")
OPTIMIZERS = ("sgd", "adamw")
SMALLEST_SIDE = 8  # pixels of the smallest images that training may begin with
# Settings that came after the first records were written. Keys of records leave them out at their
# default, so that records from before keep their keys.
ADDED = frozenset(
    {
        "adamw_beta1",
        "adamw_beta2",
        "adamw_eps",
        "attack_label_smoothing",
        "awp_gamma",
        "awp_start",
        "cutmix",
        "layer_decay",
        "mart_weight",
        "mixup",
        "optimizer",
        "randaugment",
        "randaugment_magnitude",
        "random_erasing",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained."""

    epochs: Epochs = 20
    """Passes over the training split."""
    global_batch_size: Count = 64
    """Images in one update, over all workers."""
    batchnorm_group_size: Count = 32
    """Images that share BatchNorm statistics and one forward pass: a divisor of the global batch,
    for any number of workers."""
    shuffle_window: Count = 65536
    """Images among which each next one is drawn at random. A training split that is not larger is
    shuffled as a whole in every epoch, a larger one shard by shard."""
    augmentation: str = "none"
    """How training images are changed at random: none, crop_flip (padded by 4 pixels, cropped,
    flipped: CIFAR) or resized_crop_flip (a part of 8 to 100 % of the area is enlarged, then
    flipped: ImageNet)."""
    randaugment: Annotated[int, Bounds(0, 10)] = 0
    """Operations of RandAugment on every training image, after the crop; 2 is usual, 0 for none.
    On a GPU the host waits for each of them."""
    randaugment_magnitude: Annotated[int, Bounds(0, STRONGEST)] = 9
    """Magnitude of RandAugment's operations, 0 to 30."""
    random_erasing: Share = 0.0
    """Probability with which a rectangle of a training image becomes random pixels; 0.25 is
    usual."""
    mixup: Share = 0.0
    """MixUp with another image of the BatchNorm group: alpha of Beta(alpha, alpha), 0.2 to 1; 0 for
    none. Attack and update use the mixed labels."""
    cutmix: Share = 0.0
    """CutMix, as mixup; 1 is usual. With both, each image gets one of them at random."""
    resize_start: Annotated[int, Bounds(0, 4096)] = 0
    """Side of the images of the first epochs, in pixels. It grows to that of the stored images, the
    longer side in proportion. 0: all images are as stored. Validation and evaluation always use
    images as stored."""
    resize_ramp: Share = 0.75
    """Share of the epochs after which training images are as stored."""
    resize_step: Annotated[int, Bounds(1, 4096)] = 32
    """Pixels by which the side grows at a time; a small number for small images."""
    optimizer: str = "sgd"
    """sgd (with momentum), or adamw, which needs a learning_rate about a hundred times smaller."""
    learning_rate: Annotated[float, Bounds(0, 1e30, above=True)] = 0.2
    """Peak learning rate. Where it is too large for a network, the loss becomes NaN, and that stops
    the training."""
    alpha_learning_rate: Annotated[float, Bounds(0, 1_000_000, above=True)] = 1.0
    """Learning rate of learned alphas, in units of learning_rate."""
    momentum: BelowOne = 0.9
    """Nesterov momentum of sgd, in [0, 1)."""
    adamw_beta1: BelowOne = 0.9
    """Decay of adamw's mean of the gradient, in [0, 1)."""
    adamw_beta2: BelowOne = 0.999
    """Decay of adamw's mean of the squared gradient, in [0, 1)."""
    adamw_eps: Annotated[float, Bounds(0, 1, above=True)] = 1e-8
    """Added to the root of that mean, which divides the step."""
    weight_decay: Annotated[float, Bounds(0, 1000)] = 5e-4
    """On convolution and linear weights only; with adamw decoupled from the gradient."""
    layer_decay: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Factor on the learning rate from each layer to the one before it, in (0, 1]: the last layer
    has the whole rate. 1 for one rate in all layers."""
    gradient_clip: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Longest gradient over all weights (L2); 0 for no limit."""
    ema_decay: BelowOne = 0.0
    """Decay of an average of the weights, in [0, 1), which is then validated and saved; 0 for
    none."""
    label_smoothing: BelowOne = 0.0
    """In the update's loss, in [0, 1)."""
    attack_label_smoothing: BelowOne = 0.0
    """In the attack's loss, in [0, 1)."""
    schedule: str = "linear"
    """Schedule of the learning rate: constant, cosine, step, linear or one_cycle."""
    warmup_epochs: Annotated[float, Bounds(0, 100_000)] = 2.0
    """Epochs over which the learning rate rises to its peak."""
    precision: str = "float32"
    """Precision of the forward and backward passes: float32, or bf16 (autocast; validation stays
    float32)."""
    compile: bool = False
    """Compile the attacker's view and the model with torch.compile: minutes at the start of a
    training, other kernels (so other bits), less memory traffic. It needs a C++ compiler, on GPUs
    Triton. Validation is not compiled."""
    objective: str = "cross_entropy"
    """What the update minimizes: cross_entropy of adversarial images, trades or mart."""
    trades_beta: Annotated[float, Bounds(0, 1_000_000, above=True)] = 6.0
    """Weight of the KL divergence in trades."""
    trades_noise: Annotated[float, Bounds(0, 1, above=True)] = 0.001
    """Standard deviation of the noise from which trades' attack starts, in [0, 1] pixels."""
    mart_weight: Annotated[float, Bounds(0, 1_000_000, above=True)] = 5.0
    """Weight of the KL divergence in mart (lambda)."""
    awp_gamma: Annotated[float, Bounds(0, 1)] = 0.0
    """Adversarial weight perturbation (AWP): its length in each layer, in units of the norm of the
    layer's weights, for example 0.005; 0 for none."""
    awp_start: Share = 0.0
    """Share of the epochs after which weights are perturbed."""
    attack_steps: Steps = 1
    """Gradient steps of the inner maximization; 1 is the paper's fast training."""
    attack_step_size: StepSize | None = None
    """Length of one step, in [0, 1] pixels. None: epsilon for one step, 1.5 epsilon / attack_steps
    for several."""
    attack_random_start: bool = True
    """Start the inner maximization at a random point of the ball."""
    attack_replays: Annotated[int, Bounds(0, 1_000_000)] = 0
    """Free adversarial training: this many updates on each batch, whose backward passes move the
    images too; 0 for the usual attack."""
    epsilon_warmup: Share = 0.0
    """Share of the epochs over which the training attack's epsilon and step size grow from 0."""
    alpha_start: Annotated[float, Bounds(0, 1_000_000, above=True)] = 1.0
    """Alpha of the first epoch, in units of the configured alpha, towards which it then moves.
    Activations without an alpha ignore it."""
    alpha_ramp: Share = 0.5
    """Share of the epochs after which alpha is the configured one."""
    guard_every: Annotated[int, Bounds(0, 10**9)] = 0
    """Steps between two tests for catastrophic overfitting (PGD-10 on held-out images); 0 for no
    guard."""
    guard_images: Count = 256
    """Images of the validation split that the guard tests."""
    guard_limit: Annotated[int, Bounds(0, 1_000_000)] = 3
    """How often training may be rolled back and continued with a weaker or finer attack before it
    stops with an error."""
    validate_every: Epochs = 5
    """Epochs between validations."""
    validation_steps: Steps = 10
    """Gradient steps of each attack on the validation split: PGD on cross-entropy, then targeted
    APGD on its survivors."""
    validation_step_size: StepSize | None = None
    """Length of one step of PGD, in [0, 1] pixels; None for epsilon / 4."""
    validation_targets: Annotated[int, Bounds(0, 1_000_000)] = 3
    """Classes that targeted APGD moves towards, the likeliest first; 0 for PGD alone, which also
    rewards hidden gradients."""

    def __post_init__(self) -> None:
        check_name(self.schedule, SCHEDULES, field="training.schedule")
        check_name(self.augmentation, AUGMENTATIONS, field="training.augmentation")
        check_name(self.precision, PRECISIONS, field="training.precision")
        check_name(self.objective, OBJECTIVES, field="training.objective")
        check_name(self.optimizer, OPTIMIZERS, field="training.optimizer")
        check_fields(self, prefix="training.")
        if self.batchnorm_group_size < 2 or self.global_batch_size % self.batchnorm_group_size:
            raise ValueError(
                "training.batchnorm_group_size must be a divisor >= 2 of global_batch_size "
                f"({self.global_batch_size}), got {self.batchnorm_group_size}"
            )
        if self.compile and self.alpha_start != 1:
            raise ValueError(
                "training.compile must be False where alpha_start is not 1, got True: every new "
                "alpha would be compiled again"
            )
        if 0 != self.resize_start < SMALLEST_SIDE:
            raise ValueError(
                f"training.resize_start must be 0 or a whole number >= {SMALLEST_SIDE}, "
                f"got {self.resize_start}"
            )
        plain = self.attack_steps == 1 and self.objective == "cross_entropy"
        if self.attack_replays and (not plain or self.guard_every):
            raise ValueError(
                "training.attack_replays must be 0 where attack_steps is not 1, the objective is "
                f"not cross_entropy or there is a guard, got {self.attack_replays}"
            )
        if self.awp_gamma and self.attack_replays:
            raise ValueError(
                "training.awp_gamma must be 0 with attack_replays, whose updates also move the "
                f"images, got {self.awp_gamma:g}"
            )
        if self.attack_label_smoothing and (self.objective == "trades" or self.attack_replays):
            raise ValueError(
                "training.attack_label_smoothing must be 0 where the attack has no loss of its own "
                "with labels (objective trades, attack_replays), "
                f"got {self.attack_label_smoothing:g}"
            )

    def identity(self) -> dict[str, Any]:
        """Return what determines a training, as JSON, for the keys of records."""
        in_use = fields_in_use(self, added=ADDED)
        return {name: to_json(value) for name, value in in_use.items()}

    def passes_per_image(self) -> int:
        """Return the forward and backward passes per image and epoch: the attack's and the
        update's."""
        if self.attack_replays:
            return self.attack_replays
        return self.attack_steps + self.update_passes()

    def update_passes(self) -> int:
        """Return the forward and backward passes per image of one update.

        trades and mart pass the clean image too. AWP differentiates twice, at the weights and at
        the perturbed ones; the epochs before awp_start are counted like the others.
        """
        images = 1 if self.objective == "cross_entropy" else 2
        return 2 * images if self.awp_gamma else images

    def attack(self, threat_model: ThreatModel) -> "PGD":
        """Build the inner maximization."""
        from sat_ray.attacks.pgd import PGD

        return PGD(
            threat_model=threat_model,
            steps=self.attack_steps,
            step_size=self.step_size(threat_model),
            use_random_start=self.attack_random_start,
            label_smoothing=self.attack_label_smoothing,
        )

    def step_size(self, threat_model: ThreatModel) -> float:
        """Return the length of one step of the attack; ValueError where it is too small."""
        step_size = self.attack_step_size
        if step_size is None:
            step_size = threat_model.epsilon * min(1.0, 1.5 / self.attack_steps)
        threat_model.check_reach(steps=self.attack_steps, step_size=step_size)
        return step_size

    def validation_attacks(
        self, threat_model: ThreatModel, *, num_classes: int
    ) -> list[AttackSpec]:
        """Describe the attacks of validation and model choice, each on the last one's survivors.

        PGD on cross-entropy alone also rewards models whose gradients vanish where the loss
        saturates. The difference of two logits does not saturate, so a few steps of targeted APGD
        on it remove most of that advantage (docs/explanation/science.md has the figures).
        """
        step_size = self.validation_step_size
        if step_size is None:
            step_size = threat_model.epsilon / 4
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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The min-max problem of one training, with the seed of its random draws.

    attacker_activation, attacker_alpha: the attack's view of the model, None for the model's own.
    """

    settings: TrainingSettings
    threat_model: ThreatModel
    attacker_activation: str | None = None
    attacker_alpha: float | None = None
    seed: int = 0


def groups_of(settings: TrainingSettings, *, rank: int, world_size: int) -> slice:
    """Return which BatchNorm groups of each update a process trains, as even a share as there is.

    Raises ValueError where some process gets none.
    """
    groups = settings.global_batch_size // settings.batchnorm_group_size
    if world_size > groups:
        raise ValueError(
            f"the number of workers must be at most {groups}, as they share {_groups(settings)}, "
            f"got {world_size}"
        )
    return share_of(groups, rank=rank, world_size=world_size)


def share_of(groups: int, *, rank: int, world_size: int) -> slice:
    """Return which of the groups a process gets; shares differ by one group at most."""
    return slice(groups * rank // world_size, groups * (rank + 1) // world_size)


def check_even(settings: TrainingSettings, *, world_size: int) -> None:
    """Raise ValueError where the workers have unequal shares and wait for each other."""
    groups = settings.global_batch_size // settings.batchnorm_group_size
    if groups % world_size:
        raise ValueError(
            f"the number of workers must be a divisor of {groups}, as they share "
            f"{_groups(settings)} evenly, got {world_size}"
        )


def _groups(settings: TrainingSettings) -> str:
    size = settings.global_batch_size
    group = settings.batchnorm_group_size
    return (
        f"{size // group} BatchNorm groups (global_batch_size {size} / batchnorm_group_size "
        f"{group})"
    )
