"""PGD against closed forms, against two published implementations from the same start,
and its refusals.
"""

import math
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sat_ray.attacks import PGD, AttackSpec, InfeasiblePointError, make_attack, pgd
from sat_ray.attacks.losses import attack_loss, cross_entropy
from sat_ray.data.split import Split
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

LINF, L2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.3)
PIXELS = 9


def linear(seed: int = 0) -> nn.Linear:
    """Build a two-class linear model; its loss for label 0 grows along w_1 - w_0 everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2)).eval()
    model[1].weight.data = (
        torch.randn(2, PIXELS, generator=torch.Generator().manual_seed(seed)) * 0.1
    )
    return model


def uphill(model: nn.Sequential) -> Tensor:
    """Return the loss's constant direction for label 0 as one image."""
    return (model[1].weight[1] - model[1].weight[0]).detach().view(1, 1, 3, 3)


def images(count: int, *, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return random images in [low, high] with label 0."""
    noise = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(count, 1, 3, 3, generator=noise), torch.zeros(
        count, dtype=torch.int64
    )


def dyadic(digits: Split) -> tuple[Tensor, Tensor]:
    """Return 32 digits on multiples of 1/256: with a dyadic epsilon,
    every sum below is exact in float32.
    """
    part = digits.take(slice(1000, 1032))
    return part.images.float() / 256, part.labels


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.2), (7, 0.03), (30, 0.01)])
def test_on_a_linear_model_linf_pgd_reaches_the_corner_of_the_box(
    steps: int, step_size: float, start: bool
) -> None:
    model, (x, y) = linear(), images(16)
    x_adv = pgd(
        model, x, y, threat_model=LINF, step_size=step_size, steps=steps, random_start=start
    )
    torch.testing.assert_close(
        x_adv, (x + 0.1 * uphill(model).sign()).clamp(0, 1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 5])
def test_on_a_linear_model_l2_pgd_reaches_the_far_point_of_the_sphere(steps: int) -> None:
    model, (x, y) = linear(), images(16, low=0.35, high=0.65)
    x_adv = pgd(model, x, y, threat_model=L2, step_size=0.3, steps=steps, random_start=False)
    direction = uphill(model)
    torch.testing.assert_close(x_adv, x + 0.3 * direction / direction.norm(), rtol=0, atol=1e-6)


def test_on_a_linear_model_l2_pgd_leaves_a_random_start_behind() -> None:
    model, (x, y) = linear(), images(16, low=0.35, high=0.65)
    x_adv = pgd(model, x, y, threat_model=L2, step_size=0.1, steps=60)
    torch.testing.assert_close(
        x_adv, x + 0.3 * uphill(model) / uphill(model).norm(), rtol=0, atol=1e-3
    )


def test_linf_iterates_equal_those_of_torchattacks_bit_for_bit(
    digits: Split, digits_model: Normalized
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x, y = dyadic(digits)
    reference = torchattacks.PGD(
        digits_model, eps=1 / 8, alpha=1 / 32, steps=10, random_start=False
    )(x, y)
    ours = pgd(
        digits_model,
        x,
        y,
        threat_model=ThreatModel("linf", 1 / 8),
        step_size=1 / 32,
        steps=10,
        random_start=False,
    )
    assert torch.equal(ours, reference)
    assert not torch.equal(ours, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iterates_equal_those_of_foolbox_from_the_same_random_start(
    norm: str, digits: Split, digits_model: Normalized
) -> None:
    foolbox = pytest.importorskip("foolbox")
    import eagerpy

    x, y = dyadic(digits)
    threat_model, step_size = (
        (ThreatModel("linf", 1 / 8), 1 / 32) if norm == "linf" else (ThreatModel("l2", 0.5), 0.2)
    )
    rng = Randomness.of(5, range(32))
    start = threat_model.random_start(x, rng)
    attack = (foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD)(
        abs_stepsize=step_size, steps=6, random_start=True
    )
    attack.get_random_start = lambda x0, epsilon: eagerpy.astensor(start)
    reference = attack.run(
        foolbox.PyTorchModel(digits_model, bounds=(0, 1), device="cpu"),
        x,
        y,
        epsilon=threat_model.epsilon,
    )
    ours = pgd(digits_model, x, y, threat_model=threat_model, step_size=step_size, steps=6, rng=rng)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6 if norm == "linf" else 1e-4)
    assert torch.equal(digits_model(ours).argmax(1), digits_model(reference).argmax(1))


def test_random_starts_come_from_the_given_streams(
    digits_model: Normalized, held_out: Split
) -> None:
    x, y = held_out.images[:8].float() / 255, held_out.labels[:8]

    def attack(rng: Randomness | None) -> Tensor:
        return pgd(digits_model, x, y, threat_model=LINF, step_size=0.1, steps=1, rng=rng)

    assert torch.equal(attack(None), attack(Randomness.of(0, range(8))))
    assert not torch.equal(attack(None), attack(Randomness.of(0, range(1, 9))))


class Terraces(nn.Module):
    """Judge an image by its first pixel alone, in flat steps, so that no attack moves:
    pairs of (upper bound, logits).
    """

    def __init__(self, *steps: tuple[float, list[float]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, 0, 0, 0]
        logits = torch.tensor(self.steps[-1][1]).expand(len(x), -1)
        for bound, values in reversed(self.steps[:-1]):
            logits = torch.where((pixel < bound)[:, None], torch.tensor(values), logits)
        return logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def starts(x: Tensor, restarts: int) -> Tensor:
    """Return the first pixel of every restart's start, (restarts, N)."""
    rng = Randomness.of(0, range(len(x)))
    return torch.stack(
        [LINF.random_start(x, rng.with_restart(r))[:, 0, 0, 0] for r in range(restarts)]
    )


def test_among_restarts_success_goes_before_a_higher_loss() -> None:
    x, y = torch.full((200, 1, 1, 1), 0.5), torch.zeros(200, dtype=torch.int64)
    # below 0.47: misclassified at a loss near log 2; above: correct, at a loss near log 10
    model = Terraces((0.47, [0.0, 0.01, *[-50.0] * 8]), (9.0, [0.01, *[0.0] * 9])).eval()
    x_adv = pgd(model, x, y, threat_model=LINF, step_size=0.1, steps=1, restarts=3)
    lucky = (starts(x, 3) < 0.47).any(dim=0)
    assert 0 < int(lucky.sum()) < 200
    assert torch.equal(model(x_adv).argmax(dim=1) == 1, lucky)


@pytest.mark.parametrize("level", [0.0, 40.0])
def test_among_restarts_without_success_the_higher_loss_is_kept(level: float) -> None:
    x, y = torch.full((200, 1, 1, 1), 0.5), torch.zeros(200, dtype=torch.int64)
    bounds = [0.44, 0.48, 0.52, 0.56, 9.0]
    # at level 40 every image is misclassified, with losses of 40 and more: still told apart
    model = Terraces(*[(bound, [0.0, level - 1 - k / 8]) for k, bound in enumerate(bounds)]).eval()
    x_adv = pgd(model, x, y, threat_model=LINF, step_size=0.1, steps=1, restarts=4)
    losses = torch.stack([cross_entropy(model(s.view(-1, 1, 1, 1)), y) for s in starts(x, 4)])
    torch.testing.assert_close(cross_entropy(model(x_adv), y), losses.amax(dim=0))
    assert not torch.equal(losses.amax(dim=0), losses[0])


def test_gradients_that_are_exactly_zero_are_counted_image_by_image() -> None:
    weight = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)

    def model(x: Tensor) -> Tensor:
        score = (x * weight).flatten(1).sum(dim=1) * torch.tensor([1.0, 0.0, 1.0])
        return torch.stack([-score, score], dim=1)

    attack = PGD(threat_model=LINF, steps=1, step_size=0.1, use_random_start=False)
    x = torch.full((3, 1, 2, 2), 0.5)
    state = attack.step(
        model, attack.start(x, torch.zeros(3, dtype=torch.int64), Randomness.of(0, range(3)))
    )
    assert state.zero_share is not None
    assert state.zero_share.tolist() == [0.5, 1.0, 0.5]
    assert torch.equal(state.x_adv[1], x[1])
    assert not torch.equal(state.x_adv[0], x[0])


