"""What a sweep would do and cost, printed without touching anything."""

from typing import Any

from sat_ray.activations.table import alphas_and_curvatures
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.sources.user_defined import counted
from sat_ray.integrations.command_line.parsing import Command
from sat_ray.storage.uris import redacted
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import group_name
from sat_ray.sweep.cost.estimate import UNKNOWN_CLASSES, costs, passes_of
from sat_ray.sweep.plan import planned_trials
from sat_ray.sweep.resources import bundles
from sat_ray.sweep.search.search_space import Group, groups
from sat_ray.threat import as_255ths
from sat_ray.utils.serialization import flatten, to_json

_LENGTHS = ("epsilon", "step_size")


def describe(command: Command) -> str:
    """Return the resolved config and the plan as text."""
    config = command.config
    lines = [
        f"sweep {command.name} in {command.storage.uri}",
        f"tracking {redacted(command.tracking_uri)}",
        "",
        "resolved config",
    ]
    lines += [
        f"  {name:<40} {_show(name, value)}" for name, value in flatten(to_json(config)).items()
    ]
    lines += [
        "",
        "plan",
        *(f"  {name:<40} {value}" for name, value in plan(config).items()),
        "",
        "dry run: nothing was touched",
    ]
    return "\n".join(lines)


def plan(config: SweepConfig) -> dict[str, str]:
    """Return what would be computed. One pass is one forward and backward pass of one image."""
    training, resources = config.training, config.resources
    finalists, seeds = len(groups(config.search.points())), len(config.final.seeds)
    source = counted(dataset_source(config.data.dataset), config.data.path)
    passes = passes_of(config, source)
    return {
        "dataset": f"{source.name}: {source.about}",
        "world size": f"{resources.train_workers} workers",
        "global batch": f"{training.global_batch_size} images, {training.global_batch_size // resources.train_workers} per worker",
        "learning rate": f"{training.learning_rate:g} at the peak, {training.schedule}, {training.warmup_epochs:g} epochs of warm-up",
        "epsilon": f"{as_255ths(config.threat_model.epsilon)} ({config.threat_model.norm})",
        "training attack": _training_attack(config),
        "evaluation attack": f"PGD-{config.evaluation.steps}, step {as_255ths(config.evaluation.step_size)}, "
        f"{config.evaluation.restarts} restart(s)",
        "strong attacks on what survives": _strong(config, source.classes),
        "search trials": f"{len(config.search.points())} configurations, {planned_trials(config)} trainings "
        f"({config.search.method}, rungs at {', '.join(map(str, config.search.rungs))} epochs)",
        **_space(config),
        "models for the leaderboard": f"{finalists} configurations x {seeds} seeds = {finalists * seeds}",
        **_shown(passes),
        **costs(config, source, passes),
        **_budget(config),
        **{f"asked of Ray, {demand.stage}": str(demand) for demand in bundles(config)},
    }


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
        "budget of the search": f"{priced}: no trial starts once it is spent; training, evaluation and cards are not in it"
    }


def _strong(config: SweepConfig, classes: int) -> str:
    attacks = config.strong_attacks(classes or UNKNOWN_CLASSES)
    return (
        "; ".join(map(str, attacks))
        if attacks
        else "none: rows are ranked by the evaluation attack"
    )


def _training_attack(config: SweepConfig) -> str:
    training, step = (
        config.training,
        as_255ths(config.training.attack(config.threat_model).step_size),
    )
    if training.attack_replays:
        return f"Free: {training.attack_replays} updates on each batch, step {step}"
    ascended = (
        f"on the KL divergence of TRADES (beta {training.trades_beta:g}), "
        if training.objective == "trades"
        else ""
    )
    return f"PGD-{training.attack_steps}, {ascended}step {step}"


def _shown(passes: dict[str, float]) -> dict[str, str]:
    *found, (_, queries) = passes.items()
    bounded = {name: "" if name in ("search", "training") else ", at most" for name, _ in found}
    at_most = {name: f"estimated passes, {name}{bound}" for name, bound in bounded.items()}
    lines = {at_most[name]: f"{count / 1e6:.2f} million images" for name, count in found}
    return lines | {
        "queries of cards, at most": f"{queries / 1e6:.2f} million images, forward only"
    }


def _show(name: str, value: Any) -> str:
    if (isinstance(value, float) and name.rpartition(".")[2] in _LENGTHS) or (
        name.endswith("step_size") and value is not None
    ):
        return as_255ths(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
