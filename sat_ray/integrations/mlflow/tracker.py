"""The tracker that writes to MLflow: runs, models, versions of registered models."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from sat_ray.integrations.mlflow.client import MlflowRuns
from sat_ray.integrations.mlflow.connection import global_tracking_uri
from sat_ray.integrations.mlflow.models import model_digest, save_model
from sat_ray.integrations.mlflow.values import Holder
from sat_ray.integrations.temporary_folders import temporary_folder

MODEL_CONTENT = "sat_ray.model_content"
VERSION_LETTERS = 5000  # of a version's description: the most that MLflow's databases hold
NO_HOLDER = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model; no such alias


class MlflowTracker(MlflowRuns):
    """The runs, models and versions of an MLflow experiment; every method may be repeated."""

    def model(self, run_id: str, model: nn.Module, *, name: str, input_shape: Sequence[int]) -> str:
        """Attach a model that loads without this package and return its URI.

        It takes [0, 1] images of input_shape and returns logits.
        """
        from mlflow.entities import LoggedModelOutput

        content = model_digest(model, input_shape)
        wanted = (
            f"source_run_id = '{run_id}' AND name = '{name}' "
            f"AND tags.`{MODEL_CONTENT}` = '{content}'"
        )
        for found in self._client.search_logged_models([self.experiment_id], filter_string=wanted):
            if str(found.status) == "READY":
                return str(found.model_uri)
        logged = self._client.create_logged_model(
            self.experiment_id, name, run_id, {MODEL_CONTENT: content}, model_type="classifier"
        )
        try:
            with temporary_folder() as temporary:
                folder = str(Path(temporary, "model"))
                save_model(model, folder, input_shape, logged)
                self._client.log_model_artifacts(logged.model_id, folder)
        except BaseException:
            with suppress(Exception):  # the first error says more
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
        """Make a version of a registered model, or find the one made from this URI; return it.

        alias: what shall point at the version, None to leave it where it is; note: Markdown that
        describes the version.
        """
        version = self._version(model_uri, name=name, run_id=run_id)
        for tag, value in tags.items():
            self._client.set_model_version_tag(name, version, tag, self._clean(value))
        if note:
            shown = self._clean(note)[:VERSION_LETTERS]
            self._client.update_model_version(name, version, shown)
        if alias is not None:
            self._client.set_registered_model_alias(name, alias, version)
        return version

    def _version(self, model_uri: str, *, name: str, run_id: str) -> str:
        """Return the version that was made from a URI, made now if there is none."""
        import mlflow

        try:
            self._client.create_registered_model(name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        present = self._client.search_model_versions(f"name = '{name}'")
        numbers = [int(found.version) for found in present if found.source == model_uri]
        if numbers:
            return str(min(numbers))
        with global_tracking_uri(self._uri):
            made = self._client.create_model_version(
                name,
                source=model_uri,
                run_id=run_id,
                model_id=model_uri.removeprefix("models:/"),  # a server compares the two
                await_creation_for=0,
            )
        return str(made.version)

    def holder(self, name: str, *, alias: str) -> Holder | None:
        """Return the version of a registered model that an alias points at, None if none does."""
        import mlflow

        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except mlflow.MlflowException as error:
            if error.error_code in NO_HOLDER:
                return None
            raise
        return Holder(version=str(found.version), source=str(found.source), tags=dict(found.tags))
