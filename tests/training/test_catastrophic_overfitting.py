"""The guard against catastrophic overfitting: its rule, its remedies,
and a real run that collapses without it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import (
    BALL,
    arguments_of_fit,
    assert_same_bits,
    digits_again,
    in_two_processes,
    kept_states,
    worker_of_two,
)

from sat_ray.attacks import PGD
from sat_ray.data.split import Split
from sat_ray.models import build_model
from sat_ray.threat import ThreatModel
from sat_ray.training.catastrophic_overfitting import (
    CatastrophicOverfittingError,
    Memory,
    judge,
    milder,
)
from sat_ray.training.loop import EpochReport, TrainingSettings, TrainingState, fit

COLLAPSING = TrainingSettings(
    epochs=36,
    global_batch_size=64,
    batchnorm_group_size=64,
    learning_rate=0.7,
    schedule="constant",
    warmup_epochs=1,
    attack_random_start=False,
    validation_targets=0,
)
"""FGSM from the clean image, a large epsilon and a high learning
rate. When it collapses depends on how a processor rounds.
"""
SEEDS = range(8)
LOOKS = {"guard_every": 8, "guard_images": 96}
RECOVERY = 5  # epochs


def run(
    digits: Split, *, until: int, state: TrainingState | None = None, seed: int = 0, **changes: Any
) -> list[EpochReport]:
    """Train the model of these tests on 512 digits."""
    return list(epochs_of(digits, until=until, state=state, seed=seed, **changes))


def epochs_of(
    digits: Split, *, until: int, state: TrainingState | None = None, seed: int = 0, **changes: Any
) -> Iterator[EpochReport]:
    """Do so epoch by epoch."""
    model = build_model(
        "small_resnet",
        activation="relu",
        seed=seed,
        num_classes=10,
        in_channels=1,
        width=4,
        mean=(0.3,),
        std=(0.35,),
    )
    changes |= {"state": state, "until": until, "slots": 96, "seed": seed}
    parts = digits.take(slice(0, 512)), digits.take(slice(1000, 1096))
    ball = ThreatModel("linf", 64 / 255)
    return fit(
        model,
        *parts,
        threat_model=ball,
        **arguments_of_fit(COLLAPSING, changes),
    )


def survivors(report: EpochReport) -> int:
    """Return how many of the 96 validation images survive PGD-10."""
    return round(report.metrics["val/robust_accuracy"] * 96)


@pytest.fixture(scope="module")
def collapse(digits: Split) -> tuple[int, list[EpochReport]]:
    """Return the first seed with which training collapses when nobody looks,
    and its reports up to that epoch.
    """
    for seed in SEEDS:
        reports = list[EpochReport]()
        for report in epochs_of(digits, until=COLLAPSING.epochs, seed=seed, validate_every=1):
            best = max(map(survivors, reports), default=0)
            reports.append(report)
            if judge(survivors(report), best, 96) == "collapsed":
                return seed, reports
    raise AssertionError(f"no training collapsed with the seeds {list(SEEDS)}")


@pytest.fixture(scope="module")
def guarded(
    digits: Split, collapse: tuple[int, list[EpochReport]]
) -> tuple[list[EpochReport], list[TrainingState]]:
    """Return the reports of the same run with a guard, some epochs longer,
    and its states after every fifth step.
    """
    (seed, alone), (states, every) = collapse, kept_states(5)
    return run(
        digits, until=len(alone) + RECOVERY, seed=seed, validate_every=1, **LOOKS, **every
    ), states


def test_the_rule_compares_wilson_intervals_with_the_best_look() -> None:
    """100 images; the upper ends for 50, 41, 40, 17 and 16 survivors are 0.596, 0.508, 0.498,
    0.256 and 0.245.
    """
    assert [judge(robust, 50, 100) for robust in (50, 41, 40, 17, 16, 0)] == [
        "good",
        "good",
        "waiting",
        "waiting",
        "collapsed",
        "collapsed",
    ]
    assert judge(0, 0, 100) == "good"  # nothing was ever robust, nothing can be lost
    assert judge(1, 3, 10) == "good"  # ten images say little


def test_memory_counts_collapses_and_remembers_where_the_good_state_is_from() -> None:
    memory, verdicts = Memory(), []
    for step, robust in enumerate((10, 50, 60, 30, 5, 55)):
        memory, verdict = memory.after(robust, 100, epoch=3, step=step)
        verdicts.append(verdict)
    assert verdicts == ["good", "good", "good", "waiting", "collapsed", "good"]
    assert memory == Memory(best=60, robust=55, images=100, good_epoch=3, good_step=5, collapses=1)


def test_the_remedy_halves_the_step_down_to_the_edge_and_then_adds_one() -> None:
    epsilon = BALL.epsilon
    attack = PGD(threat_model=BALL, steps=1, step_size=3 * epsilon)
    ladder = [
        (milder(attack, times=n).steps, milder(attack, times=n).step_size / epsilon)
        for n in range(6)
    ]
    assert ladder == [(1, 3.0), (1, 1.5), (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert milder(attack, times=3).use_random_start == attack.use_random_start


def test_a_run_that_collapses_without_a_guard_is_rolled_back_and_recovers_with_one(
    collapse: tuple[int, list[EpochReport]], guarded: tuple[list[EpochReport], list[TrainingState]]
) -> None:
    (_, alone), (reports, _) = collapse, guarded
    watched, best = reports[-1], max(map(survivors, alone))
    assert (
        survivors(alone[-1]) < best / 2
    )  # under PGD-10; FGSM, with which it trains, leaves it far more:
    assert (
        alone[-1].metrics["train/adversarial_accuracy"]
        > alone[-1].metrics["val/robust_accuracy"] + 0.3
    )
    assert max(map(survivors, reports[len(alone) :])) > best / 2
    assert watched.metrics["guard/collapses"] == len(watched.state.events) >= 1
    event = watched.state.events[0]
    assert event["robust_accuracy"] < event["best_robust_accuracy"] / 2
    assert (event["attack_steps"], event["attack_step_size"]) == (2, pytest.approx(32 / 255))
    assert (event["back_to_epoch"], event["back_to_step"]) < (event["epoch"], event["step"])
    assert [one for report in reports for one in report.events] == watched.state.events
    assert [row["guard/collapses"] for row in watched.state.history] == sorted(
        row["guard/collapses"] for row in watched.state.history
    )


def one_of_two_workers(rank: int, folder: str) -> None:
    """Run as a separate process: the same training as one of two gloo workers."""
    with worker_of_two(rank, folder) as group:
        for seed in SEEDS:
            for last in epochs_of(
                digits_again(),
                until=COLLAPSING.epochs,
                seed=seed,
                batchnorm_group_size=32,
                process_group=group,
                **LOOKS,
            ):
                if any(event["epoch"] + RECOVERY <= last.epoch for event in last.state.events):
                    break
            if last.state.events:
                break
    torch.save(
        {"weights": last.state.weights, "events": last.state.events, "metrics": last.metrics},
        f"{folder}/{rank}.pt",
    )


def test_two_workers_roll_back_together_and_recover(tmp_path: Path) -> None:
    in_two_processes(
        f"test_catastrophic_overfitting.one_of_two_workers({{rank}}, {str(tmp_path)!r})"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["events"] == second["events"] and len(first["events"]) >= 1
    assert all(
        torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items()
    )
    assert (
        first["metrics"]["guard/robust_accuracy"] > first["events"][0]["best_robust_accuracy"] / 2
    )


def test_going_back_restores_every_weight_statistic_and_momentum(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks after steps 2, 4 and 6, the last of them made to collapse:
    the state after step 6 is that after step 4.
    """
    looks = iter([90, 90, 0])
    monkeypatch.setattr(
        "sat_ray.training.validation.Validation._count", lambda *_: (96, next(looks, 90), 96)
    )
    seen, every = kept_states(2)
    run(digits, until=1, guard_every=2, guard_limit=1, ema_decay=0.9, **every)
    second, fourth, sixth = seen[:3]
    for part in ("weights", "optimizer", "average"):
        kept, undone = getattr(fourth, part), getattr(sixth, part)
        assert kept.keys() == undone.keys() and kept
        assert all(torch.equal(kept[name], undone[name]) for name in kept), part
        assert any(
            not torch.equal(tensor, getattr(second, part)[name]) for name, tensor in kept.items()
        ), part
    assert (sixth.guard.collapses, sixth.guard.good_step, len(sixth.events)) == (1, 4, 1)


