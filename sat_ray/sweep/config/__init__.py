"""The full typed description of a sweep.

A recipe is a function that returns one; options override its fields.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sat_ray.attacks.cascade import strong_attacks
from sat_ray.attacks.spec import AttackSpec
from sat_ray.data.choices import extra_images
from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.sweep.config.evaluation import EvaluationSettings, Strong
from sat_ray.sweep.config.inputs import DataSettings, ModelSettings
from sat_ray.sweep.config.resources import CostSettings, ResourceSettings
from sat_ray.sweep.config.search import SEARCHED, TABLE1_PAIRS, FinalSettings, SearchSettings
from sat_ray.threat import ThreatModel
from sat_ray.training.progressive_resizing import check_resizing
from sat_ray.training.settings import TrainingSettings, check_even
from sat_ray.utils.bounds import check_fields
from sat_ray.utils.precision import check_accelerator
from sat_ray.utils.serialization import to_json

__all__ = [
    "SEARCHED",
    "TABLE1_PAIRS",
    "CostSettings",
    "DataSettings",
    "EvaluationSettings",
    "FinalSettings",
    "ModelSettings",
    "Recipe",
    "ResourceSettings",
    "SearchSettings",
    "Strong",
    "SweepConfig",
]

YAML_HEAD = (
    "# Starts this sweep: sat-ray sweep --config FILE{named}\n"
    "# Options of the command line replace values of the file.\n"
)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Everything that determines a sweep's results, and the resources it takes."""

    recipe: str
    """Name of the recipe this started from."""
    threat_model: ThreatModel
    """What the attacker may do: norm and epsilon."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    final: FinalSettings = field(default_factory=FinalSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    card: CardSettings = field(default_factory=CardSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    cost: CostSettings = field(default_factory=CostSettings)

    def __post_init__(self) -> None:
        check_fields(self, prefix="")
        self.training.step_size(self.threat_model)  # refuses one that is too small
        self.training.validation_attacks(self.threat_model, num_classes=2)
        self.evaluation_attacks()
        if self.training.warmup_epochs > self.training.epochs:
            raise ValueError(
                "training.warmup_epochs must be a number from 0 to training.epochs, "
                f"{self.training.epochs}, got {self.training.warmup_epochs:g}; "
                "a longer one never reaches the learning rate"
            )
        check_even(self.training, world_size=self.resources.train_workers)
        check_accelerator(self.training.precision, self.resources.accelerator)
        if (shape := self.data.shape()) is not None:
            check_resizing(self.training, shape)
        if self.data.extra:
            extra_images(self.data.extra_share, self.training.batchnorm_group_size)

    def evaluation_attacks(self) -> list[AttackSpec]:
        """Return the attacks of the evaluate stage, before views are chosen."""
        e = self.evaluation
        exact = AttackSpec(
            threat_model=self.threat_model,
            steps=e.steps,
            step_size=e.step_size,
            restarts=e.restarts,
        )
        spec = dataclasses.replace(exact, gradient=e.gradient, name="")
        if not e.final_iterate:
            return [spec]
        return [spec, dataclasses.replace(exact, final_iterate=True, name="")]

    def strong_attacks(self, num_classes: int) -> list[AttackSpec]:
        """Return the attacks behind the strong verdict, before views are chosen.

        [] where no model meets any.
        """
        e = self.evaluation
        if e.strong == "none":
            return []
        return strong_attacks(
            self.threat_model,
            num_classes=num_classes,
            steps=e.strong_steps,
            targets=e.strong_targets,
            gradient=e.gradient,
        )

    def images_per_epoch(self, train_images: int) -> int:
        """Return how many images an epoch trains on, the extra ones included."""
        if not self.data.extra:
            return train_images
        group = self.training.batchnorm_group_size
        own = group - extra_images(self.data.extra_share, group)
        return train_images * group // own

    def trial_training(self) -> TrainingSettings:
        """Return the training of a search trial, validated at the rungs.

        The whole schedule is squeezed into the longest rung.
        """
        return dataclasses.replace(
            self.training, epochs=self.search.rungs[-1], validate_every=self.search.rungs[-1]
        )

    def semantic(self) -> dict[str, Any]:
        """Return what determines the results, as JSON: all but the resources and their price."""
        value: dict[str, Any] = to_json(self)
        del value["resources"], value["cost"]
        return value | {"data": self.data.semantic()}

    def as_yaml(self, *, name: str = "") -> bytes:
        """Return the config as a file for people, which `--config` reads back.

        name: of the sweep; the one made from the recipe and the overrides may be another.
        """
        import yaml  # only here: most commands write no YAML

        text: str = yaml.safe_dump(to_json(self), sort_keys=False, allow_unicode=True)
        head = YAML_HEAD.format(named=f" --name {name}" if name else "")
        return f"{head}{text}".encode()


Recipe = Callable[[], SweepConfig]
