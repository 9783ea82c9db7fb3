"""What a robustness card measures: a ladder of ever stronger attacks on the same images, curves, and probes of the gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, State, cascade, make_attack
from sat_ray.attacks.base import Model, NoGradientError, differentiate, require_inference_mode, zero_share
from sat_ray.attacks.cascade import TARGETS
from sat_ray.card.settings import CardSettings
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation import check_images, check_logits, clean_correct_ids, device_of, evaluate, robust_image_ids
from sat_ray.lanes import CLEAN_ERROR, NEVER, lane_logits
from sat_ray.losses import attack_loss
from sat_ray.narrowing import pad
from sat_ray.precision import exact_float32
from sat_ray.randomness import Randomness, sample_rows
from sat_ray.threat import ThreatModel

Variants = Callable[[AttackSpec], Sequence[AttackSpec]]

EPSILON_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
EPSILON_STEPS = 50  # of epsilon / 20: they cross the ball more than twice
TRAJECTORIES = 128  # most images that are followed to the last step, however early they break
SHORT_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a model, the images of the card, and how they are run."""

    model: Model
    split: Split
    threat_model: ThreatModel
    variants: Variants
    seed: int
    lanes: int

    @property
    def n(self) -> int:
        """Return the number of images: the denominator of every accuracy."""
        return len(self.split)

    def outcomes(self, *specs: AttackSpec, in_turn: bool = False) -> pa.Table:
        """Attack through every variant of every spec; in_turn: each on the survivors of those before it."""
        attacks = [variant for spec in specs for variant in self.variants(spec)]
        images, labels, ids = self.split.images, self.split.labels, self.split.image_ids
        return evaluate(self.model, images, labels, ids, attacks=attacks, seed=self.seed, lanes=self.lanes, cascade=in_turn)

    def logits(self, split: Split) -> Tensor:
        """Run the model on clean images, (N, K) float32."""
        return lane_logits(self.model, split.images, split.image_ids, lanes=self.lanes, device=device_of(self.model))

    def blocks(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Randomness, int]]:
        """Cut rows of the split into (x, y, rng, real rows) of exactly `lanes` rows, on the model's device."""
        found = []
        for part in torch.split(rows, self.lanes):
            chosen, device = self.split.take(pad(part, self.lanes)), device_of(self.model)
            rng = Randomness(self.seed, chosen.image_ids.to(device))
            found.append((to_pixels(chosen.images.to(device)), chosen.labels.to(device), rng, len(part)))
        return found


def most_passes(attack: AttackSpec, settings: CardSettings) -> int:
    """Return the most forward and backward passes that one image of a card takes through one backward pass, Square's queries left out."""
    claimed = max(attack.restarts, settings.restarts) * (attack.steps + 1)
    cascade_runs = (1 + TARGETS) * (settings.cascade_steps + 1)
    curves = len(EPSILON_MULTIPLES) * (EPSILON_STEPS + 1) + (attack.steps + 1)
    return claimed + cascade_runs + curves + (SHORT_STEPS + 1) + 2


def sample(split: Split, count: int, *, seed: int) -> Split:
    """Return at most `count` images: those whose random key is smallest, a pure function of (seed, image ids)."""
    return split.take(sample_rows(Randomness.of(seed, split.image_ids), count, purpose="card"))


