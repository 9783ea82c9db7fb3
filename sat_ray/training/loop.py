"""Smooth adversarial training: inner maximization through a view in inference mode, outer minimization through the model.

    min_theta  E [ max_{x' in S(x)}  L(f_theta(x'), y) ]          (Madry et al. 2018; Xie et al. 2020, equation 1)

A global batch is cut into BatchNorm groups of a fixed size. Each group is normalised by its own statistics, gradients and running
statistics are averaged over all groups, and the groups are dealt to the processes: so N processes compute what one process computes.
A process works through its groups one after the other: a global batch too large for its memory needs smaller groups, nothing else.
"""

from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor, nn

from sat_ray.attacks import InfeasiblePointError
from sat_ray.attacks.spec import AttackSpec, true_and_smooth
from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.loading import Loader, loader_of
from sat_ray.data.split import Arrays, Split, given_split
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, assert_shares_storage, settle_layout, view
from sat_ray.threat import TOLERANCE, ThreatModel
from sat_ray.training.adversary import AlphaSchedule, Crafter, follow
from sat_ray.training.catastrophic_overfitting import collapse_error, event_of, guard_attack
from sat_ray.training.epoch_metrics import NonFiniteLossError, Totals
from sat_ray.training.objectives import make_objective
from sat_ray.training.optimization.schedules import FLOOR, learning_rate_factor
from sat_ray.training.parallel.onednn_workaround import KernelReach
from sat_ray.training.parallel.process_group import World
from sat_ray.training.progressive_resizing import check_resizing, image_shape
from sat_ray.training.resume.preemption import PreemptionWatcher
from sat_ray.training.resume.state import EpochReport, TrainingState, joined, part_of
from sat_ray.training.settings import TrainingSettings, groups_of
from sat_ray.training.train_step import Learner
from sat_ray.utils.compile import check_compiler, forget_graphs
from sat_ray.utils.precision import check_precision

__all__ = ["EpochReport", "TrainingSettings", "TrainingState", "fit"]


def fit(
    model: Normalized,
    train: Split | Arrays | Loader,
    val: Split | Arrays,
    *,
    settings: TrainingSettings,
    threat_model: ThreatModel,
    attacker_activation: str | None = None,
    attacker_alpha: float | None = None,
    seed: int = 0,
    world: World | None = None,
    state: TrainingState | None = None,
    until: int | None = None,
    slots: int = 32,
    checkpoint_every: int = 0,
    on_checkpoint: Callable[[TrainingState], None] = lambda state: None,
    leaving: Callable[[], bool] | None = None,
) -> Iterator[EpochReport]:
    """Train `model` in place and yield a report after every epoch, on every process. Nothing is
    done until it is iterated.

    When the iteration has come to its end, `model` is in eval mode and holds the best weights found
    in validation, those of
    `report.state.best`: of the highest (robust, clean) validation accuracy, a tie going to the
    later epoch. Until then, and where
    the iteration is left early, it holds the weights of the last update, in train mode.

    model: of `sat_ray.models.build_model`, on its device, with the same initial weights in every
    process.
    train: in memory, or a loader that reads rows when they are needed; they are the same rows
    either way. val: held-out images.
    Either may be a `Split` or a tuple (images, labels) of arrays: (N, C, H, W) uint8 and (N,) whole
    numbers.
    attacker_activation: the attack's view of the model, None for the model's own; state: go on from here; until: stop after this many
    epochs of the schedule. The last epoch is validated.
    on_checkpoint: called on every process after each `checkpoint_every` steps (0: never) with the state, to be written or copied at once.
    leaving: asked every few seconds whether a machine is about to go, the same answer on every process; as long as it is, a checkpoint
    follows each question.
    Raises ValueError on settings or images that do not fit, NonFiniteLossError on a NaN or infinite
    loss,
    CatastrophicOverfittingError where the guard gives up.
    """
    num_classes = _classes_of(model)
    if isinstance(train, Split | tuple | list):
        train = _labelled(train, field="train", num_classes=num_classes)
    elif not isinstance(train, Loader):
        raise ValueError(
            f"train must be a Split or a tuple (images, labels), got {type(train).__name__}"
        )
    val = _labelled(val, field="val", num_classes=num_classes)
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
        slots,
    )
    run.checkpoint_every, run.on_checkpoint = checkpoint_every, on_checkpoint
    run.watcher = PreemptionWatcher(leaving, run.world)
    last = settings.epochs if until is None else min(until, settings.epochs)
    for epoch in range(run.state.epoch, last):
        yield run.epoch(
            epoch, validate=(epoch + 1) % settings.validate_every == 0 or epoch + 1 == last
        )
    if run.state.best:
        model.load_state_dict(run.state.best)
    model.eval()


