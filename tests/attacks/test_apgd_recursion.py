"""APGD against the algorithm as its paper writes it, one image and one number at a time, on a
landscape rough enough for every rule.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sat_ray.attacks import APGD
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

STEPS, IMAGES = 100, 96
CHECKPOINTS = {
    22: 22,
    41: 19,
    57: 16,
    70: 13,
    80: 10,
    87: 7,
    93: 6,
    99: 6,
}  # of the paper, with the steps since the one before
GENERATOR = torch.Generator().manual_seed(0)
WAVES = 6 * torch.randn(12, 60, generator=GENERATOR).double()
SHIFTS = 6.3 * torch.rand(60, generator=GENERATOR).double()


def model(x: Tensor) -> Tensor:
    """Return logits of two classes over a rough landscape, (N, 2) float64:
    two points of nearly equal loss are told apart.
    """
    height = torch.sin(x.flatten(1).double() @ WAVES + SHIFTS).sum(dim=1) / 4
    return torch.stack([torch.zeros_like(height), height], dim=1)


def climbed(points: Tensor) -> tuple[list[float], Tensor]:
    """Return the cross-entropy of class 0 at each point, and the gradients."""
    x = points.clone().requires_grad_()
    found = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.int64), reduction="none")
    return found.tolist(), torch.autograd.grad(found.sum(), x)[0]


def next_points(ball: ThreatModel, x: Tensor, visited: Tensor) -> tuple[Tensor, int]:
    """Return where Algorithm 1 of arXiv 2003.01690 goes from each point of one image, and how often
    the second condition alone held.

    Each move starts from the point that was visited, so that rounding does not add up.
    """

    def project(point: Tensor) -> Tensor:
        return ball.project(point[None], x[None])[0]

    eta, before = 2 * ball.epsilon, x
    best, best_loss, best_slope = x, -float("inf"), torch.zeros_like(x)
    losses, slopes = climbed(visited)
    eta_then, best_then = float("nan"), -float("inf")  # at the checkpoint before
    alone, predicted = 0, []
    for k, (now, loss, slope) in enumerate(zip(visited, losses, slopes, strict=True)):
        if loss > best_loss:
            best, best_loss, best_slope = now, loss, slope
        if k in CHECKPOINTS:
            width = CHECKPOINTS[k]
            few_rises = (
                sum(losses[i] > losses[i - 1] for i in range(k - width + 1, k + 1)) <= 0.75 * width
            )
            nothing_gained = eta == eta_then and best_loss == best_then
            alone += nothing_gained and not few_rises
            eta_then, best_then = eta, best_loss
            if few_rises or nothing_gained:
                eta, now, slope = eta / 2, best, best_slope  # it goes back
        z = project(now + eta * (slope.sign() if ball.norm == "linf" else slope / slope.norm()))
        a = 1.0 if k == 0 else 0.75
        predicted.append(project(now + a * (z - now) + (1 - a) * (now - before)))
        before = now
    return torch.stack(predicted), alone


@pytest.mark.parametrize("ball", [ThreatModel("linf", 0.1), ThreatModel("l2", 0.5)], ids=str)
def test_every_move_of_apgd_is_that_of_the_paper(ball: ThreatModel) -> None:
    x = 0.2 + 0.6 * torch.rand(IMAGES, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    attack = APGD(threat_model=ball, steps=STEPS, use_random_start=False)
    state = attack.start(x, torch.zeros(IMAGES, dtype=torch.int64), Randomness.of(0, range(IMAGES)))
    visited = []
    for _ in range(STEPS + 2):
        visited.append(state.x_adv)
        state = attack.step(model, state)
    points = torch.stack(visited, dim=1)
    found = [next_points(ball, image, own[:-1]) for image, own in zip(x, points, strict=True)]
    apart = (
        (points[:, 1:] - torch.stack([moves for moves, _ in found])).flatten(2).abs().amax(dim=2)
    )
    assert sum(alone for _, alone in found) > 0, (
        "the landscape is rough enough for the second condition to decide"
    )
    torch.testing.assert_close(
        apart, torch.zeros_like(apart), rtol=0, atol=2e-4
    )  # near the top a gradient is little but rounding
