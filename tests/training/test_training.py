"""Training: N processes equal one, a stopped run equals an undisturbed one,
and the attack leaves no trace on the model.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from trainings import (
    BALL,
    MEASURED,
    SMALL,
    AttackCalls,
    assert_same_bits,
    digits_again,
    enlarged,
    in_two_processes,
    record_attacks,
    small_model,
    train,
    worker_of_two,
)

import sat_ray.training.validation
from sat_ray.attacks import PGD
from sat_ray.attacks.losses import cross_entropy
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import settle_layout, view
from sat_ray.training.loop import TrainingSettings, fit
from sat_ray.training.objectives import make_objective
from sat_ray.training.parallel.batchnorm_groups import RunningStatistics
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.train_step import TrainStep
from sat_ray.utils.randomness import Randomness, permutation

EXTRAS: dict[str, dict[str, Any]] = {
    "one group": {},
    "three groups": {"resize_start": 8, "resize_step": 4, "resize_ramp": 1.0},
    "two groups": {
        "ema_decay": 0.5,
        "gradient_clip": 1.0,
        "guard_every": 2,
        "guard_images": 31,
        "validate_every": 1,
    },
    "augmented": {"randaugment": 2, "random_erasing": 0.5, "mixup": 0.3, "cutmix": 1.0},
    "AdamW, MART, AWP": {
        "optimizer": "adamw",
        "learning_rate": 0.002,
        "adamw_eps": 1e-4,
        "layer_decay": 0.8,
        "objective": "mart",
        "awp_gamma": 0.01,
    },
}
"""Settings of the cases that are trained by two workers; of three groups one worker has two, of
images of 8 and then 12 pixels. A large adamw_eps: rounding must not decide about the sign of a step
where a gradient is almost 0.
"""
BATCHES = {
    **{"one group": 32, "two groups": 64, "three groups": 48},
    **{"augmented": 64, "AdamW, MART, AWP": 64},
}
CASES = list(BATCHES)


def images_of(case: str, digits: Split) -> Split:
    """Return the digits as a case trains on them."""
    return enlarged(digits) if "resize_start" in EXTRAS[case] else digits


@pytest.fixture
def attack_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[AttackCalls]:
    """Record every call of the training attack."""
    with monkeypatch.context() as patch:
        yield record_attacks(patch)


def one_of_two_workers(rank: int, folder: str) -> None:
    """Run as a process of its own: train all cases as one of two
    gloo workers and leave the weights and the ids behind.
    """
    digits = digits_again()
    with worker_of_two(rank, folder) as group:
        for name, batch in BATCHES.items():
            model = small_model()
            with pytest.MonkeyPatch.context() as patch:
                seen = record_attacks(patch)
                reports = train(
                    model,
                    images_of(name, digits),
                    images=3 * batch,
                    global_batch_size=batch,
                    process_group=group,
                    **EXTRAS[name],
                )
            state, ids = reports[-1].state, [seen.ids(epoch) for epoch in range(2)]
            left = {
                "weights": state.weights,
                "best": state.best,
                "ids": ids,
                "metrics": reports[0].metrics,
            }
            torch.save(left, f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what two real processes left: [rank 0, rank 1] for every case."""
    folder = tmp_path_factory.mktemp("gloo")
    in_two_processes(f"test_training.one_of_two_workers({{rank}}, {str(folder)!r})")
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in CASES}


