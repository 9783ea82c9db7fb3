"""Measure everything that waits for a GPU, in one command of at most 12 minutes.

    python benchmarks/on_gpu.py                         on a machine with a CUDA GPU
    python benchmarks/on_gpu.py --device cpu --quick    the same parts at toy sizes

After each part, results.json and table.md are written to --folder. A part that runs over its time
is ended with every process that it started. The same command goes on where it stopped: parts that
ended well are skipped, parts that never ran come first, and those that failed are tried again.
Results of another commit, GPU, device or size do not count.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, strftime
from typing import Any

import common
import psutil
from common import markdown_row
from gpu_parts import ROWS, Part, parts
from pipeline import STAGE_DONE

GRACE = 10.0  # seconds between the two signals that end a part


class Runner:
    """Run parts, and keep their results in a folder."""

    def __init__(self, folder: Path, about: dict[str, Any], same: Sequence[str]) -> None:
        """same: names in `about` that must be equal for an earlier result to count."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.about = about
        self.results: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError, KeyError):  # none yet, or cut off
            earlier = json.loads((folder / "results.json").read_text())
            if all(earlier["machine"][name] == about[name] for name in same):
                self.results = earlier["parts"]

    def run(self, listed: Sequence[Part], *, seconds: float) -> None:
        """Run what is missing within so many seconds; parts that never ran come first."""
        deadline = monotonic() + seconds
        missing = [part for part in listed if self.status(part.name) != "ok"]
        self.write(listed)
        for part in sorted(missing, key=lambda part: part.name in self.results):
            limit = min(part.seconds, deadline - monotonic() - GRACE)
            if limit < part.seconds / 3:
                print(f"{part.name}: not started, too little time is left", flush=True)
                continue
            print(f"{part.name}: at most {limit:.0f} s", flush=True)
            self.results[part.name] = self.result_of(part, limit)
            self.write(listed)
            print(f"{part.name}: {self.status(part.name)}", flush=True)

    def status(self, name: str) -> str:
        """Return how a part ended: ok, failed, over time or not run."""
        return str(self.results.get(name, {}).get("status", "not run"))

    def result_of(self, part: Part, limit: float) -> dict[str, Any]:
        """Run one part to its end or its limit."""
        path = self.folder / f"{part.name}.figures"
        log = self.folder / f"{part.name}.log"
        storage = self.folder / f"{part.name}.storage"
        path.unlink(missing_ok=True)
        shutil.rmtree(storage, ignore_errors=True)
        places = {"FIGURES": str(path), "STORAGE": str(storage)}
        command = [places.get(word, word) for word in part.command]
        load = os.getloadavg()[0]
        started = monotonic()
        code = run_within(command, log=log, seconds=limit)
        figures = {} if code is None else figures_of(path, log)
        shutil.rmtree(storage, ignore_errors=True)
        ended = "ok" if code == 0 and figures else "failed"
        return {
            "status": "over time" if code is None else ended,
            "exit_status": code,
            "seconds": round(monotonic() - started, 1),
            "limit_seconds": round(limit, 1),
            "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
            "date": strftime("%Y-%m-%d %H:%M"),
            "log": log.name,
            "command": command,
            "figures": figures,
        }

    def write(self, listed: Sequence[Part]) -> None:
        """Write results.json and table.md, whole or not at all."""
        written = {"machine": self.about, "parts": self.results}
        texts = {
            "results.json": json.dumps(written, indent=2) + "\n",
            "table.md": self.table(listed),
        }
        for name, text in texts.items():
            new = self.folder / f"{name}.new"
            new.write_text(text)
            new.replace(self.folder / name)

    def table(self, listed: Sequence[Part]) -> str:
        """Return the parts, and the figures beside their targets, in Markdown."""
        lines = [f"{name}: {value}  " for name, value in self.about.items()]
        lines += [
            "",
            "| part | result | seconds | limit | load | log |",
            "|---|---|---|---|---|---|",
        ]
        for part in listed:
            result = self.results.get(part.name, {})
            load = "{} to {}".format(*result["load_before_and_after"]) if result else ""
            cells = (self.status(part.name), result.get("seconds", ""), f"{part.seconds:g}", load)
            lines.append(markdown_row(part.name, *cells, result.get("log", "")))
        lines += ["", "| part | figure | measured | target | |", "|---|---|---|---|---|"]
        for row in ROWS:
            value = found(self.results.get(row.part, {}).get("figures", {}), row.path)
            shown = "not measured" if value is None else f"{value:.4g}"
            target = f"{row.comparison} {row.aim:g}" if row.comparison else ""
            verdict = row.verdict(value, toy=bool(self.about["quick"]))
            lines.append(markdown_row(row.part, row.figure, shown, target, verdict))
        return "\n".join(lines) + "\n"


