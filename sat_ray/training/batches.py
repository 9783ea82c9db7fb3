"""The batches of a training: one per BatchNorm group, and the processes share the groups."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sat_ray.data.choices import extra_images
from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.extra import Extra, ExtraLoader, extra_order, joined
from sat_ray.data.loading import Loader, loader_of
from sat_ray.data.split import Split
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import Problem, groups_of


class Batches:
    """Read the training images of one process in the order of the steps.

    steps: of an epoch, a pass over `train`; extra: a share of every group.

    Raises ValueError where the images do not fill one global batch, or a process gets no BatchNorm
    group.
    """

    def __init__(
        self,
        train: Split | Loader,
        problem: Problem,
        *,
        process_group: ProcessGroup,
        device: torch.device,
        extra: Extra | None = None,
    ) -> None:
        self.settings = problem.settings
        self.seed = problem.seed
        self.groups = groups_of(
            self.settings, rank=process_group.rank, world_size=process_group.size
        )
        self.device = device
        self.loader = loader_of(train, device)
        self.extra: ExtraLoader | None = None
        self.extra_size = 0
        if extra is not None:
            self.extra = extra.loader(device)
            self.extra_size = extra_images(extra.share, self.settings.batchnorm_group_size)
        images = sum(self.loader.shards)
        own = self._all_groups * self._own_size
        self.steps = images // own
        if self.steps == 0:
            less = f" ({own} of them not extra)" if self.extra else ""
            raise ValueError(
                f"training.global_batch_size must be at most {images}, the number of training "
                f"images, got {self.settings.global_batch_size}{less}"
            )

    def of_epoch(self, epoch: int, *, first: int) -> Iterator[tuple[int, list[Split]]]:
        """Yield the number of each step from `first` on, with one batch per BatchNorm group."""
        plan = self._order(epoch)[first:, self.groups]
        batches = self.loader.batches(plan)
        if self.extra is not None:
            more = self.extra.batches(self._extra_order(epoch)[first:, self.groups])
            batches = self._joined(batches, more)
        yield from enumerate(batches, start=first)

    def image_ids(self, epoch: int, step: int) -> list[int]:
        """Return the ids of the images of one step, over all processes."""
        ids: list[int] = self.loader.ids(self._order(epoch)[step].flatten()).tolist()
        if self.extra is not None:
            ids += self.extra.ids(self._extra_order(epoch)[step].flatten()).tolist()
        return ids

    @property
    def _all_groups(self) -> int:
        """Return the number of groups of a global batch, over all processes."""
        return self.settings.global_batch_size // self.settings.batchnorm_group_size

    @property
    def _own_size(self) -> int:
        """Return how many images of a group are not extra."""
        return self.settings.batchnorm_group_size - self.extra_size

    def _joined(
        self, batches: Iterator[list[Split]], more: Iterator[list[Split]]
    ) -> Iterator[list[Split]]:
        for own, extra in zip(batches, more, strict=True):
            yield [joined(*both, self.device) for both in zip(own, extra, strict=True)]

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of every group of every step, (steps, groups, group size)."""
        return epoch_order(
            self.loader.shards,
            groups=self._all_groups,
            group_size=self._own_size,
            window=self.settings.shuffle_window,
            seed=self.seed,
            epoch=epoch,
        )

    def _extra_order(self, epoch: int) -> Tensor:
        """Return the same of the extra images."""
        assert self.extra is not None
        return extra_order(
            self.extra.shards,
            steps=self.steps,
            groups=self._all_groups,
            group_size=self.extra_size,
            window=self.settings.shuffle_window,
            seed=self.seed,
            epoch=epoch,
        )
