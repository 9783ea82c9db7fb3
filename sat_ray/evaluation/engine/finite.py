"""Checks that logits and points are finite, with errors that name the images."""

from torch import Tensor


def require_finite(logits: Tensor, image_ids: Tensor) -> None:
    """Raise ValueError unless logits are (N, K) and finite; name the images where they are not."""
    bad = not_finite(logits)
    if bool(bad.any()):
        raise logits_error(image_ids.cpu()[bad])


def is_finite(x: Tensor) -> Tensor:
    """Return which rows of (N, ...) hold finite numbers alone, (N,) bool on the CPU."""
    return x.isfinite().flatten(1).all(dim=1).cpu()


def gradient_error(what: str, image_ids: list[int]) -> ValueError:
    """Return the error for an attack whose gradient is not finite. what: the model's name."""
    return ValueError(
        f"{what} has a gradient of NaN or infinity for image ids {image_ids}, though its logits "
        "are finite; use a model with a finite gradient (a square root or a norm has none at 0), "
        "or the attack square"
    )


def not_finite(logits: Tensor) -> Tensor:
    """Return which rows of logits (N, K) hold other than finite numbers, (N,) bool on the CPU."""
    if logits.dim() != 2:
        raise ValueError(
            f"model must return (N, num_classes) logits, got shape {tuple(logits.shape)}"
        )
    return ~is_finite(logits)


def logits_error(image_ids: Tensor, *, of: str = "model", lost: bool = False) -> ValueError:
    """Return the error for images whose logits, or whose gradients (lost), are not finite."""
    ids = list(dict.fromkeys(image_ids.tolist()))[:5]
    if lost:
        return gradient_error(of, ids)
    return ValueError(f"{of} must return finite logits, got NaN or inf logits for image ids {ids}")
