"""What a sweep would do and cost, printed without touching anything."""

from collections.abc import Callable
from typing import Any

from sat_ray.activations.table import alphas_and_curvatures
from sat_ray.data.choices import extra_images
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.sources.user_defined import counted
from sat_ray.integrations.command_line.checks.data_files import check_extra, checked_later
from sat_ray.integrations.command_line.parsing import Command
from sat_ray.storage.uris import redacted
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import group_name
from sat_ray.sweep.cost.estimate import UNKNOWN_CLASSES, costs, passes_of
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.resources.bundles import bundles
from sat_ray.sweep.search.search_space import Group, groups
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.serialization import flatten, to_json

_LENGTHS = ("epsilon", "step_size")


def describe(command: Command) -> str:
    """Return the resolved config and the plan as text."""
    config = command.config
    later = "all of the images"
    if command.root.is_local:  # a dry run connects to no other
        check_extra(config, command.root)
        later = checked_later(config, command.root)
    lines = [
        f"sweep {command.name} in {command.storage.uri}",
        f"tracking {redacted(command.tracking_uri)}",
        "",
        "resolved config",
    ]
    lines += [
        f"  {name:<40} {_show(name, value, config.threat_model.text)}"
        for name, value in flatten(to_json(config)).items()
    ]
    lines += [
        "",
        "plan",
        *(f"  {name:<40} {value}" for name, value in plan(config).items()),
        *([f"  {'checked when images are prepared':<40} {later}"] if later else []),
        "",
        "dry run: nothing was touched",
    ]
    return "\n".join(lines)


def plan(config: SweepConfig) -> dict[str, str]:
    """Return what would be computed. One pass is one forward and backward pass of one image."""
    finalists = len(groups(config.search.points()))
    seeds = len(config.final.seeds)
    ball = config.threat_model
    source = counted(dataset_source(config.data.dataset), config.data.path)
    passes = passes_of(config, source)
    models = f"{finalists} configurations x {seeds} seeds = {finalists * seeds}"
    return {
        "dataset": f"{source.name}: {source.about}",
        **_initial_weights(config),
        **_training(config),
        "epsilon": f"{ball.text(ball.epsilon)} ({ball.norm})",
        "training attack": _training_attack(config),
        "evaluation attack": _evaluation_attack(config),
        "strong attacks on what survives": _strong(config, source.classes),
        **_corruptions(config, source.test, models=finalists * seeds),
        "search trials": _trials(config),
        **_space(config),
        "models for the leaderboard": models,
        **_shown(passes),
        **costs(config, source, passes),
        **_budget(config),
        **{f"asked of Ray, {demand.stage}": str(demand) for demand in bundles(config)},
    }


def _initial_weights(config: SweepConfig) -> dict[str, str]:
    model = config.model
    if not model.initial_weights:
        return {}
    from sat_ray.sweep.execute.initial_weights import source_of  # loads torch

    return {"initial weights": source_of(model.initial_weights, model.name)}


def _training(config: SweepConfig) -> dict[str, str]:
    training = config.training
    workers = config.resources.train_workers
    per_worker = training.global_batch_size // workers
    return {
        "world size": f"{workers} workers",
        "global batch": f"{training.global_batch_size} images, {per_worker} per worker",
        "learning rate": (
            f"{training.learning_rate:g} at the peak, {training.schedule}, "
            f"{training.warmup_epochs:g} epochs of warm-up"
        ),
        "optimizer": _optimizer(training),
        "update": _update(training),
        **_extra(config),
    }


def _extra(config: SweepConfig) -> dict[str, str]:
    data = config.data
    if not data.extra:
        return {}
    group = config.training.batchnorm_group_size
    found = extra_images(data.extra_share, group)
    share = f"{found} of each BatchNorm group of {group}, {100 * found / group:.1f} %"
    return {"extra images": f"{data.extra}: {share}"}


def _optimizer(training: TrainingSettings) -> str:
    if training.optimizer == "adamw":
        betas = f"betas {training.adamw_beta1:g} and {training.adamw_beta2:g}"
        words = [f"AdamW, {betas}, decoupled weight decay {training.weight_decay:g}"]
    else:
        words = [
            f"SGD, Nesterov momentum {training.momentum:g}, weight decay {training.weight_decay:g}"
        ]
    if training.layer_decay != 1:
        words.append(
            f"learning rate times {training.layer_decay:g} from each layer to the one before"
        )
    return ", ".join(words)


