"""What a robustness card measures: a ladder of ever stronger attacks on the same images, curves, and probes of the model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.attacks.base import Model, require_inference_mode
from sat_ray.attacks.cascade import TARGETS
from sat_ray.data.split import Split
from sat_ray.evaluation.card.probes import (
    gradient_probe,
    random_starts,
    repeatability,
    trajectories,
    untouched,
)
from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.evaluation.card.subject import Subject, Variants, sample
from sat_ray.evaluation.engine.verdicts import CLEAN_ERROR, NEVER
from sat_ray.evaluation.inputs import check_images, check_logits
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.threat import ThreatModel
from sat_ray.utils.precision import exact_float32

EPSILON_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
EPSILON_STEPS = 50  # of epsilon / 20: they cross the ball more than twice
SHORT_STEPS = 10
RUNGS = ("clean", "noise", "cascade")  # of the ladder, beside pgd-10 and the claimed attack


def most_passes(attack: AttackSpec, settings: CardSettings) -> int:
    """Return the most forward and backward passes that one image of a card takes through one backward pass, Square's queries left out."""
    claimed = (attack.restarts + settings.restarts - 1) * (attack.steps + 1)
    cascade_runs = (1 + TARGETS) * (settings.cascade_steps + 1)
    curves = len(EPSILON_MULTIPLES) * (EPSILON_STEPS + 1) + (attack.steps + 1)
    return claimed + cascade_runs + curves + (SHORT_STEPS + 1) + 2


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
            f"attack is named {attack.name}, like a rung of the card's ladder; allowed: any name but {', '.join(RUNGS)}"
        )
    require_inference_mode(model)
    check_images(split.images, split.labels, split.image_ids, slots=slots)
    begin("logits and gradients of the images")
    fresh, chosen = untouched(model), sample(split, settings.images, seed=seed)
    subject = Subject(
        model=model,
        split=chosen,
        threat_model=attack.threat_model,
        variants=variants,
        seed=seed,
        slots=slots,
    )
    clean = subject.logits()
    check_logits(clean, chosen.labels)
    gradient, points = gradient_probe(subject), [random_starts(subject)]
    attacks = cascade(
        attack.threat_model,
        num_classes=clean.shape[1],
        steps=settings.cascade_steps,
        queries=settings.cascade_queries,
    )
    attacks = attacks if gradient["exists"] else attacks[-1:]
    correct = set(chosen.image_ids[clean.argmax(dim=1) == chosen.labels].tolist())
    ladder = {"clean": len(correct) / subject.n, "noise": noise_accuracy(subject)}
    curves = dict[str, Any]()
    claimed_survivors = correct
    if gradient["exists"]:
        restarts_in_all = attack.restarts + settings.restarts - 1
        begin(f"{attack.name}, {restarts_in_all} restarts")
        claimed = replace(attack, restarts=restarts_in_all, final_iterate=False, name="")
        table = subject.outcomes(claimed)
        claimed_survivors = robust_image_ids(table)
        restarts = accuracy_by_restart(table, claimed)
        begin(f"pgd-{SHORT_STEPS} and the course of {attack.name}")
        ladder |= {
            f"pgd-{SHORT_STEPS}": short_attack(subject),
            attack.name: restarts[attack.restarts - 1],
        }
        followed, ends = trajectories(subject, attack)
        points.append(ends)
        curves = {
            "epsilon": epsilon_curve(subject, begin),
            "steps": steps_curve(table, claimed),
            "restarts": [[number + 1, value] for number, value in enumerate(restarts)],
            **followed,
        }
    survivors = correct
    for spec in attacks[:-1]:
        begin(f"{spec.name} on {len(survivors)} images")
        survivors = robust_image_ids(subject.of(survivors).outcomes(spec, in_turn=True))
    # one search answers two questions: how many survivors of the cascade fall to it, and how many
    # of the claimed attack
    asked = survivors | claimed_survivors
    begin(f"{attacks[-1].name} on {len(asked)} images")
    fallen = asked - robust_image_ids(subject.of(asked).outcomes(attacks[-1]))
    ladder["cascade"] = len(survivors - fallen) / subject.n
    begin("repeating the model's answers")
    return {
        "n": subject.n,
        "chance": chance(split.labels, num_classes=clean.shape[1]),
        "seed": seed,
        "threat_model": {"norm": attack.threat_model.norm, "epsilon": attack.threat_model.epsilon},
        "attack": str(attack),
        "repeatability": repeatability(subject, clean, points, fresh=fresh),
        "gradient": gradient,
        "cascade": [str(spec) for spec in attacks],
        "ladder": ladder,
        "curves": curves,
        "broken_by_square_alone": len(fallen & survivors & claimed_survivors),
        "survivors_broken_by_square": len(fallen & claimed_survivors),
    }


