"""Smooth adversarial training: inner maximization through a view in inference mode, outer minimization through the model.

    min_theta  E [ max_{x' in S(x)}  L(f_theta(x'), y) ]          (Madry et al. 2018; Xie et al. 2020, equation 1)

A global batch is cut into BatchNorm groups of a fixed size. Each group is normalised by its own statistics, gradients and running
statistics are averaged over all groups, and the groups are dealt to the processes: so N processes compute what one process computes.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sat_ray.attacks import InfeasiblePointError
from sat_ray.attacks.spec import true_and_smooth
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation import clean_correct_ids, evaluate, robust_image_ids
from sat_ray.losses import cross_entropy
from sat_ray.models import Normalized, assert_shares_storage, settle_layout, view
from sat_ray.randomness import Randomness, permutation
from sat_ray.running_statistics import RunningStatistics
from sat_ray.schedules import learning_rate_factor
from sat_ray.threat import TOLERANCE, ThreatModel
from sat_ray.training_settings import TrainingSettings, local_groups
from sat_ray.world import World


@dataclass
class TrainingState:
    """Everything needed to go on as if nothing had happened; tensors on the CPU, keyed by parameter or buffer name.

    epoch: epochs done; best: weights with the highest (robust, clean) validation accuracy so far, at best_epoch; seconds: spent so far.
    """

    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: tuple[float, float] = (-1.0, -1.0)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did. metrics: names as in MLflow, accuracies over all processes; state: to be saved or thrown away."""

    epoch: int
    metrics: dict[str, float]
    state: TrainingState


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Decay convolution and linear weights; leave biases, BatchNorm and learned alphas alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def fit(
    model: Normalized,
    train: Split,
    val: Split,
    *,
    settings: TrainingSettings,
    threat_model: ThreatModel,
    attacker_activation: str | None = None,
    attacker_alpha: float | None = None,
    seed: int = 0,
    world: World | None = None,
    state: TrainingState | None = None,
    until: int | None = None,
    lanes: int = 32,
) -> Iterator[EpochReport]:
    """Train `model` in place and yield a report after every epoch, on every process.

    attacker_activation: the attack's view of the model, None for the model's own; state: go on from here; until: stop after this many
    epochs of the schedule; the model must already be on its device, with the same initial weights everywhere. The last epoch is validated.
    Raises ValueError on settings that do not fit, FloatingPointError on NaN loss.
    """
    run = _Run(
        model,
        train,
        val,
        settings,
        threat_model,
        attacker_activation,
        attacker_alpha,
        seed,
        world or World(),
        state or TrainingState(),
        lanes,
    )
    last = settings.epochs if until is None else min(until, settings.epochs)
    for epoch in range(run.state.epoch, last):
        yield run.epoch(epoch, validate=(epoch + 1) % settings.validate_every == 0 or epoch + 1 == last)


