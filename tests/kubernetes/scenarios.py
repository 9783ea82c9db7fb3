"""Run the product's own commands on the Kubernetes of this machine, and observe its pods."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import waiting
from repository import ROOT

from tests.kubernetes.machine.settings import BINARIES, CGROUP, KUBECONFIG

NAMESPACE = "sat-ray"
WORKER = "ray.io/node-type=worker"
HEAD = "ray.io/node-type=head"
MLFLOW = "app.kubernetes.io/name=mlflow"
MEASURED = ROOT / "docs" / "kubernetes.json"
MEMORY = Path("/sys/fs/cgroup/memory", CGROUP)
NO_KUEUE = "no Kueue here: run `python -m tests.kubernetes.machine kueue` first"
until = partial(waiting.until, pause=1)


def environment(**changes: str) -> dict[str, str]:
    """Return an environment in which kubectl means this cluster."""
    path = os.pathsep.join([str(BINARIES), os.environ["PATH"]])
    return os.environ | {"KUBECONFIG": str(KUBECONFIG), "PATH": path} | changes


def kubectl(*arguments: str, given: str | None = None, check: bool = True) -> str:
    """Run kubectl and return what it printed; without `check`, its error as well."""
    done = subprocess.run(
        ["kubectl", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=1800,
    )
    if check:
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout
    return done.stdout + done.stderr


def has_kueue() -> bool:
    """Return whether Kueue is installed."""
    return bool(kubectl("get", "namespace", "kueue-system", "--ignore-not-found"))


def pods(selector: str) -> list[dict[str, Any]]:
    """Return the pods of the namespace with these labels."""
    listed = kubectl("-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "json")
    found: list[dict[str, Any]] = json.loads(listed)["items"]
    return found


def is_ready(pod: dict[str, Any]) -> bool:
    """Return whether a pod is ready."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def memory_mib(pod: dict[str, Any]) -> int:
    """Return the memory of a pod's processes and of Ray's shared objects, without page cache."""
    kept = 0
    for file in MEMORY.rglob(f"pod{pod['metadata']['uid']}/memory.stat"):
        values = dict(line.split() for line in file.read_text().splitlines())
        kept += int(values["total_rss"]) + int(values.get("total_shmem", 0))
    return kept >> 20


def part_of(pod: dict[str, Any]) -> str:
    """Return which part of the installation a pod is."""
    labels = pod["metadata"]["labels"]
    return str(labels.get("ray.io/node-type") or labels.get("app.kubernetes.io/name", "other"))


def python_in(pod: str, code: str, *, namespace: str = NAMESPACE) -> str:
    """Run Python code in a pod and return what it printed."""
    return kubectl("-n", namespace, "exec", pod, "--", "python", "-c", code)


def record(scenario: str, **measured: Any) -> None:
    """Write what a scenario measured into docs/kubernetes.json, and the page that shows it."""
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {"scenarios": {}}
    known["scenarios"][scenario] = {"date": time.strftime("%Y-%m-%d"), **measured}
    MEASURED.write_text(json.dumps(known, indent=2) + "\n")
    subprocess.run([sys.executable, str(ROOT / "tests" / "faults" / "report.py")], check=True)


def head_pod() -> str:
    """Return the name of the head's pod once it is ready."""
    found = until(lambda: [pod for pod in pods(HEAD) if is_ready(pod)], what="a head that is ready")
    return str(found[0]["metadata"]["name"])


@dataclass
class Submission:
    """`make submit`, with the times of the pods that it causes."""

    name: str
    arguments: Sequence[str]
    log: Path
    began: float = field(default_factory=time.monotonic)
    events: dict[str, float] = field(default_factory=dict)
    most_workers: int = 0
    peak_mib: dict[str, int] = field(default_factory=dict)
    _ended: bool = False

    def start(self) -> "Submission":
        """Start the command and the observation of its pods."""
        arguments = " ".join(["--name", self.name, *self.arguments])
        command = ["make", "submit", "RECIPE=digits_smoke", f"ARGS={arguments}"]
        # The Python of the tests stands for the one that `make setup` makes.
        command += [f"BIN={Path(sys.executable).parent}", "READY="]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=log, stderr=log
            )
        self._observer = threading.Thread(target=self._observe, daemon=True)
        self._observer.start()
        return self

    def said(self) -> str:
        """Return what the command printed."""
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Wait until the command has printed something."""
        until(
            lambda: re.search(pattern, self.said()) or self.process.poll() is not None,
            what=f"{pattern} from the sweep",
            seconds=1200,
        )
        assert re.search(pattern, self.said()), f"the sweep ended: {self.said()[-3000:]}"

    def finish(self) -> None:
        """Wait for the end of the command."""
        status = self.process.wait(timeout=2400)
        self._mark("result")
        assert status == 0, f"make submit ended with {status}: {self.said()[-4000:]}"

    def wait_for_no_workers(self) -> None:
        """Wait until no worker pod is left."""
        until(lambda: not pods(WORKER), what="no worker pods", seconds=900)
        self._mark("zero pods")

    def stop_observing(self) -> None:
        """End the observation of the pods."""
        self._ended = True
        self._observer.join()

    def measured(self) -> dict[str, Any]:
        """Return the times, the most that the pods took at one moment, and the machine's load."""
        load = round(os.getloadavg()[2], 1)
        memory = {"peak_mib": self.peak_mib, "load of 15 minutes": load}
        return {**self.events, "most_workers": self.most_workers, **memory}

    def _mark(self, what: str) -> None:
        self.events.setdefault(what, round(time.monotonic() - self.began, 1))

    def _measure(self, found: list[dict[str, Any]]) -> None:
        used = [(part_of(pod), memory_mib(pod)) for pod in found]
        for part, mib in [*used, ("all pods", sum(mib for _, mib in used))]:
            self.peak_mib[part] = max(self.peak_mib.get(part, 0), mib)

    def _observe(self) -> None:
        while not self._ended:
            try:
                found = pods("")
            except (AssertionError, subprocess.TimeoutExpired):
                time.sleep(2)  # the API server is away: a scenario may want that
                continue
            workers = [pod for pod in found if part_of(pod) == "worker"]
            self._measure(found)
            self.most_workers = max(self.most_workers, len(workers))
            if workers:
                self._mark("first worker pod")
            if any(is_ready(worker) for worker in workers):
                self._mark("first worker ready")
            time.sleep(2)
