"""The losses that an attack may ascend, by name; `sat_ray.attacks.losses` computes them."""

ATTACK_LOSSES = ("cross_entropy", "margin", "dlr")


def fewest_classes(loss: str, *, targeted: bool) -> int:
    """Return how many classes a model must have for an attack loss to be defined."""
    return (4 if targeted else 3) if loss == "dlr" else 2
