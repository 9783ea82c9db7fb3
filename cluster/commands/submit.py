"""Run a recipe on the Kubernetes cluster: python -m cluster.commands.submit RECIPE [OPTION ...].

Everything that can be known before is checked first. The dashboard is reached through a port of
this machine that was free, so that no other Ray can be meant.
"""

import argparse
import asyncio
import base64
import logging
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.commands.kubectl import NAMESPACE, ClusterError, Kubectl, connect, last_line
from cluster.commands.preflight import check_head
from cluster.commands.workers import workers_watched

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STORAGE_SECONDS = 180
TRY_STORAGE = """
import os, sys
from sat_ray.storage.preflight import check_writable
from sat_ray.storage.store import Storage
try:
    check_writable(Storage.at(sys.argv[1] or os.environ["SAT_RAY_STORAGE"]))
except ValueError as error:
    sys.exit(f"REFUSED {error}")
"""


def check_storage(kubectl: Kubectl, head: str, storage: str = "") -> None:
    """Refuse a storage that the head cannot use, in the words of the sweep's own check.

    storage: what `--storage` names; empty: SAT_RAY_STORAGE of the pod.
    """
    where = [f"--namespace={NAMESPACE}", head, "--container=ray-head"]
    try:
        done = kubectl.run(
            "exec", *where, "--", "python", "-c", TRY_STORAGE, storage, seconds=STORAGE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise kubectl.refused(
            f"the storage did not answer pod {head} within {STORAGE_SECONDS} s; the NetworkPolicy "
            "ray must allow its address and port (cluster/README.md, Outgoing traffic)"
        ) from None
    refused = re.search("^REFUSED (.*)$", done.stderr, re.MULTILINE)
    if refused:
        raise kubectl.refused(
            f"pod {head}: {refused[1]} (the settings are in ConfigMap sat-ray-environment; the "
            "NetworkPolicy ray must allow the store's address and port)"
        )
    if done.returncode:
        raise kubectl.refused(f"the storage could not be tried: {last_line(done.stderr)}")


def storage_named(options: list[str]) -> str:
    """Return the storage that the options of a sweep name, "" where they name none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--storage", default="")
    return str(parser.parse_known_args(options)[0].storage)


def token(kubectl: Kubectl) -> str:
    """Return the token with which the cluster was made."""
    cluster = kubectl.find("rayclusters.ray.io", NAMESPACE, f"--namespace={NAMESPACE}")
    name = cluster["spec"]["authOptions"]["secretName"]
    secret = kubectl.find("secret", name, f"--namespace={NAMESPACE}")
    return base64.b64decode(secret["data"]["auth_token"]).decode()


@contextmanager
def dashboard(kubectl: Kubectl) -> Iterator[str]:
    """Yield the address of the head's dashboard on this machine."""
    service = f"service/{NAMESPACE}-head-svc"
    command = kubectl.command("port-forward", f"--namespace={NAMESPACE}", service, ":8265")
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert forward.stdout and forward.stderr
        found = re.search(r"127\.0\.0\.1:(\d+) ->", forward.stdout.readline())
        if not found:
            forward.kill()
            raise kubectl.refused(f"no port-forward: {last_line(forward.stderr.read())}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        forward.kill()
        forward.wait()


def check_token(kubectl: Kubectl, address: str, secret: str) -> None:
    """Refuse a head that was started with another token."""
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {secret}"}
    )
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise kubectl.refused(
                "the head refuses the token of its Secret, which was changed after it started; "
                f"`kubectl --namespace {NAMESPACE} delete pods --selector "
                f"ray.io/cluster={NAMESPACE}` starts every pod with the new one"
            ) from None
        raise kubectl.refused(f"the head's dashboard answers {error.code}") from None
    except OSError as error:
        raise kubectl.refused(f"the head's dashboard does not answer ({error})") from None


def submit(recipe: str, options: list[str]) -> int:
    """Check, then submit the sweep and follow it; return 0 if it succeeds, else 1."""
    kubectl = connect()
    check_storage(kubectl, check_head(kubectl), storage_named(options))
    secret = token(kubectl)
    with dashboard(kubectl) as address:
        check_token(kubectl, address, secret)
        print(f"context {kubectl.context}: submitting {recipe}", flush=True)
        with workers_watched(kubectl):
            return follow(
                kubectl, address, secret, ["python", "pipelines/sweep.py", recipe, *options]
            )


def follow(kubectl: Kubectl, address: str, secret: str, command: list[str]) -> int:
    """Run a command on the head with this folder's code, and print what it prints."""
    # Ray reads both when it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.disable(logging.WARNING)  # else a line for each file that is not uploaded
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": "."})
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise kubectl.refused(
            f"the head did not take the job ({last_line(str(error))}); nothing was started"
        ) from None
    print(f"job {job}; Ctrl-C ends this command and not the sweep", flush=True)
    try:
        asyncio.run(_print_log(client, job))
        status = client.get_job_status(job)
    except (OSError, RuntimeError) as error:
        raise kubectl.refused(
            f"the connection to the head is lost ({error}); if the head lives, the sweep goes on "
            "there; once it has ended, the same command continues from its records"
        ) from None
    if status != JobStatus.SUCCEEDED:
        print(f"job {job}: {status}", file=sys.stderr)
    return int(status != JobStatus.SUCCEEDED)


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def main(arguments: list[str]) -> int:
    """Submit the recipe and options of the command line; 2 and one line where that is refused."""
    try:
        return submit(arguments[0], arguments[1:])
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
