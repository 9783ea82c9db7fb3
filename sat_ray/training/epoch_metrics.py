"""What the steps of an epoch add up to, kept on the device so that no step waits for the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_ray.attacks.losses import classes_of
from sat_ray.threat import ThreatModel
from sat_ray.training.parallel.process_group import ProcessGroup

NEVER = 2**62
SHOWN = 8


class NonFiniteLossError(FloatingPointError):
    """The loss of a step, or the weights after it, are NaN or infinite.

    step: the first such step of the epoch; image_ids: of its global batch.
    """

    step: int = -1
    image_ids: tuple[int, ...] = ()

    @classmethod
    def at(
        cls, epoch: int, step: int, image_ids: Sequence[int], *, seed: int, saved: tuple[int, int]
    ) -> "NonFiniteLossError":
        """Build it. saved: epochs done, and steps of the next, of the last good state."""
        shown = ", ".join(map(str, image_ids[:SHOWN])) + (", ..." if len(image_ids) > SHOWN else "")
        error = cls(
            f"training loss or weights became NaN or infinite in epoch {epoch}, step {step} (seed "
            f"{seed}), on the {len(image_ids)} images with ids {shown}; try a smaller "
            f"training.learning_rate; the last good state is of epoch {saved[0]}, step {saved[1]}"
        )
        error.step = step
        error.image_ids = tuple(image_ids)
        return error


class Totals:
    """Add up loss, correct predictions and images of an epoch, and watch for what must not be.

    sums: what all processes had added up before a checkpoint.
    overshoot: how far any image has left the threat model; bad_step: the first step whose loss is
    not finite.
    """

    def __init__(
        self,
        sums: tuple[float, float, float],
        *,
        device: torch.device,
        process_group: ProcessGroup,
    ) -> None:
        self.process_group = process_group
        # the sums of all processes count once
        earlier = sums if process_group.rank == 0 else (0.0, 0.0, 0.0)
        self.sums = torch.tensor(earlier, dtype=torch.float32, device=device)
        self.overshoot = torch.zeros((), dtype=torch.float32, device=device)
        self.bad_step = torch.full((), NEVER, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, losses: Tensor, logits: Tensor, y: Tensor, *, step: int) -> None:
        """Count the images of one forward pass.

        y: (N,) classes, or (N, K) soft labels, whose largest share is the right answer.
        """
        loss = losses.sum()
        self.sums[0] += loss
        self.sums[1] += (logits.argmax(dim=1) == classes_of(y)).sum()
        self.sums[2] += len(y)
        self.bad_step = torch.where(
            torch.isfinite(loss), self.bad_step, self.bad_step.clamp_max(step)
        )

    @torch.no_grad()
    def watch(self, x_adv: Tensor, x: Tensor, threat_model: ThreatModel) -> None:
        """Remember how far any image has left its ball or the box."""
        outside = torch.maximum(
            threat_model.distance(x_adv, x).max() - threat_model.epsilon,
            (x_adv - 0.5).abs().max() - 0.5,
        )
        self.overshoot = torch.maximum(self.overshoot, outside)

    def summed(self) -> tuple[float, float, float]:
        """Return loss, correct predictions and images over all processes; all must call it."""
        loss, correct, images = self.process_group.sum(self.sums.clone()).tolist()
        return loss, correct, images

    def first_bad_step(self) -> int | None:
        """Return the first step with a loss that is not finite in any process; all must call it."""
        steps = torch.zeros(self.process_group.size, dtype=torch.int64)
        steps[self.process_group.rank] = int(self.bad_step)
        first = int(self.process_group.sum(steps).min())
        return None if first == NEVER else first