def _update(training: TrainingSettings) -> str:
    losses = {
        "trades": f"TRADES, beta {training.trades_beta:g}",
        "mart": f"MART, lambda {training.mart_weight:g}",
    }
    words = [losses.get(training.objective, "cross-entropy of adversarial images")]
    if training.label_smoothing:
        words.append(f"label smoothing {training.label_smoothing:g}")
    if training.awp_gamma:
        since = f" after {training.awp_start:.0%} of the epochs" if training.awp_start else ""
        words.append(f"weights perturbed by AWP, gamma {training.awp_gamma:g}{since}")
    return ", ".join(words)


def _evaluation_attack(config: SweepConfig) -> str:
    evaluation = config.evaluation
    step = config.threat_model.text(evaluation.step_size)
    return f"PGD-{evaluation.steps}, step {step}, {evaluation.restarts} restart(s)"


def _corruptions(config: SweepConfig, test_images: int, *, models: int) -> dict[str, str]:
    if not config.evaluation.corruptions:
        return {}
    images = 75 * models * config.evaluation.evaluated(test_images)
    shown = f"15 kinds, 5 severities: {images / 1e6:.2f} million images, forward only"
    return {"common corruptions": shown}


def _trials(config: SweepConfig) -> str:
    search = config.search
    rungs = ", ".join(map(str, search.rungs))
    return (
        f"{len(search.points())} configurations, {planned_trials(config)} trainings "
        f"({search.method}, rungs at {rungs} epochs)"
    )


def _space(config: SweepConfig) -> dict[str, str]:
    """Return a line for every activation of the search: its alphas, and the curvatures beside."""
    search = config.search
    competing = groups(search.points())
    shown = {f"search space, {group_name(group)}": _alphas(group) for group in competing}
    if repeated := search.repeated():
        shown["searched under another name"] = ", ".join(repeated)
    return shown


def _alphas(group: Group) -> str:
    return alphas_and_curvatures(
        group.members[0].activation,
        [one.alpha for one in group.members],
    )


def _budget(config: SweepConfig) -> dict[str, str]:
    seconds = config.cost.budget_seconds()
    if seconds is None:
        return {}
    hours = f"{seconds / 3600:,.3g} accelerator-hours"
    priced = (
        f"{config.cost.amount(seconds)}, {hours}"
        if config.cost.price_per_accelerator_hour
        else hours
    )
    return {
        "budget of the search": (
            f"{priced}: no trial starts once it is spent; "
            "training, evaluation and cards are not in it"
        )
    }


def _strong(config: SweepConfig, classes: int) -> str:
    attacks = config.strong_attacks(classes or UNKNOWN_CLASSES)
    if attacks:
        return "; ".join(map(str, attacks))
    return "none: rows are ranked by the evaluation attack"


def _training_attack(config: SweepConfig) -> str:
    training = config.training
    step = config.threat_model.text(training.step_size(config.threat_model))
    if training.attack_replays:
        return f"Free: {training.attack_replays} updates on each batch, step {step}"
    ascended = (
        f"on the KL divergence of TRADES (beta {training.trades_beta:g}), "
        if training.objective == "trades"
        else ""
    )
    smoothed = (
        f", label smoothing {training.attack_label_smoothing:g}"
        if training.attack_label_smoothing
        else ""
    )
    return f"PGD-{training.attack_steps}, {ascended}step {step}{smoothed}"


def _shown(passes: dict[str, float]) -> dict[str, str]:
    *found, (_, queries) = passes.items()
    bounded = {name: "" if name in ("search", "training") else ", at most" for name, _ in found}
    at_most = {name: f"estimated passes, {name}{bound}" for name, bound in bounded.items()}
    lines = {at_most[name]: f"{count / 1e6:.2f} million images" for name, count in found}
    return lines | {
        "queries of cards, at most": f"{queries / 1e6:.2f} million images, forward only"
    }


def _show(name: str, value: Any, text: Callable[[float], str]) -> str:
    if (isinstance(value, float) and name.rpartition(".")[2] in _LENGTHS) or (
        name.endswith("step_size") and value is not None
    ):
        return text(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
