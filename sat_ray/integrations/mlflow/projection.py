"""Write MLflow from committed records, as a tree of runs. Any of it may be repeated.

sweep ─┬─ search ──────── one run per trial
       └─ configuration ─ one run per seed        mean over seeds, difference to relu, cost: what Compare is for
"""

import math
from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sat_ray.checkpoint import load_model
from sat_ray.evaluation.card import PASS
from sat_ray.evaluation.card.checks import ABOVE_CHANCE
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.integrations.mlflow.client import MlflowTracker
from sat_ray.integrations.mlflow.links import compare_link, table_link, view_of
from sat_ray.integrations.mlflow.metrics import (
    compared_name,
    compared_params,
    cost_metrics,
    curvature_metrics,
    group_metrics,
    history_points,
    sweep_cost_metrics,
)
from sat_ray.integrations.mlflow.registry import ALIAS, Contender, objection, registered_name
from sat_ray.integrations.mlflow.values import Point, Used
from sat_ray.models.export import NotExportedError
from sat_ray.report.sweep_report import (
    card_of,
    command_line,
    outcome_paths,
    read_outcomes,
    strong_attack,
)
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.cost.spent import row_cost, spent_by_stage, training_seconds
from sat_ray.sweep.plan import dataset_uri, longest_trials, strong_on_validation
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, Dataset
from sat_ray.threat import as_255ths
from sat_ray.utils.serialization import content_hash, flatten, json_bytes, to_json

if TYPE_CHECKING:
    from sat_ray.report.leaderboard.summary import Summary

MODEL_NAME = "model"
MODEL_SECONDS = 3.0
COMPARED = 30  # configurations in the address of one page, best first: browsers cut longer ones


