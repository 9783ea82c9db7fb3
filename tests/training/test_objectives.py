"""What training maximizes and minimizes: objectives, Free training, precision,
and what changes on the way.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainings import BALL, SMALL, small_model, train

import sat_ray.training.adversary
import sat_ray.training.validation
from sat_ray.attacks import PGD
from sat_ray.attacks.losses import cross_entropy
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import Normalized, view
from sat_ray.threat import ThreatModel
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.objectives import (
    AdversarialCrossEntropy,
    Mart,
    Objective,
    Trades,
    boosted_cross_entropy,
    kl_divergence,
    make_objective,
)
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import TrainingSettings
from sat_ray.training.train_step import TrainStep
from sat_ray.utils.precision import check_accelerator, check_precision
from sat_ray.utils.randomness import Randomness, permutation

ATTACK = PGD(threat_model=BALL, steps=5, step_size=BALL.epsilon / 2)


def batch(digits: Split, count: int = 16) -> tuple[Tensor, Tensor, Randomness]:
    """Return pixels, labels and noise of a few digits."""
    few = digits.take(slice(0, count))
    return to_pixels(few.images), few.labels, Randomness(0, few.image_ids)


def test_the_divergence_is_that_of_torch_and_zero_between_equals() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 5), 3 * torch.randn(6, 5)
    expected = F.kl_div(F.log_softmax(theirs, 1), F.softmax(ours, 1), reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(ours, theirs), expected)
    assert (
        kl_divergence(ours, ours + 7).abs().max() < 1e-6
    )  # a shift of all logits is no difference


def test_the_divergence_has_no_gradient_at_the_clean_image_and_trades_starts_beside_it(
    digits: Split, digits_model: Normalized
) -> None:
    x, y, rng = batch(digits)
    attacker = view(digits_model)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(attacker(x), attacker(point)).sum(), point)
    assert gradient.abs().max() < 1e-5
    trades = Trades(beta=6.0, noise=0.001)
    x_adv = trades.maximize(ATTACK, attacker, x, y, rng, step=0)
    assert bool(BALL.contains(x_adv, x).all())
    near = kl_divergence(attacker(x), attacker(x + 0.001 * rng.normal("trades", x.shape[1:])))
    assert (kl_divergence(attacker(x), attacker(x_adv)) > 50 * near).all()
    assert torch.equal(
        x_adv, trades.maximize(ATTACK, attacker, x, y.flip(0), rng, step=0)
    )  # labels play no part
    assert not torch.equal(x_adv, trades.maximize(ATTACK, attacker, x, y, rng, step=1))


def test_the_loss_of_trades_is_its_formula(digits: Split, digits_model: Normalized) -> None:
    x, y, rng = batch(digits)
    x_adv = BALL.random_start(x, rng)
    calls: list[int] = []

    def model(images: Tensor) -> Tensor:
        calls.append(len(images))
        return digits_model(images)

    losses, logits = Trades(beta=2.5, noise=0.001, label_smoothing=0.1).losses(model, x, x_adv, y)
    clean, adversarial = digits_model(x), digits_model(x_adv)
    p, q = clean.softmax(1), adversarial.softmax(1)
    expected = F.cross_entropy(clean, y, label_smoothing=0.1, reduction="none") + 2.5 * (
        p * (p / q).log()
    ).sum(1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, adversarial)
    assert calls == [32]


def test_trades_trains_and_its_beta_buys_agreement(digits: Split) -> None:
    """More weight on the divergence: clean and adversarial predictions lie closer together."""
    x, y, rng = batch(digits, 64)
    divergence = {}
    for beta in (0.01, 20.0):
        model = small_model()
        changes = {
            "objective": "trades",
            "trades_beta": beta,
            "attack_steps": 2,
            "attack_step_size": BALL.epsilon / 2,
        }
        reports = train(model, digits, epochs=4, **changes)
        assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]
        x_adv = Trades(beta, 0.001).maximize(ATTACK, view(model), x, y, rng, step=0)
        divergence[beta] = kl_divergence(view(model)(x), view(model)(x_adv)).mean().item()
    assert divergence[20.0] < divergence[0.01] / 2


@pytest.mark.parametrize("replays", [1, 3])
def test_free_training_updates_once_per_pass_and_moves_the_images_between(
    digits: Split, monkeypatch: pytest.MonkeyPatch, replays: int
) -> None:
    """Every forward pass of the model is an update;
    the images of each lie in the ball and differ from those before.
    """
    model, seen = small_model(), []
    model.register_forward_pre_hook(lambda module, x: seen.append(x[0].detach().clone()))
    monkeypatch.setattr(PGD, "step", lambda *_: pytest.fail("an attack step of its own"))
    monkeypatch.setattr(sat_ray.training.validation.Validation, "metrics", lambda *_: {})
    (report,) = train(
        model, digits, images=64, epochs=1, attack_replays=replays, batchnorm_group_size=32
    )
    assert len(seen) == 2 * replays
    assert int(report.state.weights["body.bn1.num_batches_tracked"]) == 2 * replays
    for first in (0, replays):
        start, *others = seen[first : first + replays]
        for before, after in zip([start, *others], others, strict=False):
            assert (
                not torch.equal(before, after)
                and (after - before).abs().max() <= BALL.epsilon + 1e-6
            )
            assert (after - start).abs().max() <= 2 * BALL.epsilon + 1e-6
    assert report.metrics["train/loss"] > 0


def test_the_images_of_free_training_move_along_the_gradient_of_the_update(digits: Split) -> None:
    """The first replay's images, recomputed: start + epsilon sign(gradient of the train-mode loss),
    projected.
    """
    model, seen = small_model(), []
    model.register_forward_pre_hook(
        lambda module, x: seen.append(x[0].detach().clone()) if module.training else None
    )
    train(model, digits, images=32, epochs=1, attack_replays=2, batchnorm_group_size=32)
    fresh = small_model().train()
    few = digits.take(permutation(32, seed=0, epoch=0))
    x = to_pixels(few.images)
    point = BALL.random_start(x, Randomness(0, few.image_ids), step=0).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(fresh(point), few.labels), point)
    expected = (
        (point.detach() + BALL.epsilon * gradient.sign())
        .clamp(x - BALL.epsilon, x + BALL.epsilon)
        .clamp(0, 1)
    )
    assert torch.equal(seen[0], point.detach())
    assert ((seen[1] - expected).abs() < 1e-6).float().mean() > 0.999


def test_label_smoothing_acts_on_the_update_and_not_on_the_attack(digits: Split) -> None:
    adversarial: dict[float, list[Tensor]] = {}
    losses = {}
    for smoothing in (0.0, 0.5):
        model, seen = small_model(), adversarial.setdefault(smoothing, [])
        model.register_forward_pre_hook(
            lambda module, x, seen=seen: (
                seen.append(x[0].detach().clone()) if module.training else None
            )
        )
        losses[smoothing] = train(model, digits, images=32, epochs=1, label_smoothing=smoothing)[
            0
        ].metrics["train/loss"]
    assert (
        all(torch.equal(a, b) for a, b in zip(adversarial[0.0], adversarial[0.5], strict=True))
        and len(adversarial[0.0]) == 2
    )
    assert losses[0.0] != losses[0.5]


def mart_by_hand(clean: Tensor, adversarial: Tensor, y: int, *, weight: float) -> float:
    """Write MART's loss of one image out, in float64, as in the paper."""
    p, q = (z.double().exp() / z.double().exp().sum() for z in (clean, adversarial))
    rival = max(value for k, value in enumerate(q.tolist()) if k != y)
    boosted = -math.log(q[y]) - math.log(1 - rival)
    divergence = sum(p[k] * math.log(p[k] / q[k]) for k in range(len(p)))
    return float(boosted + weight * divergence * (1 - p[y]))


