"""Targeted FAB (Croce & Hein 2020, arXiv 1907.02044): walk along the boundary to a target class.

f(x) = z_t(x) - z_y(x), with the boundary f = 0 and its linearization H at a point v,
H = { x' : f(v) + w · (x' - v) = 0 }, w = grad f(v)

d(p)    = the smallest step from p to H within the pixel box, in the threat model's norm
u_{i+1} = clip( (1 - a) (v_i + eta d(v_i)) + a (x + eta d(x)) ),
          a = min( |d(v_i)| / (|d(v_i)| + |d(x)|), a_max )
v_i     = x + beta (u_i - x) where u_i is misclassified, else u_i

eta = 1.05 steps over the boundary, beta = 0.9 goes back towards the image x, and a_max = 0.1 bounds
the pull of x. The walk looks for the nearest misclassified point and may leave the ball, so what is
scored is each u_i moved into the ball. Points inside it are scored as they are, as published.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sat_ray.attacks.base import Model, State, differentiate, zero_share
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

OVERSHOOT = 1.05
BACK = 0.9
MOST_PULL = 0.1
SHORTEST = 1e-8  # a step of length 0 has no share


@dataclass(frozen=True, kw_only=True)
class FABState(State):
    """The state of FAB in each slot. walked: (L, C, H, W), the walk's point, maybe off the ball."""

    walked: Tensor


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Walk towards the nearest point of a target class. steps: >= 1, three model calls each.

    use_random_start: half the way to a random point of the ball; else at the image, as in
    AutoAttack.
    """

    threat_model: ThreatModel
    steps: int
    use_random_start: bool = False
    memoryless: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {self.steps}")

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
    ) -> FABState:
        """Place every image at its start. target: (L,) classes, which FAB cannot do without."""
        if target is None:
            raise ValueError("fab needs a target class; set targets to at least 1")
        begin = x.clone()
        if self.use_random_start:
            begin = self.threat_model.project((x + self.threat_model.random_start(x, rng)) / 2, x)
        return FABState(
            x=x,
            y=y,
            x_adv=begin,
            step=torch.zeros_like(y),
            rng=rng,
            target=target,
            walked=begin.clone(),
        )

    def step(self, model: Model, state: State) -> FABState:
        """Score the current points, go back where the walk crossed the boundary, and walk on."""
        assert isinstance(state, FABState)
        with torch.no_grad():
            logits = model(state.x_adv).float()
            there = model(state.walked).float()
        crossed = (there.argmax(dim=1) != state.y).view(-1, 1, 1, 1)
        back = state.x + BACK * (state.walked - state.x)
        v = torch.where(crossed, back, state.walked)
        _, rise, gradient = differentiate(model, replace(state, x_adv=v), loss="margin")
        walked = self._walk(v, state.x, rise, gradient)
        return replace(
            state,
            x_adv=self.threat_model.project(walked, state.x),
            walked=walked,
            step=state.step + 1,
            logits=logits,
            zero_share=zero_share(gradient),
        )

    def _walk(self, v: Tensor, x: Tensor, rise: Tensor, gradient: Tensor) -> Tensor:
        """Return the next point. rise: (L,), f at v; gradient: (L, C, H, W), that of f at v."""
        from_image = (gradient.double() * (v.double() - x.double())).flatten(1).sum(dim=1)
        own = smallest_step(v, gradient, -rise.double(), norm=self.threat_model.norm)
        pull = smallest_step(x, gradient, from_image - rise, norm=self.threat_model.norm)
        lengths = [_length(d, norm=self.threat_model.norm) for d in (own, pull)]
        a = (lengths[0] / (lengths[0] + lengths[1])).clamp_max(MOST_PULL).float()
        near = v + OVERSHOOT * own
        clean = x + OVERSHOOT * pull
        return ((1 - a) * near + a * clean).clamp(0.0, 1.0)


def smallest_step(point: Tensor, normal: Tensor, change: Tensor, *, norm: str) -> Tensor:
    """Return the smallest d with normal · d = change and point + d in [0, 1], (L, C, H, W) float32.

    Where the box holds no such point, d goes as far as the box allows. point, normal: (L, C, H, W);
    change: (L,) float64.

    Pixel j moves by min(s r_j, room_j), where room_j is its way to the box and r_j is 1 for linf
    and |normal_j| for l2. The product normal · d grows with s in straight pieces, which end where a
    pixel reaches the box; the pieces are sorted and the right one is solved.
    """
    flat = normal.flatten(1).double()
    start = point.flatten(1).double()
    size = flat.abs()
    # sign(NaN) is 0: the image would freeze and look robust
    towards = flat.where(flat.isnan(), flat.sign() * change.sign()[:, None])
    room = torch.where(towards > 0, 1 - start, start) * (flat != 0)
    rate = size if norm == "l2" else (flat != 0).double()
    ends = (room / rate).where(rate > 0, rate)
    ends, order = ends.sort(dim=1, stable=True)
    growth = (size * rate).gather(1, order)
    saturated = (size * room).gather(1, order)
    gained = saturated.cumsum(dim=1) - saturated  # by the pixels that end before
    growing = growth.flip(1).cumsum(dim=1).flip(1)
    wanted = change.abs()[:, None]
    piece = (gained + growing * ends < wanted).sum(dim=1, keepdim=True)
    last = piece.clamp_max(flat.shape[1] - 1)
    slope = growing.gather(1, last)
    solved = (wanted - gained.gather(1, last)) / slope
    s = solved.where(piece < flat.shape[1], ends[:, -1:]).where(slope > 0, slope)
    d: Tensor = (towards * (s * rate).minimum(room)).float().view_as(point)
    return d


def _length(d: Tensor, *, norm: str) -> Tensor:
    flat = d.flatten(1).double()
    lengths = flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)
    return lengths.clamp_min(SHORTEST).view(-1, 1, 1, 1)
