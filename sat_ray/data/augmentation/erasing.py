"""Random erasing (Zhong et al. 2020): a rectangle of some images becomes random pixels.

The rectangle is drawn as by `torchvision.transforms.v2.RandomErasing`: 2 to 33 % of the area, an
aspect ratio of 0.3 to 3.3, the first of ten draws that is smaller than the image, and where none
is, the image stays. Its pixels are uniform in 0 to 255, the paper's best choice. Everything is a
pure function of (seed, epoch, image id).
"""

import torch
from torch import Tensor

from sat_ray.data.augmentation.crops import first_fitting, sides
from sat_ray.utils.randomness import Randomness, coin

SCALE = (0.02, 0.33)
RATIO = (1 / 3.3, 1 / 0.3)  # width by height


def erased(rng: Randomness, height: int, width: int, *, probability: float, epoch: int) -> Tensor:
    """Return which pixels of images of one size are erased, (N, H, W) bool."""
    tall, wide = sides(
        rng, height, width, purpose="augment/erased", scale=SCALE, ratio=RATIO, epoch=epoch
    )
    fits = (tall < height) & (wide < width)
    tall = first_fitting(tall, fits)
    wide = first_fitting(wide, fits)
    room = torch.stack([height - tall, width - wide], dim=1) + 1
    top, left = rng.below(room, "augment/erased place", 2, step=epoch).unbind(dim=1)
    chosen = coin(rng, probability=probability, purpose="augment/erase", step=epoch)
    inside = within(height, top, top + tall)[:, :, None] & within(width, left, left + wide)[:, None]
    return inside & (chosen & fits.any(dim=1))[:, None, None]


def within(size: int, first: Tensor, end: Tensor) -> Tensor:
    """Return which places of 0 to size - 1 lie in [first, end), (N, size) bool."""
    places = torch.arange(size, device=first.device)
    return (places >= first[:, None]) & (places < end[:, None])


def erase(images: Tensor, rng: Randomness, *, probability: float, epoch: int) -> Tensor:
    """Return images of which each is erased in part with a probability.

    images: (N, C, H, W) uint8; rng: of the same N.
    """
    if not probability:
        return images
    mask = erased(rng, *images.shape[-2:], probability=probability, epoch=epoch)
    noise = rng.below(256, "augment/noise", images[0].numel(), step=epoch).to(torch.uint8)
    return torch.where(mask[:, None], noise.view_as(images), images)