def _classes_of(model: nn.Module) -> int:
    """Return the number of classes of a model; ValueError for one that cannot be trained here."""
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ValueError(
            f"model must be made by sat_ray.models.build_model, got {type(model).__name__}; "
            "it builds a network of your own from a name like module:function"
        )
    return int(spec.num_classes)


def _labelled(given: Split | Arrays, *, field: str, num_classes: int) -> Split:
    """Return a split with at least one image and labels of the model's classes; ValueError for
    another."""
    split = given_split(given, field=field)
    if not len(split):
        raise ValueError(f"{field} must have at least one image, got none")
    low, high = int(split.labels.min()), int(split.labels.max())
    if not 0 <= low <= high < num_classes:
        raise ValueError(
            f"{field}.labels must lie in 0 to {num_classes - 1}, as the model has {num_classes} classes, got {low} to {high}"
        )
    return split


class _Run:
    """One training in one process."""

    checkpoint_every: int
    on_checkpoint: Callable[[TrainingState], None]
    watcher: PreemptionWatcher

    def __init__(
        self,
        model: Normalized,
        train: Split | Loader,
        val: Split,
        settings: TrainingSettings,
        threat_model: ThreatModel,
        attacker_activation: str | None,
        attacker_alpha: float | None,
        seed: int,
        world: World,
        state: TrainingState,
        slots: int,
    ) -> None:
        self.mine = groups_of(settings, rank=world.rank, world_size=world.size)
        self.device = next(model.parameters()).device
        self.train, self.val, self.threat_model = loader_of(train, self.device), val, threat_model
        images = sum(self.train.shards)
        self.steps_per_epoch = images // settings.global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"training.global_batch_size is {settings.global_batch_size}; allowed: at most the {images} training images"
            )
        self.settings, self.seed, self.world, self.state, self.slots = (
            settings,
            seed,
            world,
            state,
            slots,
        )
        check_precision(settings.precision, self.device)
        check_resizing(settings, val.images.shape[1:])
        if settings.compile:
            check_compiler(self.device, asked="training.compile is True", instead="False")
            forget_graphs()
        self.layout = settle_layout(model)
        objective, attacker = (
            make_objective(settings),
            view(model, attacker_activation, alpha=attacker_alpha),
        )
        self.learner = Learner(model.train(), objective, settings, world=world)
        self.crafter = Crafter(attacker, objective, settings, threat_model, seed=seed)
        self.own_view, self.validated = view(model), view(self.learner.result)
        self.reach = KernelReach(
            model, self.own_view, precision=settings.precision, device=self.device
        )
        self.alphas = AlphaSchedule(
            model, attacker, start=settings.alpha_start, ramp=settings.alpha_ramp
        )
        assert model.spec is not None
        activation, alpha = (
            model.spec.activation,
            model.spec.alpha if attacker_alpha is None else attacker_alpha,
        )
        judges = settings.validation_attacks(threat_model, num_classes=model.spec.num_classes)
        self.validation_attacks, self.guard_attacks = (
            [
                variant
                for spec in specs
                for variant in true_and_smooth(
                    spec,
                    activation=activation,
                    attacker_activation=attacker_activation,
                    alpha=alpha,
                )
            ]
            for specs in (judges, [guard_attack(threat_model)])
        )
        if state.weights:
            self.learner.restore(
                joined(weights=state.weights, momentum=state.momentum, average=state.average)
            )
        assert_shares_storage(model, attacker)

    def epoch(self, epoch: int, *, validate: bool) -> EpochReport:
        """Train for one epoch, or for what is left of it, validate if asked, and take stock."""
        self.clock = perf_counter()
        totals = Totals(self.state.sums, device=self.device, world=self.world)
        plan = self._order(epoch)[self.state.step :, self.mine]
        self.alphas.set(epoch / self.settings.epochs)
        self.reach.at(image_shape(self.settings, epoch, self.val.images.shape[1:]))
        for step, batches in enumerate(self.train.batches(plan), start=self.state.step):
            self._step(batches, epoch, step, totals)
            self._between_steps(epoch, step + 1, totals)
        self.alphas.set(1.0)
        metrics = self._training_metrics(epoch, totals)
        if validate:
            metrics |= self._validate()
        self._save(epoch, metrics)
        return EpochReport(
            epoch,
            metrics,
            self.state,
            tuple(event for event in self.state.events if event["epoch"] == epoch),
        )

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of the training split in every group of every step, (steps, groups, group size)."""
        size = self.settings.batchnorm_group_size
        groups, window = self.settings.global_batch_size // size, self.settings.shuffle_window
        return epoch_order(
            self.train.shards,
            groups=groups,
            group_size=size,
            window=window,
            seed=self.seed,
            epoch=epoch,
        )

    def _step(self, batches: list[Split], epoch: int, step: int, totals: Totals) -> None:
        """Craft and update from one batch per BatchNorm group; nothing here waits for the device."""
        progress, replays = (
            epoch + step / self.steps_per_epoch,
            max(1, self.settings.attack_replays),
        )
        attack = self.crafter.attack_at(
            progress / self.settings.epochs, collapses=self.state.guard.collapses
        )
        crafted = [
            self.crafter.craft(attack, batch, totals, layout=self.layout, epoch=epoch)
            for batch in batches
        ]
        for replay in range(replays):
            number = (epoch * self.steps_per_epoch + step) * replays + replay
            self.learner.update(
                crafted,
                totals,
                learning_rate=self._learning_rate(progress),
                step=step,
                number=number,
            )
            if replay + 1 < replays:
                crafted = [follow(attack, one, totals) for one in crafted]

    def _learning_rate(self, progress: float) -> float:
        settings = self.settings
        factor = learning_rate_factor(
            progress,
            schedule=settings.schedule,
            epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
        )
        return settings.learning_rate * max(factor, FLOOR)

    def _between_steps(self, epoch: int, step: int, totals: Totals) -> None:
        """Do what is due after so many steps of an epoch: look for a collapse, write a checkpoint."""
        done = epoch * self.steps_per_epoch + step
        if self.settings.guard_every and done % self.settings.guard_every == 0:
            self._require_sound(epoch, step, totals)
            self._look(epoch, step)
        notice = self.watcher.sees_notice(
            now=step == self.steps_per_epoch
        )  # a validation may take longer than a node has left
        if notice or (self.checkpoint_every and done % self.checkpoint_every == 0):
            self._require_sound(epoch, step, totals)
            self._take()
            self.state.step, self.state.sums = step, totals.summed()
            self._take_time()
            self.on_checkpoint(self.state)

    def _look(self, epoch: int, step: int) -> None:
        """Let the guard judge the model, keep it where it is good, and go back where it has collapsed."""
        held_out = self.val.take(slice(0, self.settings.guard_images))
        _, robust, images = self._survivors(self.own_view, held_out, self.guard_attacks)
        state = self.state
        memory, verdict = state.guard.after(robust, images, epoch=epoch, step=step)
        state.guard = memory
        if verdict == "good":
            state.good = self.learner.snapshot()
        if verdict == "collapsed":
            progress = (epoch + step / self.steps_per_epoch) / self.settings.epochs
            if memory.collapses > self.settings.guard_limit:
                attack = self.crafter.attack_at(progress, collapses=memory.collapses - 1)
                raise collapse_error(
                    memory, limit=self.settings.guard_limit, epoch=epoch, step=step, attack=attack
                )
            self.learner.restore(state.good)
            state.events.append(
                event_of(
                    memory,
                    self.crafter.attack_at(progress, collapses=memory.collapses),
                    epoch=epoch,
                    step=step,
                )
            )

    def _require_sound(self, epoch: int, step: int, totals: Totals) -> None:
        """Raise where an image left the threat model, a loss was not finite, or the update before `step` has destroyed the weights."""
        if totals.overshoot > TOLERANCE:
            raise InfeasiblePointError(
                f"the training attack left {self.threat_model} by {float(totals.overshoot):.3g} in epoch {epoch}"
            )
        bad = totals.first_bad_step()
        if bad is None and self.learner.finite():
            return
        first = step - 1 if bad is None else bad
        ids = self.train.ids(self._order(epoch)[first].flatten()).tolist()
        raise NonFiniteLossError.at(
            epoch, first, ids, seed=self.seed, saved=(self.state.epoch, self.state.step)
        )

    def _training_metrics(self, epoch: int, totals: Totals) -> dict[str, float]:
        self._require_sound(epoch, self.steps_per_epoch, totals)
        loss, correct, images = totals.summed()
        self._take_time()
        metrics = {
            "train/loss": loss / images,
            "train/adversarial_accuracy": correct / images,
            "train/learning_rate": self._learning_rate(
                epoch + (self.steps_per_epoch - 1) / self.steps_per_epoch
            ),
            "throughput/images_per_second": images / self.state.epoch_seconds,
        }
        memory = self.state.guard
        if memory.images:
            metrics |= {
                "guard/robust_accuracy": memory.robust / memory.images,
                "guard/collapses": float(memory.collapses),
            }
        return metrics

    def _validate(self) -> dict[str, float]:
        clean, robust, images = self._survivors(self.validated, self.val, self.validation_attacks)
        return {"val/clean_accuracy": clean / images, "val/robust_accuracy": robust / images}

    def _survivors(
        self, model: nn.Module, split: Split, attacks: list[AttackSpec]
    ) -> tuple[int, int, int]:
        """Return how many images of a split are right, how many stay so under every attack, and how many there are; processes share."""
        mine = split.take(slice(self.world.rank, None, self.world.size))
        table = evaluate(
            model,
            mine.images,
            mine.labels,
            mine.image_ids,
            attacks=attacks,
            seed=self.seed,
            slots=self.slots,
            cascade=True,
        )
        counts = torch.tensor(
            [len(clean_correct_ids(table)), len(robust_image_ids(table)), len(mine)]
        )
        clean, robust, images = self.world.sum(counts).tolist()
        return clean, robust, images

    def _save(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write what an epoch has done into the state."""
        state = self.state
        self._take()
        state.history.append({"epoch": float(epoch), **metrics})
        if "val/robust_accuracy" in metrics:
            score = (metrics["val/robust_accuracy"], metrics["val/clean_accuracy"])
            if score >= state.best_score:
                state.best, state.best_epoch, state.best_score = (
                    state.average or state.weights,
                    epoch,
                    score,
                )
        self._take_time()
        state.epoch, state.step, state.sums, state.epoch_seconds = (
            epoch + 1,
            0,
            (0.0, 0.0, 0.0),
            0.0,
        )

    def _take(self) -> None:
        """Copy the model into the state."""
        state, snapshot = self.state, self.learner.snapshot()
        state.weights, state.momentum, state.average = (
            part_of(snapshot, part) for part in ("weights", "momentum", "average")
        )

    def _take_time(self) -> None:
        """Add the time since this was last called."""
        now = perf_counter()
        self.state.seconds += now - self.clock
        self.state.epoch_seconds += now - self.clock
        self.clock = now