def test_the_loss_of_mart_is_its_formula(digits: Split, digits_model: Normalized) -> None:
    x, y, rng = batch(digits)
    x_adv = BALL.random_start(x, rng)
    calls: list[int] = []

    def model(images: Tensor) -> Tensor:
        calls.append(len(images))
        return digits_model(images) / 4  # softer, so that no image has a loss near 0

    losses, logits = Mart(weight=2.5).losses(model, x, x_adv, y)
    clean, adversarial = model(x).detach(), model(x_adv).detach()
    expected = [
        mart_by_hand(clean[i], adversarial[i], int(y[i]), weight=2.5) for i in range(len(x))
    ]
    torch.testing.assert_close(losses.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, adversarial)
    assert calls[0] == 32


def test_a_soft_label_is_the_mean_of_marts_losses_under_its_classes_but_for_the_product() -> None:
    """The boosted cross-entropy is linear in the shares, and so is the weight of the divergence."""
    torch.manual_seed(0)
    z, y = 2 * torch.randn(12, 10), torch.randint(10, (12,))
    both = [F.one_hot(one, 10).float() for one in (y, y.roll(1))]
    mixed = boosted_cross_entropy(z, soft(y))
    parts = [boosted_cross_entropy(z, shares) for shares in both]
    torch.testing.assert_close(mixed, 0.7 * parts[0] + 0.3 * parts[1])
    images = torch.randn(12, 10)

    def model(x: Tensor) -> Tensor:
        return torch.cat([images, z]) if len(x) == 24 else x

    hard = [Mart(weight=5.0).losses(model, z, z, one)[0] for one in (y, y.roll(1))]
    torch.testing.assert_close(
        Mart(weight=5.0).losses(model, z, z, soft(y))[0], 0.7 * hard[0] + 0.3 * hard[1]
    )
    smoothed = 0.8 * F.one_hot(y, 10).float() + 0.2 / 10
    torch.testing.assert_close(
        Mart(weight=5.0, label_smoothing=0.2).losses(model, z, z, y)[0],
        Mart(weight=5.0).losses(model, z, z, smoothed)[0],
    )


