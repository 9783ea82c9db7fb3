"""What a step does beside the model is the same in every bit when it is compiled, and is compiled
only where that was asked for.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sat_ray.attacks import PGD, State
from sat_ray.attacks.base import require_feasible
from sat_ray.evaluation.engine.cycles import CycleDetector
from sat_ray.threat import ThreatModel
from sat_ray.utils import compile as compilation
from sat_ray.utils.compile import fusable, fusing
from sat_ray.utils.randomness import Randomness

BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.fault),
]  # real kernels take a minute to compile


def walk(attack: PGD, *, steps: int) -> tuple[list[Tensor], list[list[int]]]:
    """Take steps up a plane, with a gradient that is 0 in places,
    and return the points and what a cycle detector said.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 6, 6, generator=generator)
    slope = torch.randn(3 * 36, 2, generator=generator) * (
        torch.rand(3 * 36, 1, generator=generator) < 0.9
    )

    def model(x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5).square() @ slope

    y = torch.zeros(4, dtype=torch.int64)
    state: State = attack.start(x, y, Randomness.of(0, range(4)))
    detector, points, said = (
        CycleDetector(4, steps, device=torch.device("cpu")),
        [state.x_adv],
        list[list[int]](),
    )
    for _ in range(steps):
        require_feasible(state.x_adv, x, attack.threat_model)
        state = attack.step(model, state)
        assert state.zero_share is not None
        points += [state.x_adv, state.zero_share]
        said.append(detector.observe(state.x_adv, state.step, torch.arange(4)).tolist())
    return points, said


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_steps_visit_the_same_points_bit_for_bit(
    backend: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", backend)
    radius = 8 / 255 if norm == "linf" else 0.4
    attack = PGD(threat_model=ThreatModel(norm, radius), steps=40, step_size=radius / 4)
    plain, said = walk(attack, steps=40)
    with fusing(asked=True):
        ours, ours_said = walk(attack, steps=40)
    if norm == "linf":
        assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
        assert ours_said == said
        assert any(period for periods in said for period in periods), "the walk has come back"
    else:  # a compiler may add up squares in another order
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_function_is_compiled_inside_alone_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[..., Any]] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        made.append(function)
        return lambda x: function(x) + 1

    monkeypatch.setattr(compilation, "compiled", noted)

    @fusable
    def doubled(x: int) -> int:
        return 2 * x

    assert doubled(3) == 6
    with fusing(asked=False):
        assert doubled(3) == 6
    with fusing(asked=True):
        assert [doubled(3), doubled(4)] == [7, 9]
        with fusing(asked=False):
            assert doubled(3) == 6
    assert doubled(3) == 6
    assert len(made) == 1


def test_a_point_outside_is_noticed_by_compiled_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    x = torch.full((2, 1, 4, 4), 0.5)
    outside = x.clone()
    outside[1, 0, 2, 3] += 0.2
    with fusing(asked=True):
        require_feasible(x, x, ThreatModel("linf", 0.1))
        with pytest.raises(RuntimeError, match="1 of 2 adversarial images leave linf"):
            require_feasible(outside, x, ThreatModel("linf", 0.1))
        outside[1, 0, 2, 3] = torch.nan
        with pytest.raises(RuntimeError, match="1 of 2"):
            require_feasible(outside, x, ThreatModel("linf", 0.1))