class _Run:
    """One training in one process."""

    def __init__(
        self,
        model: Normalized,
        train: Split,
        val: Split,
        settings: TrainingSettings,
        threat_model: ThreatModel,
        attacker_activation: str | None,
        attacker_alpha: float | None,
        seed: int,
        world: World,
        state: TrainingState,
        lanes: int,
    ) -> None:
        self.groups = local_groups(settings, world_size=world.size)
        self.steps_per_epoch = len(train) // settings.global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"training.global_batch_size is {settings.global_batch_size}; allowed: at most the {len(train)} training images"
            )
        self.settings, self.threat_model, self.seed, self.world, self.state, self.lanes = settings, threat_model, seed, world, state, lanes
        self.device = next(model.parameters()).device
        self.layout = settle_layout(model)
        self.model = model.train()
        self.train, self.val = train, val
        self.attack = settings.attack(threat_model)
        self.attacker = view(model, attacker_activation, alpha=attacker_alpha)
        self.own_view = view(model)
        assert model.spec is not None
        self.validation_attacks = true_and_smooth(
            settings.validation_attack(threat_model),
            activation=model.spec.activation,
            attacker_activation=attacker_activation,
            alpha=model.spec.alpha if attacker_alpha is None else attacker_alpha,
        )
        groups = parameter_groups(model, weight_decay=settings.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
        self._load(state)
        self.statistics = RunningStatistics(model, groups=self.groups, world=world)
        self.ddp = DistributedDataParallel(model, broadcast_buffers=False) if world.size > 1 else None
        assert_shares_storage(model, self.attacker)

    def epoch(self, epoch: int, *, validate: bool) -> EpochReport:
        """Train for one epoch, validate if asked, and take stock."""
        started = perf_counter()
        totals = torch.zeros(4, device=self.device)  # loss, correct, images, worst overshoot (kept on the device: no waiting in the loop)
        order = permutation(len(self.train), seed=self.seed, epoch=epoch)
        for step in range(self.steps_per_epoch):
            factor = learning_rate_factor(
                epoch + step / self.steps_per_epoch,
                schedule=self.settings.schedule,
                epochs=self.settings.epochs,
                warmup_epochs=self.settings.warmup_epochs,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * max(factor, 1e-3)
            self._update(self._rows(order, step), epoch, totals)
        metrics = self._training_metrics(totals, started, epoch)
        if validate:
            metrics |= self._validate()
        self.state.seconds += perf_counter() - started
        self._save(epoch, metrics)
        return EpochReport(epoch, metrics, self.state)

    def _rows(self, order: Tensor, step: int) -> list[Tensor]:
        """Return this process's BatchNorm groups of one global batch, as rows of the training split."""
        size = self.settings.batchnorm_group_size
        first = step * self.settings.global_batch_size + self.world.rank * self.groups * size
        return [order[first + group * size : first + (group + 1) * size] for group in range(self.groups)]

    def _update(self, groups: list[Tensor], epoch: int, totals: Tensor) -> None:
        crafted = [self._craft(self.train.take(rows), epoch, totals) for rows in groups]
        self.optimizer.zero_grad(set_to_none=True)
        for index, (x_adv, y) in enumerate(crafted):
            forward = self.model if self.ddp is None else self.ddp
            quiet = self.ddp.no_sync() if self.ddp is not None and index + 1 < len(crafted) else nullcontext()
            with quiet, self.statistics.group(index):
                logits = forward(x_adv)
                losses = cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)
                torch.mean(losses / len(crafted)).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                totals[0] += losses.sum()
                totals[1] += (logits.argmax(dim=1) == y).sum()
                totals[2] += len(y)
        self.statistics.average()
        self.optimizer.step()

    def _craft(self, batch: Split, epoch: int, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Inner maximization; the view is in inference mode, so BatchNorm statistics stand still."""
        x, y = to_pixels(batch.images.to(self.device)).contiguous(memory_format=self.layout), batch.labels.to(self.device)
        rng = Randomness(self.seed, batch.image_ids.to(self.device))
        x_adv = self.attack.run(self.attacker, x, y, rng, step=epoch)
        overshoot = torch.maximum(self.threat_model.distance(x_adv, x).max() - self.threat_model.epsilon, (x_adv - 0.5).abs().max() - 0.5)
        totals[3] = torch.maximum(totals[3], overshoot)
        return x_adv, y

    def _training_metrics(self, totals: Tensor, started: float, epoch: int) -> dict[str, float]:
        if totals[3] > TOLERANCE:
            raise InfeasiblePointError(f"the training attack left {self.threat_model} by {float(totals[3]):.3g} in epoch {epoch}")
        loss, correct, images = self.world.sum(totals[:3].clone()).tolist()
        if not torch.isfinite(torch.tensor(loss)):
            raise FloatingPointError(
                f"training loss became {loss} in epoch {epoch} (seed {self.seed}); try a smaller training.learning_rate; "
                f"the last good epoch is {self.state.epoch - 1}"
            )
        return {
            "train/loss": loss / images,
            "train/adversarial_accuracy": correct / images,
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "throughput/images_per_second": images / (perf_counter() - started),
        }

    def _validate(self) -> dict[str, float]:
        mine = self.val.take(slice(self.world.rank, None, self.world.size))
        table = evaluate(
            self.own_view, mine.images, mine.labels, mine.image_ids, attacks=self.validation_attacks, seed=self.seed, lanes=self.lanes
        )
        counts = torch.tensor([len(clean_correct_ids(table)), len(robust_image_ids(table)), len(mine)], dtype=torch.float64)
        clean, robust, images = self.world.sum(counts).tolist()
        return {"val/clean_accuracy": clean / images, "val/robust_accuracy": robust / images}

    def _save(self, epoch: int, metrics: dict[str, float]) -> None:
        state, model = self.state, self.model
        state.epoch = epoch + 1
        state.history.append({"epoch": float(epoch), **metrics})
        state.weights = _copy(model.state_dict())
        named = {id(p): name for name, p in model.named_parameters()}
        buffers = {named[id(p)]: slot["momentum_buffer"] for p, slot in self.optimizer.state.items() if "momentum_buffer" in slot}
        state.momentum = _copy(buffers)
        if "val/robust_accuracy" in metrics:
            score = (metrics["val/robust_accuracy"], metrics["val/clean_accuracy"])
            if score >= state.best_score:
                state.best, state.best_epoch, state.best_score = state.weights, epoch, score

    def _load(self, state: TrainingState) -> None:
        if not state.weights:
            return
        self.model.load_state_dict(state.weights)
        for name, parameter in self.model.named_parameters():
            if name in state.momentum:
                buffer = torch.empty_like(parameter).copy_(state.momentum[name])
                self.optimizer.state[parameter] = {"momentum_buffer": buffer}


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
