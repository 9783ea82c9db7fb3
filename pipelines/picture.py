"""Images drawn in a terminal with a few characters."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SHADES = " .:-=+*#%@"
WIDEST = 32


def drawing(image: Tensor) -> list[str]:
    """Draw an image (C, H, W) in [0, 1] as lines of characters, dark to light; wide images are thinned out."""
    grey = _thinned(image.mean(dim=0))
    return ["".join(2 * SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)] for value in row) for row in grey.tolist()]


def difference(delta: Tensor, *, epsilon: float) -> list[str]:
    """Draw a perturbation (C, H, W): '+' where it brightens by more than half of epsilon, '-' where it darkens, '.' in between."""
    grey = _thinned(delta.mean(dim=0)) / epsilon
    return ["".join(2 * ("+" if value > 0.5 else "-" if value < -0.5 else ".") for value in row) for row in grey.tolist()]


def side_by_side(pictures: Mapping[str, Sequence[str]]) -> list[str]:
    """Put pictures of one height beside each other, each under its title."""
    width = {title: max(len(title), *map(len, lines)) for title, lines in pictures.items()}
    rows = zip(*pictures.values(), strict=True)
    titles = [title.ljust(width[title]) for title in pictures]
    return ["   ".join(titles).rstrip(), *("   ".join(part.ljust(w) for part, w in zip(row, width.values(), strict=True)) for row in rows)]


def _thinned(grey: Tensor) -> Tensor:
    step = -(-max(grey.shape) // WIDEST)
    return torch.nn.functional.avg_pool2d(grey[None, None], step)[0, 0] if step > 1 else grey
