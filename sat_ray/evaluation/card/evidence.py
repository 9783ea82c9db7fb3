"""The measurements of a robustness card.

They are a ladder of ever stronger attacks on the same images, curves, and probes of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.attacks.base import Model, require_inference_mode
from sat_ray.data.split import Split
from sat_ray.evaluation.card.probes import (
    gradient_probe,
    random_starts,
    repeatability,
    trajectories,
    untouched,
)
from sat_ray.evaluation.card.settings import EPSILON_STEPS, SHORT_STEPS, CardSettings, radii
from sat_ray.evaluation.card.subject import Subject, Variants, sample
from sat_ray.evaluation.first_broken_step import CLEAN_ERROR, NEVER
from sat_ray.evaluation.inputs import check_images, check_logits
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.threat import ThreatModel
from sat_ray.utils.precision import exact_float32

RUNGS = ("clean", "noise", "cascade")  # of the ladder, beside pgd-10 and the claimed attack


@exact_float32()
def measure(
    model: Model,
    split: Split,
    *,
    attack: AttackSpec,
    settings: CardSettings,
    variants: Variants,
    seed: int,
    slots: int,
    begin: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Return all evidence, JSON-ready.

    Accuracies are fractions of `n` images; steps and epsilons are the x of the curves.
    begin: called with the name of each part of the work when it begins.
    """
    if attack.name in RUNGS:
        raise ValueError(
            f"attack must have another name than the card's rungs ({', '.join(RUNGS)}), "
            f"got {attack.name}"
        )
    require_inference_mode(model)
    check_images(split.images, split.labels, split.image_ids, slots=slots)
    begin("logits and gradients of the images")
    fresh = untouched(model)
    subject = Subject(
        model=model,
        split=sample(split, settings.images, seed=seed),
        threat_model=attack.threat_model,
        variants=variants,
        seed=seed,
        slots=slots,
    )
    clean = subject.logits()
    check_logits(clean, subject.split.labels)
    work = _Measurement(subject=subject, attack=attack, settings=settings, clean=clean, begin=begin)
    evidence = work.evidence(fresh=fresh)
    return {
        "n": subject.n,
        "chance": chance(split.labels, num_classes=clean.shape[1]),
        "seed": seed,
        "threat_model": {"norm": attack.threat_model.norm, "epsilon": attack.threat_model.epsilon},
        "attack": str(attack),
        **evidence,
    }


@dataclass(frozen=True)
class _Claim:
    """What the claimed attack leaves: survivors, rungs of the ladder, curves, and last points."""

    survivors: set[int]
    rungs: dict[str, float]
    curves: dict[str, Any]
    ends: Tensor


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    """One subject, the attack that is claimed, and the clean logits, (N, K) on the CPU."""

    subject: Subject
    attack: AttackSpec
    settings: CardSettings
    clean: Tensor
    begin: Callable[[str], None]

    def evidence(self, *, fresh: Model | None) -> dict[str, Any]:
        """Return the evidence of all attacks and probes. fresh: a copy that has seen no image."""
        n = self.subject.n
        gradient = gradient_probe(self.subject)
        points = [random_starts(self.subject)]
        attacks = self._cascade(with_gradients=gradient["exists"])
        correct = self._correct()
        ladder = {"clean": len(correct) / n, "noise": noise_accuracy(self.subject)}
        curves: dict[str, Any] = {}
        claimed_survivors = correct
        if gradient["exists"]:
            claim = self._claim()
            claimed_survivors = claim.survivors
            ladder |= claim.rungs
            curves = claim.curves
            points.append(claim.ends)
        survivors = self._survivors(attacks[:-1], correct)
        fallen = self._fallen(attacks[-1], survivors | claimed_survivors)
        ladder["cascade"] = len(survivors - fallen) / n
        self.begin("repeating the model's answers")
        return {
            "repeatability": repeatability(self.subject, self.clean, points, fresh=fresh),
            "gradient": gradient,
            "cascade": [str(spec) for spec in attacks],
            "ladder": ladder,
            "curves": curves,
            "broken_by_square_alone": len(fallen & survivors & claimed_survivors),
            "survivors_broken_by_square": len(fallen & claimed_survivors),
            "survivors_of_claim": len(claimed_survivors),
            "survivors_of_gradients": len(survivors & claimed_survivors),
        }

    def _correct(self) -> set[int]:
        """Return the images that are right before any attack."""
        split = self.subject.split
        return set(split.image_ids[self.clean.argmax(dim=1) == split.labels].tolist())

    def _cascade(self, *, with_gradients: bool) -> list[AttackSpec]:
        """Return the attacks of the cascade; Square alone where there is no gradient."""
        attacks = cascade(
            self.attack.threat_model,
            num_classes=self.clean.shape[1],
            steps=self.settings.cascade_steps,
            queries=self.settings.cascade_queries,
        )
        return attacks if with_gradients else attacks[-1:]

    def _claim(self) -> _Claim:
        """Run the claimed attack with more restarts, and the attacks of the curves."""
        subject = self.subject
        attack = self.attack
        restarts_in_all = attack.restarts + self.settings.restarts - 1
        self.begin(f"{attack.name}, {restarts_in_all} restarts")
        claimed = replace(attack, restarts=restarts_in_all, final_iterate=False, name="")
        table = subject.outcomes(claimed)
        restarts = accuracy_by_restart(table, claimed)
        self.begin(f"pgd-{SHORT_STEPS} and the course of {attack.name}")
        rungs = {
            f"pgd-{SHORT_STEPS}": short_attack(subject),
            attack.name: restarts[attack.restarts - 1],
        }
        followed, ends = trajectories(subject, attack)
        curves = {
            "epsilon": epsilon_curve(subject, self.begin),
            "steps": steps_curve(table, claimed),
            "restarts": [[number + 1, value] for number, value in enumerate(restarts)],
            **followed,
        }
        return _Claim(robust_image_ids(table), rungs, curves, ends)

    def _survivors(self, attacks: list[AttackSpec], survivors: set[int]) -> set[int]:
        """Return which images survive the attacks with gradients, one after the other."""
        for spec in attacks:
            self.begin(f"{spec.name} on {len(survivors)} images")
            survivors = robust_image_ids(self.subject.of(survivors).outcomes(spec, in_turn=True))
        return survivors

    def _fallen(self, square: AttackSpec, attacked: set[int]) -> set[int]:
        """Return which images fall to Square.

        One search gives two numbers: how many survivors of the cascade fall to it, and how many of
        the claimed attack.
        """
        self.begin(f"{square.name} on {len(attacked)} images")
        return attacked - robust_image_ids(self.subject.of(attacked).outcomes(square))


