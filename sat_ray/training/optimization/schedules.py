"""What changes while a model trains, as pure functions of progress.

The learning rate in units of its peak, t in epochs:

warm-up    t / warmup                                  for t < warmup
constant   1
cosine     (1 + cos(pi u)) / 2                         u = (t - warmup) / (epochs - warmup)
step       0.1 ** (milestones passed)                  at 30 %, 60 % and 90 % of the epochs
linear     1 - u                                       (with a warm-up: triangular one-cycle)
one_cycle  a + (b - a) (1 - cos(pi v)) / 2             from a = 1/25 to b = 1 over the warm-up
                                                       (v = t / warmup), then from a = 1 to
                                                       b = 1 / 250000 (v = u); Smith 2018, as in
                                                       torch's OneCycleLR

With p in [0, 1], the share of the epochs that is done:

epsilon    min(1, p / warmup)                          in units of its final value
alpha      start ** (1 - min(1, p / ramp))             in units of its final value: a straight line
                                                       in log alpha
"""

import math

from sat_ray.utils.names import check_name

SCHEDULES = ("constant", "cosine", "step", "linear", "one_cycle")
MILESTONES = (0.3, 0.6, 0.9)
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 250_000
FLOOR = 1e-3  # of learning rate and epsilon in units of their peak: every step changes something


def learning_rate_factor(
    epoch: float, *, schedule: str, epochs: int, warmup_epochs: float = 0.0
) -> float:
    """Return the factor on the peak learning rate at a (fractional) epoch in [0, epochs].

    Raises ValueError on an unknown schedule.
    """
    check_name(schedule, SCHEDULES, field="training.schedule")
    if epoch < warmup_epochs:
        rise = epoch / warmup_epochs
        return _half_cosine(ONE_CYCLE_START, 1.0, rise) if schedule == "one_cycle" else rise
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(0.1 ** sum(epoch >= share * epochs for share in MILESTONES))
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    if schedule == "one_cycle":
        return _half_cosine(1.0, ONE_CYCLE_END, progress)
    return 1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2


def _half_cosine(start: float, end: float, share: float) -> float:
    return start + (end - start) * (1.0 - math.cos(math.pi * share)) / 2


def epsilon_factor(progress: float, *, warmup: float) -> float:
    """Return the factor on epsilon when this share of the epochs is done.

    progress, warmup: in [0, 1].
    """
    return 1.0 if progress >= warmup else progress / warmup


def alpha_factor(progress: float, *, start: float, ramp: float) -> float:
    """Return the factor on alpha when this share of the epochs is done.

    start > 0; progress, ramp: in [0, 1].
    """
    return 1.0 if progress >= ramp else float(start ** (1.0 - progress / ramp))
