"""How a model is trained: the fields of a recipe, checked when they are set."""

from dataclasses import dataclass

from sat_ray.attacks import PGD, AttackSpec
from sat_ray.names import check_name
from sat_ray.schedules import SCHEDULES
from sat_ray.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained."""

    epochs: int = 20
    """Passes over the training split."""
    global_batch_size: int = 64
    """Images in one update, over all workers."""
    batchnorm_group_size: int = 32
    """Images that share BatchNorm statistics: a divisor of the global batch, whatever the number of workers."""
    learning_rate: float = 0.2
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """Nesterov momentum, in [0, 1)."""
    weight_decay: float = 5e-4
    """On convolution and linear weights only."""
    label_smoothing: float = 0.0
    """In the update's loss only, in [0, 1)."""
    schedule: str = "linear"
    """Of the learning rate: constant, cosine, step or linear."""
    warmup_epochs: float = 2.0
    """Epochs over which the learning rate rises to its peak."""
    attack_steps: int = 1
    """Gradient steps of the inner maximization; 1 is the paper's fast training."""
    attack_step_size: float | None = None
    """Length of one of them, in [0, 1] pixels; None for epsilon."""
    attack_random_start: bool = True
    """Start the inner maximization at a random point of the ball."""
    validate_every: int = 5
    """Epochs between validations."""
    validation_steps: int = 10
    """Gradient steps of PGD on the validation split."""
    validation_step_size: float | None = None
    """Length of one of them, in [0, 1] pixels; None for epsilon / 4."""

    def __post_init__(self) -> None:
        check_name(self.schedule, SCHEDULES, field="training.schedule")
        for name in ("epochs", "global_batch_size", "batchnorm_group_size", "attack_steps", "validate_every", "validation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; allowed: a whole number >= 1")
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate is {self.learning_rate:g}; allowed: a number > 0")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name):g}; allowed: [0, 1)")
        if self.weight_decay < 0 or self.warmup_epochs < 0:
            raise ValueError(f"training.weight_decay and warmup_epochs are {self.weight_decay:g}, {self.warmup_epochs:g}; allowed: >= 0")
        if self.batchnorm_group_size < 2 or self.global_batch_size % self.batchnorm_group_size:
            raise ValueError(
                f"training.batchnorm_group_size is {self.batchnorm_group_size}; allowed: a divisor >= 2 of global_batch_size "
                f"({self.global_batch_size})"
            )

    def attack(self, threat_model: ThreatModel) -> PGD:
        """Build the inner maximization."""
        step_size = threat_model.epsilon if self.attack_step_size is None else self.attack_step_size
        return PGD(threat_model=threat_model, steps=self.attack_steps, step_size=step_size, use_random_start=self.attack_random_start)

    def validation_attack(self, threat_model: ThreatModel) -> AttackSpec:
        """Describe the attack that validation and model choice use."""
        step_size = threat_model.epsilon / 4 if self.validation_step_size is None else self.validation_step_size
        return AttackSpec(threat_model=threat_model, steps=self.validation_steps, step_size=step_size)


def local_groups(settings: TrainingSettings, *, world_size: int) -> int:
    """Return how many BatchNorm groups each process trains per update; ValueError where they cannot be dealt evenly."""
    groups = settings.global_batch_size // settings.batchnorm_group_size
    if groups % world_size:
        raise ValueError(
            f"{world_size} workers cannot share {groups} BatchNorm groups (global_batch_size {settings.global_batch_size} / "
            f"batchnorm_group_size {settings.batchnorm_group_size}); allowed: a divisor of {groups}"
        )
    return groups // world_size