def chance(labels: Tensor, *, num_classes: int) -> float:
    """Return the accuracy of a model that always names the most frequent class of these images."""
    most_frequent = float(torch.bincount(torch.as_tensor(labels).long()).max())
    return max(1 / num_classes, most_frequent / len(labels))


def noise_accuracy(subject: Subject) -> float:
    """Return the accuracy at one random point of each image's ball."""
    right = 0
    for x, y, rng, count in subject.blocks(torch.arange(subject.n)):
        noisy = subject.threat_model.random_start(x, rng, step=1)
        with torch.no_grad():
            predicted = subject.model(noisy).argmax(dim=1)
        right += int((predicted == y)[:count].sum())
    return right / subject.n


def short_attack(subject: Subject) -> float:
    """Return the robust accuracy under PGD-10 with steps of epsilon / 4."""
    spec = AttackSpec(
        threat_model=subject.threat_model,
        steps=SHORT_STEPS,
        step_size=subject.threat_model.epsilon / 4,
    )
    return len(robust_image_ids(subject.outcomes(spec))) / subject.n


def epsilon_curve(subject: Subject, begin: Callable[[str], None]) -> list[list[float]]:
    """Return [epsilon, robust accuracy] from a quarter of epsilon to a ball of every image."""
    values = prod(subject.split.images.shape[1:])
    curve = []
    for epsilon in radii(subject.threat_model, values=values):
        begin(f"pgd-{EPSILON_STEPS} at epsilon {epsilon:.3g}")
        spec = AttackSpec(
            threat_model=ThreatModel(subject.threat_model.norm, epsilon),
            steps=EPSILON_STEPS,
            step_size=epsilon / 20,
        )
        curve.append([epsilon, len(robust_image_ids(subject.outcomes(spec))) / subject.n])
    return curve


def restart_of(table: pa.Table, attack: AttackSpec) -> np.ndarray:
    """Return the restart of every row; a targeted attack has one run for each target in each."""
    return np.array(table["restart"].to_pylist()) // max(1, attack.targets)


def steps_curve(table: pa.Table, attack: AttackSpec) -> list[list[float]]:
    """Return [k, robust accuracy after k steps] of the first restart."""
    first = table.filter(pa.array(restart_of(table, attack) == 0))
    broken_at: dict[int, float] = {}
    for image_id, step in zip(
        first["image_id"].to_pylist(), first["first_broken_step"].to_pylist(), strict=True
    ):
        at = {NEVER: np.inf, CLEAN_ERROR: -1.0}.get(step, float(step))
        broken_at[image_id] = min(broken_at.get(image_id, np.inf), at)
    values = np.array(list(broken_at.values()))
    shown = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    inside = (k for k in shown if k < attack.steps)
    marks = sorted({0, *inside, attack.steps // 2, attack.steps})
    return [[mark, float((values > mark).mean())] for mark in marks]


def accuracy_by_restart(table: pa.Table, attack: AttackSpec) -> list[float]:
    """Return the robust accuracy after 1, 2, ... restarts of the attack."""
    # a restart has rows only for the images that the earlier ones left
    tried = restart_of(table, attack)
    n = len(set(table["image_id"].to_pylist()))
    return [
        len(robust_image_ids(table.filter(pa.array(tried <= last)))) / n
        for last in range(attack.restarts)
    ]
