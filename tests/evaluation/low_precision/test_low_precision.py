"""Gradients of a surrogate, in bfloat16 or compiled float16, and verdicts in float32.

All verdicts are those of the model itself, and the bound is shown to matter. Compiled surrogates
run in torch's own kernels here (backend aot_eager); real ones: marker fault.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torchvision
from torch import Tensor, nn
from trainings import enlarged, small_model

import sat_ray.evaluation.low_precision.compiled_surrogate
import sat_ray.evaluation.low_precision.verification
from sat_ray.attacks import PGD, AttackSpec, make_attack
from sat_ray.attacks.base import Model
from sat_ray.attacks.losses import attack_loss
from sat_ray.attacks.spec import GRADIENTS
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.run_attack import run_slots
from sat_ray.evaluation.engine.verdicts import by_run
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.evaluation.low_precision.calibration import (
    CONTROL_IMAGES,
    LEAST_BOUND,
    Calibration,
    control_rows,
)
from sat_ray.evaluation.low_precision.compiled_surrogate import CompiledSurrogate
from sat_ray.evaluation.low_precision.surrogate import (
    LARGEST,
    UNKNOWN,
    _short,
    check_gradient,
    known_signs,
    make_surrogate,
    scaled,
)
from sat_ray.evaluation.low_precision.verification import (
    LowPrecision,
    run_on_surrogate,
    run_verified,
)
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.integrations.command_line.checks.preflight import slow_here
from sat_ray.models import FoldedConv, Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.utils import compile as compilation
from sat_ray.utils.randomness import Randomness

CPU = torch.device("cpu")
SLOTS = 16
SPEC = AttackSpec(
    threat_model=ThreatModel("linf", 40 / 255), steps=20, step_size=8 / 255, gradient="bf16"
)


@pytest.fixture(scope="module")
def control(held_out: Split) -> Split:
    """Return the images that the bound is measured on."""
    return held_out.take(slice(0, 32))


@pytest.fixture(scope="module")
def calibrations(digits_model: Normalized, control: Split) -> dict[str, Calibration]:
    """Return what the control images say."""
    return calibrate_attacks(digits_model, control, attacks=[SPEC], slots=SLOTS)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Leave the kernels to torch, forget what was compiled, and collect what is."""
    found: list[nn.Module] = []

    def counted(module: nn.Module, **settings: Any) -> Callable[[Tensor], Tensor]:
        found.append(module)
        return compilation.compiled(module, **settings)

    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    monkeypatch.setattr(sat_ray.evaluation.low_precision.compiled_surrogate, "compiled", counted)
    monkeypatch.setattr(sat_ray.evaluation.low_precision.compiled_surrogate, "_KEPT", {})
    return found


def one_pixel(*, image_id: int) -> Split:
    """Return one image of one grey pixel, of class 0."""
    image = torch.full((1, 1, 1, 1), 127, dtype=torch.uint8)
    return Split(image, torch.zeros(1, dtype=torch.int64), torch.tensor([image_id]))


def attacked(
    model: Model, split: Split, calibrations: dict[str, Calibration], **changes: Any
) -> pa.Table:
    """Evaluate some images."""
    settings: dict[str, Any] = {
        "attacks": [SPEC],
        "slots": SLOTS,
        "calibrations": calibrations,
        **changes,
    }
    return evaluate(model, split.images, split.labels, split.image_ids, **settings)


def plain(
    model: Normalized, split: Split, *, bound: float, slots: int = SLOTS
) -> dict[int, tuple[int, int]]:
    """Attack every image to its end in bfloat16 and score every point again in float32.

    Returns (first broken step, prediction).
    """
    fast, attack = make_surrogate(model, gradient="bf16", device=CPU), make_attack(SPEC)
    found = {}
    for part in torch.arange(len(split)).split(slots):
        rows = torch.cat([part, part[:1].expand(slots - len(part))])
        rng = Randomness(0, split.image_ids[rows])
        state = attack.start(split.images[rows].float() / 255, split.labels[rows], rng)
        first, said = torch.full((slots,), NEVER), torch.zeros(slots, dtype=torch.int64)
        for step in range(SPEC.steps + 1):
            after = attack.step(fast, state)
            low = after.logits.gather(1, state.y[:, None])[:, 0] - after.logits.scatter(
                1, state.y[:, None], -torch.inf
            ).amax(1)  # type: ignore[union-attr]
            with torch.no_grad():
                prediction = model(state.x_adv).argmax(1)
            new = (
                (first == NEVER) & (prediction != state.y) & ((low < bound) | (step == SPEC.steps))
            )
            first, said = torch.where(new, step, first), torch.where(new, prediction, said)
            state = after
        found |= {
            int(split.image_ids[row]): (int(first[k]), int(said[k])) for k, row in enumerate(part)
        }
    return found


