"""The only package that imports mlflow, and only when a tracker is made or a model is fetched: the import takes seconds."""

from sat_ray.mlflow_tracker.models import fetch_model
from sat_ray.mlflow_tracker.tracker import MlflowTracker

__all__ = ["MlflowTracker", "fetch_model"]
