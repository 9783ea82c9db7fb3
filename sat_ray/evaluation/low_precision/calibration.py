"""How far the margins of a fast copy are from the model's, measured on control images before an attack that climbs on it is trusted.

One half of the control images sets the bound below which a point is scored again in float32; the other half, which had no say in it,
shows how many broken points the bound would have missed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, State, make_attack
from sat_ray.attacks.base import Model, differentiate
from sat_ray.attacks.losses import margin
from sat_ray.evaluation.engine.batch_buckets import Narrowing, call_rows, has_fixed_rows, pad
from sat_ray.evaluation.engine.run_attack import require_finite, run_slots, slot_logits
from sat_ray.evaluation.engine.scheduler import Flight
from sat_ray.evaluation.engine.verdicts import NEVER
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.low_precision.surrogate import fast_copy, flies_again
from sat_ray.evaluation.low_precision.verification import run_slots_fast
from sat_ray.utils.compile import fusing
from sat_ray.utils.randomness import Randomness, sample_rows

CONTROL_IMAGES = 64
SAFETY = 2.0  # the bound is this many times the largest difference seen
LEAST_BOUND = 1e-3  # where both agree to the last bit, as a model that ignores autocast does
GRADIENT_EVERY = 10


def control_rows(count: int, *, seed: int) -> Tensor:
    """Return which of `count` images are control images, drawn by the seed, ascending, (M,)
    int64."""
    rng = Randomness.of(seed, torch.arange(count))
    return sample_rows(rng, CONTROL_IMAGES, purpose="sample")


@dataclass(frozen=True)
class Calibration:
    """What the control images say about one attack.

    bound: logit margin below which a point is scored again; points, above, missed: visited points of the held-out half, those where the
    copy's margin is >= bound, and how many of these the model misclassifies; margin_sign, gradient_sign: shares of points, and of pixels
    of every tenth call's gradients, whose sign is the same for the copy and the model; gradient_unknown: share of these pixels that the
    copy gives no sign (`sat_ray.evaluation.low_precision.surrogate.known_signs`), which gradient_sign leaves out;
    verdicts: share of control images with the
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
    gradient_unknown: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the upper 95 % limit of the miss rate among them."""
        return {
            **asdict(self),
            "differing_ids": list(self.differing_ids),
            "miss_rate_at_most": self.miss_rate_at_most,
        }

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
        unknown = (
            f" ({100 * self.gradient_unknown:.2g} % have none)" if self.gradient_unknown else ""
        )
        differing = (
            f" (not on ids {', '.join(map(str, self.differing_ids))})" if self.differing_ids else ""
        )
        return (
            f"{self.attack}: margins below {self.bound:.3g} are scored again in float32 ({self.rescored:.2f} scores per pass); on "
            f"{self.images} control images {self.missed} of {self.above:,} points above it were missed "
            f"(at most {100 * self.miss_rate_at_most:.2g} %), signs agree on {100 * self.margin_sign:.2f} % of the margins and "
            f"{100 * self.gradient_sign:.1f} % of the gradients{unknown}, verdicts on {100 * self.verdicts:.1f} %{differing}"
        )


def summary_of(calibrations: Sequence[Calibration]) -> str:
    """Say in one line what several calibrations, of other models or attacks, say together; "" for none."""
    if not calibrations:
        return ""
    missed, above = (
        sum(getattr(one, name) for one in calibrations) for name in ("missed", "above")
    )
    worst, verdicts = (
        max(one.miss_rate_at_most for one in calibrations),
        min(one.verdicts for one in calibrations),
    )
    return (
        f"The attack climbs a fast copy of the model; the model itself, in float32, says what is broken, and scores again every point "
        f"whose margin is below a bound. "
        f"On {calibrations[0].images} control images of each model {missed:,} of {above:,} points above it were missed (at most "
        f"{100 * worst:.2g} % of any model's), and at least {100 * verdicts:.1f} % of the verdicts are those of the attack in float32."
    )


def calibrate(
    model: Model,
    images: Tensor,
    y: Tensor,
    image_ids: Tensor,
    *,
    spec: AttackSpec,
    seed: int,
    slots: int,
    device: torch.device,
) -> Calibration:
    """Run the first run of an attack on control images, on the fast copy and on the model.

    model: as the attacker sees it, in inference mode on `device`; images: (N, C, H, W) uint8, rightly classified, with y and image_ids
    (N,) int64, all on the CPU; N >= 2. Raises ValueError for fewer.
    """
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} control images are classified rightly; allowed: at least 2, or attack with gradient float32"
        )
    fast, attack = fast_copy(model, gradient=spec.gradient, device=device), make_attack(spec)
    rng = Randomness(seed, image_ids, 0)
    target = (
        _likeliest_other(model, images, y, slots=slots, device=device)[:, None]
        if spec.targets
        else None
    )
    flight = Flight(attack, images, y, rng, target, runs=1, slots=slots, device=device)
    narrow = min(slots, len(images))  # float32 is slow: no empty slots
    with fusing(has_fixed_rows(fast)):
        seen = _visit(flight, fast, model, narrow=narrow, loss=spec.loss, gradient=spec.gradient)
    held_out, difference = seen.row % 2 == 1, (seen.low - seen.true).abs()
    bound = max(LEAST_BOUND, SAFETY * float(difference[~held_out].max()))
    above = held_out & (seen.low >= bound)
    exact = (
        run_slots(
            model, attack, images, y, rng, target=target, slots=narrow, device=device
        ).first_broken_step
        != NEVER
    )
    asked, again = (seen.low < bound) | seen.last(), flies_again(spec.gradient)

    def broken_again(rows: Tensor) -> Tensor:
        towards = None if target is None else target[rows]
        given: dict[str, Any] = {
            "bound": bound,
            "again": again,
            "target": towards,
            "slots": slots,
            "device": device,
        }
        return (
            run_slots_fast(fast, model, attack, images[rows], y[rows], rng.take(rows), **given)[
                0
            ].first_broken_step
            != NEVER
        )

    differs = exact != _broken(
        seen,
        asked,
        exact,
        close=bound if again else -torch.inf,
        bound=bound,
        broken_again=broken_again,
    )
    return Calibration(
        attack=spec.name,
        bound=bound,
        images=len(images),
        points=int(held_out.sum()),
        above=int(above.sum()),
        missed=int((above & (seen.true < 0)).sum()),
        margin_sign=float(((seen.low < 0) == (seen.true < 0)).double().mean()),
        gradient_sign=seen.agreeing / max(1, seen.known),
        verdicts=1 - float(differs.double().mean()),
        differing_ids=tuple(image_ids[differs].tolist()),
        rescored=float(asked.double().mean()),
        gradient_unknown=1 - seen.known / seen.pixels,
    )


@dataclass
class _Seen:
    """Every point that the control images visit, (P,): whose it is, and its margin on the copy and on the model; the gradients compared.

    pixels: entries of those gradients; known: of them, those that the copy gives a sign; agreeing: of these, those with the model's sign.
    """

    row: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    low: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    true: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    agreeing: int = 0
    known: int = 0
    pixels: int = 0

    def last(self) -> Tensor:
        """Say of each point whether it is its image's last, (P,) bool."""
        places = torch.arange(len(self.row))
        latest = torch.zeros(int(self.row.max()) + 1, dtype=torch.int64).scatter_reduce(
            0, self.row, places, "amax"
        )
        return latest[self.row] == places

    def compare(self, ours: Tensor, theirs: Tensor) -> None:
        """Count the signs of two gradients."""
        self.agreeing += int(((ours != 0) & (ours.sign() == theirs.sign())).sum())
        self.known += int((ours != 0).sum())
        self.pixels += ours.numel()


