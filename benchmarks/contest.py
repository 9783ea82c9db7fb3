"""The contestants of the evaluation benchmark; each attacks the same images of the same network."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from time import process_time
from typing import Any

import common
import pyarrow as pa
import torch
from attacked import Size, robust_share
from hardware import PeakMemory
from libraries import LIBRARIES, Library
from torch import Tensor

from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.low_precision.calibration import CONTROL_IMAGES, Calibration
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.models import Normalized, settle_layout


def attack_in_batches(library: Library, x: Tensor, y: Tensor, *, batch: int) -> Tensor:
    """Let a library attack all images."""
    return torch.cat(
        [library(part, labels) for part, labels in zip(x.split(batch), y.split(batch), strict=True)]
    )


class Contest:
    """The contestants on the same images; ours runs before and after each round of the others."""

    def __init__(
        self,
        model: Normalized,
        images: Split,
        size: Size,
        *,
        gradient: str,
        libraries: Sequence[str],
        float32: bool = True,
    ) -> None:
        self.model = model
        self.images = images
        self.size = size
        self.gradient = gradient
        self.float32 = float32
        self.ours = copy.deepcopy(model)
        settle_layout(self.ours)
        self.on, self.memory = size.hardware, PeakMemory(size.hardware)
        first = images.take(slice(0, size.compared))
        self.x, self.y = to_pixels(first.images.to(self.on.place)), first.labels.to(self.on.place)
        shape = tuple(images.images.shape[1:])
        self.libraries = {
            name: LIBRARIES[name](copy.deepcopy(model), size.spec, shape) for name in libraries
        }
        self.robust: dict[str, float] = {}
        self.fast_robust = float("nan")
        self.calibrating: list[float] = []
        self.calibration = ""
        self.cpu_seconds: dict[str, list[float]] = {}
        self.outcomes: pa.Table | None = None
        self.fast_outcomes: pa.Table | None = None

    def timed(self, name: str, work: Callable[[], object]) -> float:
        """Return the wall seconds of some work, and keep its processor seconds.

        On a shared machine the latter say more, with one thread.
        """
        before = process_time()
        seconds = self.memory.watching(name, lambda: self.on.seconds_of(work))()
        self.cpu_seconds.setdefault(name, []).append(process_time() - before)
        return seconds

    def run_ours(self) -> float:
        """Run the real evaluation and return its seconds."""

        def work() -> None:
            split, size = self.images, self.size
            self.outcomes = evaluate(
                self.ours,
                split.images,
                split.labels,
                split.image_ids,
                attacks=[size.spec],
                slots=size.slots,
            )

        seconds = self.timed("ours", work)
        self.robust["ours"] = self.robust_in(self.outcomes)
        return seconds

    def robust_in(self, outcomes: pa.Table) -> float:
        """Return the robust accuracy on the images that all contestants attack."""
        return (
            len(
                robust_image_ids(outcomes)
                & set(self.images.image_ids[: self.size.compared].tolist())
            )
            / self.size.compared
        )

    def run_ours_fast(self) -> float:
        """Run the real evaluation with low-precision gradients and return its seconds.

        The calibration, once per model and process whatever the number of images, is timed apart.
        """
        split, size = self.images, self.size
        settings: dict[str, Any] = {
            "attacks": [replace(size.spec, gradient=self.gradient, name="")],
            "slots": size.slots,
        }
        control, calibrations = split.take(slice(0, CONTROL_IMAGES)), dict[str, Calibration]()
        self.calibrating.append(
            self.timed(
                "calibration",
                lambda: calibrations.update(calibrate_attacks(self.ours, control, **settings)),
            )
        )

        self.calibration = ", ".join(map(str, calibrations.values()))

        def work() -> None:
            self.fast_outcomes = evaluate(
                self.ours,
                split.images,
                split.labels,
                split.image_ids,
                calibrations=calibrations,
                **settings,
            )

        seconds = self.timed("ours_fast", work)
        assert self.fast_outcomes is not None
        self.fast_robust = self.robust_in(self.fast_outcomes)
        said = f"ours with {self.gradient}: {seconds:.1f} s, {100 * self.fast_robust:.1f} % robust"
        print(f"{said}; {self.calibration}", flush=True)
        return seconds

    def run_library(self, name: str) -> float:
        """Run one library and return its seconds; the scoring is not timed."""
        returned: list[Tensor] = []
        library, batch = self.libraries[name], self.size.batch
        seconds = self.timed(
            name,
            lambda: returned.append(
                attack_in_batches(library, self.x.clone(), self.y, batch=batch)
            ),
        )
        self.robust[name] = robust_share(
            self.model,
            returned[0],
            self.x,
            self.y,
            threat_model=self.size.threat_model,
            batch=batch,
        )
        print(f"{name}: {seconds:.1f} s, {100 * self.robust[name]:.1f} % robust", flush=True)
        return seconds

    def speedup(self, seconds: dict[str, list[float]], ours: str) -> dict[str, float]:
        """Return by library how many times as fast, image for image, one of our runs is."""
        return {
            name: self.size.excess * common.median_ratio(seconds[name], seconds[ours])
            for name in self.libraries
        }

    def rounds(self) -> dict[str, list[float]]:
        """Time all contestants.

        Ours is the mean of the runs before and after the libraries; without float32 it is
        the run with low-precision gradients.
        """
        cases: dict[str, Callable[[], float]] = {
            name: partial(self.run_library, name) for name in self.libraries
        }
        if self.gradient:
            cases["ours_fast"] = self.run_ours_fast
        if not self.float32:
            seconds = common.interleaved(cases, rounds=self.size.rounds, warm_up=0)
            self.outcomes, self.robust["ours"] = self.fast_outcomes, self.fast_robust
            self.cpu_seconds["ours"] = self.cpu_seconds["ours_fast"]
            return {"ours": seconds["ours_fast"], **seconds}
        seconds = common.interleaved(
            {"before": self.run_ours, **cases, "after": self.run_ours},
            rounds=self.size.rounds,
            warm_up=0,
        )
        sides = zip(seconds.pop("before"), seconds.pop("after"), strict=True)
        return {"ours": [mean(pair) for pair in sides], **seconds}
