"""The parts of `on_gpu.py`, each a command, and the figures of its table with their targets."""

import sys
from dataclasses import dataclass
from pathlib import Path

import common

LIKE_RESNET50 = ("--model", "resnet50", "--size", "224")
MARK = 'reason="needs a GPU"'


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command with its own time limit.

    command: FIGURES in it stands for the file that it writes, STORAGE for an empty folder; without
    FIGURES, the time of each stage of a sweep is read from the log.
    """

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Row:
    """A figure of the table, with the product's target where it has one.

    path: keys in the figures of the part, joined by dots; * is the first key.
    """

    part: str
    figure: str
    path: str
    comparison: str = ""
    aim: float = 0.0

    def verdict(self, value: float | None, *, toy: bool) -> str:
        """Return met or missed; nothing where there is no target or nothing was measured."""
        if value is None or not self.comparison:
            return ""
        if toy:
            return "toy size"
        met = value >= self.aim if self.comparison == AT_LEAST else value <= self.aim
        return "met" if met else "missed"


RATE = "share of the measured matrix rate"
MINUTES = "minutes for 50,000 images x PGD-200, extrapolated"
AT_LEAST, AT_MOST = ">=", "<="
ROWS = (
    Row("tests", "device tests passed", "passed"),
    Row("tests", "device tests failed", "failed", AT_MOST, 0),
    Row("tests", "device tests skipped", "skipped", AT_MOST, 0),
    Row("training", "textbook loop / our SAT step", "speedup_over_textbook", AT_LEAST, 3),
    Row("training", "our SAT step / its floor", "sat_over_floor", AT_MOST, 1.05),
    Row("training", "images per second", "images_per_second"),
    Row("training", RATE, "details.share_of_matrix_rate.sat"),
    Row("evaluation", "torchattacks / ours, seconds", "speedup.torchattacks", AT_LEAST, 10),
    Row("evaluation", MINUTES, "details.fast.minutes_for_50000", AT_MOST, 5),
    Row("evaluation", "robust accuracy, ours", "robust_accuracy.ours"),
    Row("evaluation", "robust accuracy, torchattacks", "robust_accuracy.torchattacks"),
    Row("evaluation", RATE, "details.fast.share_of_matrix_rate"),
    Row("recipe", "seconds of training", "train"),
    Row("recipe", "seconds of evaluation", "evaluate"),
    Row("tests_compiled", "device tests passed", "passed"),
    Row("tests_compiled", "device tests failed", "failed", AT_MOST, 0),
    Row("tests_compiled", "device tests skipped", "skipped", AT_MOST, 0),
    Row("training_compiled", "compiled / plain SAT step", "details.seconds_over_sat.compiled"),
    Row("training_compiled", RATE, "details.share_of_matrix_rate.compiled"),
    Row("agreement", "AutoAttack / our cascade, seconds", "speedup.*", AT_LEAST, 8),
    Row("agreement", "robust, ours - AutoAttack, points", "difference_in_points.*", AT_MOST, 0),
)


def parts(*, device: str, quick: bool, data: str) -> list[Part]:
    """Return the parts, the most valuable first."""
    large = LIKE_RESNET50 if device == "cuda" else ("--model", "small_resnet", "--size", "16")
    on = ("--device", device, *large, *(("--smoke",) if quick else ()))
    fast = ("--precision", "bf16") if device == "cuda" else ()
    gradient = ("--gradient", "fp16" if device == "cuda" else "bf16", "--no-float32")
    alone = ("--libraries", "torchattacks")
    training = _benchmark("training", *on, *fast)
    return [
        Part(name="tests", seconds=100, command=_tests("gpu and not surrogate")),
        Part(name="training", seconds=120, command=training),
        Part(
            name="evaluation",
            seconds=300,
            command=_benchmark("evaluation", *on, *fast, *gradient, *alone),
        ),
        Part(name="recipe", seconds=180, command=_recipe(device=device, quick=quick, data=data)),
        Part(name="tests_compiled", seconds=100, command=_tests("gpu and surrogate")),
        Part(name="training_compiled", seconds=180, command=(*training, "--compile")),
        Part(
            name="agreement",
            seconds=200,
            command=_benchmark("agreement", *on, "--images", "16" if quick else "32"),
        ),
    ]


def _benchmark(name: str, *options: str) -> tuple[str, ...]:
    script = str(Path(__file__).with_name(f"{name}.py"))
    return (sys.executable, script, "--json", "FIGURES", *options)


def _tests(selection: str) -> tuple[str, ...]:
    found = sorted(common.ROOT.glob("tests/*/test_*.py"))
    files = [str(path) for path in found if MARK in path.read_text()]
    pytest = (sys.executable, "-m", "pytest", "-rs", "-k", selection, "--junitxml", "FIGURES")
    return (*pytest, *files)


def _recipe(*, device: str, quick: bool, data: str) -> tuple[str, ...]:
    short = "--search.activations relu silu:1 --search.rungs 1 --final.seeds 0 --training.epochs 2"
    short += " --training.validate-every 2 --training.validation-targets 1"
    short += " --evaluation.images 1000 --evaluation.shard-size 1000 --evaluation.strong-steps 20"
    short += " --card.images 100 --card.restarts 2 --card.cascade-steps 20"
    short += " --card.cascade-queries 500"
    if quick:
        short += " --model.name small_resnet --model.width 4 --data.dataset digits"
        short += " --data.rows-per-shard 500 --evaluation.images 50 --evaluation.steps 5"
        short += " --evaluation.step-size 0.02 --evaluation.strong-steps 5 --card.images 20"
        short += " --card.cascade-steps 5 --card.cascade-queries 20"
    if device == "cpu":
        short += " --training.precision float32 --resources.accelerator="
        for kind in ("worker", "trial", "evaluation"):
            short += f" --resources.gpus-per-{kind} 0 --resources.cpus-per-{kind} 1"
    path = ("--data.path", data) if data else ()
    words = ("fashion_mnist_resnet18", "--storage", "STORAGE", *short.split(), *path)
    return tuple(common.sweep_command(*words))