def test_nothing_leaks_into_the_model_or_out_of_the_graph(digits: Split) -> None:
    model = build_model("small_resnet", num_classes=10, in_channels=1, width=4, seed=0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = dyadic(digits)
    x.requires_grad_()
    with torch.no_grad():
        x_adv = pgd(model, x, y, threat_model=LINF, step_size=0.05, steps=3)
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    state = make_attack(AttackSpec(threat_model=LINF, steps=2, step_size=0.1)).start(
        x.detach(), y, Randomness.of(0, range(32))
    )
    for _ in range(3):
        state = PGD(threat_model=LINF, steps=2, step_size=0.1).step(model, state)
        assert not state.x_adv.requires_grad
        assert state.logits is not None
        assert not state.logits.requires_grad


def test_an_images_gradient_does_not_depend_on_the_size_of_its_batch(
    digits_model: Normalized, digits: Split
) -> None:
    x, y = dyadic(digits)
    whole, alone = x.clone().requires_grad_(), x[:1].clone().requires_grad_()
    (g_whole,) = torch.autograd.grad(attack_loss(digits_model(whole), y).sum(), whole)
    (g_alone,) = torch.autograd.grad(attack_loss(digits_model(alone), y[:1]).sum(), alone)
    torch.testing.assert_close(g_whole[:1], g_alone, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class NotProjecting(PGD):
    """Forget the projection."""

    def step(self, model, state):  # type: ignore[no-untyped-def]
        after = super().step(model, state)
        return type(after)(**{**after.__dict__, "x_adv": state.x_adv + 1.0})


def test_an_attack_that_leaves_its_ball_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[pgd.__module__], "PGD", NotProjecting)
    with pytest.raises(InfeasiblePointError, match="4 of 4 adversarial images leave linf"):
        pgd(linear(), *images(4), threat_model=LINF, step_size=0.1, steps=1)


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_a_gradient_of_nan_raises_instead_of_looking_robust(threat_model: ThreatModel) -> None:
    def model(x: Tensor) -> Tensor:
        dead = (0 * x.flatten(1).sum(dim=1)).sqrt()  # 0, with a derivative of 0 * inf = NaN
        return torch.stack([1 + dead, dead], dim=1)

    with pytest.raises((InfeasiblePointError, ValueError)):
        pgd(model, *images(2), threat_model=threat_model, step_size=0.3, steps=1)


def test_a_model_with_any_part_in_train_mode_is_refused() -> None:
    model = build_model("small_resnet", num_classes=10, in_channels=1, width=4, seed=0)
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    for prepare in (model.train, lambda: model.eval().body.bn1.train()):
        prepare()
        with pytest.raises(ValueError, match="train mode"):
            pgd(model, x, y, threat_model=LINF, step_size=0.1, steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"restarts": 0}, "restarts must be .* got 0"),
        ({"step_size": 0.0}, "step_size must be .* got 0"),
        ({"step_size": math.nan}, "step_size"),
        ({"steps": 3, "step_size": 0.03}, r"steps \* step_size must be at least epsilon"),
        ({"x": torch.full((2, 1, 3, 3), 2.0)}, r"x must lie in \[0, 1\]"),
        ({"x": torch.full((2, 1, 3, 3), math.nan)}, r"x must lie in \[0, 1\]"),
        ({"x": torch.zeros(2, 1, 3, 3, dtype=torch.float64)}, "float32"),
        ({"x": torch.zeros(2, 9)}, "float32"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "y must be"),
        ({"y": torch.zeros(2)}, "y must be"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    change: dict[str, object], message: str
) -> None:
    x, y = images(2)
    arguments = {"x": x, "y": y, "threat_model": LINF, "step_size": 0.1, "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        pgd(linear(), **arguments)
