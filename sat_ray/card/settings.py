"""How much evidence a robustness card rests on."""

from dataclasses import dataclass

from sat_ray.attacks.cascade import QUERIES, STEPS


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """The size of a robustness card. What it demands is fixed: see `sat_ray.card.checks`."""

    images: int = 1000
    """Most images of the validation split that the card uses."""
    restarts: int = 5
    """Random starts of an attack that claims one, to see whether more of them lower the accuracy; as many more where it claims more."""
    cascade_steps: int = STEPS
    """Steps of each APGD run of the cascade; AutoAttack takes 100."""
    cascade_queries: int = QUERIES
    """Queries of Square per image; AutoAttack takes 5000."""
    candidates: int = 3
    """Configurations, best by validation first, that may get a card before the search for a champion is given up."""

    def __post_init__(self) -> None:
        for name, low in (("images", 1), ("restarts", 2), ("cascade_steps", 1), ("cascade_queries", 1), ("candidates", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"card.{name} is {getattr(self, name)}; allowed: a whole number >= {low}")