def test_the_boosted_cross_entropy_is_finite_where_a_probability_rounds_to_1() -> None:
    z = torch.tensor([[200.0, 0.0, -100.0], [200.0, 0.0, -100.0]], requires_grad=True)
    losses = boosted_cross_entropy(z, F.one_hot(torch.tensor([0, 1]), 3).float())
    torch.testing.assert_close(losses.detach(), torch.tensor([0.0, 400.0]))
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    torch.testing.assert_close(
        gradient, torch.tensor([[0.0, 0.0, 0.0], [2.0, -2.0, 0.0]]), rtol=0, atol=1e-6
    )


METHODS: dict[str, dict[str, Any]] = {
    "MART": {"objective": "mart", "attack_steps": 2, "attack_step_size": BALL.epsilon / 2},
    "AWP": {"awp_gamma": 0.01},
    "TRADES-AWP": {
        "objective": "trades",
        "attack_steps": 2,
        "attack_step_size": BALL.epsilon / 2,
        "awp_gamma": 0.005,
    },
    "AdamW": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "layer_decay": 0.8,
    },
    "smoothed labels": {"label_smoothing": 0.1, "attack_label_smoothing": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_on_digits(digits: Split, method: str) -> None:
    """Accuracy under the training attack, and of held-out clean images, far above chance."""
    reports = train(small_model(), digits, images=512, epochs=3, **METHODS[method])
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]
    assert reports[-1].metrics["train/adversarial_accuracy"] > 0.35
    assert reports[-1].metrics["val/clean_accuracy"] > 0.7


def soft(y: Tensor, classes: int = 10) -> Tensor:
    """Return every label mixed with that of another image, 0.7 to 0.3."""
    return 0.7 * F.one_hot(y, classes).float() + 0.3 * F.one_hot(y.roll(1), classes).float()


def test_the_loss_of_a_soft_label_is_the_weighted_mean_of_the_losses_of_its_classes() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(12, 10), torch.randint(10, (12,))
    for smoothing in (0.0, 0.2):
        found = cross_entropy(z, soft(y), label_smoothing=smoothing)
        parts = [
            F.cross_entropy(z, one, reduction="none", label_smoothing=smoothing)
            for one in (y, y.roll(1))
        ]
        torch.testing.assert_close(found, 0.7 * parts[0] + 0.3 * parts[1])
    hard = cross_entropy(z, F.one_hot(y, 10).float())
    torch.testing.assert_close(hard, cross_entropy(z, y))