@exact_float32()
def measure(
    model: Model, split: Split, *, attack: AttackSpec, settings: CardSettings, variants: Variants, seed: int, lanes: int
) -> dict[str, Any]:
    """Return all evidence, JSON-ready. Accuracies are fractions of `n` images; steps and epsilons are the x of the curves."""
    require_inference_mode(model)
    check_images(split.images, split.labels, split.image_ids, lanes=lanes)
    chosen = sample(split, settings.images, seed=seed)
    subject = Subject(model=model, split=chosen, threat_model=attack.threat_model, variants=variants, seed=seed, lanes=lanes)
    claimed = replace(attack, restarts=max(attack.restarts, settings.restarts), final_iterate=False, name="")
    clean = subject.logits(chosen)
    check_logits(clean, chosen.labels)
    evidence: dict[str, Any] = {
        "n": subject.n,
        "seed": seed,
        "threat_model": {"norm": attack.threat_model.norm, "epsilon": attack.threat_model.epsilon},
        "attack": str(attack),
        "repeatability": repeatability(subject, clean),
        "gradient": gradient_probe(subject),
    }
    attacks = cascade(attack.threat_model, num_classes=clean.shape[1], steps=settings.cascade_steps, queries=settings.cascade_queries)
    if not evidence["gradient"]["exists"]:
        attacks = attacks[-1:]
    in_turn = subject.outcomes(*attacks, in_turn=True)
    evidence["cascade"] = [str(spec) for spec in attacks]
    evidence["ladder"] = {"clean": len(clean_correct_ids(in_turn)) / subject.n, "noise": noise_accuracy(subject)}
    evidence["curves"] = {}
    if evidence["gradient"]["exists"]:
        table = subject.outcomes(claimed)
        survivors = robust_image_ids(table)
        restarts = accuracy_by_restart(table, restarts=claimed.restarts)
        evidence["ladder"] |= {f"pgd-{SHORT_STEPS}": short_attack(subject), attack.name: restarts[attack.restarts - 1]}
        evidence["curves"] = {
            "epsilon": epsilon_curve(subject),
            "steps": steps_curve(table, steps=attack.steps),
            "restarts": [[number + 1, value] for number, value in enumerate(restarts)],
            **trajectories(subject, attack),
        }
    else:
        survivors = clean_correct_ids(in_turn)
    evidence["ladder"]["cascade"] = len(robust_image_ids(in_turn)) / subject.n
    evidence["broken_by_square_alone"] = square_alone(in_turn, survivors)
    return evidence


def repeatability(subject: Subject, first: Tensor) -> dict[str, float]:
    """Run the images again, and once in reverse order: largest differences from the `first` logits, and the largest of these."""
    again = subject.logits(subject.split)
    backwards = subject.logits(subject.split.take(torch.arange(subject.n - 1, -1, -1))).flip(0)
    pairs = {"second_run": again, "other_neighbours": backwards}
    return {name: float((other - first).abs().max()) for name, other in pairs.items()} | {"largest_logit": float(first.abs().max())}


def noise_accuracy(subject: Subject) -> float:
    """Return the accuracy at one random point of each image's ball."""
    right = 0
    for x, y, rng, count in subject.blocks(torch.arange(subject.n)):
        with torch.no_grad():
            predicted = subject.model(subject.threat_model.random_start(x, rng, step=1)).argmax(dim=1)
        right += int((predicted == y)[:count].sum())
    return right / subject.n


def gradient_probe(subject: Subject) -> dict[str, Any]:
    """Look at the gradient of the cross-entropy at each clean image and at a random start: does it exist, how much of it is exactly 0?"""
    shares, ids = [], []
    try:
        for x, y, rng, count in subject.blocks(torch.arange(subject.n)):
            for point in (x, subject.threat_model.random_start(x, rng)):
                state = State(x=x, y=y, x_adv=point, step=torch.zeros_like(y), rng=rng)
                shares.append(zero_share(differentiate(subject.model, state, loss="cross_entropy")[2])[:count].cpu())
                ids += rng.image_ids[:count].tolist()
    except NoGradientError:
        return {"exists": False}
    share = torch.cat(shares)
    frozen = sorted({image_id for image_id, value in zip(ids, share.tolist(), strict=True) if value == 1.0})
    return {"exists": True, "zero_share": float(share.mean()), "images_of_zero_gradient": len(frozen), "examples": frozen[:5]}


def short_attack(subject: Subject) -> float:
    """Return the robust accuracy under PGD-10 with steps of epsilon / 4."""
    spec = AttackSpec(threat_model=subject.threat_model, steps=SHORT_STEPS, step_size=subject.threat_model.epsilon / 4)
    return len(robust_image_ids(subject.outcomes(spec))) / subject.n