def run_within(command: Sequence[str], *, log: Path, seconds: float) -> int | None:
    """Run a command with its output in a file; return its exit status, None if it ran over.

    Nothing that it started is left, also where this process is ended by a signal.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=common.ROOT,
            env=common.environment(),
            start_new_session=True,
        )
        try:
            return process.wait(timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, its group, and the processes below it that are in groups of their own."""
    below: list[psutil.Process] = []
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        with suppress(psutil.Error):  # psutil refuses a process id that was given away again
            child.kill()
    process.wait()


def figures_of(path: Path, log: Path) -> dict[str, Any]:
    """Return what a part measured, {} if that cannot be read."""
    try:
        text = path.read_text() if path.exists() else ""
        if text.startswith("<"):
            counts = {name: int(value) for name, value in _junit_counts(text).items()}
            failed = counts["failures"] + counts["errors"]
            passed = counts["tests"] - failed - counts["skipped"]
            return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}
        if text:
            return dict(json.loads(text))
        stages = STAGE_DONE.findall(log.read_text(errors="replace"))
        return {stage: float(seconds) for stage, seconds in stages}
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        print(f"{path.name}: {type(error).__name__}: {error}", flush=True)
        return {}


def _junit_counts(text: str) -> dict[str, str]:
    suite = ElementTree.fromstring(text).find("testsuite")
    assert suite is not None, "pytest writes one test suite"
    return {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")}


def found(figures: dict[str, Any], path: str) -> float | None:
    """Return a number in nested figures, None if it is not there."""
    value: Any = figures
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = next(iter(value.values()), None) if key == "*" else value.get(key)
    return float(value) if isinstance(value, int | float) else None


def machine() -> dict[str, Any]:
    """Describe the machine, the GPU's driver and the commit."""
    asked = ("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader")
    commit = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    about = common.machine()
    return about | {"driver_and_memory": _output(asked), "commit": _output(commit)}


def _output(command: Sequence[str]) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, cwd=common.ROOT
        )
        return "; ".join(done.stdout.split("\n")).strip("; ")
    return "unknown"


def main() -> None:
    """Run the parts that have no result yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="toy sizes; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=720, help="for all parts; default 720")
    parser.add_argument("--folder", type=Path, default=common.CACHE / "on_gpu")
    parser.add_argument("--data", default="", metavar="PATH", help="files of Fashion-MNIST")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run; default: all")
    options = parser.parse_args()
    about = machine() | {"device": options.device, "quick": options.quick}
    if options.device == "cuda" and not about["gpu"]:
        raise SystemExit("--device must be cpu where torch finds no GPU, got cuda")
    listed = parts(device=options.device, quick=options.quick, data=options.data)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    runner = Runner(options.folder.resolve(), about, ("commit", "gpu", "torch", "device", "quick"))
    chosen = [part for part in listed if part.name in (options.only or part.name)]
    runner.run(chosen, seconds=options.seconds)
    print(runner.table(listed))


if __name__ == "__main__":
    main()
