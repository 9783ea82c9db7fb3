"""What a sweep would do and cost, printed without touching anything."""

from typing import Any

from pipelines.cost import costs
from sat_ray.activation_table import alphas_and_curvatures
from sat_ray.budget import group_name
from sat_ray.bundles import bundles
from sat_ray.card.evidence import most_passes
from sat_ray.cli import Command
from sat_ray.config import SweepConfig, flatten, to_json
from sat_ray.data.own import counted
from sat_ray.data.source import Source
from sat_ray.data.sources import dataset_source
from sat_ray.plan import Group, attacks_for, groups, planned_trials, strong_attacks_for
from sat_ray.threat import as_255ths
from sat_ray.tracking_uri import redacted
from sat_ray.units import through_every_backward

UNKNOWN_CLASSES = 10  # of images that are counted when they are prepared: enough for every target of AutoAttack's budget
_LENGTHS = ("epsilon", "step_size")


def describe(command: Command) -> str:
    """Return the resolved config and the plan as text."""
    config = command.config
    lines = [f"sweep {command.name} in {command.storage.uri}", f"tracking {redacted(command.tracking_uri)}", "", "resolved config"]
    lines += [f"  {name:<40} {_show(name, value)}" for name, value in flatten(to_json(config)).items()]
    lines += ["", "plan", *(f"  {name:<40} {value}" for name, value in plan(config).items()), "", "dry run: nothing was touched"]
    return "\n".join(lines)


def plan(config: SweepConfig) -> dict[str, str]:
    """Return what would be computed. One pass is one forward and backward pass of one image."""
    training, resources = config.training, config.resources
    finalists, seeds = len(groups(config.search.configurations())), len(config.final.seeds)
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
        "search trials": f"{len(config.search.configurations())} configurations, {planned_trials(config)} trainings "
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
    competing = groups(search.configurations())
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
    priced = f"{config.cost.amount(seconds)}, {hours}" if config.cost.price_per_accelerator_hour else hours
    return {"budget of the search": f"{priced}: no trial starts once it is spent; training, evaluation and cards are not in it"}


def _strong(config: SweepConfig, classes: int) -> str:
    attacks = config.strong_attacks(classes or UNKNOWN_CLASSES)
    return "; ".join(map(str, attacks)) if attacks else "none: rows are ranked by the evaluation attack"


def _training_attack(config: SweepConfig) -> str:
    training, step = config.training, as_255ths(config.training.attack(config.threat_model).step_size)
    if training.attack_replays:
        return f"Free: {training.attack_replays} updates on each batch, step {step}"
    ascended = f"on the KL divergence of TRADES (beta {training.trades_beta:g}), " if training.objective == "trades" else ""
    return f"PGD-{training.attack_steps}, {ascended}step {step}"


def passes_of(config: SweepConfig, source: Source) -> dict[str, float]:
    """Return the passes of every part of a sweep, of one image each; what is evaluated, at most."""
    per_image = config.training.passes_per_image()
    images = source.images - source.test - source.val
    seeds = len(config.final.seeds)
    chosen = [group.members[0] for group in groups(config.search.configurations())]
    trials = planned_trials(config) * config.search.rungs[-1] // len(config.search.rungs) * images * per_image
    train = len(chosen) * seeds * config.training.epochs * images * per_image
    attacks = sum(spec.restarts * (spec.steps + 1) for one in chosen for spec in attacks_for(config, one))
    test, val = (config.evaluation.evaluated(count) for count in (source.test, source.val))
    evaluate = seeds * attacks * test
    classes = source.classes or UNKNOWN_CLASSES
    strong = sum(spec.runs * (spec.steps + 1) for one in chosen for spec in strong_attacks_for(config, one, num_classes=classes))
    first = sum(spec.runs * (spec.steps + 1) for one in chosen for spec in through_every_backward(config.evaluation_attacks()[0], one))
    judged = min(config.card.images, source.val) * config.card.candidates
    card = judged * most_passes(config.evaluation_attacks()[0], config.card)
    queries = judged * config.card.cascade_queries
    return {
        "search": trials,
        "training": train,
        "validation": seeds * (first + strong) * val if strong else 0,
        "evaluation": evaluate,
        "strong evaluation": seeds * strong * test,
        "cards": card,
        "queries of cards": queries,
    }


def _shown(passes: dict[str, float]) -> dict[str, str]:
    *found, (_, queries) = passes.items()
    bounded = {name: "" if name in ("search", "training") else ", at most" for name, _ in found}
    at_most = {name: f"estimated passes, {name}{bound}" for name, bound in bounded.items()}
    lines = {at_most[name]: f"{count / 1e6:.2f} million images" for name, count in found}
    return lines | {"queries of cards, at most": f"{queries / 1e6:.2f} million images, forward only"}


def _show(name: str, value: Any) -> str:
    if (isinstance(value, float) and name.rpartition(".")[2] in _LENGTHS) or (name.endswith("step_size") and value is not None):
        return as_255ths(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
