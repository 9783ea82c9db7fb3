"""The subject of a robustness card: one model, some images, and ways to run the model on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.base import Model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.padding import pad
from sat_ray.evaluation.engine.run_attack import slot_logits
from sat_ray.evaluation.inputs import device_of
from sat_ray.evaluation.robustness import evaluate
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness, sample_rows

Variants = Callable[[AttackSpec], Sequence[AttackSpec]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Hold what is measured: a model, the images of the card, and how they are run."""

    model: Model
    split: Split
    threat_model: ThreatModel
    variants: Variants
    seed: int
    slots: int

    @property
    def n(self) -> int:
        """Return the number of images: the denominator of every accuracy."""
        return len(self.split)

    def of(self, image_ids: set[int]) -> "Subject":
        """Return the same model with these of its images alone."""
        return replace(self, split=self.split.with_ids(image_ids))

    def outcomes(self, *specs: AttackSpec, in_turn: bool = False) -> pa.Table:
        """Attack through every variant of every spec.

        in_turn: each attack gets the survivors of those before it.
        """
        attacks = [variant for spec in specs for variant in self.variants(spec)]
        images, labels, ids = self.split.images, self.split.labels, self.split.image_ids
        return evaluate(
            self.model,
            images,
            labels,
            ids,
            attacks=attacks,
            seed=self.seed,
            slots=self.slots,
            cascade=in_turn,
        )

    def logits(self, rows: Tensor | None = None) -> Tensor:
        """Run the model on the clean images, or on these rows of them, (N, K) float32."""
        split = self.split if rows is None else self.split.take(rows)
        return slot_logits(
            self.model,
            split.images,
            split.image_ids,
            slots=self.slots,
            device=device_of(self.model),
        )

    def blocks(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Randomness, int]]:
        """Cut rows of the split into (x, y, rng, real rows) of exactly `slots` rows each.

        They are on the model's device.
        """
        device = device_of(self.model)
        found = []
        for part in torch.split(rows, self.slots):
            chosen = self.split.take(pad(part, self.slots))
            rng = Randomness(self.seed, chosen.image_ids.to(device))
            found.append(
                (to_pixels(chosen.images.to(device)), chosen.labels.to(device), rng, len(part))
            )
        return found


def sample(split: Split, count: int, *, seed: int) -> Split:
    """Return at most `count` images: those whose random key is smallest.

    This is a pure function of (seed, image ids).
    """
    return split.take(sample_rows(Randomness.of(seed, split.image_ids), count, purpose="card"))