def _broken(
    seen: _Seen,
    asked: Tensor,
    exact: Tensor,
    *,
    close: float,
    bound: float,
    broken_again: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return which images the attack on the copy breaks, (N,) bool, from the points they visited.

    asked: (P,) bool, points that the model scores; exact: (N,) bool, what the attack in float32 breaks, which survivors with a margin below
    `close` are given to; broken_again: attacks images whose broken point nobody would have scored, or of which the copy was wrongly sure.
    """
    wrong, none = seen.true < 0, torch.zeros_like(exact)
    unlike = (wrong & ~asked) | (~wrong & (seen.low < -bound))
    found, missed = (
        none.index_put((seen.row[points],), torch.tensor(True))
        for points in (wrong & asked, unlike)
    )
    farthest = torch.full(exact.shape, torch.inf, dtype=torch.float32)
    nearest = farthest.scatter_reduce(0, seen.row[asked], seen.true[asked], "amin")
    found = torch.where(~found & (nearest < close), exact, found)
    rows = torch.nonzero(missed).flatten()
    return found.index_put((rows,), broken_again(rows)) if len(rows) else found


def _visit(
    flight: Flight, fast: Model, model: Model, *, narrow: int, loss: str, gradient: str
) -> _Seen:
    """Let images climb on the copy until the model calls them broken or they repeat a point, and compare the two at every point.

    narrow: how many slots, the first ones, ever hold an image.
    """
    attack, slots = flight.attack, len(flight.number)
    climbing, judging = (
        Narrowing(fast, slots=slots, gradients=attack.differentiates),
        Narrowing(model, slots=narrow, gradients=False),
    )
    seen, parts = _Seen(), list[tuple[Tensor, Tensor, Tensor]]()
    while flight.fill():
        before, held = flight.state, flight.number[:narrow] >= 0
        flight.state = after = attack.step(climbing.over(flight.number >= 0, before.x_adv), before)
        assert after.logits is not None
        judged, y = before.x_adv[:narrow], before.y[:narrow]
        with torch.no_grad():
            exact = judging.over(held, judged)(pad(judged, call_rows(narrow)))[:narrow].float()
        copied, on_device, ids = (
            after.logits[:narrow],
            held.to(exact.device),
            before.rng.image_ids[:narrow].cpu()[held],
        )
        require_finite(exact[on_device], ids)
        _require_in_range(copied[on_device], ids, gradient=gradient, what="logits")
        low, true = (margin(logits, y).cpu() for logits in (copied, exact))
        if len(parts) % GRADIENT_EVERY == 0:
            ours = differentiate(fast, before, loss=loss)[2][:narrow][on_device]
            theirs = differentiate(model, _first(before, narrow), loss=loss)[2][on_device]
            _require_in_range(ours, ids, gradient=gradient, what="gradients")
            seen.compare(ours, theirs)
        parts.append((flight.number[:narrow][held], low[held], true[held]))
        done = before.step.cpu() >= attack.steps
        done[:narrow] |= true < 0
        if flight.cycles is not None:
            done |= flight.cycles.observe(after.x_adv, after.step, flight.seat) > 0
        flight.free(torch.nonzero(done).flatten())
    seen.row, seen.low, seen.true = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return seen


def _first(state: State, slots: int) -> State:
    """Return what the first slots need for a gradient."""
    target = None if state.target is None else state.target[:slots]
    return replace(state, x_adv=state.x_adv[:slots], y=state.y[:slots], target=target)


def _require_in_range(values: Tensor, image_ids: Tensor, *, gradient: str, what: str) -> None:
    """Raise ValueError where a copy's logits or gradients, (N, ...), are not finite numbers: the model's own are."""
    bad = ~values.isfinite().flatten(1).all(dim=1).cpu()
    if bool(bad.any()):
        instead = "bf16 or float32" if gradient == "fp16" else "float32"
        raise ValueError(
            f"the {gradient} copy of the model returns NaN or inf {what} for image ids {image_ids[bad].tolist()[:5]}: numbers beyond the "
            f"range of {gradient}; allowed: {instead} as the attack's gradient"
        )


@torch.no_grad()
def _likeliest_other(
    model: Model, images: Tensor, y: Tensor, *, slots: int, device: torch.device
) -> Tensor:
    logits = slot_logits(model, images, torch.arange(len(y)), slots=slots, device=device)
    return logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
