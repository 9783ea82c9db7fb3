"""Metrics of a sweep for Prometheus, on the metrics page of each Ray node, with the tag `sweep`.

What is committed is shown by the driver, from records alone; what runs now by the process that runs
it, and it ends with that process. Ray writes `ray_` before each name and `_total` after the name of
a counter, and drops a gauge that is not set again within about 20 s.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.spent import evaluation_seconds, longest_trials
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import CORRUPTIONS, EVALUATE, STRONG, TRAIN, VALIDATE
from sat_ray.training.resume.state import EpochReport

TRIALS_RUNNING = ("sat_ray_trials_running", "search trials that train now")
IMAGES_PER_SECOND = (
    "sat_ray_train_images_per_second",
    "of the last epoch, over all workers of a training, its attack included",
)
VAL_ROBUST_ACCURACY = (
    "sat_ray_val_robust_accuracy",
    "best of the committed trainings of an activation, on the validation split",
)
ACCELERATOR_SECONDS = (
    "sat_ray_accelerator_seconds",
    "GPUs held (workers, on CPUs) times seconds, of what was committed under this driver",
)
EVALUATION_SHARDS_LEFT = (
    "sat_ray_evaluation_shards_left",
    "evaluation shards without a committed record",
)
REFRESH_SECONDS = 5.0


class SweepMetrics:
    """Show a sweep's committed records; call `update` every ten seconds or so.

    Ray keeps the counter of a driver that has ended, so each driver counts only what was committed
    while it ran. planned_shards: the most that there can be, until the search has ended.
    """

    def __init__(self, config: SweepConfig, records: Records, *, planned_shards: int) -> None:
        self.config = config
        self.records = records
        self.tags = _tags(records)
        self.accuracy = Gauge(*VAL_ROBUST_ACCURACY, tag_keys=("sweep", "activation"))
        self.left = Gauge(*EVALUATION_SHARDS_LEFT, tag_keys=("sweep",))
        self.seconds = Counter(*ACCELERATOR_SECONDS, tag_keys=("sweep",))
        self.planned_shards = planned_shards
        self.shards = 0
        self.shard_seconds = 0.0
        self.counted = self._accelerator_seconds()
        self.update()

    def update(self) -> None:
        """Show what is committed now; read only the records that are new since the last call."""
        for activation, value in self._best().items():
            self.accuracy.set(value, self.tags | {"activation": activation})
        spent = self._accelerator_seconds()
        self.left.set(max(0, self.planned_shards - self.shards), self.tags)
        if spent > self.counted:
            self.seconds.inc(spent - self.counted, self.tags)
            self.counted = spent

    def _best(self) -> dict[str, float]:
        best: dict[str, float] = {}
        for record in [*longest_trials(self.records), *self.records.all(TRAIN)]:
            activation = record.payload["configuration"]["activation"]
            best[activation] = max(best.get(activation, 0.0), record.payload["val_robust_accuracy"])
        return best

    def _accelerator_seconds(self) -> float:
        asked = self.config.resources
        trials = sum(
            record.payload["accelerator_seconds"] for record in longest_trials(self.records)
        )
        trainings = sum(record.payload["accelerator_seconds"] for record in self.records.all(TRAIN))
        for stage in (VALIDATE, EVALUATE, STRONG, CORRUPTIONS):
            for record in self.records.new(stage):
                self.shards += stage is not VALIDATE
                self.shard_seconds += evaluation_seconds(record, gpus=asked.gpus_per_evaluation)
        return float(
            trials * (asked.gpus_per_trial or 1)
            + trainings * (asked.gpus_per_worker or 1)
            + self.shard_seconds
        )


@contextmanager
def training_shown(
    records: Records, *, trial: bool = False
) -> Iterator[Callable[[EpochReport], None]]:
    """Yield a function to call after every epoch of the trainings in this block.

    trial: count the block as a running search trial.
    """
    tags = _tags(records)
    speed = Gauge(*IMAGES_PER_SECOND, tag_keys=("sweep",))
    running = Gauge(*TRIALS_RUNNING, tag_keys=("sweep",))
    latest = [0.0]
    ended = threading.Event()

    def after_epoch(report: EpochReport) -> None:
        latest[0] = report.metrics["throughput/images_per_second"]

    def repeat() -> None:
        while not ended.is_set():
            speed.set(latest[0], tags)
            running.set(int(trial), tags)
            ended.wait(REFRESH_SECONDS)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield after_epoch
    finally:
        ended.set()
        thread.join()
        speed.set(0.0, tags)
        running.set(0, tags)


def _tags(records: Records) -> dict[str, str]:
    return {"sweep": records.storage.uri.rpartition("/")[2]}
