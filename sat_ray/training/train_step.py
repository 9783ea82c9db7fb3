"""The outer minimization: one update of the weights from adversarial images, in one process."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sat_ray.models.parity import gradients_by_name, require_agreement
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.objectives import AdversarialBatch, Forward, Objective
from sat_ray.training.optimization.ema import WeightAverage
from sat_ray.training.optimization.optimizer import (
    make_optimizer,
    restore_state,
    set_learning_rate,
    state_of,
)
from sat_ray.training.optimization.weight_perturbation import WeightPerturbation
from sat_ray.training.parallel.batchnorm_groups import RunningStatistics
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.state import joined, part_of
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.compile import compiled
from sat_ray.utils.precision import autocast


def _differentiate(loss: Tensor) -> None:
    """Accumulate the gradients of a loss; ValueError where DDP waits for one that is missing."""
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        _refuse_skipped_layers(error)
        raise


def _refuse_skipped_layers(error: RuntimeError) -> None:
    """Raise ValueError for DDP's error about a parameter without a gradient in one process."""
    if "Expected to have finished reduction" in str(error):
        raise ValueError(
            "the network left a parameter without a gradient in a training step, and the other "
            "processes wait for it; multiply the output of a skipped layer by 0 instead of "
            "skipping it (torchvision.ops.StochasticDepth), or train with one worker"
        ) from error


class TrainStep:
    """Update a model in place, with its optimizer and perhaps an average of its weights.

    The weights must be the same in every process of the group.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainingSettings,
        *,
        process_group: ProcessGroup,
    ) -> None:
        self.model = model
        self.objective = objective
        self.settings = settings
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(model, settings)
        self.average = (
            WeightAverage(model, decay=settings.ema_decay) if settings.ema_decay else None
        )
        self.perturbation = (
            WeightPerturbation(model, gamma=settings.awp_gamma) if settings.awp_gamma else None
        )
        groups = settings.global_batch_size // settings.batchnorm_group_size
        # DDP takes the mean over processes, some of which may have one group more than others
        self.share = groups / process_group.size
        self.statistics = RunningStatistics(model, groups=groups, process_group=process_group)
        self.ddp: DistributedDataParallel | None = None
        if process_group.size > 1:
            self.ddp = DistributedDataParallel(model, broadcast_buffers=False)
        self.plain: nn.Module = model if self.ddp is None else self.ddp
        self.forward: Forward = compiled(self.plain) if settings.compile else self.plain
        self.checked = not settings.compile

    @property
    def result(self) -> nn.Module:
        """Return the module to validate and save: the average where one is kept."""
        return self.model if self.average is None else self.average.model

    def update(
        self,
        adversarial: Sequence[AdversarialBatch],
        totals: Totals,
        *,
        learning_rate: float,
        step: int,
        number: int,
        perturbed: bool = True,
    ) -> None:
        """Take one step along the mean gradient of all groups of all processes.

        adversarial: one batch per group; step: of the epoch, for the totals; number: updates before
        this one; perturbed: whether the settings' weight perturbation, if any, is used.
        """
        set_learning_rate(self.optimizer, learning_rate)
        self._check_compiled(adversarial[0])
        perturbation = self.perturbation if perturbed else None
        if perturbation is not None:
            with self._buffers_kept():
                for _ in self._passes(adversarial):
                    pass
            perturbation.add()
        for (_, _, y), losses, logits in self._passes(adversarial):
            totals.add(losses, logits, y, step=step)
        self.statistics.average()
        if perturbation is not None:
            perturbation.remove()
        if self.settings.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(number)

    def _passes(
        self, adversarial: Sequence[AdversarialBatch]
    ) -> Iterator[tuple[AdversarialBatch, Tensor, Tensor]]:
        """Yield losses and logits of every group; then the mean gradient is at the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(adversarial):
            last = index + 1 == len(adversarial)
            with nullcontext() if last else self._alone(), self.statistics.group(index):
                with autocast(self.settings.precision, self.device):
                    losses, logits = self.objective.losses(self.forward, *batch)
                _differentiate(torch.mean(losses / self.share))
            yield batch, losses, logits

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the model's buffers, such as running statistics, back afterwards."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        yield
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _check_compiled(self, batch: AdversarialBatch) -> None:
        """Compare, once, the compiled model's logits and gradients with the plain model's."""
        if self.checked:
            return
        self.checked = True
        precision = self.settings.precision
        require_agreement(
            self._logits_and_gradients(self.forward, batch, precision=precision),
            self._logits_and_gradients(self.plain, batch, precision=precision),
            self._logits_and_gradients(self.plain, batch, precision="float32"),
            what="model",
            precision=precision,
            asked="training.compile",
        )

    def _logits_and_gradients(
        self, forward: Forward, batch: AdversarialBatch, *, precision: str
    ) -> dict[str, Tensor]:
        """Return logits and weight gradients of a batch by name; buffers stay as they are."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        with self._buffers_kept():
            with self._alone(), autocast(precision, self.device):
                losses, logits = self.objective.losses(forward, *batch)
            gradients = torch.autograd.grad(losses.sum(), parameters)
        named = gradients_by_name(zip(names, gradients, strict=True))
        return {"logits": logits.detach().float(), **named}

    def _alone(self) -> AbstractContextManager[None]:
        """Return the context in which processes do not wait for each other's gradients."""
        return nullcontext() if self.ddp is None else self.ddp.no_sync()

    def finite(self) -> bool:
        """Return whether every weight and running statistic is a finite number."""
        numbers = [
            tensor
            for tensor in self.model.state_dict().values()
            if tensor.is_floating_point() and tensor.numel()
        ]
        # the largest entry of all tensors, in a few kernels
        return bool(nn.utils.get_total_norm(numbers, norm_type=torch.inf).isfinite())

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies on the CPU of weights, optimizer state and average, keyed `part/name`."""
        average = {} if self.average is None else self.average.model.state_dict()
        tensors = joined(
            weights=self.model.state_dict(),
            optimizer=state_of(self.model, self.optimizer),
            average=average,
        )
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to a snapshot, in place."""
        self.model.load_state_dict(part_of(tensors, "weights"))
        restore_state(self.model, self.optimizer, part_of(tensors, "optimizer"))
        if self.average is not None:
            self.average.model.load_state_dict(part_of(tensors, "average"))
