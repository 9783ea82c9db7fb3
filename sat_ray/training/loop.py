"""Smooth adversarial training: inner maximization through a view of the model in inference mode,
outer minimization through the model.

    min_theta  E [ max_{x' in S(x)}  L(f_theta(x'), y) ]
                                        (Madry et al. 2018; Xie et al. 2020, equation 1)

A global batch is cut into BatchNorm groups of a fixed size. Each group is normalised by its own
statistics. Gradients and running statistics are averaged over all groups, and the processes share
the groups. So N processes compute what one process computes.
A process works through its groups one after the other. A global batch that is too large for the
memory of a process needs smaller groups and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import nn

from sat_ray.attacks import InfeasiblePointError
from sat_ray.data.extra import Extra
from sat_ray.data.loading import Loader
from sat_ray.data.split import Arrays, Split, labelled_split
from sat_ray.models import Normalized, assert_shares_storage, settle_layout, view
from sat_ray.threat import TOLERANCE, ThreatModel
from sat_ray.training.adversary import AlphaSchedule, InnerMaximization, follow
from sat_ray.training.batches import Batches
from sat_ray.training.catastrophic_overfitting import collapse_error, event_of
from sat_ray.training.epoch_metrics import NonFiniteLossError, Totals
from sat_ray.training.objectives import make_objective
from sat_ray.training.optimization.schedules import FLOOR, learning_rate_factor
from sat_ray.training.parallel.onednn_workaround import KernelReach
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.parallel.worker_load import WorkerLoad
from sat_ray.training.progressive_resizing import check_resizing, image_shape
from sat_ray.training.resume.preemption import PreemptionWatcher
from sat_ray.training.resume.state import EpochReport, TrainingState, joined
from sat_ray.training.settings import Problem, TrainingSettings
from sat_ray.training.train_step import TrainStep
from sat_ray.training.validation import Validation
from sat_ray.utils.compile import check_compiler, forget_graphs
from sat_ray.utils.precision import check_precision

__all__ = ["EpochReport", "RunOptions", "TrainingSettings", "TrainingState", "fit"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where one call of `fit` runs, where it stops, and when it saves its state."""

    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """The processes that train the model together."""
    until: int | None = None
    """Stop after this many epochs of the schedule; None for all. The last epoch is validated."""
    slots: int = 32
    """Slots of the evaluation engine in validation."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 for none."""
    on_checkpoint: Callable[[TrainingState], None] = lambda state: None
    """Called on every process with the state, which it must write or copy at once."""
    preemption_announced: Callable[[], bool] | None = None
    """Called every few seconds: whether a machine of this training is about to be taken away. It
    must return the same on every process. While it returns True, each call is followed by a
    checkpoint."""
    measure_start: bool = False
    """Validate the weights that training starts from, as those of epoch 0 in the history."""


def fit(
    model: Normalized,
    train: Split | Arrays | Loader,
    val: Split | Arrays,
    *,
    settings: TrainingSettings,
    threat_model: ThreatModel,
    attacker_activation: str | None = None,
    attacker_alpha: float | None = None,
    extra: Extra | None = None,
    seed: int = 0,
    state: TrainingState | None = None,
    options: RunOptions | None = None,
) -> Iterator[EpochReport]:
    """Train `model` in place and yield a report after every epoch, on every process.

    Nothing is done until it is iterated. When the iteration has come to its end, `model` is in eval
    mode and holds the best weights found in validation, those of `report.state.best`: of the
    highest (robust, clean) validation accuracy, a tie going to the later epoch. Until then, and
    where the iteration is left early, it holds the weights of the last update, in train mode.

    model: of `sat_ray.models.build_model`, on its device, with the same initial weights in every
    process.
    train: in memory, or a loader that reads rows when they are needed; both give the same rows.
    val: held-out images. Either may be a `Split` or a tuple (images, labels) of arrays:
    (N, C, H, W) uint8 and (N,) whole numbers.
    attacker_activation, attacker_alpha: the attack's view of the model, None for the model's own.
    extra: more images to train on, a fixed share of every batch.
    state: continue from here. options: None for one process and all epochs.
    Raises ValueError on settings or images that do not fit, NonFiniteLossError on a NaN or infinite
    loss, CatastrophicOverfittingError where the guard gives up.
    """
    options = options or RunOptions()
    num_classes = _classes_of(model)
    if not isinstance(train, Loader):
        train = labelled_split(train, field="train", num_classes=num_classes)
    problem = Problem(
        settings=settings,
        threat_model=threat_model,
        attacker_activation=attacker_activation,
        attacker_alpha=attacker_alpha,
        seed=seed,
    )
    val = labelled_split(val, field="val", num_classes=num_classes)
    if extra is not None and not isinstance(extra.images, Loader):
        extra = replace(extra, images=_extra_split(extra, val, num_classes=num_classes))
    run = _Run(model, train, val, problem, extra, state=state or TrainingState(), options=options)
    last = settings.epochs if options.until is None else min(options.until, settings.epochs)
    if options.measure_start:
        run.measure_start()
    for epoch in range(run.state.epoch, last):
        due = (epoch + 1) % settings.validate_every == 0
        yield run.epoch(epoch, validate=due or epoch + 1 == last)
    if run.state.best:
        model.load_state_dict(run.state.best)
    model.eval()


