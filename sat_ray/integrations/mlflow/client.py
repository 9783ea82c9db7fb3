"""The tracker that writes to MLflow.

Only MlflowClient is used: nothing depends on an active run or leaves one. Runs are found again by the tag `sat_ray.key`.
"""

import json
import logging
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from sat_ray.integrations.mlflow.connection import global_tracking_uri
from sat_ray.integrations.mlflow.database import settle_database, sole_creator
from sat_ray.integrations.mlflow.models import model_digest, save_model
from sat_ray.integrations.mlflow.preflight import (
    EXPERIMENT,
    NoAnswerError,
    check_tracking,
    is_outage,
    login_to_environment,
)
from sat_ray.integrations.mlflow.relocation import follow_moved_artifacts
from sat_ray.integrations.mlflow.tracker import Holder, Point, Used
from sat_ray.storage.uris import redacted

KEY, CONTENT, MODEL_CONTENT = "sat_ray.key", "sat_ray.content", "sat_ray.model_content"
KIND = {
    "mlflow.experimentKind": "custom_model_development"
}  # its pages then open on runs and charts, not on traces of language models
VIEW = "mlflow.sharedViewState."  # of an experiment's tags: what its button Share writes
WATCH_SECONDS = 10
METRICS, PARAMS = 1000, 100  # the most that one request may hold
METRICS_AT_THE_END = 800  # beside a request's parameters and tags: 1,000 in all


@dataclass
class _Run:
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    ended: bool = False


