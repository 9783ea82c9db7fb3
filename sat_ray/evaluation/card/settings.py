"""How much evidence a robustness card measures."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from sat_ray.attacks.cascade import QUERIES, STEPS, TARGETS
from sat_ray.utils.bounds import Bounds, Count, Steps, check_fields

if TYPE_CHECKING:
    from sat_ray.attacks.spec import AttackSpec
    from sat_ray.threat import ThreatModel

EPSILON_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
EPSILON_STEPS = 50  # of epsilon / 20: they cross the ball more than twice
SHORT_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """The size of a robustness card.

    Its limits are fixed: see `sat_ray.evaluation.card.checks`.
    """

    images: Count = 1000
    """Most images of the validation split that the card uses."""
    restarts: Annotated[int, Bounds(2, 1_000_000)] = 5
    """Random starts of an attack that claims one, to measure whether more of them lower the
    accuracy; as many more where it claims more."""
    cascade_steps: Steps = STEPS
    """Steps of each APGD run of the cascade; AutoAttack takes 100."""
    cascade_queries: Steps = QUERIES
    """Queries of Square per image; AutoAttack takes 5000."""
    candidates: Annotated[int, Bounds(1, 1_000_000)] = 3
    """Most search-space points, best by validation first, that get a card before the sweep stops
    looking for a champion."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="card.")


def radii(threat_model: "ThreatModel", *, values: float = math.inf) -> list[float]:
    """Return the epsilons of the curve: multiples of the claimed one, then a ball of all images.

    values: pixels and channels of an image.
    """
    whole = 1.0 if threat_model.norm == "linf" else math.sqrt(values)
    multiples = [multiple * threat_model.epsilon for multiple in EPSILON_MULTIPLES]
    return [*(radius for radius in multiples if radius < whole), whole]


def most_passes(attack: "AttackSpec", settings: CardSettings) -> int:
    """Return the most forward and backward passes of one image of a card.

    They are counted for one variant of the backward pass, without Square's queries.
    """
    claimed = (attack.restarts + settings.restarts - 1) * (attack.steps + 1)
    cascade_runs = (1 + TARGETS) * (settings.cascade_steps + 1)
    curves = len(radii(attack.threat_model)) * (EPSILON_STEPS + 1) + (attack.steps + 1)
    return claimed + cascade_runs + curves + (SHORT_STEPS + 1) + 2