@pytest.mark.parametrize(("case", "batch"), BATCHES.items())
def test_two_workers_equal_one_process_with_the_same_groups(
    two_workers: dict[str, list[Any]], digits: Split, case: str, batch: int
) -> None:
    """Three updates an epoch, two epochs; every weight and buffer."""
    alone = train(
        small_model(),
        images_of(case, digits),
        images=3 * batch,
        global_batch_size=batch,
        **EXTRAS[case],
    )
    start = small_model().state_dict()
    assert not torch.equal(alone[-1].state.weights["body.conv1.weight"], start["body.conv1.weight"])
    for worker, part in itertools.product(two_workers[case], ("weights", "best")):
        for name, ours in getattr(alone[-1].state, part).items():
            torch.testing.assert_close(
                worker[part][name],
                ours,
                rtol=0,
                atol=1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        for name in alone[0].metrics.keys() - set(MEASURED):
            assert worker["metrics"][name] == pytest.approx(alone[0].metrics[name], abs=1e-4), name
    first, second = (
        {name: one["metrics"][name] for name in MEASURED[1:]} for one in two_workers[case]
    )
    assert first == second, "of both workers, the same in both"


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_disjoint_and_together_are_the_order_of_the_epoch(
    two_workers: dict[str, list[Any]], case: str
) -> None:
    first, second = (worker["ids"] for worker in two_workers[case])
    count = 3 * BATCHES[case]
    for epoch in range(2):
        assert not set(first[epoch]) & set(second[epoch])
        assert sorted(first[epoch] + second[epoch]) == list(range(count))
    assert first[0] != first[1]


def test_one_step_over_two_groups_is_the_plain_formula(digits: Split) -> None:
    """w' = w - lr (g + m (g + d w)) with g + d w for g: the mean gradient, Nesterov's first step,
    decay d on matrices alone.
    """
    model = small_model()
    settle_layout(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    batch = digits.take(permutation(32, seed=0, epoch=0))
    mean, after = (
        [torch.zeros_like(p) for p in model.parameters()],
        {name: torch.zeros_like(b) for name, b in before.items()},
    )
    for rows in (slice(0, 16), slice(16, 32)):
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])
        x, y, ids = to_pixels(batch.images[rows]), batch.labels[rows], batch.image_ids[rows]
        x_adv = PGD(threat_model=BALL, steps=1, step_size=BALL.epsilon).run(
            view(model), x, y, Randomness(0, ids)
        )
        loss = cross_entropy(model.train()(x_adv), y).mean()
        mean = [
            m + g / 2
            for m, g in zip(mean, torch.autograd.grad(loss, list(model.parameters())), strict=True)
        ]
        for name, buffer in model.named_buffers():
            if name in before:
                after[name] += buffer.clone() / 2
    (report,) = train(small_model(), digits, images=32, epochs=1)
    for (name, w), g in zip(start.items(), mean, strict=True):
        g = g + (SMALL.weight_decay * w if w.dim() >= 2 else 0)
        torch.testing.assert_close(
            report.state.weights[name], w - 0.1 * (g + 0.9 * g), rtol=0, atol=1e-6
        )
    for name, buffer in after.items():
        torch.testing.assert_close(report.state.weights[name], buffer, rtol=0, atol=1e-6)


def test_running_statistics_are_the_mean_over_groups_not_a_chain() -> None:
    model = torch.nn.BatchNorm1d(1, momentum=0.5)
    groups = [torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [14.0]])]
    statistics = RunningStatistics(model, groups=2, process_group=ProcessGroup())
    for index, x in enumerate(groups):
        with statistics.group(index):
            model(x)
    statistics.average()
    assert model.running_mean.item() == pytest.approx((0.5 * 2 + 0.5 * 12) / 2)
    assert model.running_var.item() == pytest.approx(((0.5 + 0.5 * 2) + (0.5 + 0.5 * 8)) / 2)


