"""Accuracy on held-out images while a model trains, counted over all processes."""

import torch
from torch import nn

from sat_ray.attacks.spec import AttackSpec, true_and_smooth
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import ModelSpec
from sat_ray.training.catastrophic_overfitting import guard_attack
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import Problem


class Validation:
    """Attack held-out images, each process its share of them.

    spec: of the model that trains; slots: of the evaluation.
    """

    def __init__(
        self,
        val: Split,
        problem: Problem,
        *,
        spec: ModelSpec,
        process_group: ProcessGroup,
        slots: int,
    ) -> None:
        self.val = val
        self.problem = problem
        self.process_group = process_group
        self.slots = slots
        attacks = problem.settings.validation_attacks(
            problem.threat_model, num_classes=spec.num_classes
        )
        self.attacks = _variants(attacks, problem, spec)
        self.guard_attacks = _variants([guard_attack(problem.threat_model)], problem, spec)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Return clean and robust accuracy on all validation images."""
        clean, robust, images = self._count(model, self.val, self.attacks)
        return {"val/clean_accuracy": clean / images, "val/robust_accuracy": robust / images}

    def guard_counts(self, model: nn.Module) -> tuple[int, int]:
        """Return how many of the guard's images stay right under its attack, and their number."""
        held_out = self.val.take(slice(0, self.problem.settings.guard_images))
        _, robust, images = self._count(model, held_out, self.guard_attacks)
        return robust, images

    def _count(
        self, model: nn.Module, split: Split, attacks: list[AttackSpec]
    ) -> tuple[int, int, int]:
        """Return how many images are right, right under every attack, and in the split."""
        rank = self.process_group.rank
        mine = split.take(slice(rank, None, self.process_group.size))
        table = evaluate(
            model,
            mine.images,
            mine.labels,
            mine.image_ids,
            attacks=attacks,
            seed=self.problem.seed,
            slots=self.slots,
            cascade=True,
        )
        counts = torch.tensor(
            [len(clean_correct_ids(table)), len(robust_image_ids(table)), len(mine)]
        )
        clean, robust, images = self.process_group.sum(counts).tolist()
        return clean, robust, images


def _variants(attacks: list[AttackSpec], problem: Problem, spec: ModelSpec) -> list[AttackSpec]:
    """Return the attacks through every backward pass that belongs to the model's forward pass."""
    alpha = spec.alpha if problem.attacker_alpha is None else problem.attacker_alpha
    return [
        variant
        for attack in attacks
        for variant in true_and_smooth(
            attack,
            activation=spec.activation,
            attacker_activation=problem.attacker_activation,
            alpha=alpha,
        )
    ]
