"""The only package that imports mlflow.

It does so only when a tracker is made or a model is fetched: the import takes seconds.
"""

from sat_ray.integrations.mlflow.models import fetch_model
from sat_ray.integrations.mlflow.tracker import MlflowTracker

__all__ = ["MlflowTracker", "fetch_model"]