def _extra_split(extra: Extra, val: Split, *, num_classes: int) -> Split:
    """Return extra images in memory, checked against the model and the other images."""
    assert not isinstance(extra.images, Loader)
    found = labelled_split(extra.images, field="extra.images", num_classes=num_classes)
    if found.images.shape[1:] != val.images.shape[1:]:
        raise ValueError(
            f"extra.images must have images of shape {tuple(val.images.shape[1:])}, as val has, "
            f"got {tuple(found.images.shape[1:])}"
        )
    return found


def _classes_of(model: nn.Module) -> int:
    """Return the number of classes of a model; ValueError for one that cannot be trained here."""
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ValueError(
            f"model must be made by sat_ray.models.build_model, got {type(model).__name__}; "
            "it builds a network of your own from a name like module:function"
        )
    return int(spec.num_classes)


class _Run:
    """One training in one process."""

    def __init__(
        self,
        model: Normalized,
        train: Split | Loader,
        val: Split,
        problem: Problem,
        extra: Extra | None,
        *,
        state: TrainingState,
        options: RunOptions,
    ) -> None:
        assert model.spec is not None
        settings = problem.settings
        group = options.process_group
        self.problem = problem
        self.settings = settings
        self.state = state
        self.options = options
        self.device = next(model.parameters()).device
        self.batches = Batches(train, problem, process_group=group, device=self.device, extra=extra)
        self.image_shape = val.images.shape[1:]
        _check_machine(settings, self.device)
        check_resizing(settings, self.image_shape)
        layout = settle_layout(model)
        objective = make_objective(settings)
        attacker = view(model, problem.attacker_activation, alpha=problem.attacker_alpha)
        self.train_step = TrainStep(model.train(), objective, settings, process_group=group)
        self.inner_maximization = InnerMaximization(attacker, objective, problem, layout=layout)
        self.guarded = view(model)
        self.validated = view(self.train_step.result)
        self.validation = Validation(
            val, problem, spec=model.spec, process_group=group, slots=options.slots
        )
        self.reach = KernelReach(
            model, self.guarded, precision=settings.precision, device=self.device
        )
        self.alphas = AlphaSchedule(
            model, attacker, start=settings.alpha_start, ramp=settings.alpha_ramp
        )
        self.watcher = PreemptionWatcher(options.preemption_announced, group)
        self.load = WorkerLoad(self.device, group)
        if state.weights:
            self.train_step.restore(
                joined(weights=state.weights, optimizer=state.optimizer, average=state.average)
            )
        assert_shares_storage(model, attacker)

    def measure_start(self) -> None:
        """Validate before the first step, unless that was done before this training was resumed."""
        if not self.state.history and not self.state.step:
            self.state.note(-1, self.validation.metrics(self.validated))

    def epoch(self, epoch: int, *, validate: bool) -> EpochReport:
        """Train for one epoch, or for what is left of it, and validate where that is due."""
        self.clock = perf_counter()
        self.load.begin()
        totals = Totals(
            self.state.sums, device=self.device, process_group=self.options.process_group
        )
        self.alphas.set(epoch / self.settings.epochs)
        self.reach.at(image_shape(self.settings, epoch, self.image_shape))
        for step, batches in self.batches.of_epoch(epoch, first=self.state.step):
            self._step(batches, epoch, step, totals)
            self._between_steps(epoch, step + 1, totals)
        self.alphas.set(1.0)
        metrics = self._training_metrics(epoch, totals)
        if validate:
            metrics |= self.validation.metrics(self.validated)
        self.state.take(self.train_step.snapshot())
        self._count_time()
        self.state.end_epoch(epoch, metrics)
        events = tuple(event for event in self.state.events if event["epoch"] == epoch)
        return EpochReport(epoch, metrics, self.state, events)

    def _step(self, batches: list[Split], epoch: int, step: int, totals: Totals) -> None:
        """Attack and update once per replay; nothing here waits for the device."""
        progress = self._progress(epoch, step)
        attack = self.inner_maximization.attack_at(
            progress / self.settings.epochs, collapses=self.state.guard.collapses
        )
        adversarial = [
            self.inner_maximization.run(attack, batch, totals, epoch=epoch) for batch in batches
        ]
        replays = max(1, self.settings.attack_replays)
        for replay in range(replays):
            self.train_step.update(
                adversarial,
                totals,
                learning_rate=self._learning_rate(progress),
                step=step,
                number=(epoch * self.batches.steps + step) * replays + replay,
                perturbed=progress >= self.settings.awp_start * self.settings.epochs,
            )
            if replay + 1 < replays:
                adversarial = [follow(attack, one, totals) for one in adversarial]

    def _progress(self, epoch: int, step: int) -> float:
        """Return the epochs done after so many steps of one."""
        return epoch + step / self.batches.steps

    def _learning_rate(self, progress: float) -> float:
        factor = learning_rate_factor(
            progress,
            schedule=self.settings.schedule,
            epochs=self.settings.epochs,
            warmup_epochs=self.settings.warmup_epochs,
        )
        return self.settings.learning_rate * max(factor, FLOOR)

    def _between_steps(self, epoch: int, step: int, totals: Totals) -> None:
        """Let the guard look, and write a checkpoint, where either is due after so many steps."""
        done = epoch * self.batches.steps + step
        self.load.sample()
        if self.settings.guard_every and done % self.settings.guard_every == 0:
            self._require_sound(epoch, step, totals)
            self._guard(epoch, step)
        # a validation follows the last step, and it may take longer than a preempted machine has
        notice = self.watcher.sees_notice(now=step == self.batches.steps)
        every = self.options.checkpoint_every
        if notice or (every and done % every == 0):
            self._require_sound(epoch, step, totals)
            self.state.take(self.train_step.snapshot())
            self.state.step = step
            self.state.sums = totals.summed()
            self._count_time()
            self.options.on_checkpoint(self.state)

    def _guard(self, epoch: int, step: int) -> None:
        """Keep the model where the guard finds it good, and go back where it has collapsed."""
        robust, images = self.validation.guard_counts(self.guarded)
        state = self.state
        memory, verdict = state.guard.after(robust, images, epoch=epoch, step=step)
        state.guard = memory
        if verdict == "good":
            state.good = self.train_step.snapshot()
        if verdict != "collapsed":
            return
        progress = self._progress(epoch, step) / self.settings.epochs
        limit = self.settings.guard_limit
        if memory.collapses > limit:
            attack = self.inner_maximization.attack_at(progress, collapses=memory.collapses - 1)
            raise collapse_error(memory, limit=limit, epoch=epoch, step=step, attack=attack)
        self.train_step.restore(state.good)
        attack = self.inner_maximization.attack_at(progress, collapses=memory.collapses)
        state.events.append(event_of(memory, attack, epoch=epoch, step=step))

    def _require_sound(self, epoch: int, step: int, totals: Totals) -> None:
        """Raise where an image left the threat model, a loss was not finite, or the update before
        `step` has destroyed the weights."""
        if totals.overshoot > TOLERANCE:
            raise InfeasiblePointError(
                f"the training attack left {self.problem.threat_model} by "
                f"{float(totals.overshoot):.3g} in epoch {epoch}"
            )
        bad = totals.first_bad_step()
        if bad is None and self.train_step.finite():
            return
        first = step - 1 if bad is None else bad
        raise NonFiniteLossError.at(
            epoch,
            first,
            self.batches.image_ids(epoch, first),
            seed=self.problem.seed,
            saved=(self.state.epoch, self.state.step),
        )

    def _training_metrics(self, epoch: int, totals: Totals) -> dict[str, float]:
        steps = self.batches.steps
        self._require_sound(epoch, steps, totals)
        loss, correct, images = totals.summed()
        self._count_time()
        metrics = {
            "train/loss": loss / images,
            "train/adversarial_accuracy": correct / images,
            "train/learning_rate": self._learning_rate(self._progress(epoch, steps - 1)),
            "throughput/images_per_second": images / self.state.epoch_seconds,
        } | self.load.metrics()
        memory = self.state.guard
        if memory.images:
            metrics["guard/robust_accuracy"] = memory.robust / memory.images
            metrics["guard/collapses"] = float(memory.collapses)
        return metrics

    def _count_time(self) -> None:
        """Add the time since the clock was last read."""
        now = perf_counter()
        self.state.seconds += now - self.clock
        self.state.epoch_seconds += now - self.clock
        self.clock = now


def _check_machine(settings: TrainingSettings, device: torch.device) -> None:
    """Raise ValueError where a device cannot compute or compile as the settings say."""
    check_precision(settings.precision, device)
    if settings.compile:
        check_compiler(device, asked="training.compile is True", instead="False")
        forget_graphs()
