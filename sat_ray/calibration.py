"""How far the margins of a fast copy are from the model's, measured on control images before an attack that climbs on it is trusted.

One half of the control images sets the bound below which a point is scored again in float32; the other half, which had no say in it,
shows how many broken points the bound would have missed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, State, make_attack
from sat_ray.attacks.base import Model, differentiate
from sat_ray.data.pixels import to_pixels
from sat_ray.fast_copy import fast_copy
from sat_ray.lanes import NEVER, lane_logits, run_lanes
from sat_ray.losses import margin
from sat_ray.metrics import wilson_interval
from sat_ray.narrowing import pad
from sat_ray.randomness import Randomness
from sat_ray.rescoring import run_lanes_fast

CONTROL_IMAGES = 64
SAFETY = 2.0  # the bound is this many times the largest difference seen
LEAST_BOUND = 1e-3  # where both agree to the last bit, as a model that ignores autocast does
GRADIENT_EVERY = 10


@dataclass(frozen=True)
class Calibration:
    """What the control images say about one attack.

    bound: logit margin below which a point is scored again; points, above, missed: visited points of the held-out half, those where the
    copy's margin is >= bound, and how many of these the model misclassifies; margin_sign, gradient_sign: shares of points, and of pixels
    of every tenth point's gradient, whose sign is the same for the copy and the model; verdicts: share of control images with the
    verdict of the same attack in float32, differing_ids: the others; rescored: float32 scores per pass.
    """

    attack: str
    bound: float
    images: int
    points: int
    above: int
    missed: int
    margin_sign: float
    gradient_sign: float
    verdicts: float
    differing_ids: tuple[int, ...]
    rescored: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the upper 95 % limit of the miss rate among them."""
        return {**asdict(self), "differing_ids": list(self.differing_ids), "miss_rate_at_most": self.miss_rate_at_most}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """Rebuild a calibration from `to_json`."""
        known = {name: item for name, item in value.items() if name != "miss_rate_at_most"}
        return cls(**{**known, "differing_ids": tuple(value["differing_ids"])})

    @property
    def miss_rate_at_most(self) -> float:
        """Return the upper end of the miss rate's 95 % Wilson interval; 1 where no point lay above the bound."""
        return wilson_interval(self.missed, self.above)[1] if self.above else 1.0

    def __str__(self) -> str:
        differing = f" (not on ids {', '.join(map(str, self.differing_ids))})" if self.differing_ids else ""
        return (
            f"{self.attack}: margins below {self.bound:.3g} are scored again in float32 ({self.rescored:.2f} scores per pass); on "
            f"{self.images} control images {self.missed} of {self.above:,} points above it were missed "
            f"(at most {100 * self.miss_rate_at_most:.2g} %), signs agree on {100 * self.margin_sign:.2f} % of the margins and "
            f"{100 * self.gradient_sign:.1f} % of the gradients, verdicts on {100 * self.verdicts:.1f} %{differing}"
        )


def summary_of(calibrations: Sequence[Calibration]) -> str:
    """Say in one line what several calibrations, of other models or attacks, say together; "" for none."""
    if not calibrations:
        return ""
    missed, above = (sum(getattr(one, name) for one in calibrations) for name in ("missed", "above"))
    worst, verdicts = max(one.miss_rate_at_most for one in calibrations), min(one.verdicts for one in calibrations)
    return (
        f"The attack climbs a fast copy of the model; the model itself, in float32, says what is broken, and scores again every point "
        f"whose margin is below a bound. "
        f"On {calibrations[0].images} control images of each model {missed:,} of {above:,} points above it were missed (at most "
        f"{100 * worst:.2g} % of any model's), and at least {100 * verdicts:.1f} % of the verdicts are those of the attack in float32."
    )


