"""The 15 common corruptions of Hendrycks & Dietterich 2019 (ImageNet-C), at 5 severities.

    noise     gaussian_noise, shot_noise, impulse_noise
    blur      defocus_blur, glass_blur, motion_blur, zoom_blur
    weather   snow, frost, fog, brightness
    digital   contrast, elastic_transform, pixelate, jpeg_compression

Written from the paper's descriptions for images of any size, on their device. All draws are a pure
function of (seed, image id, kind), the same for every severity. So these are not the pixels of the
published ImageNet-C and CIFAR-10-C, and accuracies are not comparable with published ones:

- lengths are shares of the image's side, and strengths those of CIFAR-10-C below LARGE pixels and
  those of ImageNet-C from there on (noise, brightness, contrast and JPEG quality), or in
  the same range (the others);
- frost has no photographs of ice: crystals are ridges of random clouds, bluish white;
- fog and frost have clouds from octaves of random grids, not from the diamond-square algorithm;
- glass exchanges no pixels: every pixel shows a random place nearby;
- shot noise has a normal distribution, rounded to whole counts, where a white pixel counts 100
  photons or more;
- elastic_transform has the smooth displacements without the affine change.

x: (N, C, H, W) float32 in [0, 1], C 1 or 3; severity: 0 to 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_ray.evaluation.corruptions.shapes import (
    clouds,
    coarse,
    disk,
    gaussian,
    mean_of,
    motion,
    places,
    sampled,
    zoomed,
)
from sat_ray.utils.randomness import Randomness

SEVERITIES = 5
LARGE = 64  # pixels of the shorter side
MANY = 100  # photons of a white pixel from which counts are drawn from a normal distribution
Five = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class _Image:
    """Images with their random streams, and their shorter side in pixels."""

    x: Tensor
    rng: Randomness
    kind: str

    @property
    def side(self) -> int:
        return min(self.x.shape[-2:])

    def normal(self, name: str, channels: int) -> Tensor:
        shape = (channels, *self.x.shape[-2:])
        return self.rng.normal(f"corruption/{self.kind}/{name}", shape, device=self.x.device)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.rng.uniform(f"corruption/{self.kind}/{name}", shape, device=self.x.device)

    def clouds(self, decay: float) -> Tensor:
        return clouds(self.x, self.rng, purpose=f"corruption/{self.kind}", decay=decay)


Corruption = Callable[[_Image, float], Tensor]


def _gaussian_noise(image: _Image, strength: float) -> Tensor:
    return image.x + strength * image.normal("noise", image.x.shape[1])


def _shot_noise(image: _Image, photons: float) -> Tensor:
    mean = image.x * photons
    if photons >= MANY:
        counts = (mean + mean.sqrt() * image.normal("noise", image.x.shape[1])).round()
    else:
        draw = image.uniform("noise", tuple(image.x.shape[1:]))
        counts = _poisson(mean, draw, most=math.ceil(photons + 8 * math.sqrt(photons)))
    return counts / photons


def _poisson(mean: Tensor, draw: Tensor, *, most: int) -> Tensor:
    """Return Poisson counts, the smallest k with P(count <= k) > draw, at most `most`."""
    probability = torch.exp(-mean)
    below = probability.clone()
    counts = torch.zeros_like(mean)
    for number in range(1, most + 1):
        counts += below <= draw
        probability = probability * mean / number
        below = below + probability
    return counts


def _impulse_noise(image: _Image, share: float) -> Tensor:
    draw = image.uniform("noise", tuple(image.x.shape[1:]))
    dark = torch.where(draw < share / 2, torch.zeros_like(image.x), image.x)
    return torch.where(draw >= 1 - share / 2, torch.ones_like(dark), dark)


def _defocus_blur(image: _Image, share: float) -> Tensor:
    return disk(image.x, 0.5 + share * image.side)


def _glass_blur(image: _Image, share: float) -> Tensor:
    reach = 0.5 + share * image.side
    down, along = (
        (2 * image.uniform(name, tuple(image.x.shape[-2:])) - 1) * reach for name in ("y", "x")
    )
    rows, columns = places(image.x)
    return sampled(gaussian(image.x, reach / 3), rows + down, columns + along)


def _motion_blur(image: _Image, share: float) -> Tensor:
    angle = (image.uniform("angle", (1,)).flatten() - 0.5) * math.pi / 2
    return motion(image.x, 0.5 + share * image.side, angle)


def _zoom_blur(image: _Image, most: float) -> Tensor:
    factors = [1 + (most - 1) * step / 10 for step in range(11)]
    return mean_of((1.0, zoomed(image.x, factor)) for factor in factors)


def _snow(image: _Image, strength: float) -> Tensor:
    """Return whitened images with flakes that fall aslant; strength: in [0, 1]."""
    draw = gaussian(image.normal("flakes", 1), image.side / 100)
    flakes = (2 * (_to_one(draw) - (0.6 - 0.4 * strength))).clamp(0, 1)
    angle = (1.25 + 0.5 * image.uniform("angle", (1,)).flatten()) * math.pi
    falling = motion(flakes, 0.5 + 0.08 * image.side * strength, angle)
    gray = image.x.mean(dim=1, keepdim=True)
    white = torch.maximum(image.x, gray * 1.5 + 0.5)
    left = 1 - 0.5 * strength
    return left * image.x + (1 - left) * white + falling


def _frost(image: _Image, strength: float) -> Tensor:
    """Return dimmed images behind ice crystals; strength: of the ice, in [0, 1]."""
    ridges = 1 - (2 * image.clouds(1.6) - 1).abs()
    colour = torch.tensor([0.85, 0.95, 1.0], device=image.x.device).view(1, 3, 1, 1)
    ice = ridges**2 * (colour if image.x.shape[1] == 3 else colour.mean())
    return (1 - 0.55 * strength) * image.x + strength * ice


def _fog(image: _Image, strength: float) -> Tensor:
    brightest = image.x.amax(dim=(1, 2, 3), keepdim=True)
    mist = strength * image.clouds(1.75)
    return (image.x + mist) * brightest / (brightest + strength)


def _brightness(image: _Image, more: float) -> Tensor:
    """Return images with a larger value in the sense of HSV: hue and saturation stay."""
    value = image.x.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, image.x * raised / value.clamp_min(1e-6), raised)


def _contrast(image: _Image, factor: float) -> Tensor:
    levels = (image.x * 255).round().to(torch.float64)  # their sum is exact in any order
    mean = (levels.mean(dim=(2, 3), keepdim=True) / 255).to(torch.float32)
    return (image.x - mean) * factor + mean


def _elastic_transform(image: _Image, share: float) -> Tensor:
    rows, columns = places(image.x)
    moved = []
    for name in ("y", "x"):
        field = gaussian(image.normal(name, 1), max(0.7, 0.04 * image.side))
        moved.append(_to_one(field)[:, 0] * share * image.side)
    return sampled(image.x, rows + moved[0], columns + moved[1])


def _to_one(field: Tensor) -> Tensor:
    """Return each image of a field divided by its largest absolute value."""
    return field / field.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def _pixelate(image: _Image, share: float) -> Tensor:
    return coarse(image.x, share)


def _jpeg_compression(image: _Image, quality: float) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg  # takes a second to import

    levels = (image.x * 255).round().to(torch.uint8).cpu()
    mode = ImageReadMode.GRAY if levels.shape[1] == 1 else ImageReadMode.RGB
    decoded = [decode_jpeg(encode_jpeg(one, quality=round(quality)), mode=mode) for one in levels]
    return torch.stack(decoded).to(image.x.device, torch.float32) / 255


_BLURS: Five = (0.012, 0.02, 0.028, 0.036, 0.045)
_MOTIONS: Five = (0.02, 0.04, 0.06, 0.09, 0.12)
_WAVES: Five = (0.02, 0.03, 0.04, 0.05, 0.06)
# strengths for images below LARGE pixels, and from there on
KINDS: dict[str, tuple[Corruption, Five, Five]] = {
    "gaussian_noise": (
        _gaussian_noise,
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": (
        _impulse_noise,
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus_blur": (_defocus_blur, _BLURS, _BLURS),
    "glass_blur": (_glass_blur, _BLURS, _BLURS),
    "motion_blur": (_motion_blur, _MOTIONS, _MOTIONS),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26), (1.1, 1.15, 1.2, 1.25, 1.3)),
    "snow": (_snow, (0.2, 0.3, 0.4, 0.5, 0.6), (0.3, 0.45, 0.6, 0.75, 0.9)),
    "frost": (_frost, (0.2, 0.3, 0.4, 0.5, 0.6), (0.4, 0.5, 0.6, 0.7, 0.8)),
    "fog": (_fog, (0.2, 0.5, 0.75, 1.0, 1.5), (1.0, 1.5, 2.0, 2.5, 3.0)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (_elastic_transform, _WAVES, _WAVES),
    "pixelate": (_pixelate, (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}


@torch.no_grad()
def corrupted(x: Tensor, rng: Randomness, *, kind: str, severity: int) -> Tensor:
    """Return corrupted images, (N, C, H, W) uint8 on the device of x.

    x: (N, C, H, W) float32 in [0, 1]; rng: of the same N, seed and image ids; severity: 0 to 4.
    """
    make, small, large = KINDS[kind]
    image = _Image(x, rng, kind)
    strength = (large if image.side >= LARGE else small)[severity]
    return (make(image, strength).clamp(0, 1) * 255).round().to(torch.uint8)
