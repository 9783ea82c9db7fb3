"""How much evidence a robustness card measures."""

from dataclasses import dataclass
from typing import Annotated

from sat_ray.attacks.cascade import QUERIES, STEPS
from sat_ray.utils.bounds import Bounds, Count, Steps, check_fields


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
