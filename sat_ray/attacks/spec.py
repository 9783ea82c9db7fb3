"""The JSON spelling of an attack, as recipes, records and the command line use it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from sat_ray.activations.registry import activation_info
from sat_ray.attacks.loss_names import ATTACK_LOSSES
from sat_ray.threat import ThreatModel
from sat_ray.utils.bounds import Bounds, Steps, StepSize, check_fields
from sat_ray.utils.names import check_name

if TYPE_CHECKING:
    from sat_ray.attacks.base import Attack

FINAL_SUFFIX = "-final"
Algorithm = Literal["pgd", "apgd", "fab", "square"]
ALGORITHMS = get_args(Algorithm)
Gradient = Literal["float32", "bf16", "fp16"]
GRADIENTS = get_args(Gradient)
_SHORT = {"cross_entropy": "ce"}


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """Describe one attack completely.

    `AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=200, step_size=1 / 255)`
    """

    threat_model: ThreatModel
    """The ball around each image."""
    steps: Steps
    """Moves per run, >= 1; queries for square."""
    step_size: StepSize | None = None
    """Of pgd alone, in [0, 1] pixels, with steps * step_size >= epsilon."""
    algorithm: Algorithm = "pgd"
    """pgd, apgd (which chooses its step sizes), fab (which looks for the nearest misclassified
    point) or square (which takes no gradient)."""
    loss: str = "cross_entropy"
    """What pgd and apgd ascend: cross_entropy, dlr or margin."""
    targets: Annotated[int, Bounds(0, 1_000_000)] = 0
    """0 to move away from the label; else that many runs per restart, each towards one of the
    likeliest other classes of the image."""
    restarts: Steps = 1
    """Runs of each image, >= 1, as long as it is not broken."""
    random_start: bool = True
    """Start at a random point of the ball, uniformly; else at the image itself. Square has a start
    of its own."""
    attacker_activation: str | None = None
    """Differentiate through the view of the model with this activation; None for its own."""
    attacker_alpha: float | None = None
    """Of that activation."""
    final_iterate: bool = False
    """Whether the last point alone counts, as in the paper; else every visited point."""
    gradient: Gradient = "float32"
    """Where gradients come from: the model itself (float32), or a surrogate: a copy of it in
    bfloat16 (bf16) or in compiled float16 kernels (fp16). With a surrogate it is another attack;
    a point counts as broken only if the model itself misclassifies it in float32
    (`sat_ray.evaluation.low_precision.verification`)."""
    name: str = ""
    """As it appears in outcomes; made from the rest where empty."""

    def __post_init__(self) -> None:
        check_name(self.algorithm, ALGORITHMS, field="attack algorithm")
        check_name(self.loss, ATTACK_LOSSES, field="attack loss")
        check_name(self.gradient, GRADIENTS, field="attack gradient")
        only_float32 = self.algorithm in ("fab", "square") or self.final_iterate
        if self.gradient != "float32" and only_float32:
            raise ValueError(
                "attack gradient must be float32 for fab, for square, which takes no gradient, "
                f"and with final_iterate, got {self.gradient}"
            )
        check_fields(self, prefix="")
        if (self.step_size is None) != (self.algorithm != "pgd"):
            raise ValueError(
                "step_size must be a number > 0 for pgd, and none for apgd, fab and square, "
                f"got {self.step_size}"
            )
        if self.algorithm == "square":
            self._check_square()
        if self.algorithm == "fab":
            self._check_fab()
        if self.attacker_activation is not None:
            activation_info(self.attacker_activation, field="attacker_activation").check_alpha(
                self.attacker_alpha, field="attacker_alpha"
            )
        if self.step_size is not None:
            self.threat_model.check_reach(steps=self.steps, step_size=self.step_size)
        object.__setattr__(self, "name", self.name or self._made_name())

    def _check_square(self) -> None:
        """Raise ValueError where a field is set that has no meaning for Square."""
        if self.targets:
            raise ValueError(f"targets must be 0 for square, got {self.targets}")
        if (
            self.attacker_activation is not None
            or not self.random_start
            or self.loss != "cross_entropy"
        ):
            raise ValueError(
                "square takes no gradient and has its own start; give steps and restarts alone"
            )

    def _check_fab(self) -> None:
        """Raise ValueError where a field is missing or has no meaning for targeted FAB."""
        if not self.targets:
            raise ValueError(
                "targets must be at least 1 for fab, which walks towards a class, got 0"
            )
        if self.loss != "cross_entropy" or self.final_iterate:
            raise ValueError(
                "fab follows the difference of two logits and counts every point; "
                "leave loss and final_iterate out"
            )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts must be 1 for fab without random_start, got {self.restarts}: "
                "every restart would be the same"
            )

    @property
    def runs(self) -> int:
        """Return the most runs of one image: every restart, towards every target."""
        return self.restarts * max(1, self.targets)

    def rank_of_target(self, run: int) -> int:
        """Return which of the likeliest other classes a run moves towards; 0 is the likeliest."""
        return run % self.targets

    def _made_name(self) -> str:
        words: list[str] = [self.algorithm]
        plain_pgd = self.algorithm == "pgd" and self.loss == "cross_entropy" and not self.targets
        if self.algorithm != "square" and not plain_pgd:
            words += ["t"] if self.targets else []
            words += [] if self.algorithm == "fab" else [_SHORT.get(self.loss, self.loss)]
        words.append(str(self.steps))
        if self.gradient != "float32":
            words.append(self.gradient)
        name = "-".join(words)
        if self.attacker_activation is not None:
            name += f"@{self.attacker_activation}"
        return name + (FINAL_SUFFIX if self.final_iterate else "")

    def __str__(self) -> str:
        unit = "queries" if self.algorithm == "square" else "steps"
        size = "" if self.step_size is None else f" of {self.threat_model.text(self.step_size)}"
        towards = f" towards {self.targets} classes" if self.targets else ""
        return (
            f"{self.name}: {self.steps} {unit}{size}{towards}, {self.restarts} restart(s), "
            f"{self.threat_model}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_json` makes the same spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AttackSpec":
        """Rebuild a spec from `to_json`."""
        return cls(**{**value, "threat_model": ThreatModel(**value["threat_model"])})


def make_attack(spec: AttackSpec) -> "Attack":
    """Build the stepper that a spec describes."""
    # loaded here, so that a spec can be read without torch
    from sat_ray.attacks.apgd import APGD
    from sat_ray.attacks.fab import FAB
    from sat_ray.attacks.pgd import PGD
    from sat_ray.attacks.square import Square

    if spec.algorithm == "square":
        return Square(threat_model=spec.threat_model, steps=spec.steps)
    if spec.algorithm == "apgd":
        return APGD(
            threat_model=spec.threat_model,
            steps=spec.steps,
            use_random_start=spec.random_start,
            loss=spec.loss,
        )
    if spec.algorithm == "fab":
        return FAB(
            threat_model=spec.threat_model,
            steps=spec.steps,
            use_random_start=spec.random_start,
        )
    assert spec.step_size is not None
    return PGD(
        threat_model=spec.threat_model,
        steps=spec.steps,
        step_size=spec.step_size,
        use_random_start=spec.random_start,
        loss=spec.loss,
    )


def true_and_smooth(
    spec: AttackSpec,
    *,
    activation: str,
    attacker_activation: str | None = None,
    alpha: float | None = None,
) -> list[AttackSpec]:
    """Return the attack through the true backward pass and, where needed, through the smooth one.

    The second is needed where training replaced any backward pass: a model whose own gradient is
    poor looks robust to an attack that uses it. The worse of the two counts. alpha: of the smooth
    view.
    """
    own = activation_info(activation)
    used = activation_info(attacker_activation or activation)
    if spec.algorithm == "square" or (not own.smooth_backward and not used.smooth_backward):
        return [spec]
    smooth = own.name if own.smooth_backward else used.name
    true = replace(spec, attacker_activation=own.forward_name if own.smooth_backward else None)
    suffix = FINAL_SUFFIX if spec.name.endswith(FINAL_SUFFIX) else ""
    # readers of outcomes recognise a final-iterate attack by the end of its name
    name = f"{spec.name.removesuffix(suffix)}@{smooth}{suffix}"
    return [true, replace(spec, attacker_activation=smooth, attacker_alpha=alpha, name=name)]