@pytest.mark.parametrize(
    "objective", [AdversarialCrossEntropy(), Trades(6.0, 0.001), Mart(weight=5.0)]
)
def test_one_hot_labels_are_attacked_and_trained_on_as_their_classes_are(
    digits: Split, digits_model: Normalized, objective: Objective
) -> None:
    x, y, rng = batch(digits)
    attacker = view(digits_model)
    found = {}
    for name, labels in (("classes", y), ("one-hot", F.one_hot(y, 10).float())):
        x_adv = objective.maximize(ATTACK, attacker, x, labels, rng, step=0)
        losses, _ = objective.losses(digits_model, x, x_adv, labels)
        found[name] = (x_adv, losses)
    same = (found["classes"][0] - found["one-hot"][0]).abs() < 1e-6
    assert same.float().mean() > 0.99  # the sign of a gradient that rounds to 0 may differ
    torch.testing.assert_close(found["classes"][1], found["one-hot"][1], rtol=1e-3, atol=1e-4)


def test_an_answer_is_right_where_it_is_the_class_of_the_largest_share() -> None:
    totals = Totals((0.0, 0.0, 0.0), device=torch.device("cpu"), process_group=ProcessGroup())
    y = torch.tensor([1, 2, 0, 4])
    logits = F.one_hot(torch.tensor([1, 2, 3, 1]), 10).float()
    totals.add(torch.ones(4), logits, soft(y), step=0)
    assert totals.summed() == (4.0, 2.0, 4.0)


