"""How far the margins of a surrogate are from the model's, measured on control images.

An attack through a surrogate is calibrated before it is used. One half of the control images sets
the bound below which a point is verified in float32. The other half does not influence the bound;
it shows how many broken points the bound would have missed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sat_ray.attacks import Attack, AttackSpec, make_attack
from sat_ray.attacks.base import Model
from sat_ray.attacks.losses import likeliest_others
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.padding import has_fixed_rows
from sat_ray.evaluation.engine.run_attack import run_slots, slot_logits
from sat_ray.evaluation.engine.scheduler import Scheduler
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.low_precision.comparison import Comparer, Comparison
from sat_ray.evaluation.low_precision.surrogate import (
    Surrogate,
    make_surrogate,
    repeats_close_survivors,
)
from sat_ray.evaluation.low_precision.verification import LowPrecision, run_verified
from sat_ray.utils.compile import fusing
from sat_ray.utils.randomness import Randomness, sample_rows

CONTROL_IMAGES = 64
SAFETY = 2.0  # the bound is this many times the largest difference seen
LEAST_BOUND = 1e-3  # where both have the same bits, as a model that ignores autocast does


def control_rows(count: int, *, seed: int) -> Tensor:
    """Return which of `count` images are control images, drawn by the seed.

    (M,) int64, ascending.
    """
    rng = Randomness.of(seed, torch.arange(count))
    return sample_rows(rng, CONTROL_IMAGES, purpose="sample")


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration of one attack.

    bound: logit margin below which a point is verified; points, above, missed: visited points of
    the held-out half, those where the surrogate's margin is >= bound, and how many of these the
    model misclassifies; margin_sign, gradient_sign: shares of points, and of pixels of every tenth
    call's gradients, whose sign is the same for the surrogate and the model; gradient_unknown:
    share of these pixels to which the surrogate gives no sign
    (`sat_ray.evaluation.low_precision.surrogate.known_signs`), which gradient_sign leaves out;
    verdicts: share of control images with the verdict of the same attack in float32, differing_ids:
    the others; rescored: float32 scores per pass.
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
        """Return the upper end of the miss rate's 95 % Wilson interval.

        It is 1 where no point lay above the bound.
        """
        return wilson_interval(self.missed, self.above)[1] if self.above else 1.0

    def __str__(self) -> str:
        unknown = ""
        if self.gradient_unknown:
            unknown = f" ({100 * self.gradient_unknown:.2g} % have none)"
        differing = ""
        if self.differing_ids:
            differing = f" (not on ids {', '.join(map(str, self.differing_ids))})"
        return (
            f"{self.attack}: margins below {self.bound:.3g} are scored again in float32 "
            f"({self.rescored:.2f} scores per pass); on {self.images} control images "
            f"{self.missed} of {self.above:,} points above it were missed "
            f"(at most {100 * self.miss_rate_at_most:.2g} %), signs agree on "
            f"{100 * self.margin_sign:.2f} % of the margins and "
            f"{100 * self.gradient_sign:.1f} % of the gradients{unknown}, "
            f"verdicts on {100 * self.verdicts:.1f} %{differing}"
        )


def summary_of(calibrations: Sequence[Calibration]) -> str:
    """Summarise several calibrations, of different models or attacks, in one line; "" for none."""
    if not calibrations:
        return ""
    missed = sum(one.missed for one in calibrations)
    above = sum(one.above for one in calibrations)
    worst = max(one.miss_rate_at_most for one in calibrations)
    verdicts = min(one.verdicts for one in calibrations)
    return (
        "The attack takes its gradients from a surrogate, a low-precision copy of the model. The "
        "model itself decides in float32 what is broken: every point whose margin is below a bound "
        f"is scored again. On {calibrations[0].images} control images of each model {missed:,} of "
        f"{above:,} points above it were missed (at most {100 * worst:.2g} % of any model's), and "
        f"at least {100 * verdicts:.1f} % of the verdicts are those of the attack in float32."
    )


def calibrate(
    model: Model,
    images: Split,
    *,
    spec: AttackSpec,
    seed: int,
    slots: int,
    device: torch.device,
) -> Calibration:
    """Run the first run of an attack on control images, on the surrogate and on the model.

    model: as the attacker sees it, in inference mode on `device`; images: correctly classified, on
    the CPU, at least 2. Raises ValueError for fewer.
    """
    if len(images) < 2:
        raise ValueError(
            f"at least 2 control images must be correctly classified, got {len(images)}; "
            "attack with gradient float32"
        )
    target = None
    if spec.targets:
        logits = slot_logits(model, images.images, images.image_ids, slots=slots, device=device)
        target = likeliest_others(logits, images.labels)[:, :1]
    control = _Control(
        surrogate=make_surrogate(model, gradient=spec.gradient, device=device),
        model=model,
        spec=spec,
        attack=make_attack(spec),
        inputs=AttackInputs.of(images, seed=seed, target=target),
        slots=slots,
        device=device,
    )
    return control.calibration()


@dataclass(frozen=True, kw_only=True)
class _Control:
    """One attack on the control images, through a surrogate and through the model."""

    surrogate: Surrogate
    model: Model
    spec: AttackSpec
    attack: Attack
    inputs: AttackInputs
    slots: int
    device: torch.device

    def calibration(self) -> Calibration:
        """Return what the comparison shows."""
        seen = self._comparison()
        held_out = seen.row % 2 == 1
        difference = (seen.low - seen.true).abs()
        bound = max(LEAST_BOUND, SAFETY * float(difference[~held_out].max()))
        above = held_out & (seen.low >= bound)
        verified = (seen.low < bound) | seen.last()
        exact = self._broken_in_float32()
        differs = exact != self._broken_through_surrogate(seen, verified, exact, bound=bound)
        return Calibration(
            attack=self.spec.name,
            bound=bound,
            images=len(self.inputs),
            points=int(held_out.sum()),
            above=int(above.sum()),
            missed=int((above & (seen.true < 0)).sum()),
            margin_sign=float(((seen.low < 0) == (seen.true < 0)).double().mean()),
            gradient_sign=seen.agreeing / max(1, seen.known),
            verdicts=1 - float(differs.double().mean()),
            differing_ids=tuple(self.inputs.rng.image_ids[differs].tolist()),
            rescored=float(verified.double().mean()),
            gradient_unknown=1 - seen.known / seen.pixels,
        )

    @property
    def _occupied_slots(self) -> int:
        """Return how many slots ever hold an image: float32 is slow, so it gets no empty ones."""
        return min(self.slots, len(self.inputs))

    def _comparison(self) -> Comparison:
        scheduler = Scheduler(self.attack, self.inputs, slots=self.slots, device=self.device)
        with fusing(has_fixed_rows(self.surrogate)):
            return Comparer(
                scheduler,
                self.surrogate,
                self.model,
                spec=self.spec,
                occupied_slots=self._occupied_slots,
            ).run()

    def _broken_in_float32(self) -> Tensor:
        """Return which images the attack breaks with the model's own gradients, (N,) bool."""
        found = run_slots(
            self.model, self.attack, self.inputs, slots=self._occupied_slots, device=self.device
        )
        return found.first_broken_step != NEVER

    def _broken_through_surrogate(
        self, seen: Comparison, verified: Tensor, exact: Tensor, *, bound: float
    ) -> Tensor:
        """Return which images the attack breaks through the surrogate, (N,) bool.

        verified: (P,) bool, points that the model scores; exact: (N,) bool, what the attack in
        float32 breaks, which decides close survivors where these are attacked again. Images are
        attacked anew where a broken point would not have been verified, or where the surrogate was
        wrongly confident.
        """
        wrong = seen.true < 0
        none = torch.zeros_like(exact)
        unlike = (wrong & ~verified) | (~wrong & (seen.low < -bound))
        found = none.index_put((seen.row[wrong & verified],), torch.tensor(True))
        missed = none.index_put((seen.row[unlike],), torch.tensor(True))
        if repeats_close_survivors(self.spec.gradient):
            farthest = torch.full(exact.shape, torch.inf, dtype=torch.float32)
            nearest = farthest.scatter_reduce(0, seen.row[verified], seen.true[verified], "amin")
            found = torch.where(~found & (nearest < bound), exact, found)
        rows = torch.nonzero(missed).flatten()
        return found.index_put((rows,), self._broken_anew(rows, bound)) if len(rows) else found

    def _broken_anew(self, rows: Tensor, bound: float) -> Tensor:
        how = LowPrecision(
            self.surrogate,
            self.model,
            bound,
            repeat_close=repeats_close_survivors(self.spec.gradient),
        )
        inputs = self.inputs.single_runs(rows, 0)
        found, _ = run_verified(how, self.attack, inputs, slots=self.slots, device=self.device)
        return found.first_broken_step != NEVER