def test_the_attack_never_moves_batchnorm_statistics_nor_touches_gradients(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run, calls = small_model("parametric_softplus"), PGD.run, []

    def traces() -> dict[str, Tensor | None]:
        grads = {
            f"{name}.grad": None if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        }
        return {name: t.clone() for name, t in model.state_dict().items()} | grads

    def watched(self: PGD, attacked: Any, *args: Any, **kwargs: Any) -> Tensor:
        before = traces()
        x_adv = run(self, attacked, *args, **kwargs)
        after = traces()
        calls.append(model.training)
        assert all(
            (after[name] is None)
            if old is None
            else after[name] is not None and torch.equal(after[name], old)
            for name, old in before.items()
        )
        assert all(p.grad is None for p in attacked.parameters()) and not x_adv.requires_grad
        return x_adv

    monkeypatch.setattr(PGD, "run", watched)
    train(model, digits, attack_steps=2, epochs=1)
    assert calls == [True] * 8


def test_until_follows_the_whole_schedule_and_validates_where_it_stops(digits: Split) -> None:
    short = train(small_model(), digits, epochs=4, until=1)
    straight = train(small_model(), digits, epochs=4)
    assert len(short) == 1 and "val/robust_accuracy" in short[0].metrics
    assert short[0].metrics["train/learning_rate"] == straight[0].metrics["train/learning_rate"]
    assert ["val/robust_accuracy" in report.metrics for report in straight] == [
        False,
        False,
        False,
        True,
    ]
    assert train(small_model(), digits, epochs=1, state=short[0].state) == []


def test_every_epoch_has_a_new_order_of_the_same_images(
    digits: Split, attack_calls: AttackCalls
) -> None:
    train(small_model(), digits, images=135)
    first, second = attack_calls.ids(0), attack_calls.ids(1)
    assert first != second
    assert all(
        len(set(ids)) == len(ids) == 128 and set(ids) <= set(range(135)) for ids in (first, second)
    )


def test_training_noise_depends_on_seed_image_and_epoch_alone(
    digits: Split, attack_calls: AttackCalls
) -> None:
    train(small_model(), digits)
    ours = attack_calls.starts()
    attack_calls.calls.clear()
    train(
        small_model("relu"),
        digits,
        images=64,
        global_batch_size=16,
        batchnorm_group_size=8,
        learning_rate=0.01,
    )
    others = attack_calls.starts()
    assert len(others) == 128 and all(
        torch.equal(start, ours[key]) for key, start in others.items()
    )
    image = to_pixels(digits.images[5:6])
    assert torch.equal(ours[1, 5], BALL.random_start(image, Randomness.of(0, [5]), step=1)[0])
    attack_calls.calls.clear()
    train(small_model(), digits, seed=1)
    assert not any(torch.equal(start, ours[key]) for key, start in attack_calls.starts().items())
    assert not torch.equal(ours[0, 5], ours[1, 5])


def test_the_best_weights_are_chosen_by_robust_then_clean_accuracy(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.5, 0.90), (0.5, 0.95), (0.4, 0.99)])

    def scripted(*_: Any) -> dict[str, float]:
        robust, clean = next(scores)
        return {"val/robust_accuracy": robust, "val/clean_accuracy": clean}

    monkeypatch.setattr(sat_ray.training.validation.Validation, "metrics", scripted)
    after, model = [], small_model()
    for report in fit(
        model,
        digits.take(slice(0, 64)),
        digits.take(slice(1000, 1032)),
        settings=dataclasses.replace(SMALL, epochs=3, validate_every=1),
        threat_model=BALL,
    ):
        after.append({name: t.clone() for name, t in report.state.weights.items()})
        assert model.training
        assert all(
            torch.equal(model.state_dict()[name], t) for name, t in report.state.weights.items()
        )
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], t) for name, t in report.state.best.items())
    assert (report.state.best_epoch, report.state.best_score) == (1, (0.5, 0.95))
    assert all(torch.equal(report.state.best[name], t) for name, t in after[1].items())
    assert not torch.equal(report.state.best["body.fc.weight"], after[2]["body.fc.weight"])


def test_a_model_that_was_trained_to_the_end_holds_what_is_saved_and_trains_on_with_the_same_bits(
    digits: Split,
) -> None:
    """The average where one is kept; a later call with the state begins at the last weights,
    whatever the model holds.
    """
    more = {"ema_decay": 0.9, "validate_every": 1}
    undisturbed = train(small_model(), digits, **more)[-1].state
    model = small_model()
    first = train(model, digits, until=1, **more)[-1].state
    assert all(torch.equal(model.state_dict()[name], t) for name, t in first.average.items())
    assert not torch.equal(first.average["body.fc.weight"], first.weights["body.fc.weight"])
    assert_same_bits(train(model, digits, state=first, **more)[-1].state, undisturbed)
    assert train(model, digits, state=undisturbed, **more) == []
    assert all(torch.equal(model.state_dict()[name], t) for name, t in undisturbed.best.items())


