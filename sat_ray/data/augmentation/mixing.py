"""MixUp and CutMix: every image of a batch is mixed with another one of it, labels included.

    mixup     x = w x_i + (1 - w) x_j               w ~ Beta(mixup, mixup)    (Zhang et al. 2018)
    cutmix    a rectangle of x_i becomes that of x_j; its area is a share 1 - w of the image, less
              where it is cut at the border; w ~ Beta(cutmix, cutmix)          (Yun et al. 2019)
    both      one of the two for every image, with probability 1/2
    labels    q = w y_i + (1 - w) y_j, with the share of pixels that is left in cutmix

The rectangle is drawn as by `torchvision.transforms.v2.CutMix`. torchvision draws one weight for a
batch, here every image has its own (timm's mode "elem").

The partner j comes from the same batch, which is a BatchNorm group: the images of a group are put
into a circle in an order drawn for the epoch, and each is mixed with the next. Groups hold the same
images for any number of workers, so the mixed images are the same too; they are a pure function of
(seed, epoch, ids of the group).
"""

import torch
from torch import Tensor

from sat_ray.data.augmentation.erasing import within
from sat_ray.utils.randomness import Randomness, coin

TRIES = 32  # each is taken with a probability of 1/2 or more


def mix(
    images: Tensor,
    labels: Tensor,
    rng: Randomness,
    *,
    mixup: float,
    cutmix: float,
    num_classes: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Return mixed images, and soft labels (N, num_classes) float32; both as given where off.

    images: (N, C, H, W) uint8; labels: (N,) int64; mixup, cutmix: of the Beta distributions, in
    [0, 1]; 0 for none.
    """
    if not (mixup or cutmix):
        return images, labels
    other = partners(rng, epoch=epoch)
    own = weights(rng, mixup or cutmix, purpose="augment/mixup", epoch=epoch)
    if not cutmix:
        mixed = _blended(images, images[other], own)
    else:
        height, width = images.shape[-2:]
        chosen = weights(rng, cutmix, purpose="augment/cutmix", epoch=epoch)
        box = boxes(rng, chosen, height, width, epoch=epoch)
        pasted = torch.where(box[:, None], images[other], images)
        left = 1.0 - box.flatten(1).to(torch.float32).mean(dim=1)
        if mixup:
            cut = coin(rng, probability=0.5, purpose="augment/cut or mix", step=epoch)
            blended = _blended(images, images[other], own)
            mixed = torch.where(cut[:, None, None, None], pasted, blended)
            own = torch.where(cut, left, own)
        else:
            mixed = pasted
            own = left
    return mixed, _soft(labels, other, own, num_classes=num_classes)


def partners(rng: Randomness, *, epoch: int) -> Tensor:
    """Return the row that each row is mixed with, (N,) int64: the next in a random circle."""
    order = torch.argsort(rng.draw("augment/partner", 1, step=epoch)[:, 0], stable=True)
    return torch.empty_like(order).index_copy_(0, order, order.roll(-1))


def weights(rng: Randomness, alpha: float, *, purpose: str, epoch: int) -> Tensor:
    """Return draws from Beta(alpha, alpha), 0 < alpha <= 1, (N,) float32 (Johnk 1964).

    Of two uniform numbers u, v the pair x = u^(1/alpha), y = v^(1/alpha) is taken where
    x + y <= 1, and x / (x + y) is the draw.
    """
    draws = 1.0 - rng.uniform(purpose, (TRIES, 2), step=epoch).to(torch.float64)
    x, y = (draws.log() / alpha).unbind(dim=2)  # as logarithms: the powers may be too small
    taken = (torch.logaddexp(x, y) <= 0).to(torch.int64).argmax(dim=1, keepdim=True)
    return torch.sigmoid(x - y).gather(1, taken)[:, 0].to(torch.float32)


def boxes(rng: Randomness, weight: Tensor, height: int, width: int, *, epoch: int) -> Tensor:
    """Return which pixels come from the other image, (N, H, W) bool.

    weight: (N,) share of the area that is left. The centre is uniform in the image.
    """
    draws = rng.uniform("augment/box", (2,), step=epoch)
    half = 0.5 * torch.sqrt(1.0 - weight)
    masks = []
    for size, draw in zip((height, width), draws.unbind(dim=1), strict=True):
        centre = (draw * size).long()
        reach = (half * size).long()
        masks.append(within(size, centre - reach, centre + reach))
    return masks[0][:, :, None] & masks[1][:, None, :]


def _blended(images: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    ours = images.to(torch.float32)
    share = (1.0 - weight)[:, None, None, None]
    return (ours + (others.to(torch.float32) - ours) * share).round().to(torch.uint8)


def _soft(labels: Tensor, other: Tensor, weight: Tensor, *, num_classes: int) -> Tensor:
    classes = torch.arange(num_classes, device=labels.device)
    exact = (labels[:, None] == classes).to(torch.float32)
    return exact * weight[:, None] + exact[other] * (1.0 - weight[:, None])
