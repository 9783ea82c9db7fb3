"""The tracking URI that MLflow keeps for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global URI for a block.

    MLflow's registry in a database looks a models:/ source up there, whatever client calls it.
    """
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