class Projection:
    """Keep the tracker's runs equal to the sweep's records."""

    def __init__(self, sweep: Sweep, tracker: MlflowTracker) -> None:
        self.sweep, self.tracker = sweep, tracker
        self.identity = sweep.identity
        self.records = sweep.records  # one for all updates: it reads every record once
        self.parent = self._parent({})
        tracker.artifact(self.parent, "config.json", json_bytes(to_json(sweep.config)))
        self.shown: dict[str, str] = {}
        self.with_model: dict[str, str] = {}
        self.not_exported = ""
        self.data: Dataset | None = None

    def _parent(self, tags: Mapping[str, str]) -> str:
        """Make the sweep's run, or give it more tags: those of today's price and budget among them, which parameters cannot be."""
        sweep, cost = self.sweep, self.sweep.config.cost
        priced = (
            f"{cost.price_per_accelerator_hour:g} {cost.currency} an accelerator-hour"
            if cost.price_per_accelerator_hour
            else "none"
        )
        own = {
            "sat_ray.kind": "sweep",
            "mlflow.source.name": "pipelines/sweep.py",
            "mlflow.source.type": "LOCAL",
            "sat_ray.price": priced,
        }
        own["sat_ray.search_budget"] = (
            cost.amount(cost.budget_seconds() or 0.0) if cost.budget is not None else "none"
        )
        params = flatten(to_json(sweep.config)) | {"sweep": sweep.name}
        return self.tracker.run(
            f"sweep:{self.identity}", name=sweep.name, tags=own | dict(tags), params=params
        )

    def _price(self) -> list[Any]:
        cost = self.sweep.config.cost
        return (
            [cost.price_per_accelerator_hour, cost.currency]
            if cost.price_per_accelerator_hour
            else []
        )

    def update(self) -> None:
        """Write what was committed since the last call."""
        for record in longest_trials(self.records):
            self._run(record, kind="trial", name=SearchPoint.of(record.payload).name)
        trained = self.records.all(TRAIN)
        for record in trained:
            self._run(record, kind="finalist", name=_finalist_name(record))
        deadline = monotonic() + MODEL_SECONDS
        for record in (
            trained
        ):  # an export takes about a second: a few at a time, while others train and evaluate
            if record.key not in self.with_model and monotonic() < deadline:
                self._with_model(record)

    def run_ids(self, models: Sequence[Record]) -> dict[str, str]:
        """Return the run of each training record by the record's key."""
        return {
            one.key: self._run(one, kind="finalist", name=_finalist_name(one)) for one in models
        }

    def finish(self, models: list[Record], outcomes: dict[str, str]) -> dict[str, str]:
        """Write the evaluated models with their outcomes and weights; return the run id of each training record by key."""
        self.update()
        stages = spent_by_stage(
            self.sweep.config,
            self.records,
            train_images=self._dataset().manifest["splits"]["train"],
        )
        paths = {record.key: outcomes[record.payload["name"]] for record in models}
        costs = {
            key: row_cost({"outcomes": path}, self.sweep.config, stages)
            for key, path in paths.items()
        }
        return {
            record.key: self._evaluated(record, paths[record.key], cost=costs[record.key])
            for record in models
        }

    def close(self, board: Mapping[str, Any]) -> None:
        """Show the board on the runs of its configurations, attach the report to the sweep's run, and end them."""
        from sat_ray.report.pages.mlflow_notes import NOTED, sweep_note

        storage, tracker = self.sweep.storage, self.tracker
        for group in board["groups"]:
            self._compared(group, board)
        self._retire(board)
        searched = board.get("search")
        self._parent({} if searched is None else {"sat_ray.search": searched["sentence"]})
        self._close_search(board)
        for path in (
            "leaderboard.json",
            "leaderboard.md",
            "report.html",
            *(f"figures/{name}" for name in storage.names("figures")),
        ):
            tracker.artifact(self.parent, path, storage.read(path))
        served = f"get-artifact?run_uuid={self.parent}&path=figures%2F"  # where MLflow serves a run's artifacts
        figures = {
            title: f"{served}{name}.png"
            for name, title in NOTED.items()
            if storage.exists(f"figures/{name}.png")
        }
        links = {what: link.lstrip("/") for what, link in self.links(board, pages="").items()}
        note = sweep_note(
            board,
            command=command_line(self.sweep.command),
            figures=figures,
            compare=links["compare the configurations"],
        )
        tracker.note(self.parent, note)
        best = board["champion"]["row"]
        quoted = ("strong_robust_accuracy", "robust_accuracy", "clean_accuracy")
        shown = {
            f"champion/{name}": best[name] for name in quoted if best[name] is not None
        } | sweep_cost_metrics(board["cost"])
        content = content_hash([board["rows"], shown])
        points = [] if tracker.is_complete(self.parent, content=content) else _now(shown)
        self._uses(self.parent, "train", "val", "test")
        tracker.complete(self.parent, content=content, points=points)

    def links(self, board: Mapping[str, Any], *, pages: str) -> dict[str, str]:
        """Return the addresses that show the configurations of a board, by what they show."""
        experiment, name = self.tracker.experiment_id, self.sweep.name
        runs = [self._configuration(_of_group(group)) for group in board["groups"]]
        self.tracker.share(f"sat_ray-{name}", view_of(name))
        return {
            "compare the configurations": compare_link(pages, experiment, runs[:COMPARED]),
            "all configurations": table_link(pages, experiment, f"sat_ray-{name}"),
        }

    def _retire(self, board: Mapping[str, Any]) -> None:
        """Mark the configurations that were finalists before a larger budget found better ones."""
        shown = {group["configuration"] for group in board["groups"]}
        for one in dict.fromkeys(
            SearchPoint.of(record.payload) for record in self.records.all(TRAIN)
        ):
            if one.name not in shown:
                self._configuration(
                    one,
                    tags={
                        "sat_ray.chosen_by_validation": "no",
                        "sat_ray.against_relu": "not on the leaderboard",
                    },
                )

    def register(self, board: Mapping[str, Any], cards: Sequence[Record], *, override: str) -> str:
        """Show the cards on their runs; register the winner if its card says PASS, or `override` why it is accepted all the same.

        It becomes `champion` of its data, architecture and threat model where it beats the version that is
        (`sat_ray.integrations.mlflow.registry`).
        A model that is no better than chance is never registered. Returns a sentence for people.
        """
        from sat_ray.report.pages.mlflow_notes import card_note

        best = board["champion"]["row"]
        records = self.sweep.records.all(TRAIN)
        trained = {self.sweep.storage.located(record.payload["path"]): record for record in records}
        champion = trained[best["checkpoint"]]
        for made in cards:
            twins = [
                record for record in records if record.payload["sha256"] == made.inputs["weights"]
            ]
            named = max(
                twins, key=lambda record: bool(record.payload["name"] == made.payload["name"])
            )
            self._carded(named, made.payload["card"])
        card = card_of(cards, champion.payload["sha256"])
        name = board["champion"]["configuration"]
        if refused := _refusal(card, name=name, override=override):
            return refused
        seeds = [
            trained[row["checkpoint"]] for row in board["rows"] if row["configuration"] == name
        ]
        contender = self._contender(seeds)
        model = registered_name(self.sweep.config, self._dataset())
        run_id, uri = self._with_model(champion)
        if not uri:
            return f"no champion: {self.not_exported}; its weights are in {best['checkpoint']}"
        present = self.tracker.holder(model, alias=ALIAS)
        same = present is not None and present.source == uri
        against = "" if same else objection(contender, None if present is None else present.tags)
        tags = self._version_tags(best, card, name=name, override=override) | contender.tags
        version = self.tracker.register(
            uri,
            name=model,
            alias=None if against else ALIAS,
            tags=tags,
            run_id=run_id,
            note=card_note(card, name=name),
        )
        accepted = "" if card["verdict"] == PASS else f", accepted because: {override}"
        said = f"version {version} of model {model} in MLflow (robustness card: {card['verdict']}{accepted})"
        if against:
            assert present is not None
            return f"registered without the alias {ALIAS}: {said}; version {present.version} keeps it: {against}"
        return f"{ALIAS}: {said}; load it as models:/{model}@{ALIAS}"

    def _contender(self, seeds: Sequence[Record]) -> Contender:
        """Return what the registry compares of a configuration. seeds: its trained models."""
        config, data = self.sweep.config, self._dataset()
        strong = strong_on_validation(config, data, seeds, self.records) or {}
        numbers = [
            strong.get(one.payload["name"], one.payload["val_robust_accuracy"]) for one in seeds
        ]
        attack = strong_attack(config, data)
        training = config.training.validation_attacks(
            config.threat_model,
            num_classes=len(data.manifest["class_names"]),
        )
        names = (
            [spec.name for spec in training]
            if attack is None
            else [str(attack["after"]), str(attack["name"])]
        )
        return Contender(
            data=data.hash,
            threat_model=str(config.threat_model),
            number=math.fsum(numbers) / len(numbers),
            measured=" + ".join(names),
        )

    def _version_tags(
        self,
        best: Mapping[str, Any],
        card: Mapping[str, Any],
        *,
        name: str,
        override: str,
    ) -> dict[str, str]:
        """Return what a registered version says of itself; `sat_ray.robust_accuracy` is the figure to quote, the strong one."""
        spec = self.sweep.config.evaluation_attacks()[0]
        attack = strong_attack(self.sweep.config, self._dataset())
        quoted = best["robust_accuracy"] if attack is None else best["strong_robust_accuracy"]
        tags = {
            "sat_ray.robustness_card": card["verdict"],
            "sat_ray.sweep": self.sweep.name,
            "sat_ray.sweep.search.search_space": name,
            "sat_ray.robust_accuracy": f"{quoted:.4f}",
            "sat_ray.robust_accuracy_attack": spec.name
            if attack is None
            else f"{spec.name} + {attack['name']}",
            "sat_ray.pgd_robust_accuracy": f"{best['robust_accuracy']:.4f}",
        }
        if card["verdict"] == PASS:
            return tags
        reasons = "; ".join(card["reasons"])[:500]
        return tags | {
            "sat_ray.flag_accepted_because": override,
            "sat_ray.flagged_because": reasons,
        }

    def _carded(self, record: Record, card: Mapping[str, Any]) -> None:
        from sat_ray.report.figures.card import card_figure
        from sat_ray.report.figures.leaderboard import png
        from sat_ray.report.pages.mlflow_notes import card_note

        name = _finalist_name(record)
        run_id = self._run(
            record, kind="finalist", name=name, tags={"sat_ray.robustness_card": card["verdict"]}
        )
        self.tracker.artifact(run_id, "robustness_card.json", json_bytes(card))
        self.tracker.artifact(
            run_id, "figures/robustness_card.png", png(card_figure(card, name=name))
        )
        self.tracker.note(run_id, card_note(card, name=name))

    def _run(
        self, record: Record, *, kind: str, name: str, tags: Mapping[str, str] | None = None
    ) -> str:
        payload, configuration = record.payload, SearchPoint.of(record.payload)
        key = f"{kind}:{self.identity}:{payload['name']}"
        params = {"seed": payload["seed"]} | (
            {} if kind == "trial" else {"epochs": payload["until"]}
        )  # a trial's grow from rung to rung
        parent = self._search() if kind == "trial" else self._configuration(configuration)
        run_id = self._child(key, kind, name, configuration, parent=parent, tags=tags)
        content = content_hash([record.key, self._price()]) if kind == "trial" else record.key
        finished = (content, self._evaluation(record))
        if self.shown.get(key) != record.key and not any(
            self.tracker.is_complete(run_id, content=one) for one in finished
        ):
            points = history_points(record) + (self._trial_cost(record) if kind == "trial" else [])
            until = payload["until"]
            for name, value in curvature_metrics(configuration).items():
                points.append(Point(name, value, until, record.created))
            self._uses(run_id, "train", "val")
            self.tracker.complete(
                run_id, content=content, points=points, params=self._params(configuration, params)
            )
        self.shown[key] = record.key
        return run_id

    def _trial_cost(self, record: Record) -> list[Point]:
        config = self.sweep.config
        seconds = training_seconds(record, gpus=config.resources.gpus_per_trial)
        cost = cost_metrics({"accelerator_seconds": seconds, "money": config.cost.money(seconds)})
        return _now(cost, step=record.payload["until"])

    def _child(
        self,
        key: str,
        kind: str,
        name: str,
        configuration: SearchPoint,
        *,
        parent: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Make a run that belongs to a configuration."""
        own = {
            "sat_ray.kind": kind,
            "sat_ray.activation": configuration.activation,
            "sat_ray.sweep": self.sweep.name,
        }
        return self.tracker.run(
            key, name=name, parent=parent, tags=own | dict(tags or {}), params=params or {}
        )

    def _params(
        self, configuration: SearchPoint, own: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the parameters of a run that shows a configuration, what varies first."""
        config = self.sweep.config
        fixed = {
            "model": config.model.name,
            "threat_model": str(config.threat_model),
            "attack": f"pgd-{config.evaluation.steps}, step {as_255ths(config.evaluation.step_size)}",
        }
        return compared_params(configuration) | dict(own or {}) | fixed

    def _search(self) -> str:
        tags = {"sat_ray.kind": "search", "sat_ray.sweep": self.sweep.name}
        return self.tracker.run(
            f"search:{self.identity}", name="search", parent=self.parent, tags=tags, params={}
        )

    def _close_search(self, board: Mapping[str, Any]) -> None:
        trials = longest_trials(self.records)
        took = next(stage for stage in board["cost"]["stages"] if stage["name"] == "search")
        shown = {"trials": float(len(trials))} | cost_metrics(took)
        run_id, content = (
            self._search(),
            content_hash([[record.key for record in trials], shown, board.get("search")]),
        )
        if self.tracker.is_complete(run_id, content=content):
            return
        if self.sweep.storage.exists("figures/alpha_response.png"):
            self.tracker.artifact(
                run_id,
                "figures/alpha_response.png",
                self.sweep.storage.read("figures/alpha_response.png"),
            )
        if (searched := board.get("search")) is not None:
            self.tracker.note(run_id, searched["sentence"])
        self.tracker.complete(run_id, content=content, points=_now(shown))

    def _configuration(
        self, configuration: SearchPoint, *, tags: Mapping[str, str] | None = None
    ) -> str:
        key = f"configuration:{self.identity}:{configuration.slug}"
        params = self._params(configuration)
        name = compared_name(configuration)
        return self._child(
            key, "configuration", name, configuration, parent=self.parent, params=params, tags=tags
        )

    def _compared(self, group: Mapping[str, Any], board: Mapping[str, Any]) -> None:
        """Show what the seeds of a configuration say together."""
        from sat_ray.report.figures.leaderboard import png
        from sat_ray.report.figures.seed_curves import seed_curves
        from sat_ray.report.formatting import verdict_text
        from sat_ray.report.pages.mlflow_notes import configuration_note

        configuration = _of_group(group)
        chosen = "yes" if group["configuration"] == board["champion"]["configuration"] else "no"
        tags = {"sat_ray.against_relu": verdict_text(group), "sat_ray.chosen_by_validation": chosen}
        run_id = self._configuration(configuration, tags=tags)
        content = content_hash([group, chosen])
        if self.tracker.is_complete(run_id, content=content):
            return
        seeds = {
            one.payload["seed"]: one.payload
            for one in self.records.all(TRAIN)
            if SearchPoint.of(one.payload) == configuration
        }
        figure = seed_curves(
            configuration.name,
            {seed: payload["history"] for seed, payload in seeds.items()},
            events={seed: payload.get("guard_events", []) for seed, payload in seeds.items()},
        )
        self.tracker.artifact(run_id, "figures/training.png", png(figure))
        self.tracker.note(run_id, configuration_note(group, board=board))
        self._uses(run_id, "train", "val", "test")
        metrics = group_metrics(group) | curvature_metrics(configuration)
        self.tracker.complete(run_id, content=content, points=_now(metrics))

    def _uses(self, run_id: str, *splits: str) -> None:
        self.data = self.data or Dataset.open(dataset_uri(self.sweep.config, self.sweep.root))
        if self.data is None:
            return
        manifest, mark = self.data.manifest, self.data.hash[:8]
        profiles = {
            split: {"images": manifest["splits"][split], "shape": manifest["shape"]}
            for split in splits
        }
        self.tracker.uses(
            run_id,
            [
                Used(manifest["dataset"], f"{mark}-{split}", split, profile)
                for split, profile in profiles.items()
            ],
        )

    def _dataset(self) -> Dataset:
        self.data = self.data or Dataset.open(dataset_uri(self.sweep.config, self.sweep.root))
        assert self.data is not None
        return self.data

    def _evaluation(self, record: Record) -> str:
        """Hash what the run of an evaluated model shows."""
        return content_hash([record.key, record.content, self._price(), self._strong_settings()])

    def _strong_settings(self) -> list[Any]:
        e = self.sweep.config.evaluation
        return [] if e.strong == "none" else [e.strong_steps, e.strong_targets]

    def _evaluated(self, record: Record, path: str, *, cost: Mapping[str, Any]) -> str:
        from sat_ray.report.leaderboard.summary import summarise

        run_id = self._run(record, kind="finalist", name=_finalist_name(record))
        content = self._evaluation(record)
        if self.tracker.is_complete(run_id, content=content):
            return run_id
        summary = summarise(read_outcomes(self.sweep.records, path))
        values = {
            "eval/robust_accuracy": summary.robust_accuracy,
            "eval/robust_accuracy_low": summary.robust_accuracy_interval[0],
            "eval/robust_accuracy_high": summary.robust_accuracy_interval[1],
            "eval/clean_accuracy": summary.clean_accuracy,
            "cost/passes_per_image": summary.passes_per_image,
        }
        for strong in outcome_paths(self.sweep.config, record.payload["name"])[1:]:
            values = (
                self._strong_metrics(read_outcomes(self.sweep.records, strong), summary) | values
            )
            self.tracker.artifact(
                run_id, "strong_outcomes.parquet", self.sweep.storage.read(strong)
            )
        step = record.payload["until"]
        points = [Point(name, value, step, record.created) for name, value in values.items()]
        self.tracker.artifact(run_id, "outcomes.parquet", self.sweep.storage.read(path))
        self.tracker.artifact(run_id, "config.json", json_bytes(record.inputs))
        self._uses(run_id, "test")
        self._with_model(record)
        self.tracker.complete(
            run_id, content=content, points=points + _now(cost_metrics(cost), step=step)
        )
        return run_id

    @staticmethod
    def _strong_metrics(table: pa.Table, usual: "Summary") -> dict[str, float]:
        """Return the metrics of the strong verdict. table: outcomes of the images that `usual` counts as robust."""
        survivors = len(robust_image_ids(table))
        low, high = wilson_interval(survivors, usual.n)
        return {
            "eval/strong_robust_accuracy": survivors / usual.n,
            "eval/strong_robust_accuracy_low": low,
            "eval/strong_robust_accuracy_high": high,
            "eval/verdict_gap": usual.robust_accuracy - survivors / usual.n,
        }

    def _with_model(self, record: Record) -> tuple[str, str]:
        """Attach the model to its run; return the run id and the model's URI, "" without one."""
        run_id = self._run(record, kind="finalist", name=_finalist_name(record))
        if record.key in self.with_model:
            return run_id, self.with_model[record.key]
        model = load_model(
            self.sweep.storage.located(record.payload["path"]),
            expected_sha256=record.payload["sha256"],
        )
        shape = self._dataset().manifest["shape"]
        try:
            uri = self.tracker.model(run_id, model, name=MODEL_NAME, input_shape=shape)
        except NotExportedError as error:  # everything else of the run is written
            uri = ""
            self.not_exported = str(error)
        self.with_model[record.key] = uri
        return run_id, uri


def _refusal(card: Mapping[str, Any], *, name: str, override: str) -> str:
    """Return why a model is not registered at all; "" where it may be."""
    reasons = "; ".join(card["reasons"])
    if chance := next(
        (
            one["found"]
            for one in card["checks"]
            if one["name"] == ABOVE_CHANCE and not one["passed"]
        ),
        "",
    ):
        return f"no champion: {name} is no better than chance ({chance}); such a model is never registered"
    if card["verdict"] != PASS and not override:
        return f"no champion: the robustness card of {name} says FLAG ({reasons}). --accept-flagged REASON registers it all the same"
    return ""


def _now(values: Mapping[str, float], *, step: int = 0) -> list[Point]:
    """Return values that a later run of the sweep may replace: of two with the same step the tracker shows the later one."""
    moment = time()
    return [Point(name, value, step, moment) for name, value in values.items()]


def _of_group(group: Mapping[str, Any]) -> SearchPoint:
    return SearchPoint(**{field: group[field] for field in SearchPoint.__dataclass_fields__})


def _finalist_name(record: Record) -> str:
    return f"{SearchPoint.of(record.payload).name} · seed {record.payload['seed']}"
