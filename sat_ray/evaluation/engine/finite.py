"""Checks that logits and points are finite, with errors that name the images."""

import torch
from torch import Tensor

from sat_ray.evaluation.engine.scheduler import Scheduler


def require_finite(logits: Tensor, image_ids: Tensor) -> None:
    """Raise ValueError unless logits are (N, K) and finite; name the images where they are not."""
    bad = _not_finite(logits)
    if bool(bad.any()):
        raise _error(image_ids.cpu()[bad])


def is_finite(x: Tensor) -> Tensor:
    """Return which images (N, C, H, W) hold finite numbers alone, (N,) bool on the CPU."""
    return x.isfinite().flatten(1).all(dim=1).cpu()


def require_finite_runs(
    x_adv: Tensor, logits: Tensor, scheduler: Scheduler, *, of: str = "model"
) -> None:
    """Raise ValueError where the logits of an image's first run are not finite.

    Later runs whose logits are not finite are ended as failed: `require_sound` raises for one of
    them if no earlier run breaks its image. x_adv: the points of the logits, (L, C, H, W); a point
    that is not finite comes from a gradient that was not, and the message says so.
    """
    lost = ~is_finite(x_adv)
    bad = (_not_finite(logits) | lost) & scheduler.occupied
    if bool(bad.any()):
        first = bad & (scheduler.number < scheduler.queue.images)
        if bool(first.any()):
            ids = scheduler.state.rng.image_ids.cpu()[first]
            raise _error(ids, of=of, lost=bool((first & lost).any()))
        scheduler.fail(torch.nonzero(bad).flatten(), lost=lost)


def require_sound(scheduler: Scheduler) -> None:
    """Raise ValueError where a run has failed that counts."""
    numbers = scheduler.decisive_failures()
    if len(numbers):
        lost = bool(torch.isin(numbers, scheduler.failed.without_gradient).any())
        image_ids = scheduler.inputs.rng.image_ids
        raise _error(image_ids[numbers % scheduler.queue.images], lost=lost)


def gradient_error(what: str, image_ids: list[int]) -> ValueError:
    """Return the error for an attack whose gradient is not finite. what: the model's name."""
    return ValueError(
        f"{what} has a gradient of NaN or infinity for image ids {image_ids}, though its logits "
        "are finite; use a model with a finite gradient (a square root or a norm has none at 0), "
        "or the attack square"
    )


def _not_finite(logits: Tensor) -> Tensor:
    if logits.dim() != 2:
        raise ValueError(
            f"model must return (N, num_classes) logits, got shape {tuple(logits.shape)}"
        )
    return (~torch.isfinite(logits).all(dim=1)).cpu()


def _error(image_ids: Tensor, *, of: str = "model", lost: bool = False) -> ValueError:
    ids = list(dict.fromkeys(image_ids.tolist()))[:5]
    if lost:
        return gradient_error(of, ids)
    return ValueError(f"{of} must return finite logits, got NaN or inf logits for image ids {ids}")
