"""The engine against a plain loop over every point, and cycle detection on handmade sequences."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_batch_buckets import Recorded
from torch import Tensor

from sat_ray.attacks import APGD, PGD, Attack, InfeasiblePointError, State
from sat_ray.attacks.apgd import APGDState
from sat_ray.attacks.base import Model
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.cycles import CycleDetector
from sat_ray.evaluation.engine.padding import pad
from sat_ray.evaluation.engine.run_attack import run_slots
from sat_ray.evaluation.engine.verdicts import Verdicts, by_run
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

CPU = torch.device("cpu")
SLOTS = 16
PGD_40 = PGD(threat_model=ThreatModel("linf", 40 / 255), steps=40, step_size=8 / 255)
PGD_L2 = PGD(threat_model=ThreatModel("l2", 0.8), steps=25, step_size=0.2)


def plain(model: Normalized, attack: PGD, split: Split, seed: int) -> dict[str, Tensor]:
    """Visit every point of every image, SLOTS rows at a time; nothing retires,
    nothing is skipped.
    """
    rows = []
    for part in torch.arange(len(split)).split(SLOTS):
        index = torch.cat([part, part[:1].expand(SLOTS - len(part))])
        x, y = split.images[index].float() / 255, split.labels[index]
        x_adv = attack.threat_model.random_start(x, Randomness(seed, split.image_ids[index]))
        points = []
        for _ in range(attack.steps + 1):
            leaf = x_adv.clone().requires_grad_()
            z = model(leaf)
            (gradient,) = torch.autograd.grad(
                torch.nn.functional.cross_entropy(z, y, reduction="sum"), leaf
            )
            best_other = z.detach().clone()
            best_other[torch.arange(SLOTS), y] = -torch.inf
            points.append(
                (
                    z.argmax(1),
                    z.detach()[torch.arange(SLOTS), y] - best_other.amax(1),
                    attack.threat_model.distance(x_adv, x),
                )
            )
            x_adv = attack.threat_model.project(
                x_adv + attack.step_size * attack.threat_model.steepest_ascent(gradient), x
            )
        prediction, margin, distance = (torch.stack(values) for values in zip(*points, strict=True))
        for row in range(len(part)):
            broken = torch.nonzero(prediction[:, row] != y[row]).flatten().tolist()
            at = broken[0] if broken else int(margin[:, row].argmin())
            rows.append(
                (
                    prediction[at, row],
                    margin[at, row],
                    broken[0] if broken else NEVER,
                    distance[at, row],
                )
            )
    return {
        name: torch.tensor([row[k] for row in rows])
        for k, name in enumerate(("prediction", "margin", "first_broken_step", "distance"))
    }


@pytest.mark.parametrize("detect_cycles", [False, True], ids=["no cycles", "cycles"])
@pytest.mark.parametrize("attack", [PGD_40, PGD_L2], ids=["linf", "l2"])
def test_verdicts_equal_those_of_a_plain_loop_bit_for_bit(
    attack: PGD, detect_cycles: bool, digits_model: Normalized, held_out: Split
) -> None:
    expected = plain(digits_model, attack, held_out, seed=4)
    inputs = AttackInputs.of(held_out, seed=4)
    found = run_slots(
        digits_model, attack, inputs, slots=SLOTS, device=CPU, detect_cycles=detect_cycles
    )
    for name, values in expected.items():
        assert torch.equal(getattr(found, name), values.to(getattr(found, name).dtype)), name
    steps = expected["first_broken_step"]
    assert int((steps >= 0).sum()) > 5
    assert int((steps == NEVER).sum()) > 5
    full = torch.where(steps == NEVER, attack.steps + 1, steps + 1)
    if detect_cycles:
        assert bool((found.passes <= full).all())
        assert torch.equal(found.passes[steps != NEVER], full[steps != NEVER])
        assert int(found.passes.sum()) < int(full.sum()) or attack is PGD_L2
    else:
        assert torch.equal(found.passes, full)


def one_after_another(
    model: Model,
    attack: Attack,
    split: Split,
    *,
    runs: int,
    target: Tensor | None,
    final_iterate: bool,
) -> list[tuple[Tensor, Verdicts]]:
    """Attack run after run, each time the images that all runs before have left."""
    waiting, found = torch.arange(len(split)), []
    for run in range(runs):
        towards = None if target is None else target[waiting, run][:, None]
        inputs = AttackInputs.of(split.take(waiting), restart=3 + run, target=towards)
        verdicts = run_slots(
            model, attack, inputs, slots=SLOTS, device=CPU, final_iterate=final_iterate
        )
        found.append((waiting, verdicts))
        waiting = waiting[verdicts.first_broken_step == NEVER]
    return found


APGD_DLR = APGD(threat_model=ThreatModel("linf", 40 / 255), steps=10, loss="dlr")


@pytest.mark.parametrize(
    ("attack", "runs", "targeted", "final_iterate"),
    [(PGD_40, 4, False, False), (PGD_40, 3, False, True), (APGD_DLR, 9, True, False)],
    ids=["restarts", "final iterate", "targets"],
)
def test_runs_done_together_give_what_runs_one_after_another_give_in_fewer_calls(
    attack: Attack,
    runs: int,
    targeted: bool,
    final_iterate: bool,
    digits_model: Normalized,
    held_out: Split,
) -> None:
    target = (held_out.labels[:, None] + torch.arange(1, runs + 1)) % 10 if targeted else None
    in_turn, together = Recorded(digits_model), Recorded(digits_model)
    expected = one_after_another(
        in_turn, attack, held_out, runs=runs, target=target, final_iterate=final_iterate
    )
    inputs = AttackInputs.of(held_out, restart=3, target=target, runs=runs)
    found = run_slots(
        together, attack, inputs, slots=SLOTS, device=CPU, final_iterate=final_iterate
    )
    assert len({len(rows) for rows, _ in expected}) > 1, "no run but the first broke anything"
    for (rows, wanted), (seen, got) in zip(
        expected, by_run(found, len(held_out), runs=runs), strict=True
    ):
        assert torch.equal(rows, seen)
        assert wanted.__dict__.keys() == got.__dict__.keys()
        for name, values in wanted.__dict__.items():
            assert torch.equal(values, getattr(got, name)), name
    assert len(together.rows) <= len(in_turn.rows) * (1 if final_iterate else 0.9)


def test_the_runs_of_few_images_are_done_side_by_side(
    digits_model: Normalized, held_out: Split
) -> None:
    sturdy = ThreatModel("linf", 2 / 255)
    attack, model = APGD(threat_model=sturdy, steps=20), Recorded(digits_model)
    right = torch.nonzero(
        digits_model(held_out.images.float() / 255).argmax(dim=1) == held_out.labels
    ).flatten()[: SLOTS // 4]
    few = held_out.take(right)
    found = run_slots(model, attack, AttackInputs.of(few, runs=4), slots=SLOTS, device=CPU)
    assert bool((found.first_broken_step == NEVER).all())
    assert int(found.passes.sum()) == 4 * len(few) * (attack.steps + 1)
    assert len(model.rows) == attack.steps + 1


def test_runs_are_started_in_blocks(digits_model: Normalized, held_out: Split) -> None:
    starts = []

    class Started(APGD):
        def start(
            self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
        ) -> APGDState:
            starts.append(len(x))
            return super().start(x, y, rng, target=target)

    attack = Started(threat_model=APGD_DLR.threat_model, steps=10, loss="margin")
    inputs = AttackInputs.of(held_out, runs=6)
    found = run_slots(digits_model, attack, inputs, slots=SLOTS, device=CPU)
    counted = sum(len(rows) for rows, _ in by_run(found, len(held_out), runs=6))
    assert set(starts) == {SLOTS}
    assert len(starts) <= 2 * counted / SLOTS + 2


def test_no_image_is_an_empty_verdict(digits_model: Normalized, held_out: Split) -> None:
    none = AttackInputs.of(held_out.take(slice(0, 0)))
    assert len(run_slots(digits_model, PGD_40, none, slots=4, device=CPU).passes) == 0


@dataclass(frozen=True, kw_only=True)
class Leaving(PGD):
    """Leave the ball at one step."""

    at: int = 0

    def _leave(self, state: State) -> State:
        return replace(
            state,
            x_adv=torch.where(
                (state.step == self.at).view(-1, 1, 1, 1), state.x * 0.5, state.x_adv
            ),
        )

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None, step: int = 0
    ) -> State:
        return self._leave(super().start(x, y, rng, target=target, step=step))

    def step(self, model, state):  # type: ignore[no-untyped-def]
        return self._leave(super().step(model, state))


@pytest.mark.parametrize("at", [0, 2, 5], ids=["start", "middle", "last"])
def test_an_attack_that_leaves_its_ball_at_any_visited_point_raises(at: int) -> None:
    attack = Leaving(threat_model=ThreatModel("linf", 0.1), steps=5, step_size=0.1, at=at)
    images = torch.full((3, 1, 2, 2), 200, dtype=torch.uint8)
    inputs = AttackInputs.of(Split(images, torch.zeros(3, dtype=torch.int64), torch.arange(3)))

    def sturdy(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).sum(dim=1), 0 * x.flatten(1).sum(dim=1) - 1], dim=1)

    with pytest.raises(InfeasiblePointError, match="leave linf"):
        run_slots(sturdy, attack, inputs, slots=2, device=CPU, detect_cycles=False)


def test_padding_repeats_the_first_row() -> None:
    assert pad(torch.tensor([[4], [5]]), 4).tolist() == [[4], [5], [4], [4]]


def watch(
    sequences: list[list[float]], *, detector: CycleDetector | None = None
) -> list[list[int]]:
    """Feed one sequence per slot, point k numbered k, and return the answers per slot."""
    points = torch.tensor(sequences)
    detector = detector or CycleDetector(len(sequences), points.shape[1], device=CPU)
    slots = torch.arange(len(sequences))
    answers = [
        detector.observe(points[:, k, None], torch.full_like(slots, k), slots)
        for k in range(points.shape[1])
    ]
    return torch.stack(answers, dim=1).tolist()


@pytest.mark.parametrize("tail", [0, 1, 4])
@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_cycle_is_confirmed_at_its_second_repetition(period: int, tail: int) -> None:
    cycle = [0.25 + k / 16 for k in range(period)]
    sequence = [-1.0 - k for k in range(tail)] + cycle * 4
    endless = [float(k) for k in range(100, 100 + len(sequence))]
    found, nothing = watch([sequence, endless])
    assert found.index(period) == tail + 2 * period
    assert not any(found[: tail + 2 * period])
    assert not any(nothing)


def test_zeros_of_both_signs_and_near_misses_are_different_points() -> None:
    near = [0.5, torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()]
    assert watch([[near[0], near[1], 0.75, 0.1, 0.2, 0.3]]) == [[0] * 6]
    assert watch([[0.0, -0.0, 3.0, 4.0, 5.0, 6.0]]) == [[0] * 6]


def test_a_point_that_comes_back_only_once_is_no_cycle() -> None:
    # 0.5 at 1 and 3 proposes period 2; the point at 5 differs, so nothing is confirmed until the
    # true cycle shows
    assert watch([[0.1, 0.5, 0.2, 0.5, 0.3, 0.6, 0.7, 0.8, 0.7, 0.8, 0.7]])[0] == [0] * 10 + [2]


def test_a_false_hash_match_confirms_nothing() -> None:
    detector = CycleDetector(1, 40, device=CPU)
    slot = torch.tensor([0])
    detector.observe(torch.tensor([[9.0]]), torch.tensor([0]), slot)
    detector.weights = torch.zeros_like(detector.weights)  # from here on all points have one hash
    for k in range(1, 20):
        assert detector.observe(torch.tensor([[float(k)]]), torch.tensor([k]), slot).tolist() == [0]
    answers = [
        detector.observe(torch.tensor([[0.5]]), torch.tensor([k]), slot).item()
        for k in range(20, 26)
    ]
    assert 1 in answers
    assert set(answers) <= {0, 1}


def test_a_slot_that_takes_another_image_forgets_the_last_one() -> None:
    detector, slots = CycleDetector(2, 20, device=CPU), torch.tensor([0, 1])
    values = [0.1, 0.2, 0.3, 0.2]  # slot 0 is about to confirm period 2 at its next 0.3, 0.2
    for k, value in enumerate(values):
        detector.observe(torch.tensor([[value], [value]]), torch.tensor([k, k]), slots)
    detector.forget(torch.tensor([0]))
    answers = [
        detector.observe(
            torch.tensor([[first], [second]]), torch.tensor([k, 4 + k]), slots
        ).tolist()
        for k, (first, second) in enumerate(
            [(0.3, 0.3), (0.2, 0.2), (0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.2, 0.6)]
        )
    ]
    assert answers == [[0, 0], [0, 2], [0, 0], [0, 0], [0, 0], [0, 0]]
