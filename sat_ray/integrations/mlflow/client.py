"""The runs of an experiment in MLflow.

Only MlflowClient is used: nothing depends on an active run or leaves one. Runs are found again by
the tag `sat_ray.key`.
"""

import json
import logging
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sat_ray.integrations.mlflow.database import settle_database, sole_creator
from sat_ray.integrations.mlflow.errors import NoAnswerError, is_outage, reason_of
from sat_ray.integrations.mlflow.preflight import EXPERIMENT, check_tracking, login_to_environment
from sat_ray.integrations.mlflow.relocation import follow_moved_artifacts
from sat_ray.integrations.mlflow.values import Point, Used
from sat_ray.integrations.temporary_folders import temporary_folder
from sat_ray.storage.uris import redacted

KEY = "sat_ray.key"
CONTENT = "sat_ray.content"
ATTEMPT = "sat_ray.attempt"  # at the training whose epochs a run shows
KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"  # pages open on runs and charts, not on traces of LLMs
VIEW = "mlflow.sharedViewState."  # of an experiment's tags: what its button Share writes
WATCH_SECONDS = 10
METRICS = 1000  # the most that one request may hold
PARAMS = 100
METRICS_AT_THE_END = 800  # beside a request's parameters and tags: 1,000 in all
NOTE_LETTERS = 8000  # of a run's description
NOISY = {
    # migrations, and a traceback for every error, which is raised too
    "mlflow.store.db.utils": logging.CRITICAL,
    # "no pip installed" for every model
    "mlflow.utils.environment": logging.ERROR,
}


@dataclass
class _Run:
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    ended: bool = False


