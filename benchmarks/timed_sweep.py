"""Run pipelines/sweep.py and time every call of its tracker.

`timed_sweep.py PATH ARGUMENTS...` writes {"calls": {method: number}, "seconds": {method: wall
time}} to PATH as JSON. `__init__` is the making of the tracker, which happens beside other work.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from pipelines.sweep import sweep
from sat_ray.integrations.command_line.run import main
from sat_ray.integrations.mlflow import MlflowTracker

METHODS = (
    "__init__",
    "run",
    "is_complete",
    "log",
    "artifact",
    "uses",
    "note",
    "model",
    "complete",
    "register",
)


class Clock:
    """Add up calls and seconds of methods; where one calls another, both count."""

    def __init__(self) -> None:
        self.calls, self.seconds = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)

    def on(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, timed."""

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.calls[name] += 1
                self.seconds[name] += perf_counter() - started

        return timed


if __name__ == "__main__":
    path, clock = Path(sys.argv.pop(1)), Clock()
    for name in METHODS:
        setattr(MlflowTracker, name, clock.on(name, getattr(MlflowTracker, name)))
    status = main(sweep, about=__doc__)
    path.write_text(json.dumps({"calls": clock.calls, "seconds": clock.seconds}))
    sys.exit(status)
