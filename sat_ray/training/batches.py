"""The batches of a training: one per BatchNorm group, and the processes share the groups."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.loading import Loader, loader_of
from sat_ray.data.split import Split
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import Problem, groups_of


class Batches:
    """Read the training images of one process in the order of the steps.

    steps: of an epoch. Raises ValueError where the images do not fill one global batch, or a
    process gets no BatchNorm group.
    """

    def __init__(
        self,
        train: Split | Loader,
        problem: Problem,
        *,
        process_group: ProcessGroup,
        device: torch.device,
    ) -> None:
        self.settings = problem.settings
        self.seed = problem.seed
        self.groups = groups_of(
            self.settings, rank=process_group.rank, world_size=process_group.size
        )
        self.loader = loader_of(train, device)
        images = sum(self.loader.shards)
        self.steps = images // self.settings.global_batch_size
        if self.steps == 0:
            raise ValueError(
                f"training.global_batch_size must be at most {images}, the number of training "
                f"images, got {self.settings.global_batch_size}"
            )

    def of_epoch(self, epoch: int, *, first: int) -> Iterator[tuple[int, list[Split]]]:
        """Yield the number of each step from `first` on, with one batch per BatchNorm group."""
        plan = self._order(epoch)[first:, self.groups]
        yield from enumerate(self.loader.batches(plan), start=first)

    def image_ids(self, epoch: int, step: int) -> list[int]:
        """Return the ids of the images of one step, over all processes."""
        ids: list[int] = self.loader.ids(self._order(epoch)[step].flatten()).tolist()
        return ids

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of every group of every step, (steps, groups, group size)."""
        size = self.settings.batchnorm_group_size
        return epoch_order(
            self.loader.shards,
            groups=self.settings.global_batch_size // size,
            group_size=size,
            window=self.settings.shuffle_window,
            seed=self.seed,
            epoch=epoch,
        )
