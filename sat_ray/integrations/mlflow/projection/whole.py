"""Write MLflow from committed records, as a tree of runs. Any of it may be repeated.

sweep ─┬─ search ──────── one run per trial
       └─ configuration ─ one run per seed     mean over seeds, difference to relu, cost: to compare
"""

from collections.abc import Sequence
from time import monotonic

from sat_ray.integrations.mlflow.projection.board import close, links
from sat_ray.integrations.mlflow.projection.champion import register
from sat_ray.integrations.mlflow.projection.evaluated import write_evaluated, write_loads
from sat_ray.integrations.mlflow.projection.runs import Runs
from sat_ray.sweep.cost.spent import longest_trials, row_cost, spent_by_stage
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.tasks import TRAIN

MODEL_SECONDS = 3.0  # of one update for exports of models


class Projection(Runs):
    """Keep the tracker's runs equal to the sweep's records."""

    def update(self) -> None:
        """Write what was committed since the last call, and the epochs of what trains now."""
        for record in longest_trials(self.records):
            self.trial(record)
        trained = self.records.all(TRAIN)
        for record in trained:
            self.finalist(record)
        self.under_way()
        write_loads(self, trained)
        # an export takes about a second: a few at a time, while others train and evaluate
        deadline = monotonic() + MODEL_SECONDS
        for record in trained:
            if record.key not in self.with_model and monotonic() < deadline:
                self.attach_model(record)

    def run_ids(self, models: Sequence[Record]) -> dict[str, str]:
        """Return the run of each training record by the record's key."""
        return {one.key: self.finalist(one) for one in models}

    def finish(self, models: list[Record], outcomes: dict[str, str]) -> dict[str, str]:
        """Write the evaluated models with their outcomes and weights.

        outcomes: paths by model name. Returns the run id of each training record by key.
        """
        self.update()
        config = self.sweep.config
        images = config.images_per_epoch(self.dataset().manifest["splits"]["train"])
        stages = spent_by_stage(config, self.records, train_images=images)
        found = {}
        for record in models:
            path = outcomes[record.payload["name"]]
            cost = row_cost({"outcomes": path}, config, stages)
            found[record.key] = write_evaluated(self, record, path, cost=cost)
        return found

    close = close
    links = links
    register = register
