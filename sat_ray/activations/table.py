"""The activations as a table: the alphas that a search tries, and the curvature of each."""

from collections.abc import Iterable

from sat_ray.activations.registry import (
    ACTIVATIONS,
    ActivationInfo,
    activation_info,
    alpha_text,
    curvature_text,
)

HEADING = "Activations, the alphas that a search tries, and the curvature max |f''| of each:"


def activation_table() -> str:
    """Return a line for every activation of the registry, under `HEADING`."""
    width = max(map(len, ACTIVATIONS))
    lines = [f"- {name:<{width}}  {_line(info)}" for name, info in ACTIVATIONS.items()]
    return "\n".join([HEADING, *lines])


def _line(info: ActivationInfo) -> str:
    return alphas_and_curvatures(info.name, info.grid)


def alphas_and_curvatures(name: str, alphas: Iterable[float | None]) -> str:
    """Return `alpha 1 4; curvature 0.5 2`, alphas ascending; without alphas the curvature alone."""
    info = activation_info(name)
    if info.learned:
        start = f"alpha learned from {alpha_text(info.alpha_start)}"
        return f"{start}, where the curvature is {curvature_text(info.curvature(info.alpha_start))}"
    known = sorted(alpha for alpha in alphas if alpha is not None)
    if not known:
        return f"curvature {curvature_text(info.curvature_at(None))}"
    bends = [info.curvature_at(alpha) for alpha in known]
    written = " ".join(map(curvature_text, bends))
    return f"alpha {' '.join(map(alpha_text, known))}; curvature {written}"
