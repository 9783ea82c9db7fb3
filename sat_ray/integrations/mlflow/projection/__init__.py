"""Write MLflow from committed records, as a tree of runs. Any of it may be repeated.

sweep ─┬─ search ──────── one run per trial
       └─ configuration ─ one run per seed     mean over seeds, difference to relu, cost: to compare
"""

from sat_ray.integrations.mlflow.projection.whole import Projection

__all__ = ["Projection"]
