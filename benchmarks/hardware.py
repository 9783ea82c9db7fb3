"""What a benchmark measures on: device, precision, network and image size.

A GPU works asynchronously, so every clock here synchronizes before it starts and before it stops.
"""

import argparse
import resource
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import parts
import torch

from sat_ray.data.split import Split
from sat_ray.models import MODELS, Normalized, build_model
from sat_ray.utils.names import check_name
from sat_ray.utils.precision import PRECISIONS, check_precision, short_dtype

DTYPES = {name: short_dtype(name) or torch.float32 for name in PRECISIONS}
LARGEST_SMALL_IMAGE = 64  # pixels; residual networks get the stem for small images up to here


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Device, precision, network and image size.

    model: "" for the ResNet-18 of any width in `parts`, else a name of `sat_ray.models`;
    pixels: side of images.
    """

    device: str = "cpu"
    precision: str = "float32"
    model: str = ""
    pixels: int = parts.PIXELS

    def __post_init__(self) -> None:
        if self.place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device must be cpu where torch finds no GPU, got cuda")
        check_precision(self.precision, self.place)
        if self.model:
            check_name(self.model, MODELS, field="--model")
        if self.pixels < 8:
            raise ValueError(f"--size must be an integer >= 8, got {self.pixels}")

    @property
    def place(self) -> torch.device:
        """Return the device."""
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.place.type == "cuda"

    def build(self, *, width: int) -> Normalized:
        """Build the network that is measured, on the device, the same weights every time.
        width: of the one in `parts`.
        """
        if not self.model:
            return parts.scaled_resnet18(width=width).to(self.place)
        stem = "small" if self.pixels <= LARGEST_SMALL_IMAGE else "imagenet"
        normal = {"mean": parts.MEAN, "std": parts.STD}
        return build_model(
            self.model, activation=parts.ACTIVATION, num_classes=10, stem=stem, seed=0, **normal
        ).to(self.place)

    def images(self) -> dict[str, Split]:
        """Return train, val and test in memory."""
        return parts.digits_enlarged(self.pixels)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.place)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Run and return the wall time in seconds, the device's part included."""
        self.synchronize()
        started = perf_counter()
        work()
        self.synchronize()
        return perf_counter() - started

    def matrix_rate(self, *, precision: str | None = None) -> float:
        """Measure this device's matrix product, in floating-point operations per second, as a
        ceiling of what a network can reach.
        """
        side, repeats = (8192, 20) if self.on_gpu else (1024, 1)
        dtype = DTYPES[precision or self.precision]
        a, b = (torch.rand(side, side, device=self.place).to(dtype) for _ in range(2))
        torch.mm(a, b)

        def work() -> None:
            for _ in range(repeats):
                torch.mm(a, b)

        return 2 * side**3 * repeats / self.seconds_of(work)


class PeakMemory:
    """The most GPU memory of each contestant at once; on a CPU only the peak of the process."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.gib: dict[str, float] = {}

    def watching(self, name: str, case: Callable[[], float]) -> Callable[[], float]:
        """Return the case, watched."""

        def watched() -> float:
            if not self.hardware.on_gpu:
                return case()
            torch.cuda.reset_peak_memory_stats(self.hardware.place)
            value = case()
            self.gib[name] = max(
                self.gib.get(name, 0.0),
                torch.cuda.max_memory_allocated(self.hardware.place) / 2**30,
            )
            return value

        return watched

    @property
    def figures(self) -> dict[str, float]:
        """Return GiB by contestant; each includes what the others hold. On a CPU: the process."""
        return self.gib or {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --model, --size and --precision to a command line."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="network, for example resnet50; default: ResNet-18 of the given width",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=parts.PIXELS,
        metavar="PIXELS",
        help=f"side of the images; default {parts.PIXELS}",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="of the passes; verdicts and weights stay float32",
    )


def from_options(options: argparse.Namespace) -> Hardware:
    """Return the hardware that a command line names; exit with one line if it is not available."""
    try:
        return Hardware(
            device=options.device,
            precision=options.precision,
            model=options.model,
            pixels=options.size,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
