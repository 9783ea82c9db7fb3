"""The epochs of trainings that are not committed yet, from the states that their workers save."""

import contextlib
from collections.abc import Iterator

from sat_ray.integrations.mlflow.metrics import history_points
from sat_ray.integrations.mlflow.values import Point
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.tasks import STAGES
from sat_ray.training.resume.checkpointing import FOLDERS, saved_epochs

SUFFIX = ".safetensors"


class UnderWay:
    """Follow the saved states of a sweep; a state that has not changed is not read again."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.seen: dict[str, tuple[str, ...]] = {}
        self.written: dict[tuple[str, str], int] = {}

    def new(self, records: Records) -> Iterator[tuple[Record, str, list[Point]]]:
        """Yield trainings with the attempt that trains them and their epochs since the last call.

        The training is the record that says with what it began.
        """
        folders = [self.storage.stamps(folder) for folder in FOLDERS]
        for name in sorted({name for stamps in folders for name in stamps}):
            key = name.removesuffix(SUFFIX)
            stamps = tuple(found.get(name, "") for found in folders)
            if not name.endswith(SUFFIX) or self.seen.get(key) == stamps:
                continue
            self.seen[key] = stamps
            rows, times = saved_epochs(self.storage, key)
            begun = self._begun(records, key)
            attempt = attempt_of(times)
            first = self.written.get((key, attempt), 0)
            # as many times as rows, unless an earlier version began the training
            if begun is not None and first < len(rows) == len(times):
                yield begun, attempt, history_points(rows, times, first=first)
                self.written[key, attempt] = len(rows)

    def _begun(self, records: Records, key: str) -> Record | None:
        """Return with what a training began; None where it is committed, or damaged."""
        with contextlib.suppress(ValueError):
            begun = records.find_begun(key)
            stage = next((one for one in STAGES if begun and one.name == begun.stage), None)
            if stage is not None and records.find(stage, key) is None:
                return begun
        return None


def attempt_of(times: list[float]) -> str:
    """Name an attempt at a training by the end of its first epoch, which it keeps when resumed."""
    return f"{times[0]:.6f}" if times else ""
