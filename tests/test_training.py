"""Training: N processes equal one, a stopped run equals an undisturbed one, and the attack leaves no trace on the model."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import sat_ray.training
from sat_ray.attacks import PGD
from sat_ray.checkpoint import pack_state, unpack_state
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.losses import cross_entropy
from sat_ray.models import Normalized, build_model, settle_layout, view
from sat_ray.randomness import Randomness, permutation
from sat_ray.running_statistics import RunningStatistics
from sat_ray.threat import ThreatModel
from sat_ray.training import EpochReport, TrainingSettings, TrainingState, fit, local_groups, parameter_groups
from sat_ray.world import World

BALL = ThreatModel("linf", 40 / 255)
SMALL = TrainingSettings(
    epochs=2, global_batch_size=32, batchnorm_group_size=16, learning_rate=0.1, warmup_epochs=0, validate_every=9, validation_steps=4
)
TIMES = ("throughput/images_per_second",)


def small_model(activation: str = "silu", **choices: Any) -> Normalized:
    """Build the model of these tests, the same weights every time."""
    shape = {"num_classes": 10, "in_channels": 1, "width": 8, "mean": (0.3,), "std": (0.35,)}
    return build_model("small_resnet", activation=activation, seed=0, **shape, **choices)


def train(model: Normalized, digits: Split, images: int = 128, **changes: Any) -> list[EpochReport]:
    """Train on the first digits, validating on 32 others. changes: of SMALL, or arguments of `fit`."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    settings = dataclasses.replace(SMALL, **{key: value for key, value in changes.items() if key in names})
    others = {key: value for key, value in changes.items() if key not in names}
    parts = digits.take(slice(0, images)), digits.take(slice(1000, 1032))
    return list(fit(model, *parts, settings=settings, threat_model=BALL, **others))


@dataclasses.dataclass
class Crafting:
    """What the training attack was given, in order: (epoch, image ids, start) of every call."""

    calls: list[tuple[int, list[int], Tensor]]

    def ids(self, epoch: int) -> list[int]:
        """Return the image ids of one epoch in the order in which they were trained."""
        return [one for at, ids, _ in self.calls if at == epoch for one in ids]

    def starts(self) -> dict[tuple[int, int], Tensor]:
        """Return the start of every (epoch, image id)."""
        return {(epoch, one): row for epoch, ids, x in self.calls for one, row in zip(ids, x, strict=True)}


@pytest.fixture
def crafting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crafting]:
    """Record every call of the training attack."""
    with monkeypatch.context() as patch:
        yield record_crafting(patch)


def record_crafting(patch: Any) -> Crafting:
    seen, run = Crafting([]), PGD.run

    def recording(self: PGD, model: Any, x: Tensor, y: Tensor, rng: Randomness, *, step: int = 0) -> Tensor:
        seen.calls.append((step, rng.image_ids.tolist(), self.start(x, y, rng, step=step).x_adv.clone()))
        return run(self, model, x, y, rng, step=step)

    patch.setattr(PGD, "run", recording)
    return seen


def one_of_two_workers(rank: int, folder: str) -> None:
    """Run as a process of its own: train both cases as one of two gloo workers and leave the weights and the ids behind."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy((images * 255 / 16).round()).to(torch.uint8).view(-1, 1, 8, 8)
    digits = Split(pixels, torch.from_numpy(labels).long(), torch.arange(len(labels)))
    for name, batch in (("one group", 32), ("two groups", 64)):
        model = small_model()
        with pytest.MonkeyPatch.context() as patch:
            seen = record_crafting(patch)
            reports = train(model, digits, images=3 * batch, global_batch_size=batch, world=World(rank, 2))
        ids = [seen.ids(epoch) for epoch in range(2)]
        torch.save({"weights": reports[-1].state.weights, "ids": ids, "metrics": reports[0].metrics}, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what two real processes left: [rank 0, rank 1] for one and for two BatchNorm groups per worker."""
    folder = tmp_path_factory.mktemp("gloo")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_training as t; "
    start = [[sys.executable, "-c", code + f"t.one_of_two_workers({rank}, {str(folder)!r})"] for rank in (0, 1)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in start]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in ("one group", "two groups")}


