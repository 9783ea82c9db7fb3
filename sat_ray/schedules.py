"""Learning rate as a pure function of progress, in units of the peak rate.

warm-up    t / warmup                                  for t < warmup
constant   1
cosine     (1 + cos(pi u)) / 2                         u = (t - warmup) / (epochs - warmup)
step       0.1 ** (milestones passed)                  at 30 %, 60 % and 90 % of the epochs
linear     1 - u                                       (with a warm-up: the triangular one-cycle schedule)
"""

import math

from sat_ray.names import check_name

SCHEDULES = ("constant", "cosine", "step", "linear")
MILESTONES = (0.3, 0.6, 0.9)


def learning_rate_factor(epoch: float, *, schedule: str, epochs: int, warmup_epochs: float = 0.0) -> float:
    """Return the factor on the peak learning rate at a (fractional) epoch in [0, epochs]; ValueError on an unknown schedule."""
    check_name(schedule, SCHEDULES, field="training.schedule")
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(0.1 ** sum(epoch >= share * epochs for share in MILESTONES))
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return 1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2
