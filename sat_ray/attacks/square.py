"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search over squares.

It needs logits and no gradient.

linf: start from vertical stripes of ±epsilon; then a proposal moves one square of the best point to
the faces of the ball, a sign per channel. l2: start from a grid of bumps; then a proposal takes the
perturbation out of one square and spends it on a bump in another. A proposal is kept where it
lowers the margin. The share of the image that a square covers shrinks with the number of queries.

On small images most of the last proposals have been tried before: one pixel of 8 x 8 with one
channel has 2 forms, and half of them change nothing. The model's answer to such a proposal is
known, so linf skips it: the steps, the points that count and the verdict stay the same.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sat_ray.attacks.base import Model, State
from sat_ray.attacks.losses import margin
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

FIRST_SHARE = 0.8  # of the pixels in the first square
# queries out of 10,000 after which the share halves
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
GRID = 5  # bumps along each side of the l2 start
LOOK_AHEAD = 32  # linf proposals among which the next untried one is looked for
MOST_CHANNELS = 4  # with a memory of tried squares: it has 2**channels entries for each pixel
UNCHANGED_ROUNDS = 4  # in which proposals that change nothing are passed over


@dataclass(frozen=True, kw_only=True)
class SquareState(State):
    """The state of random search in each slot. best: (L, C, H, W); best_margin: (L,) float32.

    tried: (L, 2**C * H * W) bool, whether a square of this place and these signs is known not to
    lower the margin of `best`, None where that is not remembered; side: (L,) int64, of these
    squares; place: (L,) int64, the entry of the proposal in x_adv.
    """

    best: Tensor
    best_margin: Tensor
    tried: Tensor | None = None
    side: Tensor | None = None
    place: Tensor | None = None


@dataclass(frozen=True)
class _Proposals:
    """The next proposals of each slot.

    step: (L, B) int64, the point that each follows; draws: (L, B, 2 + C) uniform; side, place:
    (L, B) int64, see SquareState.
    """

    step: Tensor
    draws: Tensor
    side: Tensor
    place: Tensor