def test_arrays_train_as_a_split_does(digits: Split) -> None:
    val = digits.take(slice(1000, 1032))
    found = list(
        fit(
            small_model(),
            (digits.images[:64].numpy(), digits.labels[:64].tolist()),
            (val.images, val.labels),
            settings=SMALL,
            threat_model=BALL,
        )
    )
    expected = train(small_model(), digits, images=64)
    for name, tensor in expected[-1].state.weights.items():
        assert torch.equal(found[-1].state.weights[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)},
            r"train must be a Split or a tuple \(images, labels\), got Tensor",
        ),
        ({"train": "digits"}, "train must be a Split .* got str"),
        ({"val": None}, "val must be a Split .* got NoneType"),
        ({"train": (torch.zeros(4, 1, 8, 8), [0] * 4)}, r"train\.images must be uint8 .* multiply"),
        (
            {"val": (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 1, 2, 10])},
            r"val\.labels must lie in 0 to 9, .* got 0 to 10",
        ),
        (
            {"val": (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), [])},
            "val must have at least one image",
        ),
        (
            {"model": torch.nn.Linear(2, 2)},
            r"model must be made by sat_ray\.models\.build_model, got Linear",
        ),
    ],
)
def test_a_beginners_mistakes_end_in_one_line(
    changes: dict[str, Any], words: str, digits: Split
) -> None:
    images = digits.take(slice(0, 64))
    given: dict[str, Any] = {"model": small_model(), "train": images, "val": images} | changes
    with pytest.raises(ValueError, match=words) as caught:
        next(fit(**given, settings=SMALL, threat_model=BALL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("activation", "attacker", "views"),
    [
        ("relu", None, [None]),
        ("relu", "relu_smooth_backward", [None, "relu_smooth_backward"]),
        ("relu_smooth_backward", "relu", ["relu", "relu_smooth_backward"]),
        ("relu_smooth_backward", None, ["relu", "relu_smooth_backward"]),
        ("parametric_softplus", None, [None]),
    ],
)
def test_rows_of_table_1_train_and_are_validated_through_both_backward_passes(
    digits: Split,
    monkeypatch: pytest.MonkeyPatch,
    activation: str,
    attacker: str | None,
    views: list[str | None],
) -> None:
    used, evaluate = [], sat_ray.training.validation.evaluate
    monkeypatch.setattr(
        sat_ray.training.validation,
        "evaluate",
        lambda *args, **kwargs: (used.append(kwargs["attacks"]), evaluate(*args, **kwargs))[1],
    )
    (report,) = train(small_model(activation), digits, epochs=1, attacker_activation=attacker)
    assert [[spec.attacker_activation for spec in attacks] for attacks in used] == [
        [*views, *views]
    ]  # PGD and targeted APGD
    assert 0 <= report.metrics["val/robust_accuracy"] <= report.metrics["val/clean_accuracy"] <= 1


def test_the_two_choices_of_activation_are_different_trainings(digits: Split) -> None:
    rows = [
        ("relu", None),
        ("relu", "relu_smooth_backward"),
        ("relu_smooth_backward", "relu"),
        ("relu_smooth_backward", None),
    ]
    trained = [
        train(small_model(own), digits, epochs=1, attacker_activation=other)[-1].state.weights[
            "body.fc.weight"
        ]
        for own, other in rows
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(trained) for b in trained[:i])


def test_a_global_batch_larger_than_the_split_is_refused(digits: Split) -> None:
    with pytest.raises(
        ValueError,
        match=r"training\.global_batch_size must be at most 31, the number of .*images, got 32",
    ):
        train(small_model(), digits, images=31)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(kind: str, bad: float) -> None:
    model, settings = (
        small_model(),
        TrainingSettings(epochs=1, global_batch_size=8, batchnorm_group_size=8),
    )
    model.register_buffer("empty", torch.zeros(0))
    train_step = TrainStep(model, make_objective(settings), settings, process_group=ProcessGroup())
    assert train_step.finite()
    last = [
        tensor for tensor in getattr(model, kind)() if tensor.is_floating_point() and tensor.numel()
    ][-1]
    with torch.no_grad():
        last.flatten()[-1:] = 3e38
        assert train_step.finite()
        last.flatten()[-1:] = bad
    assert not train_step.finite()
