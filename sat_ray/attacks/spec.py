"""The JSON spelling of an attack: what a recipe, a record and the command line say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sat_ray.activations import activation_info
from sat_ray.attacks.pgd import PGD
from sat_ray.threat import ThreatModel, as_255ths

FINAL_SUFFIX = "-final"


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """Describe one attack completely.

    steps: gradient steps >= 1; step_size: in [0, 1] pixels, steps * step_size >= epsilon; restarts: >= 1; random_start: uniform in the
    ball, else the clean image; attacker_activation, attacker_alpha: differentiate through this view of the model, None for its own;
    final_iterate: only the last point counts (the paper's rule), else every visited point; name: as it appears in outcomes, made from
    the rest where empty.
    """

    threat_model: ThreatModel
    steps: int
    step_size: float
    restarts: int = 1
    random_start: bool = True
    attacker_activation: str | None = None
    attacker_alpha: float | None = None
    final_iterate: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise ValueError(f"restarts is {self.restarts}; allowed: a whole number >= 1")
        if self.attacker_activation is not None:
            activation_info(self.attacker_activation, field="attacker_activation").check_alpha(self.attacker_alpha, field="attacker_alpha")
        make_attack(self)  # refuses bad steps and sizes
        object.__setattr__(self, "name", self.name or self._made_name())

    def _made_name(self) -> str:
        name = f"pgd-{self.steps}"
        if self.attacker_activation is not None:
            name += f"@{self.attacker_activation}"
        return name + (FINAL_SUFFIX if self.final_iterate else "")

    def __str__(self) -> str:
        return f"{self.name}: {self.steps} steps of {as_255ths(self.step_size)}, {self.restarts} restart(s), {self.threat_model}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_json` makes the same spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AttackSpec":
        """Rebuild a spec from `to_json`."""
        return cls(**{**value, "threat_model": ThreatModel(**value["threat_model"])})


def make_attack(spec: AttackSpec) -> PGD:
    """Build the stepper that a spec describes."""
    return PGD(threat_model=spec.threat_model, steps=spec.steps, step_size=spec.step_size, use_random_start=spec.random_start)


def true_and_smooth(
    spec: AttackSpec, *, activation: str, attacker_activation: str | None = None, alpha: float | None = None
) -> list[AttackSpec]:
    """Attack through the true backward pass and, where training replaced any backward pass, through the smooth one too.

    A model whose own gradient is poor looks robust to an attack that uses it; the worse of the two counts. alpha: of the smooth view.
    """
    own = activation_info(activation)
    used = activation_info(attacker_activation or activation)
    if not own.smooth_backward and not used.smooth_backward:
        return [spec]
    smooth = own.name if own.smooth_backward else used.name
    true = replace(spec, attacker_activation=own.forward_name if own.smooth_backward else None)
    return [true, replace(spec, attacker_activation=smooth, attacker_alpha=alpha, name=f"{spec.name}@{smooth}")]