@dataclass(frozen=True, kw_only=True)
class Square:
    """Search without gradients. steps: proposals, >= 1; point 0 is the start."""

    threat_model: ThreatModel
    steps: int
    memoryless: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {self.steps}")

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
    ) -> SquareState:
        """Place every image at its stripes or bumps.

        target: None, because the margin to every class is searched at once.
        """
        if target is not None:
            raise ValueError("square has no targeted form; set targets to 0")
        pattern = self._stripes(x, rng) if self.threat_model.norm == "linf" else self._bumps(x, rng)
        x_adv = self.threat_model.project(x + pattern, x)
        unknown = torch.full(y.shape, torch.inf, dtype=torch.float32, device=x.device)
        memory: dict[str, Tensor] = {}
        if self.threat_model.norm == "linf" and x.shape[1] <= MOST_CHANNELS:
            forms = 2 ** x.shape[1] * x.shape[2] * x.shape[3]
            memory["tried"] = torch.zeros(len(x), forms, dtype=torch.bool, device=x.device)
            largest = torch.full_like(y, max(x.shape[2:]))
            memory |= {"side": largest, "place": torch.zeros_like(y)}
        return SquareState(
            x=x,
            y=y,
            x_adv=x_adv,
            step=torch.zeros_like(y),
            rng=rng,
            best=x_adv.clone(),
            best_margin=unknown,
            **memory,
        )

    @torch.no_grad()
    def step(self, model: Model, state: State) -> SquareState:
        """Score the current points, keep the better ones, and propose the next."""
        assert isinstance(state, SquareState)
        logits = model(state.x_adv).float()
        scored = margin(logits, state.y)
        better = scored < state.best_margin
        state = replace(
            state,
            logits=logits,
            zero_share=torch.zeros_like(scored),
            best=torch.where(better.view(-1, 1, 1, 1), state.x_adv, state.best),
            best_margin=torch.where(better, scored, state.best_margin),
        )
        if self.threat_model.norm == "l2":
            proposal = self.threat_model.project(self._propose_l2(state.best, state), state.x)
            return replace(state, x_adv=proposal, step=state.step + 1)
        return self._propose_untried(self._remembered(state, better))

    def _remembered(self, state: SquareState, better: Tensor) -> SquareState:
        """Remember that the proposal just scored is no better; forget all where it is."""
        if state.tried is None or state.place is None:
            return state
        tried = state.tried.scatter(1, state.place[:, None], value=True)
        return replace(state, tried=tried & ~better[:, None])

    def _propose_untried(self, state: SquareState) -> SquareState:
        """Move each slot to its next linf proposal whose margin is not known.

        The last proposal of an image, and the last that was looked at, are taken even if it is.
        """
        ahead = self._proposals(state, count=1 if state.tried is None else LOOK_AHEAD)
        for _ in range(UNCHANGED_ROUNDS):
            state = self._take(_next_untried(ahead, state), ahead, state)
            unchanged = (state.x_adv == state.best).flatten(1).all(dim=1)
            if state.tried is None or state.place is None or not bool(unchanged.any()):
                break
            at = state.place[:, None]
            known = state.tried.gather(1, at) | unchanged[:, None]
            state = replace(state, tried=state.tried.scatter(1, at, known))
        return state

    def _proposals(self, state: SquareState, *, count: int) -> _Proposals:
        """Draw the next proposals of each slot, at most as far as its last one, which repeats."""
        channels, height, width = state.x.shape[1:]
        last = state.step.clamp_min(self.steps - 1)
        step = state.step[:, None] + torch.arange(count, device=state.step.device)
        step = torch.minimum(step, last[:, None])
        streams = torch.arange(len(step), device=state.rng.image_ids.device)
        draws = state.rng.take(streams.repeat_interleave(count)).uniform(
            "square", (2 + channels,), step=step.flatten(), device=state.x.device
        )
        draws = draws.view(*step.shape, -1)
        side = self._sides(step, height * width).clamp_max(min(height, width))
        row, column = (_first(draws[..., i], side, n) for i, n in ((0, height), (1, width)))
        bits = 2 ** torch.arange(channels, device=draws.device)
        signs = ((draws[..., 2:] < 0.5) * bits).sum(dim=-1)
        place = (signs * height + row) * width + column
        return _Proposals(step=step, draws=draws, side=side, place=place)

    def _take(self, chosen: Tensor, ahead: _Proposals, state: SquareState) -> SquareState:
        """Move each slot to one of its proposals. chosen: (L,) int64."""
        slots = torch.arange(len(chosen), device=chosen.device)
        side, place = ahead.side[slots, chosen], ahead.place[slots, chosen]
        tried = state.tried
        if tried is not None and state.side is not None:  # it knows squares of one side alone
            tried = tried & (side == state.side)[:, None]
        proposal = self._squares(ahead.draws[slots, chosen], side, state)
        step = ahead.step[slots, chosen] + 1
        return replace(state, x_adv=proposal, step=step, tried=tried, side=side, place=place)

    def _stripes(self, x: Tensor, rng: Randomness) -> Tensor:
        channels, _, width = x.shape[1:]
        draws = rng.uniform("square-stripes", (channels, 1, width), device=x.device)
        return self.threat_model.epsilon * _signs(draws)

    def _squares(self, draws: Tensor, side: Tensor, state: SquareState) -> Tensor:
        """Return the best points with one square each moved to the faces of the ball."""
        height, width = state.x.shape[2:]
        rows = _offsets(draws[:, 0], side, height)
        columns = _offsets(draws[:, 1], side, width)
        inside = _inside_square(rows, columns, side)
        faces = state.x + self.threat_model.epsilon * _signs(draws[:, 2:])[:, :, None, None]
        moved = torch.where(inside[:, None], faces, state.best)
        return self.threat_model.project(moved, state.x)

    def _bumps(self, x: Tensor, rng: Randomness) -> Tensor:
        channels, height, width = x.shape[1:]
        side = max(1, min(height, width) // GRID)
        down, across = height // side, width // side
        tile = _bump(side).to(x.device).repeat(down, across)
        signs = _signs(rng.uniform("square-bumps", (channels, down, across), device=x.device))
        signs = signs.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        pattern = torch.zeros_like(x)
        pattern[:, :, : down * side, : across * side] = tile * signs
        return _scaled(pattern, x.new_full((len(x),), self.threat_model.epsilon))

    def _propose_l2(self, best: Tensor, state: State) -> Tensor:
        channels, height, width = best.shape[1:]
        side = _odd(self._sides(state.step, height * width).clamp_min(3))
        side = side.clamp_max(min(height, width))
        draws = state.rng.uniform("square", (5 + channels,), step=state.step, device=best.device)
        rows = _offsets(draws[:, 0], side, height)
        columns = _offsets(draws[:, 1], side, width)
        inside = _inside_square(rows, columns, side)[:, None]
        emptied_rows = _offsets(draws[:, 2], side, height)
        emptied_columns = _offsets(draws[:, 3], side, width)
        emptied = _inside_square(emptied_rows, emptied_columns, side)[:, None]
        delta = best - state.x
        freed = _squared_length(delta * (inside | emptied))
        unspent = self.threat_model.epsilon**2 - _squared_length(delta)
        bump = _placed_bump(rows, columns, side, turned=draws[:, 4] < 0.5)[:, None]
        bump = bump * _signs(draws[:, 5:])[:, :, None, None]
        # the new bump is added to the old content of the square: the search builds on what worked
        before = delta * inside
        new = bump + before / _channel_lengths(before)
        budget = (unspent.clamp_min(0) / channels + freed / channels).sqrt().float()
        new = new / _channel_lengths(new) * budget[:, None, None, None]
        delta = torch.where(inside, new, torch.where(emptied, torch.zeros_like(delta), delta))
        return state.x + _scaled(delta, torch.full_like(budget, self.threat_model.epsilon))

    def _sides(self, step: Tensor, pixels: int) -> Tensor:
        """Return the side of the square proposed after each point of `step`, int64 >= 1."""
        return _sides_on(step.device, self.steps, pixels)[step.clamp_max(self.steps)]


@functools.cache
def sides(steps: int, pixels: int) -> tuple[int, ...]:
    """Return the side of the square proposed after each point 0..steps."""
    shares = (
        FIRST_SHARE / 2 ** sum(10_000 * step / steps > at for at in HALVED_AT)
        for step in range(steps + 1)
    )
    return tuple(max(1, round(math.sqrt(share * pixels))) for share in shares)


@functools.cache
def _sides_on(device: torch.device, steps: int, pixels: int) -> Tensor:
    return torch.tensor(sides(steps, pixels), device=device)


def _next_untried(ahead: _Proposals, state: SquareState) -> Tensor:
    """Return the first proposal of each slot that is not known to be no better, (L,) int64."""
    if state.tried is None or state.side is None:
        return torch.zeros_like(state.step)
    known = state.tried.gather(1, ahead.place) & (ahead.side == state.side[:, None])
    known |= ahead.side > state.side[:, None]  # passed over in an earlier round: squares shrink
    last = ahead.place.shape[1] - 1
    # among equals argmax returns the first
    return torch.where(known.all(dim=1), last, (~known).to(torch.uint8).argmax(dim=1))


def _signs(draws: Tensor) -> Tensor:
    return torch.ones_like(draws).masked_fill(draws < 0.5, -1.0)


def _odd(side: Tensor) -> Tensor:
    return side + 1 - side % 2


def _offsets(draw: Tensor, side: Tensor, length: int) -> Tensor:
    """Return the positions 0..length-1 relative to a square's first one, (L, length) int64.

    The first one is uniform where the square fits.
    """
    return torch.arange(length, device=draw.device)[None, :] - _first(draw, side, length)[:, None]


def _first(draw: Tensor, side: Tensor, length: int) -> Tensor:
    """Return the first position of each square along a side of the image, int64 >= 0."""
    return (draw * (length - side + 1)).long()


def _inside(offsets: Tensor, side: Tensor) -> Tensor:
    return (offsets >= 0) & (offsets < side[:, None])


def _inside_square(rows: Tensor, columns: Tensor, side: Tensor) -> Tensor:
    """Return the pixels of each slot's square, (L, H, W) bool."""
    return _inside(rows, side)[:, :, None] & _inside(columns, side)[:, None, :]


def _squared_length(pattern: Tensor) -> Tensor:
    """Return the squared l2 norm of each image, (L,) float64."""
    squared: Tensor = pattern.flatten(1).double().square().sum(dim=1)
    return squared


def _channel_lengths(pattern: Tensor) -> Tensor:
    """Return the l2 norm of each channel, at least 1e-12, (L, C, 1, 1)."""
    lengths: Tensor = pattern.flatten(2).norm(dim=2).clamp_min(1e-12)[:, :, None, None]
    return lengths


@functools.cache
def _bump(side: int) -> Tensor:
    """Return two opposite peaks, one in each half of a square, (side, side) of length 1."""
    half = side // 2
    bump = torch.cat([_peak(half, side), -_peak(side - half, side)]) if half else _peak(side, side)
    unit: Tensor = bump / torch.linalg.vector_norm(bump)
    return unit


def _peak(height: int, width: int) -> Tensor:
    """Return the sum of ever larger squares around the middle, the k-th with weight 1 / k²."""
    away = torch.maximum(
        (torch.arange(height) - height // 2).abs()[:, None],
        (torch.arange(width) - width // 2).abs()[None, :],
    )
    largest = max(height, width) // 2 + 1
    weights = torch.tensor([1.0 / k**2 for k in range(1, largest + 1)], dtype=torch.float32)
    tails = weights.flip(0).cumsum(0).flip(0)
    return tails[away]


def _placed_bump(rows: Tensor, columns: Tensor, side: Tensor, *, turned: Tensor) -> Tensor:
    """Return each slot's bump at its place, (L, H, W), turned by a quarter where `turned`."""
    sizes = torch.unique(side).tolist()
    largest = max(sizes)
    table = torch.zeros(len(sizes), largest, largest, dtype=torch.float32, device=side.device)
    for index, size in enumerate(sizes):
        table[index, :size, :size] = _bump(size).to(side.device)
    which = torch.searchsorted(torch.tensor(sizes, device=side.device), side)
    # positions outside the square read any value: the mask removes them
    row = rows.clamp(0, largest - 1)[:, :, None].expand(-1, -1, columns.shape[1])
    column = columns.clamp(0, largest - 1)[:, None, :].expand(-1, rows.shape[1], -1)
    turned = turned[:, None, None]
    first = torch.where(turned, column, row)
    second = torch.where(turned, row, column)
    placed: Tensor = table[which[:, None, None], first, second]
    return placed * _inside_square(rows, columns, side)


def _scaled(pattern: Tensor, length: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(pattern.flatten(1).double(), dim=1).clamp_min(1e-12)
    scaled: Tensor = pattern * (length / norm).float().view(-1, 1, 1, 1)
    return scaled