def chance(labels: Tensor, *, num_classes: int) -> float:
    """Return the accuracy of a model that ignores its input, and answers with the most frequent class of these images."""
    return max(
        1 / num_classes, float(torch.bincount(torch.as_tensor(labels).long()).max()) / len(labels)
    )


def noise_accuracy(subject: Subject) -> float:
    """Return the accuracy at one random point of each image's ball."""
    right = 0
    for x, y, rng, count in subject.blocks(torch.arange(subject.n)):
        with torch.no_grad():
            predicted = subject.model(subject.threat_model.random_start(x, rng, step=1)).argmax(
                dim=1
            )
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
    """Return [epsilon, robust accuracy] from a quarter of epsilon to 16 times epsilon; for linf at most to 1, which holds every image."""
    norm, claimed = subject.threat_model.norm, subject.threat_model.epsilon
    radii = [
        multiple * claimed
        for multiple in EPSILON_MULTIPLES
        if norm == "l2" or multiple * claimed < 1
    ]
    radii += [1.0] if norm == "linf" and len(radii) < len(EPSILON_MULTIPLES) else []
    curve = []
    for epsilon in radii:
        begin(f"pgd-{EPSILON_STEPS} at epsilon {epsilon:.3g}")
        spec = AttackSpec(
            threat_model=ThreatModel(norm, epsilon), steps=EPSILON_STEPS, step_size=epsilon / 20
        )
        curve.append([epsilon, len(robust_image_ids(subject.outcomes(spec))) / subject.n])
    return curve


def restart_of(table: pa.Table, attack: AttackSpec) -> np.ndarray:
    """Return the restart of every row; a targeted attack has one run for each target in each."""
    return np.array(table["restart"].to_pylist()) // max(1, attack.targets)


def steps_curve(table: pa.Table, attack: AttackSpec) -> list[list[float]]:
    """Return [k, robust accuracy after k steps] of the first restart, from when each image broke."""
    first = table.filter(pa.array(restart_of(table, attack) == 0))
    broken_at: dict[int, float] = {}
    for image_id, step in zip(
        first["image_id"].to_pylist(), first["first_broken_step"].to_pylist(), strict=True
    ):
        at = {NEVER: np.inf, CLEAN_ERROR: -1.0}.get(step, float(step))
        broken_at[image_id] = min(broken_at.get(image_id, np.inf), at)
    values = np.array(list(broken_at.values()))
    marks = sorted(
        {
            0,
            *(k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k < attack.steps),
            attack.steps // 2,
            attack.steps,
        }
    )
    return [[mark, float((values > mark).mean())] for mark in marks]


def accuracy_by_restart(table: pa.Table, attack: AttackSpec) -> list[float]:
    """Return the robust accuracy after 1, 2, ... restarts of the attack."""
    tried = restart_of(
        table, attack
    )  # a restart has rows only for the images that the ones before it left
    n = len(set(table["image_id"].to_pylist()))
    return [
        len(robust_image_ids(table.filter(pa.array(tried <= last)))) / n
        for last in range(attack.restarts)
    ]