def epsilon_curve(subject: Subject) -> list[list[float]]:
    """Return [epsilon, robust accuracy] from a quarter of epsilon to 16 times epsilon; for linf at most to 1, which holds every image."""
    norm, claimed = subject.threat_model.norm, subject.threat_model.epsilon
    radii = [multiple * claimed for multiple in EPSILON_MULTIPLES if norm == "l2" or multiple * claimed < 1]
    radii += [1.0] if norm == "linf" and len(radii) < len(EPSILON_MULTIPLES) else []
    curve = []
    for epsilon in radii:
        spec = AttackSpec(threat_model=ThreatModel(norm, epsilon), steps=EPSILON_STEPS, step_size=epsilon / 20)
        curve.append([epsilon, len(robust_image_ids(subject.outcomes(spec))) / subject.n])
    return curve


def steps_curve(table: pa.Table, *, steps: int) -> list[list[float]]:
    """Return [k, robust accuracy after k steps] of the first restart, from when each image broke."""
    first = table.filter(pa.compute.equal(table["restart"], 0))
    broken_at: dict[int, float] = {}
    for image_id, step in zip(first["image_id"].to_pylist(), first["first_broken_step"].to_pylist(), strict=True):
        at = {NEVER: np.inf, CLEAN_ERROR: -1.0}.get(step, float(step))
        broken_at[image_id] = min(broken_at.get(image_id, np.inf), at)
    values = np.array(list(broken_at.values()))
    marks = sorted({0, *(k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k < steps), steps // 2, steps})
    return [[mark, float((values > mark).mean())] for mark in marks]


def accuracy_by_restart(table: pa.Table, *, restarts: int) -> list[float]:
    """Return the robust accuracy after 1, 2, ... `restarts` restarts."""
    tried = np.array(table["restart"].to_pylist())  # a restart has rows only for the images that the ones before it left
    n = len(set(table["image_id"].to_pylist()))
    return [len(robust_image_ids(table.filter(pa.array(tried <= last)))) / n for last in range(restarts)]


def trajectories(subject: Subject, attack: AttackSpec) -> dict[str, Any]:
    """Follow some images to the last step: the mean loss on the way, and the accuracy at the end before and after rounding to 8 bits."""
    rows = torch.arange(min(subject.n, TRAJECTORIES))
    stepper = make_attack(attack)
    losses: list[Tensor] = []
    right, right_rounded = 0, 0
    for x, y, rng, count in subject.blocks(rows):
        state, course = stepper.start(x, y, rng), []
        while int(state.step[0]) <= attack.steps:
            last = state.x_adv
            state = stepper.step(subject.model, state)
            assert state.logits is not None
            course.append(attack_loss(state.logits, y)[:count].cpu())
        losses.append(torch.stack(course))
        rounded = subject.threat_model.project((last * 255).round() / 255, x)
        with torch.no_grad():
            right += int((subject.model(last).argmax(dim=1) == y)[:count].sum())
            right_rounded += int((subject.model(rounded).argmax(dim=1) == y)[:count].sum())
    loss = torch.cat(losses, dim=1)
    marks = sorted({0, *(k for k in (1, 2, 5, 10, 20, 50, 100) if k < attack.steps), attack.steps})
    return {
        "loss": [[mark, float(loss[mark].mean())] for mark in marks],
        "share_of_falling_loss": float((loss[-1] < loss[0]).float().mean()),
        "eight_bit": {"n": len(rows), "last_points": right / len(rows), "rounded": right_rounded / len(rows)},
    }


def square_alone(table: pa.Table, survivors_of_claimed: set[int]) -> int:
    """Count the images that only the attack without gradients breaks."""
    is_square = np.array([name.startswith("square") for name in table["attack"].to_pylist()], dtype=bool)
    square, others = table.filter(pa.array(is_square)), table.filter(pa.array(~is_square))
    fallen = set(square["image_id"].to_pylist()) - robust_image_ids(square)
    survivors = robust_image_ids(others) & survivors_of_claimed if len(others) else survivors_of_claimed
    return len(fallen & survivors)