def test_after_the_last_remedy_the_run_stops_and_says_what_it_tried(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([90, 0, 0])
    monkeypatch.setattr(
        "sat_ray.training.validation.Validation._count", lambda *_: (96, next(looks), 96)
    )
    expected = (
        r"^training collapsed 2 times, more than training\.guard_limit = 1; the last time was in "
        r"epoch 0, step 6: 0 of 96 held-out images survive PGD-10, 90 did at best; the training "
        r"attack was PGD-2 with steps of 32/255; try .*"
        r"the last good state is of epoch 0, step 2$"
    )
    with pytest.raises(CatastrophicOverfittingError, match=expected):
        run(digits, until=1, guard_every=2, guard_limit=1)


def test_a_guarded_run_resumed_right_before_its_collapse_is_the_undisturbed_one_bit_for_bit(
    digits: Split,
    collapse: tuple[int, list[EpochReport]],
    guarded: tuple[list[EpochReport], list[TrainingState]],
) -> None:
    """Nothing but the file goes over: the good state, the best look and, once it has collapsed,
    the milder attack are in it.
    """
    undisturbed, states = guarded[0][-1].state, guarded[1]
    before = next(i for i, state in enumerate(states) if state.events) - 1
    assert (
        states[before].step
        and states[before].good
        and states[before].guard.best
        and not states[before].guard.collapses
    )
    seed, alone = collapse
    for state in states[before : before + 2]:
        again = run(
            digits, until=len(alone) + RECOVERY, seed=seed, validate_every=1, **LOOKS, state=state
        )
        assert_same_bits(again[-1].state, undisturbed)