@pytest.mark.parametrize("rows", [4, 64])
def test_verdicts_are_those_of_a_plain_loop_that_scores_every_point_again(
    rows: int, digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 0.5
    monkeypatch.setattr(sat_ray.evaluation.low_precision.verification, "VERIFIED_ROWS", rows)
    surrogate = make_surrogate(digits_model, gradient="bf16", device=CPU)
    how = LowPrecision(surrogate, digits_model, bound)
    inputs = AttackInputs.of(held_out)
    verdicts, verified = run_on_surrogate(how, make_attack(SPEC), inputs, slots=SLOTS, device=CPU)
    expected = plain(digits_model, held_out, bound=bound)
    steps = torch.tensor([expected[one][0] for one in held_out.image_ids.tolist()])
    assert torch.equal(verdicts.first_broken_step, steps)
    broken = steps != NEVER
    assert 5 < int(broken.sum()) < len(held_out) - 5
    said = torch.tensor([expected[one][1] for one in held_out.image_ids.tolist()])
    assert torch.equal(verdicts.prediction[broken], said[broken])
    assert torch.equal(verdicts.passes[broken], steps[broken] + 1)
    assert bool((verdicts.margin[broken] <= 0).all())
    assert bool((verdicts.margin[~broken] >= 0).all())
    assert verified < int(verdicts.passes.sum())


def test_close_survivors_are_attacked_again_in_float32(
    digits_model: Normalized, held_out: Split
) -> None:
    attack, inputs = make_attack(SPEC), AttackInputs.of(held_out)
    given: dict[str, Any] = {"slots": SLOTS, "device": CPU}

    def blind(x: Tensor) -> Tensor:  # without a gradient, every image stays at its start
        return digits_model(x.detach()) + 0 * x.sum()

    start = run_slots(blind, attack, inputs, **given)
    bound = float(start.margin[start.first_broken_step == NEVER].median())
    how = LowPrecision(blind, digits_model, bound, repeat_close=True)
    first, _ = run_on_surrogate(how, attack, inputs, **given)
    both, _ = run_verified(how, attack, inputs, **given)
    exact = run_slots(digits_model, attack, inputs, **given)
    close = (first.first_broken_step == NEVER) & (first.margin < bound)
    assert 5 < int(close.sum()) < int((first.first_broken_step == NEVER).sum()) - 5
    assert torch.equal(both.first_broken_step[close], exact.first_broken_step[close])
    assert torch.equal(both.passes[close], exact.passes[close] + first.passes[close])
    assert torch.equal(both.first_broken_step[~close], first.first_broken_step[~close])


@pytest.mark.parametrize("steps", [6, 7, 20, 21])
def test_an_image_that_cycles_is_scored_where_its_last_step_leads(steps: int) -> None:
    """The attack steps to and fro over a ridge of the surrogate.

    The model itself misclassifies one side of the ridge.
    """
    ridge = 0.52
    pixel = one_pixel(image_id=6)
    attack = PGD(
        threat_model=ThreatModel("linf", 0.25), steps=steps, step_size=0.05, use_random_start=False
    )

    def surrogate(x: Tensor) -> Tensor:
        height = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([5 + (height - ridge).abs(), 0 * height], dim=1)

    def model(x: Tensor) -> Tensor:
        height = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([torch.where(height > ridge, -5.0, 5.0), 0 * height], dim=1)

    rng = Randomness.of(0, [6])
    state = attack.start(pixel.images.float() / 255, pixel.labels, rng)
    for _ in range(steps):
        state = attack.step(surrogate, state)
    how = LowPrecision(surrogate, model, bound=0.1)
    inputs = AttackInputs.of(pixel)
    found, verified = run_on_surrogate(how, attack, inputs, slots=1, device=CPU)
    assert found.first_broken_step.tolist() == ([steps] if float(state.x_adv) > ridge else [NEVER])
    assert verified == 1
    assert int(found.passes) <= min(steps + 1, 9), "whole periods are skipped"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_run_that_goes_wrong_counts_only_if_it_is_needed_whatever_the_slots(
    slots: int, precision: str
) -> None:
    """A NaN where run 3 starts: an error where the runs before it fail,
    nothing where run 0 breaks the image.
    """
    attack = PGD(threat_model=ThreatModel("linf", 0.1), steps=10, step_size=0.02)
    pixel = one_pixel(image_id=0)
    start = Randomness.of(0, [0], 3)
    spot = float(attack.threat_model.random_start(pixel.images.float() / 255, start))

    def attacked(limit: float) -> Tensor:
        def model(x: Tensor) -> Tensor:
            value = x.flatten(1).sum(dim=1, keepdim=True)
            hole = torch.where((value - spot).abs() < 1e-6, torch.nan, 0.0)
            return torch.cat([limit - value, 0 * value], dim=1) + hole

        inputs = AttackInputs.of(pixel, runs=6)
        if precision == "float32":
            found = run_slots(model, attack, inputs, slots=slots, device=CPU)
        else:
            how = LowPrecision(model, model, bound=0.01)
            found, _ = run_on_surrogate(how, attack, inputs, slots=slots, device=CPU)
        return found.first_broken_step

    assert int(attacked(0.59)[0]) >= 0
    with pytest.raises(ValueError, match=r"NaN or inf logits for image ids \[0\]"):
        attacked(2.0)


def test_restarts_done_together_give_what_they_give_alone(
    digits_model: Normalized, held_out: Split
) -> None:
    surrogate = make_surrogate(digits_model, gradient="bf16", device=CPU)
    how = LowPrecision(surrogate, digits_model, bound=2.0, repeat_close=True)
    # so coarse that restarts differ
    attack = make_attack(replace(SPEC, steps=3, step_size=SPEC.threat_model.epsilon / 2, name=""))
    inputs = AttackInputs.of(held_out, runs=3)
    together, _ = run_verified(how, attack, inputs, slots=SLOTS, device=CPU)
    waiting, counts = torch.arange(len(held_out)), []
    for run, (rows, found) in enumerate(by_run(together, len(held_out), runs=3)):
        assert torch.equal(rows, waiting)
        single = AttackInputs.of(held_out.take(waiting), restart=run)
        alone, _ = run_verified(how, attack, single, slots=SLOTS, device=CPU)
        for name in ("first_broken_step", "prediction", "margin", "distance", "passes"):
            assert torch.equal(getattr(alone, name), getattr(found, name)), name
        waiting = waiting[alone.first_broken_step == NEVER]
        counts.append(len(waiting))
    assert 0 < counts[-1] < counts[0] < len(held_out)


def test_outcomes_do_not_depend_on_order_or_shards(
    digits_model: Normalized, held_out: Split, calibrations: dict[str, Calibration]
) -> None:
    whole = attacked(digits_model, held_out, calibrations)
    backwards = attacked(
        digits_model, held_out.take(torch.arange(len(held_out) - 1, -1, -1)), calibrations
    )
    assert backwards.equals(whole)
    shards = [
        attacked(digits_model, held_out.take(slice(first, first + 23)), calibrations)
        for first in range(0, len(held_out), 23)
    ]
    assert pa.concat_tables(shards).sort_by("image_id").equals(whole.sort_by("image_id"))


def test_a_wrong_surrogate_breaks_nothing_and_hides_nothing_at_the_last_point(
    digits_model: Normalized, held_out: Split
) -> None:
    attack = PGD(
        threat_model=SPEC.threat_model, steps=5, step_size=SPEC.step_size or 0, loss="margin"
    )
    inputs = AttackInputs.of(held_out)
    given: dict[str, Any] = {"slots": SLOTS, "device": CPU}

    def all_wrong(x: Tensor) -> Tensor:
        return -digits_model(x)

    exact = run_slots(digits_model, attack, inputs, **given)
    how = LowPrecision(all_wrong, digits_model, bound=0.1)
    away, _ = run_on_surrogate(how, attack, inputs, **given)
    broken = (int((one.first_broken_step != NEVER).sum()) for one in (away, exact))
    assert next(broken) < next(broken)

    def all_right(x: Tensor) -> Tensor:
        """Return large margins with the gradient of the model."""
        logits = digits_model(x)
        return logits + 1e4 * torch.nn.functional.one_hot(held_out.labels[:SLOTS], 10)

    first = AttackInputs.of(held_out.take(slice(0, SLOTS)))
    how = LowPrecision(all_right, digits_model, bound=0.1)
    shown, verified = run_on_surrogate(how, attack, first, **given)
    assert verified == SLOTS  # the last points alone
    last = run_slots(digits_model, attack, first, **given, final_iterate=True)
    assert torch.equal(shown.first_broken_step, last.first_broken_step)
    assert int((shown.first_broken_step == attack.steps).sum()) > 0


@pytest.mark.parametrize("rows", [4, 64])
def test_where_a_surrogate_is_confident_few_points_are_verified_and_where_it_is_wrong_more(
    rows: int, digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sat_ray.evaluation.low_precision.verification, "VERIFIED_ROWS", rows)
    attack, inputs = make_attack(SPEC), AttackInputs.of(held_out)
    given: dict[str, Any] = {"slots": SLOTS, "device": CPU}

    def wrong_half_of_the_time(x: Tensor) -> Tensor:  # a property of the point, not of its row
        logits = digits_model(x)
        return torch.where(
            (1e4 * x.flatten(1).sum(dim=1, keepdim=True)).long() % 2 == 0, logits, -logits
        )

    fewer = {}
    for name, copied in {
        "sound": make_surrogate(digits_model, gradient="bf16", device=CPU),
        "wrong": wrong_half_of_the_time,
    }.items():
        how = LowPrecision(copied, digits_model, bound=0.3)
        trusted, verified = run_on_surrogate(how, attack, inputs, **given)
        plain, every = run_on_surrogate(how, attack, inputs, **given, trust_confident=False)
        broken = plain.first_broken_step != NEVER
        assert torch.equal(trusted.first_broken_step, plain.first_broken_step)
        assert torch.equal(trusted.prediction[broken], plain.prediction[broken])
        assert 5 < int(broken.sum()) < len(held_out)
        fewer[name] = verified / every
    assert fewer["sound"] <= 1 < fewer["wrong"], (
        "a run ends where the surrogate is confident, and is repeated where it was wrong"
    )


def test_calibration_measures_the_difference_of_the_margins(
    digits_model: Normalized, control: Split, calibrations: dict[str, Calibration]
) -> None:
    found = calibrations["pgd-20-bf16"]
    assert LEAST_BOUND < found.bound < 2
    assert found.images <= len(control)
    assert found.missed == 0
    assert found.above > 50
    assert 0.98 < found.margin_sign <= 1
    assert 0.8 < found.gradient_sign < 1
    assert found.verdicts >= 0.9
    assert len(found.differing_ids) == round((1 - found.verdicts) * found.images)
    assert 0 < found.rescored < 1
    assert "scored again in float32" in str(found)
    assert found.to_json()["miss_rate_at_most"] < 0.1


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_the_verdicts_that_a_calibration_compares_are_those_of_the_two_attacks(
    activation: str, digits_model: Normalized, control: Split
) -> None:
    model = digits_model if activation == "relu" else small_model("softplus").eval()
    images = (
        control
        if activation == "relu"
        else Split(control.images, model(control.images.float() / 255).argmax(1), control.image_ids)
    )
    spec = replace(SPEC, steps=40, name="")
    (found,) = calibrate_attacks(model, images, attacks=[spec], slots=SLOTS).values()
    low = attacked(model, images, {found.attack: found}, attacks=[spec])
    exact = attacked(model, images, {}, attacks=[replace(spec, gradient="float32", name="")])
    assert set(found.differing_ids) == robust_image_ids(low) ^ robust_image_ids(exact)


def test_slots_that_control_images_leave_empty_change_no_measurement(
    digits_model: Normalized, control: Split, calibrations: dict[str, Calibration]
) -> None:
    (wide,) = calibrate_attacks(digits_model, control, attacks=[SPEC], slots=80).values()
    (narrow,) = calibrations.values()
    assert wide.images == narrow.images
    assert wide.bound == pytest.approx(narrow.bound, rel=0.5)
    assert abs(wide.points - narrow.points) < 0.05 * narrow.points
    assert abs(wide.verdicts - narrow.verdicts) <= 2 / wide.images


def test_bf16_breaks_as_many_images_as_float32_does(
    digits_model: Normalized, held_out: Split, calibrations: dict[str, Calibration]
) -> None:
    ours = robust_image_ids(attacked(digits_model, held_out, calibrations))
    exact = robust_image_ids(
        attacked(digits_model, held_out, {}, attacks=[replace(SPEC, gradient="float32", name="")])
    )
    assert len(ours ^ exact) <= max(1, len(held_out) // 50)


def test_entries_of_a_gradient_far_below_the_others_are_0_and_the_others_untouched() -> None:
    gradient = (
        torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-30, 20, 6)[:, None, None, None]
    )
    gradient[5] = 0.0
    unknown = UNKNOWN["bf16"]
    known = known_signs(gradient, unknown=unknown)
    mean = gradient.abs().double().mean(dim=(1, 2, 3), keepdim=True)
    clearly_small, clearly_large = (
        gradient.abs() < 0.999 * mean / unknown,
        gradient.abs() > 1.001 * mean / unknown,
    )
    assert 0.005 < float(clearly_small[:5].float().mean()) < 0.1
    assert not known[clearly_small].any()
    assert torch.equal(known[clearly_large], gradient[clearly_large])
    gradient[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    assert torch.equal(
        known_signs(gradient, unknown=unknown)[0, 0, 0, :2].isnan(), torch.tensor([True, False])
    )
    assert known_signs(gradient, unknown=unknown)[0, 0, 0, 1] == torch.inf
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = gradient.flatten(2)[:, :, order].view_as(gradient)
    assert torch.equal(
        known_signs(shuffled[2:4], unknown=unknown),
        known.flatten(2)[2:4, :, order].view(2, 3, 8, 8),
    )


def test_points_repeat_on_a_bf16_surrogate_because_unknown_signs_are_0(
    digits_model: Normalized, held_out: Split
) -> None:
    """The digits' images are so small that they end where they cannot move;
    images of 32 pixels do not.
    """
    larger = enlarged(held_out.take(slice(0, 24)), 4)
    model = build_model(
        "small_resnet", activation="silu", num_classes=10, in_channels=1, width=8, seed=0
    ).eval()
    labels = model(larger.images.float() / 255).argmax(dim=1)
    attack = PGD(threat_model=ThreatModel("linf", 2 / 255), steps=60, step_size=0.2 / 255)
    copied = make_surrogate(model, gradient="bf16", device=CPU)
    inputs = AttackInputs.of(replace(larger, labels=labels))

    def random_signs(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return copied.forward.model(x).float()

    found = [run_slots(one, attack, inputs, slots=8, device=CPU) for one in (copied, random_signs)]
    survived = [one.first_broken_step == NEVER for one in found]
    assert bool(torch.stack(survived).any())
    known, random = (
        int(one.passes[rows].sum()) / int(rows.sum())
        for one, rows in zip(found, survived, strict=True)
    )
    assert known < 0.9 * random


def test_directions_are_scaled_by_powers_of_two_and_a_vanished_loss_stays_vanished() -> None:
    gradient = (
        torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-30, 10, 5)[:, None]
    )
    gradient[4] = 0.0
    found = scaled(gradient)
    factor = found[:4] / gradient[:4]
    assert torch.equal(factor, factor[:, :1].expand_as(factor)), "one factor for every row"
    assert torch.equal(torch.frexp(factor).mantissa, torch.full_like(factor, 0.5)), "a power of two"
    largest = found[:4].abs().amax(dim=1)
    assert bool(((largest >= LARGEST / 2) & (largest <= LARGEST)).all())
    assert not found[4].any()


def test_in_fp16_a_confident_image_has_the_gradient_that_float64_gives_it(
    digits_model: Normalized, digits: Split, compilations: list[nn.Module]
) -> None:
    """The derivatives of its loss, from 1e-6 to 1e-4, are lost in float16 on their way through the
    network unless they are scaled.
    """
    x, y = digits.images.float() / 255, digits.labels

    def gradient(forward: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        return (
            torch.autograd.grad(attack_loss(forward(point), y).sum(), point)[0].double().flatten(1)
        )

    def unscaled(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return copied.forward.plain.model(x).float()

    copied = make_surrogate(digits_model, gradient="fp16", device=CPU)
    with torch.no_grad():
        doubt = 1 - digits_model(x).double().softmax(dim=1).gather(1, y[:, None])[:, 0]
    confident = (doubt > 1e-6) & (doubt < 1e-4)
    assert int(confident.sum()) > 5
    exact = gradient(copy.deepcopy(digits_model).double(), x.double())
    ours, theirs = (
        torch.nn.functional.cosine_similarity(exact, gradient(one, x))[confident]
        for one in (copied, unscaled)
    )
    assert float(ours.quantile(0.1)) > 0.999
    # at a relu's kink any rounding turns a gradient: up to a tenth of them on some processors
    low, lost = (float(one.quantile(0.25)) for one in (ours, theirs))
    assert 1 - lost > 10 * (1 - low)


@pytest.mark.parametrize("where", ["logits", "gradient"])
def test_a_network_beyond_the_range_of_fp16_is_refused_with_what_to_do(
    where: str, control: Split, compilations: list[nn.Module]
) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)
            with torch.no_grad():
                self.head.weight.mul_(4e5)  # float16 ends at 65,504

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(1) * (1.0 if where == "logits" else 1e-6))
            return logits

    torch.manual_seed(0)
    model = Steep().eval()
    with torch.no_grad():
        images = Split(
            control.images, model(control.images.float() / 255).argmax(dim=1), control.image_ids
        )
    with pytest.raises(
        ValueError,
        match=r"^\w+ of the fp16 surrogate must be finite, got NaN .*; use bf16 or float32 as",
    ):
        calibrate_attacks(
            model, images, attacks=[replace(SPEC, gradient="fp16", name="")], slots=SLOTS
        )


@pytest.mark.parametrize("algorithm", ["apgd", "targeted"])
def test_attacks_with_memory_and_targets_take_bf16_gradients_too(
    algorithm: str, digits_model: Normalized, control: Split
) -> None:
    spec = AttackSpec(threat_model=SPEC.threat_model, steps=10, algorithm="apgd", gradient="bf16",
                      **({"loss": "dlr",
                      "targets": 2} if algorithm == "targeted" else {}))  # fmt: skip
    assert spec.name in ("apgd-ce-10-bf16", "apgd-t-dlr-10-bf16")
    table = attacked(
        digits_model,
        control,
        calibrate_attacks(digits_model, control, attacks=[spec], slots=SLOTS),
        attacks=[spec],
    )
    exact = attacked(
        digits_model, control, {}, attacks=[replace(spec, gradient="float32", name="")]
    )
    assert len(robust_image_ids(table) ^ robust_image_ids(exact)) <= 2
    assert pc.max(table["first_broken_step"]).as_py() > 0


def test_the_surrogate_is_folded_rounded_and_apart(
    digits_model: Normalized, held_out: Split
) -> None:
    before = {name: tensor.clone() for name, tensor in digits_model.state_dict().items()}
    copied = _short(digits_model, precision="bf16")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert {
        parameter.dtype
        for module in copied.modules()
        if isinstance(module, FoldedConv)
        for parameter in module.parameters()
    } == {torch.bfloat16}
    x = held_out.images[:8].float() / 255
    with torch.no_grad():
        torch.testing.assert_close(
            make_surrogate(digits_model, gradient="bf16", device=CPU)(x),
            digits_model(x),
            rtol=0.05,
            atol=0.3,
        )
    assert all(
        torch.equal(before[name], tensor) for name, tensor in digits_model.state_dict().items()
    )


def test_networks_that_call_one_relu_again_and_again_are_folded() -> None:
    copied = _short(torchvision.models.resnet18().eval(), precision="bf16")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())


def test_layers_that_are_called_twice_are_not_folded_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            once = self.norm(self.conv(x))
            twice: Tensor = self.norm(self.conv(once))
            return twice.mean(dim=(2, 3))

    torch.manual_seed(0)
    model, x = Shared(), torch.rand(8, 2, 8, 8)
    model(x)  # moves the running statistics away from 0 and 1
    model.norm.weight.data.mul_(3.0)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            make_surrogate(model, gradient="bf16", device=CPU)(x), model(x), rtol=0.05, atol=0.05
        )


