"""Write MLflow from committed records: parent run = sweep; child run = search trial, or finalist and seed. Any of it may be repeated."""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from pipelines.reporting import read_outcomes
from pipelines.stages import Sweep
from sat_ray.card import PASS
from sat_ray.checkpoint import load_model
from sat_ray.config import content_hash, flatten, to_json
from sat_ray.configuration import Configuration
from sat_ray.plan import TRAIN, Dataset, dataset_uri, longest_trials
from sat_ray.stages import Record
from sat_ray.storage import json_bytes
from sat_ray.threat import as_255ths
from sat_ray.tracking import Point, Tracker

MODEL_NAME = "model"
MODEL_SECONDS = 3.0


class Projection:
    """Keep the tracker's runs equal to the sweep's records."""

    def __init__(self, sweep: Sweep, tracker: Tracker) -> None:
        self.sweep, self.tracker = sweep, tracker
        self.records = sweep.records  # one for all updates: it reads every record once
        params = flatten(to_json(sweep.config)) | {"sweep": sweep.name}
        self.parent = tracker.run(f"sweep:{sweep.storage.uri}", name=sweep.name, tags={"sat_ray.kind": "sweep"}, params=params)
        tracker.artifact(self.parent, "config.json", json_bytes(to_json(sweep.config)))
        self.shown: dict[str, str] = {}
        self.with_model: dict[str, str] = {}

    def update(self) -> None:
        """Write what was committed since the last call."""
        for record in longest_trials(self.records):
            self._run(record, kind="trial", name=Configuration(**record.payload["configuration"]).name)
        trained = self.records.all(TRAIN)
        for record in trained:
            self._run(record, kind="finalist", name=_finalist_name(record))
        deadline = monotonic() + MODEL_SECONDS
        for record in trained:  # an export takes about a second: a few at a time, while others train and evaluate
            if record.key not in self.with_model and monotonic() < deadline:
                self._with_model(record)

    def finish(self, models: list[Record], outcomes: dict[str, str]) -> dict[str, str]:
        """Write the evaluated models with their outcomes and weights; return the run id of each training record by key."""
        self.update()
        data = Dataset.open(dataset_uri(self.sweep.config, self.sweep.root))
        assert data is not None
        return {record.key: self._evaluated(record, outcomes[record.payload["name"]], data) for record in models}

    def close(self, board: Mapping[str, Any]) -> None:
        """Attach the leaderboard and the figures to the sweep's run and end it."""
        storage = self.sweep.storage
        for path in ("leaderboard.json", "leaderboard.md", "report.html", *(f"figures/{name}" for name in storage.names("figures"))):
            self.tracker.artifact(self.parent, path, storage.read(path))
        self.tracker.note(self.parent, storage.read("leaderboard.md").decode())
        best = board["champion"]["row"]
        self.tracker.log(self.parent, [Point(f"champion/{name}", best[name], 0, 0.0) for name in ("clean_accuracy", "robust_accuracy")])
        self.tracker.complete(self.parent, content=content_hash(board["rows"]))

    def register(self, board: Mapping[str, Any], cards: Sequence[Record], *, override: str) -> str:
        """Show the cards on their runs; register the winner as `champion` of its sweep family if its card says PASS, or `override` why not.

        Returns a sentence for people.
        """
        best = board["champion"]["row"]
        trained = {record.payload["path"]: record for record in self.sweep.records.all(TRAIN)}
        for card in cards:
            self._carded(trained[card.payload["checkpoint"]], card.payload["card"])
        card = next(one.payload["card"] for one in cards if one.payload["checkpoint"] == best["checkpoint"])
        passed = card["verdict"] == PASS
        name = board["champion"]["configuration"]
        if not passed and not override:
            reasons = "; ".join(card["reasons"])
            return f"no champion: the robustness card of {name} says FLAG ({reasons}). --accept-flagged REASON registers it all the same"
        run_id, uri = self._with_model(trained[best["checkpoint"]])
        tags = {
            "sat_ray.robustness_card": card["verdict"],
            "sat_ray.robust_accuracy_of_cascade": f"{card['ladder']['cascade']:.4f} (validation, n = {card['n']})",
            "sat_ray.sweep": self.sweep.name,
            "sat_ray.configuration": name,
            "sat_ray.robust_accuracy": f"{best['robust_accuracy']:.4f}",
            "sat_ray.threat_model": str(self.sweep.config.threat_model),
        } | ({} if passed else {"sat_ray.flag_accepted_because": override, "sat_ray.flagged_because": "; ".join(card["reasons"])[:500]})
        version = self.tracker.register(uri, name=self.sweep.config.recipe, alias="champion", tags=tags, run_id=run_id)
        accepted = "" if passed else f", accepted because: {override}"
        return f"champion: version {version} of model {self.sweep.config.recipe} in MLflow (robustness card: {card['verdict']}{accepted})"

    def _carded(self, record: Record, card: Mapping[str, Any]) -> None:
        run_id = self._run(record, kind="finalist", name=_finalist_name(record), tags={"sat_ray.robustness_card": card["verdict"]})
        self.tracker.artifact(run_id, "robustness_card.json", json_bytes(card))

    def _run(self, record: Record, *, kind: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        payload, config = record.payload, self.sweep.config
        key = f"{kind}:{self.sweep.storage.uri}:{payload['name']}"
        params = payload["configuration"] | {
            "seed": payload["seed"],
            "model": config.model.name,
            "epochs": payload["until"],
            "threat_model": str(config.threat_model),
            "attack": f"pgd-{config.evaluation.steps}, step {as_255ths(config.evaluation.step_size)}",
        }
        if kind == "trial":
            params.pop("epochs")  # grows from rung to rung; MLflow params are final
        own = {"sat_ray.kind": kind, "sat_ray.activation": payload["configuration"]["activation"], "sat_ray.sweep": self.sweep.name}
        run_id = self.tracker.run(key, name=name, parent=self.parent, tags=own | dict(tags or {}), params=params)
        if self.shown.get(key) != record.key and not self.tracker.is_complete(run_id, content=record.key):
            self.tracker.log(run_id, _points(record))
            self.tracker.complete(run_id, content=record.key)
        self.shown[key] = record.key
        return run_id

    def _evaluated(self, record: Record, path: str, data: Dataset) -> str:
        from sat_ray.report.summary import summarise

        run_id = self._run(record, kind="finalist", name=_finalist_name(record))
        content = content_hash([record.key, record.content, path])
        if self.tracker.is_complete(run_id, content=content):
            return run_id
        summary = summarise(read_outcomes(self.sweep.records, path))
        values = {
            "eval/clean_accuracy": summary.clean_accuracy,
            "eval/robust_accuracy": summary.robust_accuracy,
            "eval/robust_accuracy_low": summary.robust_accuracy_interval[0],
            "eval/robust_accuracy_high": summary.robust_accuracy_interval[1],
            "cost/accelerator_seconds": record.payload["accelerator_seconds"],
        }
        step = record.payload["until"]
        self.tracker.log(run_id, [Point(name, value, step, record.created) for name, value in values.items()])
        self.tracker.artifact(run_id, "outcomes.parquet", self.sweep.storage.read(path))
        self.tracker.artifact(run_id, "config.json", json_bytes(record.inputs))
        for split in ("train", "val", "test"):
            profile = {"images": data.manifest["splits"][split], "shape": data.manifest["shape"]}
            self.tracker.dataset(run_id, name=data.manifest["dataset"], digest=f"{data.hash[:8]}-{split}", context=split, profile=profile)
        self._with_model(record)
        self.tracker.complete(run_id, content=content)
        return run_id

    def _with_model(self, record: Record) -> tuple[str, str]:
        run_id = self._run(record, kind="finalist", name=_finalist_name(record))
        if record.key in self.with_model:
            return run_id, self.with_model[record.key]
        model = load_model(record.payload["path"], expected_sha256=record.payload["sha256"])
        data = Dataset.open(dataset_uri(self.sweep.config, self.sweep.root))
        assert data is not None
        self.with_model[record.key] = self.tracker.model(run_id, model, name=MODEL_NAME, input_shape=data.manifest["shape"])
        return run_id, self.with_model[record.key]


def _finalist_name(record: Record) -> str:
    return f"{Configuration(**record.payload['configuration']).name} · seed {record.payload['seed']}"


def _points(record: Record) -> list[Point]:
    return [
        Point(name, float(value), int(row["epoch"]) + 1, record.created)
        for row in record.payload["history"]
        for name, value in row.items()
        if name != "epoch"
    ]
