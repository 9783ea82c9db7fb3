"""Outputs that are probabilities, or scaled ones, where logits are expected.

A softmax or a sigmoid flattens the gradient where the model is confident, so that an attack stops
there and the model only looks robust.
"""

from torch import Tensor

FEWEST = 8  # rows: of fewer, equal sums may be chance
SUM_TOLERANCE = 2e-2  # in 16 bits the sum of a softmax is off by 1 %
REMEDY = "return logits: drop the softmax, it flattens the gradient"


def require_no_probabilities(logits: Tensor, *, what: str) -> None:
    """Raise ValueError where rows (N, K) are probabilities, or probabilities times a factor."""
    if logits.shape[1] < 2 or not len(logits):
        return
    sums = logits.sum(dim=1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < SUM_TOLERANCE).all()):
        raise ValueError(f"{what} returns probabilities (rows sum to 1); {REMEDY}")
    if has_constant_sum(logits):
        total = float(sums.mean())
        raise ValueError(
            f"{what} returns scaled probabilities (rows of one sign that sum to {total:.6g}); "
            f"{REMEDY}"
        )


def has_constant_sum(logits: Tensor) -> bool:
    """Return whether rows (N, K) that differ have one sum, other than 0, and one sign.

    Logits may be centred, with a sum of 0 and both signs; logits of one sign whose sums agree far
    better than their entries do are no chance. A class that is the same for all rows (a masked one)
    is left out.
    """
    varied = logits[:, (logits != logits[:1]).any(dim=0)].double()
    one_sign = bool((varied >= 0).all()) or bool((varied <= 0).all())
    if len(logits) < FEWEST or varied.shape[1] < 2 or not one_sign:
        return False
    sums = varied.sum(dim=1)
    spread = (varied.amax(dim=0) - varied.amin(dim=0)).max()
    apart = sums.max() - sums.min()
    return bool(apart <= SUM_TOLERANCE * spread) and bool(sums.abs().min() > 0)


def bounded_outputs(logits: Tensor) -> str:
    """Return a warning where all outputs (N, K) lie in [0, 1], as a sigmoid's do; "" else."""
    inside = bool((logits >= 0).all()) and bool((logits <= 1).all())
    if len(logits) < FEWEST or not inside or bool((logits == logits[:1]).all()):
        return ""
    return (
        f"all outputs on {len(logits)} images lie in [0, 1], as probabilities of a sigmoid do; if "
        "they are, return the logits before it: where a sigmoid is flat, an attack stops"
    )
