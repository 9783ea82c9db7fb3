"""Run kubectl against one context, and turn what it refuses into one sentence."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

NAMESPACE = "sat-ray"
REQUEST_SECONDS = 15
MISSING = "(NotFound)"
FORBIDDEN = "(Forbidden)"


class ClusterError(ValueError):
    """The cluster, or what is in it, is not as a command needs it; the message says what to do."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the context that was current when a command began."""

    context: str

    def command(self, *arguments: str) -> list[str]:
        """Return a command line of kubectl for this context."""
        return ["kubectl", "--context", self.context, *arguments]

    def run(
        self, *arguments: str, seconds: float = 60, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end; TimeoutExpired where it takes longer."""
        return subprocess.run(
            self.command(*arguments), input=given, capture_output=True, text=True, timeout=seconds
        )

    def find(self, *arguments: str) -> Any:
        """Return what `kubectl get` finds, None where nothing is or this account may not look."""
        return self._get(*arguments, "--output=json")

    def find_api(self, version: str) -> Any:
        """Return what the API server says about one version of an API, None where it has none."""
        return self._get(f"--raw=/apis/{version}")

    def _get(self, *arguments: str) -> Any:
        done = self.run("get", *arguments, f"--request-timeout={REQUEST_SECONDS}s")
        if done.returncode == 0:
            return json.loads(done.stdout)
        if MISSING in done.stderr or FORBIDDEN in done.stderr:
            return None
        raise self.refused(f"kubectl get {' '.join(arguments)}: {last_line(done.stderr)}")

    def refused(self, sentence: str) -> ClusterError:
        """Return the error for a sentence, with the context that it is about."""
        return ClusterError(f"context {self.context}: {sentence}")


def last_line(text: str) -> str:
    """Return the last line that a program wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"


def connect() -> Kubectl:
    """Return kubectl for the current context once its API server answers."""
    try:
        named = subprocess.run(
            ["kubectl", "config", "current-context"], capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise ClusterError("kubectl is not installed; install it (1.27 or newer)") from None
    if named.returncode:
        raise ClusterError(
            "kubectl has no current context; choose one of `kubectl config get-contexts` with "
            "`kubectl config use-context NAME`"
        )
    kubectl = Kubectl(named.stdout.strip())
    done = kubectl.run("get", "--raw=/readyz", f"--request-timeout={REQUEST_SECONDS}s")
    if done.returncode:
        raise kubectl.refused(
            f"its API server does not answer this account ({last_line(done.stderr)}); start that "
            "cluster, log in, or choose another with `kubectl config use-context NAME`"
        )
    return kubectl
