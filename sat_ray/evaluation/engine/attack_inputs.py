"""What the engine attacks: images, their labels, their random streams, and their runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.padding import pad
from sat_ray.utils.randomness import Randomness

if TYPE_CHECKING:
    from sat_ray.attacks import Attack, State


@dataclass(frozen=True, kw_only=True)
class AttackInputs:
    """Hold N images and what their runs start from, all on the CPU.

    images: (N, C, H, W) uint8; y: (N,) int64; rng: one stream per image, run r draws from restart
    rng.restart + r; target: (N, runs) int64, the classes that the runs of a targeted attack move
    towards; runs: >= 1, of each image.
    """

    images: Tensor
    y: Tensor
    rng: Randomness
    target: Tensor | None = None
    runs: int = 1

    @classmethod
    def of(
        cls,
        split: Split,
        *,
        seed: int = 0,
        restart: int = 0,
        target: Tensor | None = None,
        runs: int = 1,
    ) -> "AttackInputs":
        """Build from a split on the CPU. restart: of the first run."""
        rng = Randomness(seed, split.image_ids, restart)
        return cls(images=split.images, y=split.labels, rng=rng, target=target, runs=runs)

    def __len__(self) -> int:
        return len(self.images)

    def single_runs(self, image: Tensor, run: int | Tensor) -> "AttackInputs":
        """Return inputs of one run per image: this run of each of these images.

        image: (M,) int64; run: one number, or (M,) int64.
        """
        return AttackInputs(
            images=self.images[image],
            y=self.y[image],
            rng=self.rng.take(image).further(run),
            target=None if self.target is None else self.target[image, run][:, None],
        )

    def start(
        self, attack: "Attack", numbers: Tensor, *, rows: int, device: torch.device
    ) -> "State":
        """Start runs in a state of `rows` rows, of which the first len(numbers) count.

        numbers: run r of image i has the number r * N + i.
        """
        image = numbers % len(self)
        run = numbers // len(self)
        rng = self.rng.take(image).further(run)
        assert isinstance(rng.restart, Tensor)

        def on_device(values: Tensor) -> Tensor:
            return pad(values.to(device), rows)

        target = None if self.target is None else on_device(self.target[image, run])
        return attack.start(
            to_pixels(on_device(self.images[image])),
            on_device(self.y[image]),
            Randomness(rng.seed, on_device(rng.image_ids), on_device(rng.restart)),
            target=target,
        )
