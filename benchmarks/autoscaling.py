"""Let Ray's own autoscaler (v2) buy nodes for the real `pipelines/sweep.py` and give them back.

    joined_seconds    from the start of the command until the driver has joined the cluster
    asked_seconds     until the autoscaler has requested its first node
    up_seconds        until all nodes were up
    sweep_seconds     until the command had ended
    empty_seconds     from then until the last node was gone, the idle timeout included

A node is a process of this machine with one (logical) CPU, so buying one costs nothing and starting
it costs seconds: this measures what the sweep requests and releases, not how fast a cloud is. The
head has no CPUs, as in cluster/, and every connection needs the token of the cluster. The sweep is
digits_smoke; --quick: a smaller one.
"""

import argparse
import itertools
import json
import shlex
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import common
from autoscaling_ray import (
    IDLE_SECONDS,
    NODES,
    ONE_THREAD,
    POLL_SECONDS,
    AutoscalingRay,
    autoscaling_ray,
    until,
)

JOINED = "] Ray: "  # what the driver prints once it has joined
SMALLER = tuple(
    shlex.split(
        "--name smaller --search.activations relu parametric_softplus:5,10 --search.pairs "
        "--search.rungs 1 2 --final.seeds 0 --training.epochs 2 --evaluation.steps 10 "
        "--evaluation.step-size 16/255"
    )
)


@dataclass(frozen=True)
class Seen:
    """The state of the autoscaler at one time.

    seconds: since the command's start; asked: nodes requested and not up; up: nodes of the group.
    """

    seconds: float
    asked: int
    up: int


@dataclass(frozen=True)
class Watched:
    """A sweep that was watched. joined, ended: seconds since the command's start; seen:
    until the last node was gone.
    """

    seen: list[Seen]
    joined: float
    ended: float


def run_sweep(cluster: AutoscalingRay, storage: Path, options: tuple[str, ...]) -> Watched:
    """Run the sweep as a driver of the cluster,
    then wait until no node is left. RuntimeError if the sweep fails.
    """
    groups = json.dumps([{"pool": "cpu", "nodes": NODES, "CPU": 1}])
    to_it = {"RAY_ADDRESS": cluster.address, "SAT_RAY_NODE_GROUPS": groups}
    environment = common.environment(**ONE_THREAD, **cluster.environment, **to_it)
    command = common.sweep_command("digits_smoke", "--storage", str(storage), *options)
    log, seen, joined, started = cluster.folder / "sweep.log", list[Seen](), 0.0, time.monotonic()

    def look() -> Seen:
        seen.append(Seen(round(time.monotonic() - started, 1), *cluster.look()))
        return seen[-1]

    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ) as sweep,
    ):
        while sweep.poll() is None:
            joined = joined or (look().seconds if JOINED in log.read_text() else 0.0)
            look()
            time.sleep(POLL_SECONDS)
    ended = round(time.monotonic() - started, 1)
    print(log.read_text(), flush=True)
    if sweep.returncode:
        raise RuntimeError(f"the sweep ended with exit status {sweep.returncode}")
    until(lambda: look().up == 0 and seen[-1].asked == 0, what="the last node to go")
    until(lambda: cluster.raylets() == 1, what="the processes of the last node to end")
    return Watched(seen, joined, ended)


def figures_of(watched: Watched) -> dict[str, float]:
    """Return the five times; RuntimeError if not all nodes came up."""
    seen, ended = watched.seen, watched.ended
    asked = next((one.seconds for one in seen if one.asked or one.up), None)
    full = next((one.seconds for one in seen if one.up == NODES), None)
    if asked is None or full is None:
        raise RuntimeError(
            f"the autoscaler never had {NODES} nodes: at most {max(one.up for one in seen)}"
        )
    times = {
        "joined_seconds": watched.joined,
        "asked_seconds": asked,
        "up_seconds": full,
        "sweep_seconds": ended,
    }
    return times | {"empty_seconds": round(seen[-1].seconds - ended, 1)}


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", type=Path, metavar="FOLDER", help="keep the files of the sweep here"
    )


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, smoke=False, more=_own_options)
    about = common.machine()
    with (
        tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as scratch,
        autoscaling_ray() as cluster,
    ):
        before = cluster.look()
        watched = run_sweep(
            cluster, options.storage or Path(scratch), SMALLER if options.quick else ()
        )
    seen = watched.seen
    changes = [
        seen[0],
        *(
            now
            for last, now in itertools.pairwise(seen)
            if (last.asked, last.up) != (now.asked, now.up)
        ),
    ]
    details = {
        "nodes_before": before[1],
        "most_nodes": max(one.up for one in seen),
        "nodes_after": seen[-1].up,
        "idle_timeout_seconds": IDLE_SECONDS,
        "changes": {f"{number:02d}": asdict(one) for number, one in enumerate(changes)},
    }
    common.finish(
        "autoscaling: from no node to a sweep and back",
        figures_of(watched),
        details,
        about,
        path=options.json,
    )


if __name__ == "__main__":
    main()
