"""The runs of a sweep and what all of them have: names, parents, parameters, data, models."""

from collections.abc import Mapping
from time import time
from typing import Any

from sat_ray.checkpoint import load_model
from sat_ray.integrations.mlflow.client import ATTEMPT
from sat_ray.integrations.mlflow.metrics import (
    compared_name,
    compared_params,
    cost_metrics,
    curvature_metrics,
    record_points,
)
from sat_ray.integrations.mlflow.projection.under_way import UnderWay, attempt_of
from sat_ray.integrations.mlflow.tracker import MlflowTracker
from sat_ray.integrations.mlflow.values import Point, Used
from sat_ray.models.export import NotExportedError
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.cost.spent import training_seconds
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, Dataset, task_name
from sat_ray.utils.serialization import content_hash, flatten, json_bytes, to_json

MODEL_NAME = "model"


class Runs:
    """Make the runs of a sweep, or find the ones that an earlier start made."""

    def __init__(self, sweep: Sweep, tracker: MlflowTracker) -> None:
        self.sweep = sweep
        self.tracker = tracker
        self.identity = sweep.identity
        self.records = sweep.records  # one for all updates: it reads every record once
        self.parent = self.whole({})
        tracker.artifact(self.parent, "config.json", json_bytes(to_json(sweep.config)))
        tracker.artifact(self.parent, "config.yaml", sweep.config.as_yaml(name=sweep.name))
        self.shown: dict[str, str] = {}
        self.with_model: dict[str, str] = {}
        self.not_exported = ""
        self._data: Dataset | None = None
        self._under_way = UnderWay(sweep.storage)

    def whole(self, tags: Mapping[str, str]) -> str:
        """Make the sweep's run, or give it more tags.

        Price and budget are tags, since they may change, and parameters cannot.
        """
        sweep = self.sweep
        cost = sweep.config.cost
        priced = f"{cost.price_per_accelerator_hour:g} {cost.currency} an accelerator-hour"
        budget = cost.amount(cost.budget_seconds() or 0.0)
        own = {
            "sat_ray.kind": "sweep",
            "mlflow.source.name": "pipelines/sweep.py",
            "mlflow.source.type": "LOCAL",
            "sat_ray.price": priced if cost.price_per_accelerator_hour else "none",
            "sat_ray.search_budget": "none" if cost.budget is None else budget,
        }
        params = flatten(to_json(sweep.config)) | {"sweep": sweep.name}
        key = f"sweep:{self.identity}"
        return self.tracker.run(key, name=sweep.name, tags=own | dict(tags), params=params)

    def search(self) -> str:
        """Make the run above all trials."""
        key = f"search:{self.identity}"
        tags = {"sat_ray.kind": "search", "sat_ray.sweep": self.sweep.name}
        return self.tracker.run(key, name="search", parent=self.parent, tags=tags, params={})

    def configuration(
        self, configuration: SearchPoint, *, tags: Mapping[str, str] | None = None
    ) -> str:
        """Make the run of a configuration, above the runs of its seeds."""
        return self._child(
            f"configuration:{self.identity}:{configuration.slug}",
            "configuration",
            compared_name(configuration),
            configuration,
            parent=self.parent,
            params=self._params(configuration),
            tags=tags,
        )

    def trial(self, record: Record) -> str:
        """Make the run of a search trial and write its record."""
        key = self._key("trial", record.payload["name"])
        run_id = self._trial_run(key, SearchPoint.of(record.payload), tags=self._began(key, record))
        content = content_hash([record.key, self._price()])
        # no epochs among the parameters: a trial's grow from rung to rung
        own = {"seed": record.payload["seed"]}
        cost = self._trial_cost(record)
        self._show(record, key, run_id, content=content, params=own, points=cost)
        return run_id

    def _trial_run(self, key: str, configuration: SearchPoint, *, tags: Mapping[str, str]) -> str:
        return self._child(
            key, "trial", configuration.name, configuration, parent=self.search(), tags=tags
        )

    def finalist(self, record: Record, *, tags: Mapping[str, str] | None = None) -> str:
        """Make the run of a finalist's training and write its record."""
        key = self._key("finalist", record.payload["name"])
        all_tags = self._began(key, record) | dict(tags or {})
        configuration = SearchPoint.of(record.payload)
        seed = record.payload["seed"]
        run_id = self._finalist_run(key, configuration, seed, tags=all_tags)
        own = {"seed": seed, "epochs": record.payload["until"]}
        self._show(record, key, run_id, content=record.key, params=own)
        return run_id

    def _finalist_run(
        self, key: str, configuration: SearchPoint, seed: int, *, tags: Mapping[str, str]
    ) -> str:
        return self._child(
            key,
            "finalist",
            finalist_name(configuration, seed),
            configuration,
            parent=self.configuration(configuration),
            tags=tags,
        )

    def under_way(self) -> None:
        """Write the epochs that trainings have saved and not committed."""
        for begun, attempt, points in self._under_way.new(self.records):
            configuration = SearchPoint.of(begun.inputs)
            seed = begun.inputs["seed"]
            kind = "finalist" if begun.stage == TRAIN.name else "trial"
            key = self._key(kind, task_name(configuration, seed))
            if not self.tracker.admits(key, attempt=attempt):
                continue
            tags = {ATTEMPT: attempt}
            if kind == "finalist":
                run_id = self._finalist_run(key, configuration, seed, tags=tags)
            else:
                run_id = self._trial_run(key, configuration, tags=tags)
            self.tracker.log(run_id, points)

    def _began(self, key: str, record: Record) -> dict[str, str]:
        """Return the tag of the attempt behind a record, {} where its run shows another."""
        attempt = attempt_of(record.payload.get("history_times", []))
        return {ATTEMPT: attempt} if attempt and self.tracker.admits(key, attempt=attempt) else {}

    def _key(self, kind: str, name: str) -> str:
        return f"{kind}:{self.identity}:{name}"

    def _show(
        self,
        record: Record,
        key: str,
        run_id: str,
        *,
        content: str,
        params: Mapping[str, Any],
        points: list[Point] | None = None,
    ) -> None:
        """Write a record to its run, unless the run shows it, perhaps with its evaluation."""
        finished = (content, self.evaluated_content(record))
        if self.shown.get(key) != record.key and not any(
            self.tracker.is_complete(run_id, content=one) for one in finished
        ):
            configuration = SearchPoint.of(record.payload)
            all_points = record_points(record) + (points or [])
            for name, value in curvature_metrics(configuration).items():
                all_points.append(Point(name, value, record.payload["until"], record.created))
            self.uses(run_id, "train", "val")
            own = self._params(configuration, params)
            self.tracker.complete(run_id, content=content, points=all_points, params=own)
        self.shown[key] = record.key

    def _trial_cost(self, record: Record) -> list[Point]:
        config = self.sweep.config
        seconds = training_seconds(record, gpus=config.resources.gpus_per_trial)
        cost = cost_metrics({"accelerator_seconds": seconds, "money": config.cost.money(seconds)})
        return now(cost, step=record.payload["until"])

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
        step = config.threat_model.text(config.evaluation.step_size)
        fixed = {
            "model": config.model.name,
            "threat_model": str(config.threat_model),
            "attack": f"pgd-{config.evaluation.steps}, step {step}",
        }
        return compared_params(configuration) | dict(own or {}) | fixed

    def uses(self, run_id: str, *splits: str) -> None:
        """Write which splits a run used; nothing while the data is not prepared."""
        data = self._prepared()
        if data is None:
            return
        manifest = data.manifest
        used = []
        for split in splits:
            profile = {"images": manifest["splits"][split], "shape": manifest["shape"]}
            used.append(Used(manifest["dataset"], f"{data.hash[:8]}-{split}", split, profile))
        self.tracker.uses(run_id, used)

    def dataset(self) -> Dataset:
        """Return the prepared data of the sweep."""
        data = self._prepared()
        assert data is not None
        return data

    def _prepared(self) -> Dataset | None:
        self._data = self._data or Dataset.open(dataset_uri(self.sweep.config, self.sweep.root))
        return self._data

    def evaluated_content(self, record: Record) -> str:
        """Hash what the run of an evaluated model shows."""
        evaluation = self.sweep.config.evaluation
        strong: list[Any] = []
        if evaluation.strong != "none":
            strong = [evaluation.strong_steps, evaluation.strong_targets]
        return content_hash([record.key, record.content, self._price(), strong])

    def _price(self) -> list[Any]:
        cost = self.sweep.config.cost
        if not cost.price_per_accelerator_hour:
            return []
        return [cost.price_per_accelerator_hour, cost.currency]

    def attach_model(self, record: Record) -> tuple[str, str]:
        """Attach the model to its run; return the run id and the model's URI, "" without one."""
        run_id = self.finalist(record)
        if record.key in self.with_model:
            return run_id, self.with_model[record.key]
        place = self.sweep.storage.located(record.payload["path"])
        model = load_model(place, expected_sha256=record.payload["sha256"])
        shape = self.dataset().manifest["shape"]
        try:
            uri = self.tracker.model(run_id, model, name=MODEL_NAME, input_shape=shape)
        except NotExportedError as error:  # everything else of the run is written
            uri = ""
            self.not_exported = str(error)
        self.with_model[record.key] = uri
        return run_id, uri


def now(values: Mapping[str, float], *, step: int = 0) -> list[Point]:
    """Return values that a later run of the sweep may replace.

    Of two points with the same step the tracker shows the later one.
    """
    moment = time()
    return [Point(name, value, step, moment) for name, value in values.items()]


def finalist_name(configuration: SearchPoint, seed: int) -> str:
    """Name the run of a finalist's training."""
    return f"{configuration.name} · seed {seed}"
