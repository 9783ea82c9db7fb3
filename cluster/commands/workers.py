"""While a sweep waits: say why a worker that Ray's autoscaler wants does not start."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cluster.commands.kubectl import NAMESPACE, ClusterError, Kubectl
from cluster.commands.preflight import troubles_of

SECONDS_BETWEEN = 20
NEW = timedelta(seconds=60)
"""An older event is about a pod that the operator may have made meanwhile."""


@contextmanager
def workers_watched(kubectl: Kubectl) -> Iterator[None]:
    """Print each kind of trouble once, on the standard error, for as long as the context lasts."""
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(kubectl, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()


def _watch(kubectl: Kubectl, ended: threading.Event) -> None:
    said = set()
    while not ended.wait(SECONDS_BETWEEN):
        try:
            troubles = worker_troubles(kubectl)
        except (ClusterError, subprocess.TimeoutExpired):
            continue  # without the API server `ray job submit` ends, and says so itself
        for trouble in troubles:
            kind = trouble.partition(" (")[0]
            if kind not in said:
                said.add(kind)
                print(f"context {kubectl.context}: {trouble}", file=sys.stderr, flush=True)


def worker_troubles(kubectl: Kubectl) -> list[str]:
    """Return why workers are not there: of their pods, and of those that could not be made."""
    where = f"--namespace={NAMESPACE}"
    selector = f"--selector=ray.io/cluster={NAMESPACE},ray.io/node-type=worker"
    found = kubectl.find("pods", where, selector)
    troubles = [
        f"a worker does not start: {trouble}"
        for pod in (found["items"] if found else [])
        for trouble in troubles_of(pod)
    ]
    wanted = f"involvedObject.name={NAMESPACE},reason=FailedToCreateWorkerPod"
    found = kubectl.find("events", where, f"--field-selector={wanted}")
    events = found["items"] if found else []
    since = f"{datetime.now(UTC) - NEW:%Y-%m-%dT%H:%M:%SZ}"
    refused = [one["message"] for one in events if (one.get("lastTimestamp") or "") > since]
    return [*troubles, *(f"the operator cannot make a worker's pod ({one})" for one in refused)]
