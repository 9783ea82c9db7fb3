"""RandAugment (Cubuk et al. 2020): a few operations, drawn for every image, of one magnitude.

The operations, their order of magnitudes (31 of them, 0 to 30) and their kernels are those of
`torchvision.transforms.v2.RandAugment`, with nearest interpolation and black borders. Which
operations an image gets, and in which direction, is a pure function of (seed, epoch, image id).

Images of one batch that get the same operation are changed together. torchvision's kernels copy
their matrices to the device, so on a GPU the host waits for it once for each operation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sat_ray.data.choices import STRONGEST
from sat_ray.utils.randomness import Randomness

Operation = Callable[[Tensor, int, float], Any]
"""(images (N, C, H, W) uint8, magnitude 0 to STRONGEST, sign 1 or -1) -> changed images."""


@functools.cache
def _level(most: float, magnitude: int) -> float:
    """Return a magnitude in units of an operation, as torchvision rounds it."""
    return float(torch.linspace(0.0, most, STRONGEST + 1)[magnitude])


def _affine(
    images: Tensor, *, shear: tuple[float, float] = (0.0, 0.0), translate: tuple[int, int] = (0, 0)
) -> Any:
    degrees = [math.degrees(math.atan(one)) for one in shear]
    # sheared around the corner, as in AutoAugment
    center = [0.0, 0.0] if any(shear) else None
    return F.affine(
        images, angle=0.0, translate=list(translate), scale=1.0, shear=degrees, center=center
    )


def _shear_x(images: Tensor, magnitude: int, sign: float) -> Any:
    return _affine(images, shear=(sign * _level(0.3, magnitude), 0.0))


def _shear_y(images: Tensor, magnitude: int, sign: float) -> Any:
    return _affine(images, shear=(0.0, sign * _level(0.3, magnitude)))


def _translate_x(images: Tensor, magnitude: int, sign: float) -> Any:
    pixels = int(sign * _level(150 / 331 * images.shape[-1], magnitude))
    return _affine(images, translate=(pixels, 0))


def _translate_y(images: Tensor, magnitude: int, sign: float) -> Any:
    pixels = int(sign * _level(150 / 331 * images.shape[-2], magnitude))
    return _affine(images, translate=(0, pixels))


def _rotate(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.rotate(images, angle=sign * _level(30.0, magnitude))


def _brightness(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.adjust_brightness(images, 1.0 + sign * _level(0.9, magnitude))


def _color(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.adjust_saturation(images, 1.0 + sign * _level(0.9, magnitude))


def _contrast(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.adjust_contrast(images, 1.0 + sign * _level(0.9, magnitude))


def _sharpness(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.adjust_sharpness(images, 1.0 + sign * _level(0.9, magnitude))


def _posterize(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.posterize(images, bits=round(8 - 4 * magnitude / STRONGEST))


def _solarize(images: Tensor, magnitude: int, sign: float) -> Any:
    return F.solarize(images, threshold=255.0 * (1.0 - _level(1.0, magnitude)))


SIGNED: dict[str, Operation] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
}
"""Operations with a direction, drawn for every image."""

UNSIGNED: dict[str, Operation] = {
    "Identity": lambda images, magnitude, sign: images,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda images, magnitude, sign: F.autocontrast(images),
    "Equalize": lambda images, magnitude, sign: F.equalize(images),
}

OPERATIONS = SIGNED | UNSIGNED


def operations_of(rng: Randomness, count: int, *, epoch: int) -> list[list[tuple[str, float]]]:
    """Return the operations of every image, in order: `count` of (name, sign 1 or -1)."""
    numbers = rng.below(len(OPERATIONS), "augment/operation", count, step=epoch).tolist()
    signs = rng.below(2, "augment/sign", count, step=epoch).tolist()
    names = list(OPERATIONS)
    return [
        [
            (names[number], -1.0 if sign and names[number] in SIGNED else 1.0)
            for number, sign in zip(*row, strict=True)
        ]
        for row in zip(numbers, signs, strict=True)
    ]


def randaugment(
    images: Tensor, rng: Randomness, *, count: int, magnitude: int, epoch: int
) -> Tensor:
    """Return images after `count` operations each, of the same shape, type and device.

    images: (N, C, H, W) uint8, C 1 or 3; rng: of the same N; count: >= 1; magnitude: 0 to
    STRONGEST.
    """
    drawn = operations_of(rng, count, epoch=epoch)
    for number in range(count):
        images = _changed(images, [own[number] for own in drawn], magnitude=magnitude)
    return images


def _changed(images: Tensor, wanted: list[tuple[str, float]], *, magnitude: int) -> Tensor:
    """Apply one operation to every image, those of the same operation together."""
    changed = torch.empty_like(images)
    for name, sign in sorted(set(wanted)):
        rows = [row for row, own in enumerate(wanted) if own == (name, sign)]
        places = torch.tensor(rows, device=images.device)
        before = images[places]
        after = OPERATIONS[name](before, magnitude, sign)
        if after.dtype != torch.uint8 or after.shape != before.shape:
            raise ValueError(
                f"augmentation {name} must return uint8 images of shape {tuple(before.shape)}, "
                f"so that pixels stay in [0, 1], got {after.dtype} of shape {tuple(after.shape)}"
            )
        changed[places] = after
    return changed
