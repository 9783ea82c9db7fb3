"""Probes of the model itself: whether its output depends on the image alone, and its gradient.

A model can behave well at the images and badly at the points of attacks. So each probe looks at
images, at random starts, and at the points where the claimed attack ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec, State, make_attack
from sat_ray.attacks.base import Model, NoGradientError, differentiate, zero_share
from sat_ray.attacks.losses import attack_loss
from sat_ray.evaluation.card.subject import Subject
from sat_ray.evaluation.engine.padding import call_rows, pad
from sat_ray.evaluation.inputs import device_of
from sat_ray.models.copying import NotCopiedError, copied

# most images that are followed to the last step, however early they break, and whose random starts
# are probed
PROBED = 128
MARKS = (1, 2, 5, 10, 20, 50, 100)  # steps at which the mean loss is shown


def untouched(model: Model) -> Model | None:
    """Return a copy of a model that has seen no image yet; None for one that cannot be copied."""
    if not isinstance(model, nn.Module):
        return None
    try:
        return copied(model)
    except NotCopiedError:
        return None


def random_starts(subject: Subject) -> Tensor:
    """Return a random point of the ball around each of the first images.

    (M, C, H, W) float32 on the CPU.
    """
    blocks = subject.blocks(torch.arange(min(subject.n, PROBED)))
    return torch.cat(
        [subject.threat_model.random_start(x, rng)[:count].cpu() for x, _, rng, count in blocks]
    )


def repeatability(
    subject: Subject, clean: Tensor, points: Sequence[Tensor], *, fresh: Model | None
) -> dict[str, float]:
    """Run the images and some points again, and among other neighbours.

    Return the largest differences of logits, and the largest logit. clean: logits of the images;
    points: (M, C, H, W) float32 each; fresh: a copy that has seen nothing, run at the last points
    alone.
    """
    found = {
        "second_run": _apart(subject.logits(), clean),
        "other_neighbours": 0.0,
        "largest_logit": float(clean.abs().max()),
    }
    # every image changes its block, and half of the first block is one image
    before = torch.zeros(subject.slots // 2, dtype=torch.int64)
    moved = subject.logits(torch.cat([before, torch.arange(subject.n)]))[len(before) :]
    found["other_neighbours"] = _apart(moved, clean)
    for some in points:
        first = logits_at(subject, some)
        found["second_run"] = max(found["second_run"], _apart(logits_at(subject, some), first))
        moved = logits_at(subject, torch.cat([some[before], some]))[len(before) :]
        found["other_neighbours"] = max(found["other_neighbours"], _apart(moved, first))
        found["largest_logit"] = max(found["largest_logit"], float(first.abs().max()))
    if fresh is not None and points:
        found["fresh_copy"] = _apart(logits_at(subject, points[-1], model=fresh), first)
    return found


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def logits_at(subject: Subject, points: Tensor, *, model: Model | None = None) -> Tensor:
    """Return the logits of the model, or of another one, at points (M, C, H, W) float32.

    (M, K) on the CPU. Calls have as many rows as those of an evaluation.
    """
    device = device_of(subject.model)
    rows = call_rows(subject.slots)
    forward = model or subject.model
    parts = torch.split(points, subject.slots)
    return torch.cat(
        [forward(pad(part.to(device), rows)).float()[: len(part)].cpu() for part in parts]
    )


def gradient_probe(subject: Subject) -> dict[str, Any]:
    """Measure the gradient of the cross-entropy at each clean image and at a random start.

    Return whether it exists, and how much of it is exactly 0.
    """
    shares: list[Tensor] = []
    ids: list[int] = []
    try:
        for x, y, rng, count in subject.blocks(torch.arange(subject.n)):
            for point in (x, subject.threat_model.random_start(x, rng)):
                state = State(x=x, y=y, x_adv=point, step=torch.zeros_like(y), rng=rng)
                gradient = differentiate(subject.model, state, loss="cross_entropy")[2]
                shares.append(zero_share(gradient)[:count].cpu())
                ids += rng.image_ids[:count].tolist()
    except NoGradientError:
        return {"exists": False}
    return {"exists": True, **_zeros(torch.cat(shares), ids)}


def _zeros(shares: Tensor, ids: list[int]) -> dict[str, Any]:
    """Summarise the shares (M,) of gradients that are exactly 0. ids: of their images."""
    frozen = sorted(
        {image_id for image_id, value in zip(ids, shares.tolist(), strict=True) if value == 1.0}
    )
    return {
        "zero_share": float(shares.mean()),
        "images_of_zero_gradient": len(frozen),
        "examples": frozen[:5],
    }


@dataclass(frozen=True)
class _Course:
    """The course of one block. losses, zero_shares: (steps + 1, M).

    last: the last points, as x and y: (M, ...).
    """

    losses: Tensor
    zero_shares: Tensor
    last: Tensor
    x: Tensor
    y: Tensor
    ids: list[int]


def trajectories(subject: Subject, attack: AttackSpec) -> tuple[dict[str, Any], Tensor]:
    """Follow some images to the last step, and return the evidence and the last points.

    Evidence: the mean loss on the way, the share of images whose loss ends lower, the gradients
    that are 0 at the visited points, and the accuracy at the end before and after rounding to 8
    bits. Points: (M, C, H, W) float32 on the CPU.
    """
    courses = list(_followed(subject, attack))
    losses = torch.cat([course.losses for course in courses], dim=1)
    zeros = torch.cat([course.zero_shares for course in courses], dim=1)
    ids = [image_id for course in courses for image_id in course.ids]
    marks = sorted({0, *(k for k in MARKS if k < attack.steps), attack.steps})
    ends = torch.cat([course.last for course in courses])
    rounded = torch.cat(
        [
            subject.threat_model.project((course.last * 255).round() / 255, course.x)
            for course in courses
        ]
    )
    labels = torch.cat([course.y for course in courses])

    def accuracy_at(points: Tensor) -> float:
        return float((logits_at(subject, points).argmax(dim=1) == labels).float().mean())

    right = accuracy_at(ends)
    right_rounded = accuracy_at(rounded)
    evidence = {
        "loss": [[mark, float(losses[mark].mean())] for mark in marks],
        "share_of_falling_loss": float((losses[-1] < losses[0]).float().mean()),
        "eight_bit": {"n": len(ids), "last_points": right, "rounded": right_rounded},
        "gradient_on_the_way": _zeros(zeros.flatten(), ids * len(zeros)),
    }
    return evidence, ends


def _followed(subject: Subject, attack: AttackSpec) -> Iterator[_Course]:
    stepper = make_attack(attack)
    for x, y, rng, count in subject.blocks(torch.arange(min(subject.n, PROBED))):
        state = stepper.start(x, y, rng)
        losses: list[Tensor] = []
        zeros: list[Tensor] = []
        while int(state.step[0]) <= attack.steps:
            last = state.x_adv
            state = stepper.step(subject.model, state)
            assert state.logits is not None and state.zero_share is not None
            losses.append(attack_loss(state.logits, y)[:count].cpu())
            zeros.append(state.zero_share[:count].cpu())
        last, x, y = (values[:count].cpu() for values in (last, x, y))
        yield _Course(
            torch.stack(losses), torch.stack(zeros), last, x, y, rng.image_ids[:count].tolist()
        )