@pytest.mark.parametrize(("case", "batch"), [("one group", 32), ("two groups", 64)])
def test_two_workers_equal_one_process_with_the_same_groups(
    two_workers: dict[str, list[Any]], digits: Split, case: str, batch: int
) -> None:
    """Three updates an epoch, two epochs; every weight and buffer."""
    alone = train(small_model(), digits, images=3 * batch, global_batch_size=batch)
    start = small_model().state_dict()
    assert not torch.equal(alone[-1].state.weights["body.conv1.weight"], start["body.conv1.weight"])
    for worker in two_workers[case]:
        for name, ours in alone[-1].state.weights.items():
            torch.testing.assert_close(worker["weights"][name], ours, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        for name in alone[0].metrics.keys() - set(TIMES):
            assert worker["metrics"].get(name, alone[0].metrics[name]) == pytest.approx(alone[0].metrics[name], abs=1e-4), name


@pytest.mark.parametrize("case", ["one group", "two groups"])
def test_ranks_are_disjoint_and_together_are_the_order_of_the_epoch(two_workers: dict[str, list[Any]], case: str) -> None:
    first, second = (worker["ids"] for worker in two_workers[case])
    count = 96 if case == "one group" else 192
    for epoch in range(2):
        assert not set(first[epoch]) & set(second[epoch])
        assert sorted(first[epoch] + second[epoch]) == list(range(count))
    assert first[0] != first[1]


def test_one_step_over_two_groups_is_the_plain_formula(digits: Split) -> None:
    """w' = w - lr (g + m (g + d w)) with g + d w for g: the mean gradient, Nesterov's first step, decay d on matrices alone."""
    model = small_model()
    settle_layout(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    batch = digits.take(permutation(32, seed=0, epoch=0))
    mean, after = [torch.zeros_like(p) for p in model.parameters()], {name: torch.zeros_like(b) for name, b in before.items()}
    for rows in (slice(0, 16), slice(16, 32)):
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])
        x, y, ids = to_pixels(batch.images[rows]), batch.labels[rows], batch.image_ids[rows]
        x_adv = PGD(threat_model=BALL, steps=1, step_size=BALL.epsilon).run(view(model), x, y, Randomness(0, ids))
        loss = cross_entropy(model.train()(x_adv), y).mean()
        mean = [m + g / 2 for m, g in zip(mean, torch.autograd.grad(loss, list(model.parameters())), strict=True)]
        for name, buffer in model.named_buffers():
            if name in before:
                after[name] += buffer.clone() / 2
    (report,) = train(small_model(), digits, images=32, epochs=1)
    for (name, w), g in zip(start.items(), mean, strict=True):
        g = g + (SMALL.weight_decay * w if w.dim() >= 2 else 0)
        torch.testing.assert_close(report.state.weights[name], w - 0.1 * (g + 0.9 * g), rtol=0, atol=1e-6)
    for name, buffer in after.items():
        torch.testing.assert_close(report.state.weights[name], buffer, rtol=0, atol=1e-6)


def test_running_statistics_are_the_mean_over_groups_not_a_chain() -> None:
    model = torch.nn.BatchNorm1d(1, momentum=0.5)
    groups = [torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [14.0]])]
    statistics = RunningStatistics(model, groups=2, world=World())
    for index, x in enumerate(groups):
        with statistics.group(index):
            model(x)
    statistics.average()
    assert model.running_mean.item() == pytest.approx((0.5 * 2 + 0.5 * 12) / 2)
    assert model.running_var.item() == pytest.approx(((0.5 + 0.5 * 2) + (0.5 + 0.5 * 8)) / 2)