def test_a_model_that_cannot_be_traced_is_used_unfolded() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.mean()) > 2:
                return x
            return self.norm(self.conv(x)).mean(dim=(2, 3))

    model = Branching().eval()
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            make_surrogate(model, gradient="bf16", device=CPU)(x), model(x), rtol=0.02, atol=0.02
        )


def gradient_of(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Differentiate the sum of the first logit."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(forward(point)[:, 0].sum(), point)[0]


def likeness(one: Tensor, other: Tensor) -> float:
    """Return the smallest cosine of two gradients of an image: float16 scales each image's."""
    cosines = nn.functional.cosine_similarity(one.double().flatten(1), other.double().flatten(1))
    return float(cosines.min())


@pytest.mark.parametrize("activation", ["relu_smooth_backward", "smoothrelu"])
def test_a_compiled_surrogate_computes_what_the_same_copy_does(
    activation: str, compilations: list[nn.Module]
) -> None:
    model = small_model(activation).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    fast = make_surrogate(model, gradient="fp16", device=CPU)
    assert isinstance(fast.forward, CompiledSurrogate)
    plain = replace(fast, forward=fast.forward.plain)
    torch.testing.assert_close(fast(x), plain(x), rtol=0.01, atol=0.005)
    assert likeness(gradient_of(fast, x), gradient_of(plain, x)) > 0.999
    assert len(compilations) == 1


def test_copies_of_the_same_layers_share_kernels_and_never_weights(
    compilations: list[nn.Module],
) -> None:
    x = torch.rand(8, 1, 8, 8)
    models = [
        build_model(
            "small_resnet", activation="silu", num_classes=10, in_channels=1, width=4, seed=seed
        ).eval()
        for seed in (0, 1)
    ]
    copies = [make_surrogate(model, gradient="fp16", device=CPU) for model in models]
    assert likeness(*(gradient_of(model, x) for model in models)) < 0.9
    for number in (0, 1, 0):  # in turns
        torch.testing.assert_close(copies[number](x), models[number](x), rtol=0.01, atol=0.005)
        assert likeness(gradient_of(copies[number], x), gradient_of(models[number], x)) > 0.999
    assert len(compilations) == 1
    with torch.no_grad():
        next(models[0].parameters()).mul_(2.0)
    again = make_surrogate(models[0], gradient="fp16", device=CPU)
    torch.testing.assert_close(again(x), models[0](x), rtol=0.01, atol=0.005)
    assert len(compilations) == 1
    for alpha in (1.0, 2.0):
        other = build_model(
            "small_resnet",
            activation="smoothrelu",
            alpha=alpha,
            num_classes=10,
            in_channels=1,
            width=4,
        ).eval()
        copied = make_surrogate(other, gradient="fp16", device=CPU)
        torch.testing.assert_close(copied(x), other(x), rtol=0.01, atol=0.005)
    assert len(compilations) == 3


def test_kernels_that_do_not_fit_are_made_anew_and_a_compiler_that_errs_is_refused(
    compilations: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two modules that look alike and differ;
    then a compiler whose forward pass is right and whose backward pass is not.
    """

    class Looks(nn.Module):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.power, self.head = power, nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(1) ** self.power)
            return logits

    x = torch.rand(8, 1, 8, 8)
    for power in (1, 3):
        model = Looks(power).eval()
        copied = make_surrogate(model, gradient="fp16", device=CPU)
        torch.testing.assert_close(copied(x), model(x), rtol=0.01, atol=0.005)
    assert len(compilations) == 2

    def wrong(module: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: 2 * module(x) - module(x).detach()

    monkeypatch.setattr(sat_ray.evaluation.low_precision.compiled_surrogate, "compiled", wrong)
    fast = make_surrogate(small_model("silu").eval(), gradient="fp16", device=CPU)
    with pytest.raises(
        ArithmeticError, match=r"gradient of the compiled model that is attacked differs by 100 %"
    ):
        fast(x)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.fault)]
)
def test_verdicts_on_fp16_gradients_are_those_of_float32_in_any_shards(
    backend: str,
    digits_model: Normalized,
    held_out: Split,
    control: Split,
    calibrations: dict[str, Calibration],
    compilations: list[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", backend)
    spec = replace(SPEC, gradient="fp16", name="")
    assert spec.name == "pgd-20-fp16"
    measured = calibrate_attacks(digits_model, control, attacks=[spec], slots=SLOTS)
    (short,), (bf16,) = measured.values(), calibrations.values()
    assert short.bound < bf16.bound / 4
    assert short.rescored < bf16.rescored
    assert short.gradient_unknown < bf16.gradient_unknown
    whole = attacked(digits_model, held_out, measured, attacks=[spec])
    exact = attacked(
        digits_model, held_out, {}, attacks=[replace(SPEC, gradient="float32", name="")]
    )
    assert len(robust_image_ids(whole) ^ robust_image_ids(exact)) <= 1
    assert 0 < len(robust_image_ids(whole)) < len(held_out)
    shards = [
        attacked(digits_model, held_out.take(slice(a, a + 40)), measured, attacks=[spec])
        for a in range(0, len(held_out), 40)
    ]
    assert pa.concat_tables(shards).sort_by("image_id").equals(whole.sort_by("image_id"))
    assert len(compilations) == 1


def test_a_machine_without_a_compiler_refuses_fp16_gradients_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError,
        match=r"^--gradient is fp16, but there is no C\+\+ compiler here; choose bf16 or float32, ",
    ):
        check_gradient("fp16", CPU, field="--gradient")
    check_gradient("bf16", CPU, field="--gradient")


def test_arithmetic_that_a_machine_only_imitates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for has_bf16 in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16
        )
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        said = {gradient: slow_here(gradient=gradient, accelerator="") for gradient in GRADIENTS}
        slow = {gradient for gradient, text in said.items() if text}
        assert slow == {"fp16"} | (set() if has_bf16 else {"bf16"})
    assert (
        said["bf16"]
        == "this machine imitates bf16: gradients in float32 would take a fraction of the time"
    )
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    assert not slow_here(gradient="fp16", accelerator="")


def test_without_calibrations_the_control_images_are_drawn_from_the_given_ones(
    digits_model: Normalized, held_out: Split
) -> None:
    rows = control_rows(len(held_out), seed=3)
    assert len(rows) == CONTROL_IMAGES < len(held_out)
    control = held_out.take(rows)
    measured = calibrate_attacks(digits_model, control, attacks=[SPEC], seed=3, slots=SLOTS)
    expected = attacked(digits_model, held_out, measured, seed=3)
    found = evaluate(
        digits_model,
        held_out.images,
        held_out.labels,
        held_out.image_ids,
        attacks=[SPEC],
        seed=3,
        slots=SLOTS,
    )
    assert found.equals(expected)


def test_bad_requests(digits_model: Normalized, held_out: Split, control: Split) -> None:
    with pytest.raises(
        ValueError, match="calibrations must have an entry for the attack pgd-20-bf16"
    ):
        attacked(digits_model, held_out, {})
    with pytest.raises(ValueError, match="must be float32 for fab, for square"):
        AttackSpec(threat_model=SPEC.threat_model, steps=5, algorithm="square", gradient="bf16")
    with pytest.raises(ValueError, match="with final_iterate, got bf16"):
        replace(SPEC, final_iterate=True, name="")
    with pytest.raises(ValueError, match="attack gradient 'bf1' is unknown"):
        replace(SPEC, gradient="bf1", name="")
    for removed in ("float32-compiled", "bf16-compiled", "fp16-compiled"):
        today = removed.removesuffix("-compiled")
        with pytest.raises(
            ValueError, match=f"attack gradient '{removed}' was removed; use {today}"
        ):
            replace(SPEC, gradient=removed, name="")
    wrong = Split(control.images, (control.labels + 1) % 10, control.image_ids)
    with pytest.raises(ValueError, match="control images must be correctly classified, got"):
        calibrate_attacks(digits_model, wrong, attacks=[SPEC], slots=SLOTS)