def test_label_smoothing_of_the_attack_acts_on_the_attack_alone(digits: Split) -> None:
    """Its gradient is that of the smoothed loss; the update's loss has the label itself."""
    x, y, rng = batch(digits, 32)
    model = small_model().eval()
    point = BALL.random_start(x, rng).requires_grad_()
    loss = F.cross_entropy(model(point), y, label_smoothing=0.5, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    moved = BALL.project(point.detach() + BALL.epsilon * gradient.sign(), x)
    settings = TrainingSettings(attack_label_smoothing=0.5)
    attack = settings.attack(BALL)
    found = make_objective(settings).maximize(attack, model, x, y, rng, step=0)
    assert torch.equal(found, moved)
    plain = TrainingSettings().attack(BALL)
    assert not torch.equal(found, plain.run(model, x, y, rng))
    losses, logits = make_objective(settings).losses(model, x, x, y)
    assert torch.equal(losses, cross_entropy(logits, y))


def gradients(precision: str, digits: Split, activation: str) -> tuple[dict[str, Tensor], Tensor]:
    """Return weight and image gradients of one update on the same images."""
    model = small_model(activation)
    x, y, _ = batch(digits, 64)
    x_adv = x.clone().requires_grad_()
    train_step = TrainStep(
        model.train(), AdversarialCrossEntropy(), SMALL_IN[precision], process_group=ProcessGroup()
    )
    totals = Totals((0.0, 0.0, 0.0), device=torch.device("cpu"), process_group=ProcessGroup())
    train_step.update([(x, x_adv, y)], totals, learning_rate=0.1, step=0, number=0)
    assert x_adv.grad is not None
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, x_adv.grad


SMALL_IN = {precision: SMALL.__class__(precision=precision) for precision in ("float32", "bf16")}


@pytest.mark.parametrize("activation", ["silu", "smoothrelu_learned", "relu_smooth_backward"])
def test_bf16_gradients_are_those_of_float32_to_its_eight_bits(
    digits: Split, activation: str
) -> None:
    """Direction (cosine) of the weight gradient as a whole,
    and signs of the image gradient weighted by size.
    """
    exact, exact_image = gradients("float32", digits, activation)
    rough, rough_image = gradients("bf16", digits, activation)
    assert all(g.dtype == torch.float32 for g in rough.values()) and exact.keys() == rough.keys()
    one, other = (torch.cat([g.flatten() for g in each.values()]) for each in (exact, rough))
    assert not torch.equal(one, other)
    assert F.cosine_similarity(one, other, dim=0) > 0.99
    agree = (exact_image.sign() == rough_image.sign()) * exact_image.abs()
    assert agree.sum() / exact_image.abs().sum() > 0.99


def test_bf16_trains_with_float32_images_weights_and_validation(digits: Split) -> None:
    inside: list[tuple[bool, bool]] = []  # train mode, autocast; views carry the hook too
    model = small_model()
    model.register_forward_pre_hook(
        lambda module, x: inside.append((module.training, torch.is_autocast_enabled("cpu")))
    )
    rough, exact = train(model, digits, precision="bf16"), train(small_model(), digits)
    steps = [
        (False, True),
        (False, True),
        (True, True),
        (True, True),
    ]  # two groups are attacked, then trained on
    assert inside[0] == (False, False)  # sizes of the images at every convolution
    assert inside[1:33] == 8 * steps and inside[33:] and set(inside[33:]) == {(False, False)}
    assert {
        t.dtype for name, t in rough[-1].state.weights.items() if "num_batches" not in name
    } == {torch.float32}
    assert rough[-1].metrics["train/loss"] == pytest.approx(
        exact[-1].metrics["train/loss"], rel=0.05
    )
    assert rough[-1].metrics["train/loss"] != exact[-1].metrics["train/loss"]


def test_a_device_that_cannot_compute_in_bf16_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_precision("bf16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(
        ValueError,
        match=r"training\.precision must be float32 for Tesla T4, got bf16",
    ):
        check_precision("bf16", torch.device("cuda", 0))
    with pytest.raises(ValueError, match="must be float32 for mps, got bf16"):
        check_precision("bf16", torch.device("mps"))
    check_precision("float32", torch.device("cuda", 0))


@pytest.mark.parametrize("name", ["T4", "Tesla V100-SXM2-32GB", "p100"])
def test_bf16_on_a_gpu_whose_name_says_that_it_has_none_is_refused_before_a_node_is_asked_for(
    name: str,
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"training\.precision must be float32 for resources\.accelerator {name}, got bf16",
    ):
        check_accelerator("bf16", name)
    check_accelerator("float32", name)
    for other in ("", "L4", "A100", "NVIDIA H200", "T400", "GB200"):
        check_accelerator("bf16", other)


def test_epsilon_grows_to_its_value_and_the_step_with_it(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of four steps, all of the first for the way up;
    the attack never leaves the small ball.
    """
    balls: list[tuple[float, float]] = []
    run = PGD.run

    def watched(self: PGD, model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x_adv = run(self, model, x, *args, **kwargs)
        balls.append((self.threat_model.epsilon, self.step_size))
        assert (x_adv - x).abs().max() <= self.threat_model.epsilon + 1e-6
        return x_adv

    monkeypatch.setattr(PGD, "run", watched)
    train(small_model(), digits, epsilon_warmup=0.5, batchnorm_group_size=32)
    factors = [0.001, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [epsilon / BALL.epsilon for epsilon, _ in balls] == pytest.approx(factors)
    assert [size / BALL.epsilon for _, size in balls] == pytest.approx(factors)
    assert ThreatModel("linf", balls[-1][0]) == BALL


def test_alpha_moves_to_its_value_in_model_and_attack_and_validation_sees_the_value(
    digits: Split,
) -> None:
    model = small_model("parametric_softplus")
    used: dict[str, list[float | None]] = {"update": [], "attack or validation": []}

    def hook(module: nn.Module, x: object) -> None:
        where = "update" if module.training else "attack or validation"
        used[where].append(module.alpha)

    model.body.relu.register_forward_pre_hook(hook)
    train(
        model,
        digits,
        images=32,
        epochs=4,
        alpha_start=0.25,
        alpha_ramp=0.5,
        validate_every=1,
        batchnorm_group_size=32,
    )
    alphas = [2.5, 5.0, 10.0, 10.0]
    assert used["update"] == pytest.approx(alphas)
    attacked, validated = used["attack or validation"][0], set(used["attack or validation"][1:])
    assert attacked == 2.5 and validated == {10.0, 5.0}  # the attack alone goes through 5
    assert model.body.relu.alpha == 10.0


def test_a_first_alpha_outside_its_range_is_refused(digits: Split) -> None:
    with pytest.raises(
        ValueError,
        match=r"training\.alpha_start 1e-05 times alpha must be from 0\.001 .* got 0\.0001",
    ):
        train(small_model("parametric_softplus"), digits, alpha_start=1e-5)
    assert train(
        small_model("relu"), digits, images=32, epochs=1, alpha_start=1e-5
    )  # no alpha, nothing to refuse