class MlflowRuns:
    """The runs of an MLflow experiment; every method may be repeated.

    Runs are keyed by what they show, so that a restart adopts them instead of doubling them; only
    one process may write at a time. A search may have hundreds of trials that take seconds: one is
    written in four requests (`run`, `uses`, and `complete`, which takes two).

    tracking_uri: see check_tracking, which is called first; artifact_root: a local folder or s3://,
    used where the experiment is new. A parameter keeps its first value, MLflow cannot change it; a
    note is cut to 8,000 and a parameter to 500 characters. Raises ValueError.
    """

    def __init__(self, tracking_uri: str, *, experiment: str, artifact_root: str | None) -> None:
        check_tracking(tracking_uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # else two lines for every run that ends
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
        self._uri = login_to_environment(tracking_uri)
        import mlflow

        for name, level in NOISY.items():
            logging.getLogger(name).setLevel(level)
        try:
            with sole_creator(self._uri):
                settle_database(self._uri)
                follow_moved_artifacts(self._uri, artifact_root)
                self._client = mlflow.MlflowClient(self._uri, self._uri)
                self.experiment_id = self._open_experiment(experiment, artifact_root)
            self._runs, self._ids = self._load_runs()
        except ValueError:
            raise
        except Exception as error:
            kind = NoAnswerError if is_outage(error) else ValueError
            raise kind(
                f"tracking at {redacted(tracking_uri)} refused the first request: "
                f"{self._clean(reason_of(error))}"
            ) from None

    def _open_experiment(self, name: str, artifact_root: str | None) -> str:
        """Return the id of an experiment, made now if there is none; ValueError for a deleted."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            made = self._create_experiment(name, artifact_root)
            if made:
                return made
            found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            restore = ["mlflow", "experiments", "restore", "--experiment-id", found.experiment_id]
            raise ValueError(
                f"experiment {name!r} was deleted in MLflow; restore it with: "
                f"MLFLOW_TRACKING_URI={shlex.quote(redacted(self._uri))} {shlex.join(restore)}, "
                f"or choose another experiment with the variable {EXPERIMENT}"
            )
        if KIND not in found.tags:  # one that an older MLflow made
            self._client.set_experiment_tag(found.experiment_id, KIND, TRAINING)
        return str(found.experiment_id)

    def _create_experiment(self, name: str, artifact_root: str | None) -> str:
        """Return the id of a new experiment, "" where another process made it meanwhile."""
        import mlflow

        if artifact_root is not None and not urlsplit(artifact_root).scheme:
            artifact_root = str(Path(artifact_root).absolute())
        try:
            made = self._client.create_experiment(
                name, artifact_location=artifact_root, tags={KIND: TRAINING}
            )
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return ""
        return str(made)

    def share(self, key: str, state: Mapping[str, object]) -> None:
        """Keep a view of the page of runs under a key that an address can name."""
        self._client.set_experiment_tag(self.experiment_id, f"{VIEW}{key}", json.dumps(state))

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
            found = self._client.search_runs([self.experiment_id], max_results=1000, **query)
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

        wanted = {tag: self._clean(value) for tag, value in tags.items()}
        wanted |= {KEY: key, "mlflow.runName": name}
        if parent is not None:
            wanted["mlflow.parentRunId"] = parent
        if key not in self._ids:
            made = self._client.create_run(self.experiment_id, tags=wanted, run_name=name)
            self._ids[key] = made.info.run_id
            self._runs[made.info.run_id] = _Run(dict(wanted))
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

    def admits(self, key: str, *, attempt: str) -> bool:
        """Say whether the run with this key may show an attempt at a training.

        MLflow takes no point back. So a run that has not ended and shows another attempt is
        deleted, for `run` to make a new one; a run that has ended stays as it is.
        """
        run_id = self._ids.get(key)
        if run_id is None:
            return True
        known = self._runs[run_id]
        shown = known.tags.get(ATTEMPT)
        if known.ended:
            return shown == attempt
        if shown in (None, attempt):
            return True
        self._client.delete_run(run_id)
        del self._ids[key], self._runs[run_id]
        return True

    def _texts(self, params: Mapping[str, object]) -> dict[str, str]:
        return {
            name: self._clean("none" if value is None else str(value))[:500]
            for name, value in params.items()
        }

    def _new_params(self, run_id: str, params: Mapping[str, object]) -> list[list[Any]]:
        """Return the parameters that a run does not have yet, in lists that fit one request."""
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
    ) -> None:
        """Write the last metric values and parameters of a run with a hash of all of it; end it.

        content: the hash. It goes with the last request but one, and counts only for a run that has
        ended, so a crash anywhere is repaired.
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
        self._client.set_terminated(run_id)
        known = self._runs[run_id]
        known.tags[CONTENT] = content
        known.ended = True
        known.params |= self._texts(params or {})

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Write metric values; MLflow keeps the same point (name, value, step, time) once."""
        for start in range(0, len(points), METRICS):
            self._client.log_batch(run_id, metrics=_metrics(points[start : start + METRICS]))

    def artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Attach a file under a relative path, replacing an earlier one."""
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            raise ValueError(f"artifact path must be relative and without '..', got {path!r}")
        folder = str(relative.parent) if len(relative.parts) > 1 else None
        with temporary_folder() as temporary:
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
        self._client.set_tag(run_id, "mlflow.note.content", self._clean(markdown)[:NOTE_LETTERS])

    @contextmanager
    def watch(self, run_id: str) -> Iterator[None]:
        """Write this machine's load (CPU, memory, disk, network, GPUs) to a run every ten seconds.

        An outage ends it silently.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        try:
            monitor = SystemMetricsMonitor(
                run_id, sampling_interval=WATCH_SECONDS, resume_logging=True, tracking_uri=self._uri
            )
        except Exception:  # the tracker is away: the sweep matters more than this machine's load
            yield
            return
        monitor.start()
        try:
            yield
        finally:
            # in a thread: MLflow repeats requests to a server that is away again for minutes
            ending = threading.Thread(target=monitor.finish, daemon=True)
            ending.start()
            ending.join(WATCH_SECONDS)


def _metrics(points: Sequence[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(point.name, float(point.value), round(point.seconds * 1000), point.step)
        for point in points
    ]