def test_the_attack_never_moves_batchnorm_statistics_nor_touches_gradients(digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run, calls = small_model("parametric_softplus"), PGD.run, []

    def traces() -> dict[str, Tensor | None]:
        grads = {f"{name}.grad": None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        return {name: t.clone() for name, t in model.state_dict().items()} | grads

    def watched(self: PGD, attacked: Any, *args: Any, **kwargs: Any) -> Tensor:
        before = traces()
        x_adv = run(self, attacked, *args, **kwargs)
        after = traces()
        calls.append(model.training)
        assert all(
            (after[name] is None) if old is None else after[name] is not None and torch.equal(after[name], old)
            for name, old in before.items()
        )
        assert all(p.grad is None for p in attacked.parameters()) and not x_adv.requires_grad
        return x_adv

    monkeypatch.setattr(PGD, "run", watched)
    train(model, digits, attack_steps=2, epochs=1)
    assert calls == [True] * 8


def comparable(state: TrainingState) -> dict[str, Any]:
    """Return a state without what a clock measured."""
    history = [{name: value for name, value in row.items() if name not in TIMES} for row in state.history]
    return dataclasses.asdict(dataclasses.replace(state, history=history, seconds=0.0))


def assert_same_bits(ours: TrainingState, theirs: TrainingState) -> None:
    one, other = comparable(ours), comparable(theirs)
    for part in ("weights", "momentum", "best"):
        left, right = one.pop(part), other.pop(part)
        assert left.keys() == right.keys() and left
        assert all(torch.equal(left[name], right[name]) for name in left), part
    assert one == other


@pytest.mark.parametrize("activation", ["silu", "smoothrelu_learned"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_stopped_and_resumed_from_its_file_is_the_undisturbed_run_bit_for_bit(digits: Split, activation: str, stop: int) -> None:
    changes: dict[str, Any] = {"epochs": 3, "validate_every": 1, "warmup_epochs": 1.0}
    undisturbed = train(small_model(activation), digits, **changes)[-1].state
    stopped = train(small_model(activation), digits, **changes, until=stop)[-1].state
    assert stopped.epoch == stop
    other = small_model(activation)
    torch.nn.init.zeros_(other.body.conv1.weight)  # whatever the model held, the state decides
    resumed = train(other, digits, **changes, state=unpack_state(pack_state(stopped)))
    assert [report.epoch for report in resumed] == list(range(stop, 3))
    assert_same_bits(resumed[-1].state, undisturbed)


def test_until_follows_the_whole_schedule_and_validates_where_it_stops(digits: Split) -> None:
    short = train(small_model(), digits, epochs=4, until=1)
    straight = train(small_model(), digits, epochs=4)
    assert len(short) == 1 and "val/robust_accuracy" in short[0].metrics
    assert short[0].metrics["train/learning_rate"] == straight[0].metrics["train/learning_rate"]
    assert ["val/robust_accuracy" in report.metrics for report in straight] == [False, False, False, True]
    assert train(small_model(), digits, epochs=1, state=short[0].state) == []


def test_every_epoch_has_a_new_order_of_the_same_images(digits: Split, crafting: Crafting) -> None:
    train(small_model(), digits, images=135)
    first, second = crafting.ids(0), crafting.ids(1)
    assert first != second
    assert all(len(set(ids)) == len(ids) == 128 and set(ids) <= set(range(135)) for ids in (first, second))


def test_training_noise_depends_on_seed_image_and_epoch_alone(digits: Split, crafting: Crafting) -> None:
    train(small_model(), digits)
    ours = crafting.starts()
    crafting.calls.clear()
    train(small_model("relu"), digits, images=64, global_batch_size=16, batchnorm_group_size=8, learning_rate=0.01)
    others = crafting.starts()
    assert len(others) == 128 and all(torch.equal(start, ours[key]) for key, start in others.items())
    image = to_pixels(digits.images[5:6])
    assert torch.equal(ours[1, 5], BALL.random_start(image, Randomness.of(0, [5]), step=1)[0])
    crafting.calls.clear()
    train(small_model(), digits, seed=1)
    assert not any(torch.equal(start, ours[key]) for key, start in crafting.starts().items())
    assert not torch.equal(ours[0, 5], ours[1, 5])


def test_weight_decay_reaches_matrices_alone_and_no_learned_beta() -> None:
    model = small_model("smoothrelu_learned")
    decayed, free = parameter_groups(model, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    kept = {names[id(p)] for p in free["params"]}  # type: ignore[attr-defined]
    assert {names[id(p)] for p in decayed["params"]} | kept == set(names.values())  # type: ignore[attr-defined]
    assert sum("beta" in name for name in kept) == 7 and "body.fc.bias" in kept and "body.bn1.weight" in kept
    assert all(p.dim() >= 2 for p in decayed["params"])  # type: ignore[attr-defined]


def test_a_nan_loss_stops_the_run_and_names_epoch_and_seed(digits: Split) -> None:
    with pytest.raises(FloatingPointError, match=r"in epoch 0 \(seed 7\); try a smaller training\.learning_rate"):
        train(small_model(), digits, learning_rate=1e30, seed=7)


def test_the_best_weights_are_chosen_by_robust_then_clean_accuracy(digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.5, 0.90), (0.5, 0.95), (0.4, 0.99)])

    def scripted(run: Any) -> dict[str, float]:
        robust, clean = next(scores)
        return {"val/robust_accuracy": robust, "val/clean_accuracy": clean}

    monkeypatch.setattr(sat_ray.training._Run, "_validate", scripted)
    after = []
    for report in fit(
        small_model(),
        digits.take(slice(0, 64)),
        digits.take(slice(1000, 1032)),
        settings=dataclasses.replace(SMALL, epochs=3, validate_every=1),
        threat_model=BALL,
    ):
        after.append({name: t.clone() for name, t in report.state.weights.items()})
    assert (report.state.best_epoch, report.state.best_score) == (1, (0.5, 0.95))
    assert all(torch.equal(report.state.best[name], t) for name, t in after[1].items())
    assert not torch.equal(report.state.best["body.fc.weight"], after[2]["body.fc.weight"])


def test_label_smoothing_acts_on_the_update_and_not_on_the_attack(digits: Split) -> None:
    crafted: dict[float, list[Tensor]] = {}
    losses = {}
    for smoothing in (0.0, 0.5):
        model, seen = small_model(), crafted.setdefault(smoothing, [])
        model.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(x[0].detach().clone()) if module.training else None)
        losses[smoothing] = train(model, digits, images=32, epochs=1, label_smoothing=smoothing)[0].metrics["train/loss"]
    assert all(torch.equal(a, b) for a, b in zip(crafted[0.0], crafted[0.5], strict=True)) and len(crafted[0.0]) == 2
    assert losses[0.0] != losses[0.5]


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
    digits: Split, monkeypatch: pytest.MonkeyPatch, activation: str, attacker: str | None, views: list[str | None]
) -> None:
    used, evaluate = [], sat_ray.training.evaluate
    monkeypatch.setattr(
        sat_ray.training, "evaluate", lambda *args, **kwargs: (used.append(kwargs["attacks"]), evaluate(*args, **kwargs))[1]
    )
    (report,) = train(small_model(activation), digits, epochs=1, attacker_activation=attacker)
    assert [[spec.attacker_activation for spec in attacks] for attacks in used] == [views]
    assert 0 <= report.metrics["val/robust_accuracy"] <= report.metrics["val/clean_accuracy"] <= 1


def test_the_two_choices_of_activation_are_different_trainings(digits: Split) -> None:
    rows = [("relu", None), ("relu", "relu_smooth_backward"), ("relu_smooth_backward", "relu"), ("relu_smooth_backward", None)]
    trained = [
        train(small_model(own), digits, epochs=1, attacker_activation=other)[-1].state.weights["body.fc.weight"] for own, other in rows
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(trained) for b in trained[:i])


def test_a_global_batch_larger_than_the_split_is_refused(digits: Split) -> None:
    with pytest.raises(ValueError, match=r"training\.global_batch_size is 32; allowed: at most the 31 training images"):
        train(small_model(), digits, images=31)


@pytest.mark.parametrize(("workers", "groups"), [(1, 4), (2, 2), (4, 1), (3, None), (8, None)])
def test_groups_are_dealt_evenly_or_refused(workers: int, groups: int | None) -> None:
    settings = TrainingSettings(global_batch_size=64, batchnorm_group_size=16)
    if groups is None:
        with pytest.raises(ValueError, match=rf"{workers} workers cannot share 4 BatchNorm groups .* allowed: a divisor of 4"):
            local_groups(settings, world_size=workers)
    else:
        assert local_groups(settings, world_size=workers) == groups


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("label_smoothing", -0.1),
        ("weight_decay", -1.0),
        ("batchnorm_group_size", 24),
    ],
)
def test_a_setting_out_of_range_names_itself_and_what_is_allowed(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field}.*allowed"):
        TrainingSettings(**{field: value})
