"""Targeted FAB: closed forms on linear models, and two independent implementations as oracles."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sat_ray.attacks import FAB, AttackSpec, State, autoattack, make_attack
from sat_ray.attacks.fab import FABState, smallest_step
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

LINF, L2 = ThreatModel("linf", 40 / 255), ThreatModel("l2", 0.8)
SLOTS = 32
NORMS = {"linf": torch.inf, "l2": 2}


def length(delta: Tensor, norm: str) -> Tensor:
    """Return the norm of every image's perturbation, (N,)."""
    return delta.flatten(1).norm(p=NORMS[norm], dim=1)


def hyperplanes(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return points in the box, normals of which some entries are 0, and wanted changes."""
    generator = torch.Generator().manual_seed(0)
    point = torch.rand(60, 1, 5, 5, generator=generator)
    normal = torch.randn(60, 1, 5, 5, generator=generator)
    normal[:20, :, 0] = 0
    return point, normal, scale * torch.randn(60, generator=generator).double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0], ids=["inside", "at the box", "out of reach"])
def test_the_smallest_step_to_a_hyperplane_is_that_of_adv_lib(
    norm: str, scale: float, adv_lib: Any
) -> None:
    point, normal, change = hyperplanes(scale)
    found = smallest_step(point, normal, change, norm=norm)
    product = (normal * found).flatten(1).sum(dim=1)
    moved = point + found
    assert float(moved.min()) >= -1e-6 and float(moved.max()) <= 1 + 1e-6
    away = length(found, norm)
    project = getattr(adv_lib.fast_adaptive_boundary.projections, f"projection_{norm}")
    plane = (normal * point).flatten(1).sum(dim=1) + change.float()
    theirs = project(point.flatten(1), normal.flatten(1), plane).view_as(point)
    torch.testing.assert_close(away, length(theirs, norm), atol=1e-5, rtol=1e-5)
    reached = (product - change).abs() < 1e-4
    assert bool(reached.all()) if scale < 1 else not bool(reached.all())
    assert bool((product.abs() <= change.abs() + 1e-4).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_along_no_gradient_is_none_and_along_nan_is_nan(norm: str) -> None:
    point, normal, change = hyperplanes(1.0)
    normal[0] = 0
    normal[1, 0, 2, 2] = torch.nan
    found = smallest_step(point, normal, change, norm=norm)
    assert not bool(found[0].any()) and bool(found[1].isnan().any())
    assert bool(found[2:].isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.99, 1.01], ids=["too small", "just enough"])
def test_on_a_linear_model_fab_breaks_exactly_what_lies_beyond_the_nearest_boundary(
    norm: str, share: float
) -> None:
    """The distance to class t is (z_y - z_t) / |w_t - w_y|, in the dual norm."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 5)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    images = torch.randint(90, 165, (4, 1, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        z = model(images / 255)
    y = z.argmax(dim=1)
    across = layer.weight.detach()[None] - layer.weight.detach()[y][:, None]
    slope = across.norm(p={"linf": 1, "l2": 2}[norm], dim=2)
    distance = ((z.gather(1, y[:, None]) - z) / slope).scatter(1, y[:, None], torch.inf)
    nearest = distance.min(dim=1).values
    for image, epsilon in enumerate((share * nearest).tolist()):
        spec = AttackSpec(
            threat_model=ThreatModel(norm, epsilon),
            algorithm="fab",
            steps=30,
            targets=4,
            random_start=False,
        )
        chosen = slice(image, image + 1)
        table = evaluate(model, images[chosen], y[chosen], [image], attacks=[spec], slots=4)
        assert bool(robust_image_ids(table)) == (share < 1), f"image {image}"


def walk(model: Normalized, x: Tensor, y: Tensor, target: Tensor, ball: ThreatModel) -> Tensor:
    """Return the distance of the nearest misclassified point of a walk, (N,), inf for none."""
    attack = FAB(threat_model=ball, steps=15)
    state: State = attack.start(x, y, Randomness.of(0, range(len(x))), target=target)
    nearest = torch.full(y.shape, torch.inf)
    for _ in range(attack.steps):
        state = attack.step(model, state)
        assert isinstance(state, FABState) and bool(ball.contains(state.x_adv, x).all())
        with torch.no_grad():
            wrong = model(state.walked).argmax(dim=1) != y
        away = length(state.walked - x, ball.norm).masked_fill(~wrong, torch.inf)
        nearest = torch.minimum(nearest, away)
    return nearest


@pytest.mark.parametrize("ball", [LINF, L2], ids=str)
def test_a_walk_finds_what_that_of_adv_lib_finds(
    ball: ThreatModel, digits_model: Normalized, held_out: Split, adv_lib: Any
) -> None:
    """In the same number of steps, from the same point, towards the same class."""
    x, y = held_out.images[:SLOTS].float() / 255, held_out.labels[:SLOTS]
    with torch.no_grad():
        z = digits_model(x)
    right = z.argmax(dim=1) == y
    target = z.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    found = walk(digits_model, x, y, target, ball)[right]
    module = adv_lib.fast_adaptive_boundary.fast_adaptive_boundary
    _, _, theirs = module._fab(
        digits_model,
        inputs=x[right],
        labels=y[right],
        norm=NORMS[ball.norm],
        n_iter=15,
        targets=target[right],
    )
    assert int(found.isfinite().sum()) == int(theirs.isfinite().sum()) > 20
    close = ((found - theirs).abs() <= 0.01 * theirs) | (found == theirs)
    assert int(close.sum()) >= 0.9 * len(close)


@pytest.mark.parametrize("ball", [LINF, L2], ids=str)
def test_fab_is_as_strong_as_that_of_torchattacks(
    ball: ThreatModel, digits_model: Normalized, held_out: Split
) -> None:
    """At most 2 of 30 images are robust to one and not to the other."""
    torchattacks = pytest.importorskip("torchattacks")
    some = held_out.take(slice(0, 30))
    x, y = some.images.float() / 255, some.labels
    budget = {"norm": ball.norm.replace("l", "L", 1), "eps": ball.epsilon, "steps": 10}
    attack = torchattacks.FAB(digits_model, **budget, n_classes=10, multi_targeted=True)
    x_adv = attack(x, y)
    with torch.no_grad():
        right = digits_model(x_adv).argmax(dim=1) == y
    left = int((right | ~ball.contains(x_adv, x)).sum())
    spec = AttackSpec(threat_model=ball, algorithm="fab", steps=10, targets=9, random_start=False)
    table = evaluate(digits_model, some.images, y, some.image_ids, attacks=[spec], slots=SLOTS)
    ours = len(robust_image_ids(table))
    assert abs(ours - left) <= 2, f"torchattacks: {left} robust, ours: {ours}"
    assert 0 < ours < 27


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": 0}, "targets must be at least 1 for fab"),
        ({"loss": "dlr"}, "fab follows the difference of two logits"),
        ({"final_iterate": True}, "fab follows the difference of two logits"),
        ({"gradient": "bf16"}, "attack gradient must be float32 for fab"),
        ({"restarts": 2, "random_start": False}, "restarts must be 1 for fab without random_start"),
        ({"step_size": 0.1}, "none for apgd, fab and square"),
    ],
)
def test_a_fab_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    spec = AttackSpec(threat_model=LINF, algorithm="fab", steps=10, targets=9)
    assert spec.name == "fab-t-10" and AttackSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match=message):
        AttackSpec(**{**spec.to_json(), "threat_model": LINF, "name": "", **change})
    x = torch.zeros(2, 1, 3, 3)
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="fab needs a target class"):
        make_attack(spec).start(x, y, Randomness.of(0, range(2)))


def test_the_attacks_and_budgets_of_autoattack_are_those_published() -> None:
    found = autoattack(L2, num_classes=1000)
    assert [spec.name for spec in found] == [
        "apgd-ce-100",
        "apgd-t-dlr-100",
        "fab-t-100",
        "square-5000",
    ]
    assert [spec.targets for spec in found] == [0, 9, 9, 0]
    assert all(spec.restarts == 1 and spec.threat_model == L2 for spec in found)
    assert [spec.targets for spec in autoattack(L2, num_classes=4)] == [0, 3, 3, 0]