def calibrate(
    model: Model, images: Tensor, y: Tensor, image_ids: Tensor, *, spec: AttackSpec, seed: int, lanes: int, device: torch.device
) -> Calibration:
    """Run the first run of an attack on control images, on the fast copy and on the model.

    model: as the attacker sees it, in inference mode on `device`; images: (N, C, H, W) uint8, rightly classified, with y and image_ids
    (N,) int64, all on the CPU; N >= 2. Raises ValueError for fewer.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} control images are classified rightly; allowed: at least 2, or attack with gradient float32")
    fast, attack = fast_copy(model, gradient=spec.gradient, device=device), make_attack(spec)
    rng = Randomness(seed, image_ids, 0)
    target = _likeliest_other(model, images, y, lanes=lanes, device=device) if spec.targets else None
    tracks = [
        _follow(model, fast, spec, *(pad(values[span], lanes).to(device) for values in (images, y, image_ids)), seed=seed,
                target=None if target is None else pad(target[span], lanes).to(device), real=len(y[span]))
        for span in (slice(first, first + lanes) for first in range(0, len(images), lanes))
    ]  # fmt: skip
    low, true = (torch.cat([getattr(track, name) for track in tracks], dim=1) for name in ("low", "true"))
    visited = _until_broken(true)
    held_out = (torch.arange(len(images)) % 2 == 1).expand_as(visited)
    bound = max(LEAST_BOUND, SAFETY * float((low - true).abs()[visited & ~held_out].max()))
    above = visited & held_out & (low >= bound)
    given: dict[str, Any] = {"lanes": lanes, "device": device, "target": None if target is None else target[:, None]}
    found, scored = run_lanes_fast(fast, model, attack, images, y, rng, bound=bound, **given)
    exact = run_lanes(model, attack, images, y, rng, **given | {"lanes": min(lanes, CONTROL_IMAGES)})  # float32 is slow: no empty lanes
    differs = (found.first_broken_step == NEVER) != (exact.first_broken_step == NEVER)
    return Calibration(
        attack=spec.name,
        bound=bound,
        images=len(images),
        points=int((visited & held_out).sum()),
        above=int(above.sum()),
        missed=int((above & (true < 0)).sum()),
        margin_sign=float(((low < 0) == (true < 0))[visited].double().mean()),
        gradient_sign=sum(track.agreeing for track in tracks) / sum(track.pixels for track in tracks),
        verdicts=1 - float(differs.double().mean()),
        differing_ids=tuple(image_ids[differs].tolist()),
        rescored=scored / max(1, int(found.passes.sum())),
    )


@dataclass
class _Track:
    """Margins (steps + 1, N) of the copy and of the model along one path on the copy, and how many of the compared pixels agree in sign."""

    low: Tensor
    true: Tensor
    agreeing: int = 0
    pixels: int = 0


def _follow(
    model: Model, fast: Model, spec: AttackSpec, images: Tensor, y: Tensor, ids: Tensor, *, seed: int, target: Tensor | None, real: int
) -> _Track:
    low, true, agreeing, pixels = [], [], 0, 0
    for number, (state, logits) in enumerate(_trajectory(fast, spec, images, y, Randomness(seed, ids, 0), target)):
        with torch.no_grad():
            exact = model(state.x_adv[:real]).float()
        low.append(margin(logits, y)[:real].cpu())
        true.append(margin(exact, y[:real]).cpu())
        if number % GRADIENT_EVERY == 0:
            ours, theirs = (differentiate(one, state, loss=spec.loss)[2][:real].sign() for one in (fast, model))
            agreeing += int((ours == theirs).sum())
            pixels += ours.numel()
    return _Track(torch.stack(low), torch.stack(true), agreeing, pixels)


def _trajectory(
    fast: Model, spec: AttackSpec, images: Tensor, y: Tensor, rng: Randomness, target: Tensor | None
) -> Iterator[tuple[State, Tensor]]:
    attack = make_attack(spec)
    state = attack.start(to_pixels(images), y, rng, target=target)
    for _ in range(spec.steps + 1):
        after = attack.step(fast, state)
        assert after.logits is not None
        yield state, after.logits
        state = after


def _until_broken(true: Tensor) -> Tensor:
    """Say which points an image visits: up to and with its first broken one, (steps + 1, N) bool."""
    broken_before = (true < 0).long().cumsum(dim=0) - (true < 0).long()
    return broken_before == 0


@torch.no_grad()
def _likeliest_other(model: Model, images: Tensor, y: Tensor, *, lanes: int, device: torch.device) -> Tensor:
    logits = lane_logits(model, images, torch.arange(len(y)), lanes=lanes, device=device)
    return logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