class MlflowTracker:
    """The Tracker of an MLflow experiment; one writer at a time. Every method may be repeated.

    tracking_uri: see check_tracking, which is called first; artifact_root: a local folder or s3://, used where the experiment is new.
    A parameter keeps its first value, MLflow cannot change it; a note is cut to 8,000 and a parameter to 500 characters. Raises ValueError.
    """

    def __init__(self, tracking_uri: str, *, experiment: str, artifact_root: str | None) -> None:
        check_tracking(tracking_uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault(
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
        )  # else two lines for every run that ends
        self._login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
        self._uri = login_to_environment(tracking_uri)
        import mlflow

        for noisy in (
            "mlflow.store.db.utils",
            "mlflow.utils.environment",
        ):  # migrations; "no pip installed" for every model
            logging.getLogger(noisy).setLevel(logging.ERROR)
        try:
            with sole_creator(self._uri):
                settle_database(self._uri)
                follow_moved_artifacts(self._uri, artifact_root)
                self._client = mlflow.MlflowClient(self._uri, self._uri)
                self._experiment_id = self._open_experiment(experiment, artifact_root)
            self._runs, self._ids = self._load_runs()
        except ValueError:
            raise
        except Exception as error:
            reason = self._clean((str(error) or type(error).__name__).splitlines()[0])
            kind = NoAnswerError if is_outage(error) else ValueError
            raise kind(
                f"tracking at {redacted(tracking_uri)} refused the first request: {reason}"
            ) from None

    def _open_experiment(self, name: str, artifact_root: str | None) -> str:
        import mlflow

        if artifact_root is not None and not urlsplit(artifact_root).scheme:
            artifact_root = str(Path(artifact_root).absolute())
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(
                    self._client.create_experiment(name, artifact_location=artifact_root, tags=KIND)
                )
            except mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            restore = ["mlflow", "experiments", "restore", "--experiment-id", found.experiment_id]
            raise ValueError(
                f"experiment {name!r} was deleted in MLflow; restore it with: "
                f"MLFLOW_TRACKING_URI={shlex.quote(redacted(self._uri))} {shlex.join(restore)}, "
                f"or choose another experiment with the variable {EXPERIMENT}"
            )
        if not found.tags.keys() & KIND.keys():  # one that an older MLflow made
            self._client.set_experiment_tag(found.experiment_id, *next(iter(KIND.items())))
        return str(found.experiment_id)

    def share(self, key: str, state: Mapping[str, object]) -> None:
        """Keep a view of the page of runs under a key that an address can name."""
        self._client.set_experiment_tag(self._experiment_id, f"{VIEW}{key}", json.dumps(state))

    @property
    def experiment_id(self) -> str:
        """Return the id of the experiment that holds the runs."""
        return self._experiment_id

    def _load_runs(self) -> tuple[dict[str, _Run], dict[str, str]]:
        runs: dict[str, _Run] = {}
        ids: dict[str, str] = {}
        page: str | None = None
        while page != "":
            query = {
                "filter_string": f"tags.`{KEY}` LIKE '%'",
                "order_by": ["attributes.start_time ASC"],
                "page_token": page,
            }
            found = self._client.search_runs([self._experiment_id], max_results=1000, **query)
            for run in found:
                runs[run.info.run_id] = _Run(
                    dict(run.data.tags), dict(run.data.params), run.info.status != "RUNNING"
                )
                ids.setdefault(run.data.tags[KEY], run.info.run_id)
            page = found.token or ""
        return runs, ids

    def _clean(self, text: str) -> str:
        return text.replace(f"{self._login}@", "***@") if self._login else text

    def run(
        self,
        key: str,
        *,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str],
        params: Mapping[str, object],
    ) -> str:
        """Return the id of the run with this key, made now if there is none; parent: a run id."""
        from mlflow.entities import RunTag

        wanted = {tag: self._clean(value) for tag, value in tags.items()} | {
            KEY: key,
            "mlflow.runName": name,
        }
        if parent is not None:
            wanted["mlflow.parentRunId"] = parent
        if key not in self._ids:
            self._ids[key] = self._client.create_run(
                self._experiment_id, tags=wanted, run_name=name
            ).info.run_id
            self._runs[self._ids[key]] = _Run(dict(wanted))
        run_id = self._ids[key]
        known = self._runs[run_id]
        for some in self._new_params(run_id, params):
            self._client.log_batch(run_id, params=some)
        new_tags = [
            RunTag(tag, value) for tag, value in wanted.items() if known.tags.get(tag) != value
        ]
        if new_tags:
            self._client.log_batch(run_id, tags=new_tags)
        known.tags |= wanted
        known.params |= self._texts(params)
        return run_id

    def _texts(self, params: Mapping[str, object]) -> dict[str, str]:
        return {
            name: self._clean("none" if value is None else str(value))[:500]
            for name, value in params.items()
        }

    def _new_params(self, run_id: str, params: Mapping[str, object]) -> list[list[Any]]:
        """Return the parameters that a run does not have yet, in lists of as many as one request may hold."""
        from mlflow.entities import Param

        known = self._runs[run_id].params
        new = [Param(name, text) for name, text in self._texts(params).items() if name not in known]
        return [new[start : start + PARAMS] for start in range(0, len(new), PARAMS)]

    def is_complete(self, run_id: str, *, content: str) -> bool:
        """Say whether this run was ended by `complete` with the same content hash."""
        known = self._runs[run_id]
        return known.ended and known.tags.get(CONTENT) == content

    def complete(
        self,
        run_id: str,
        *,
        content: str,
        points: Sequence[Point] = (),
        params: Mapping[str, object] | None = None,
        failed: bool = False,
    ) -> None:
        """Write the last of what a run shows, metric values and parameters, with the hash of all of it, and end it.

        The hash goes with the last request but one, and counts only for a run that has ended: a crash anywhere is repaired.
        """
        from mlflow.entities import RunTag

        *early, last = self._new_params(run_id, params or {}) or [[]]
        for some in early:
            self._client.log_batch(run_id, params=some)
        self.log(run_id, points[:-METRICS_AT_THE_END])
        self._client.log_batch(
            run_id,
            metrics=_metrics(points[-METRICS_AT_THE_END:]),
            params=last,
            tags=[RunTag(CONTENT, content)],
        )
        self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
        known = self._runs[run_id]
        known.tags[CONTENT], known.ended = content, True
        known.params |= self._texts(params or {})

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Write metric values; MLflow keeps a point (name, value, step, time) once however often it is sent."""
        for start in range(0, len(points), METRICS):
            self._client.log_batch(run_id, metrics=_metrics(points[start : start + METRICS]))

    def artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Attach a file under a relative path, replacing an earlier one."""
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            raise ValueError(
                f"artifact path {path!r} is not allowed; allowed: a relative path without '..'"
            )
        folder = str(relative.parent) if len(relative.parts) > 1 else None
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, relative.name)
            file.write_bytes(data)
            self._client.log_artifact(run_id, str(file), folder)

    def uses(self, run_id: str, data: Sequence[Used]) -> None:
        """Say which data a run used; MLflow keeps 36 characters of a digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for one in data:
            profile = json.dumps(dict(one.profile), default=str)
            about = Dataset(
                one.name, one.digest[:36], source_type="sat_ray", source="{}", profile=profile
            )
            inputs.append(DatasetInput(about, [InputTag("mlflow.data.context", one.context)]))
        self._client.log_inputs(run_id, datasets=inputs)

    def note(self, run_id: str, markdown: str) -> None:
        """Set the run's description."""
        self._client.set_tag(run_id, "mlflow.note.content", self._clean(markdown)[:8000])

    @contextmanager
    def watch(self, run_id: str) -> Iterator[None]:
        """Write this machine's load (CPU, memory, disk, network, GPUs) to a run every ten seconds; an outage ends it without a word."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        try:
            monitor = SystemMetricsMonitor(
                run_id, sampling_interval=WATCH_SECONDS, resume_logging=True, tracking_uri=self._uri
            )
        except (
            Exception
        ):  # the tracker is away: the sweep matters more than the load of its machine
            yield
            return
        monitor.start()
        try:
            yield
        finally:
            ending = threading.Thread(
                target=monitor.finish, daemon=True
            )  # MLflow asks a server that is away again for minutes
            ending.start()
            ending.join(WATCH_SECONDS)

    def model(self, run_id: str, model: nn.Module, *, name: str, input_shape: Sequence[int]) -> str:
        """Attach a model that loads without this package ([0, 1] images of input_shape -> logits) and return its URI."""
        from mlflow.entities import LoggedModelOutput

        content = model_digest(model, input_shape)
        mine = f"source_run_id = '{run_id}' AND name = '{name}' AND tags.`{MODEL_CONTENT}` = '{content}'"
        for found in self._client.search_logged_models([self._experiment_id], filter_string=mine):
            if str(found.status) == "READY":
                return str(found.model_uri)
        logged = self._client.create_logged_model(
            self._experiment_id, name, run_id, {MODEL_CONTENT: content}, model_type="classifier"
        )
        try:
            with tempfile.TemporaryDirectory() as temporary:
                folder = str(Path(temporary, "model"))
                save_model(model, folder, input_shape, logged)
                self._client.log_model_artifacts(logged.model_id, folder)
        except BaseException:
            self._client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_uri)

    def register(
        self,
        model_uri: str,
        *,
        name: str,
        alias: str | None,
        tags: Mapping[str, str],
        run_id: str,
        note: str = "",
    ) -> str:
        """Make a version of a registered model, or find the one made from this URI, and point the alias at it; return the version.

        alias: None to leave it where it is; note: Markdown that describes the version.
        """
        import mlflow

        try:
            self._client.create_registered_model(name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = [
            found
            for found in self._client.search_model_versions(f"name = '{name}'")
            if found.source == model_uri
        ]
        if not versions:
            source = {
                "source": model_uri,
                "run_id": run_id,
                "model_id": re.sub("^models:/", "", model_uri),
            }  # a server compares the two
            with global_tracking_uri(self._uri):
                versions = [self._client.create_model_version(name, **source, await_creation_for=0)]
        version = str(min(int(found.version) for found in versions))
        for tag, value in tags.items():
            self._client.set_model_version_tag(name, version, tag, self._clean(value))
        if note:
            self._client.update_model_version(
                name, version, self._clean(note)[:5000]
            )  # the most that MLflow's databases hold
        if alias is not None:
            self._client.set_registered_model_alias(name, alias, version)
        return version

    def holder(self, name: str, *, alias: str) -> Holder | None:
        """Return the version of a registered model that an alias points at, None where there is none."""
        import mlflow

        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except mlflow.MlflowException as error:
            if error.error_code in (
                "RESOURCE_DOES_NOT_EXIST",
                "INVALID_PARAMETER_VALUE",
            ):  # no such model; no such alias
                return None
            raise
        return Holder(version=str(found.version), source=str(found.source), tags=dict(found.tags))


def _metrics(points: Sequence[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(point.name, float(point.value), round(point.seconds * 1000), point.step)
        for point in points
    ]
