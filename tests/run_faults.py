#!/usr/bin/env python3
"""Put faults into running sweeps and say what they cost. Needs root on Linux: every node is a host
in a network namespace of its own.

python tests/run_faults.py                      every kind once, at most one in a stage of a sweep
python tests/run_faults.py --only node          one kind
python tests/run_faults.py --chaos 20 --seed 1  and then that many faults of kinds drawn by the seed

Real parts: an S3 server (OpenStack Swift), PostgreSQL, an MLflow server as cluster/mlflow starts
it, Ray nodes. After each sweep its numbers must be those of an undisturbed one.
"""

import argparse
import random
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import s3_server
from faults.hosts import enter, missing
from faults.injections import KINDS, STAGES, Kind, Scene, at_work
from faults.logins import secrets_left, wrong_answers
from faults.parts import S3, Cluster, Mlflow, Postgres, clean_environment
from faults.report import SWEEP, brief, merged, write
from faults.victim import Left, Victim, faults_of
from repository import ROOT
from waiting import PATIENCE_SECONDS


@dataclass
class Workplace:
    """The parts, started once for all sweeps."""

    folder: Path
    s3: S3
    postgres: Postgres | None
    mlflow: Mlflow
    cluster: Cluster

    @classmethod
    def open(cls, folder: Path) -> "Workplace":
        """Start everything."""
        s3, postgres = (
            S3(folder),
            Postgres(folder) if Postgres.programs() and _installed("psycopg") else None,
        )
        s3.start()
        if postgres:
            postgres.start()
        mlflow = Mlflow(folder, s3, postgres)
        mlflow.migrate()
        mlflow.start()
        patience = {
            "RAY_raylet_start_wait_time_s": str(int(PATIENCE_SECONDS)),
            "RAY_worker_niceness": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "20",
        }
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = clean_environment(**s3.environment, **mlflow.environment, **patience, **token)
        cluster = Cluster(folder, environment)
        cluster.up()
        return cls(folder, s3, postgres, mlflow, cluster)

    def secrets_left(self) -> list[str]:
        """Say where a credential is that should not be there: objects, database,
        drivers' and Ray's logs.
        """
        logs = [node.host.disk() for node in self.cluster.everyone()]
        kept = self.folder / "printed"
        kept.mkdir(exist_ok=True)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, kept)
        planted = {"the S3 key": s3_server.SECRET_KEY, "MLflow's password": self.mlflow.password}
        planted |= {
            "PostgreSQL's password": Postgres.password,
            "Ray's token": self.cluster.environment["RAY_AUTH_TOKEN"],
        }
        return secrets_left([self.folder / "s3" / "node", kept, *logs], planted, self.postgres)

    def victim(self, name: str) -> Victim:
        """Return a new sweep, started."""
        victim = Victim(name, self.cluster, self.s3, self.mlflow, log=self.folder / f"{name}.log")
        victim.start()
        return victim


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def disturbed(
    place: Workplace, name: str, kinds: list[Kind], undisturbed: Left, *, seed: int, outage: float
) -> tuple[list[dict[str, Any]], list[Kind]]:
    """Run one sweep and put faults into its stages; return what each of them did, and the kinds
    whose stage was over too soon.
    """
    victim = place.victim(name)
    scene = Scene(
        victim, place.s3, place.mlflow, place.postgres, random.Random(f"{name} {seed}"), outage
    )
    struck: list[dict[str, Any]] = []
    late: list[Kind] = []
    try:
        for kind in sorted(kinds, key=lambda one: (STAGES.index(one.stage), one.lasting)):
            if not at_work(victim, kind.stage):
                late.append(kind)
                continue
            say(f"{name}: {kind.name} in {kind.stage}")
            since = (
                time.time() + 1 - max(victim.committed(kind.stage), default=victim.began)
            )  # S3 rounds its times up to seconds
            struck.append(
                {
                    "sweep": name,
                    "kind": kind.name,
                    "stage": kind.stage,
                    "since_last_stored": round(since, 1),
                }
            )
            struck[-1]["interrupted"] = kind.inject(scene)
        left = victim.finish()
        wrong = (
            faults_of(left, undisturbed, name, place.mlflow, place.cluster) + place.secrets_left()
        )
    except Exception as error:
        wrong, left = [f"{type(error).__name__}: {error}"], None
        victim.process.kill()
    stages = Counter(one["stage"] for one in struck)
    for one in struck:
        if left is not None:
            whole = (
                KINDS[one["kind"]].alone or stages[one["stage"]] > 1
            )  # a stage's seconds are not told apart
            one["measured"] = SWEEP if whole else one["stage"]
            one["seconds"] = round(left.seconds if whole else left.stages[one["stage"]], 1)
            each = (
                one["since_last_stored"]
                if one["stage"] == "train"
                else victim.longest(one["stage"])
            )
            one["repeated_seconds_at_most"] = round(one["interrupted"] * each, 1)
        one["wrong"] = [brief(text) for text in wrong]
    say(f"{name}: {'; '.join(wrong) or 'the same numbers, nothing lost, doubled or left behind'}")
    assert struck, f"{name}: not one fault could be put into it: {wrong}"
    return struck, late


def first_sweep(kinds: list[Kind], *, each: int) -> tuple[list[Kind], list[Kind]]:
    """Split kinds in those for one sweep, at most `each` in a stage and a kind that wants to be
    alone by itself, and the others.
    """
    if kinds[0].alone:
        return kinds[:1], kinds[1:]
    now: list[Kind] = []
    others: list[Kind] = []
    for kind in kinds:
        room = not kind.alone and sum(one.stage == kind.stage for one in now) < each
        (now if room else others).append(kind)
    return now, others


def say(text: str) -> None:
    """Print a line with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", flush=True)


BEGAN = time.monotonic()
CHAOS_EACH = 3  # faults in a stage: what Ray retries a task or a trial
COMMAND = shlex.join(["python", "tests/run_faults.py", *sys.argv[1:]])


def main() -> int:
    """Run the faults asked for; the exit status is 0 if every sweep survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        choices=sorted(KINDS),
        nargs="*",
        help="kinds to run; without a name none, but the undisturbed sweep is timed",
    )
    parser.add_argument("--chaos", type=int, default=0, metavar="N", help="draw N more faults")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the choice of victims among processes and nodes, and of --chaos",
    )
    parser.add_argument(
        "--outage",
        type=float,
        default=60.0,
        help="seconds that a server or a connection stays away",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        default=ROOT / "docs" / "reference",
        help="folder of faults.json and faults.md",
    )
    arguments = parser.parse_args()
    if lacking := missing():
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    enter()
    names = list(KINDS) if arguments.only is None else arguments.only
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    say(f"starting everything; logs in {folder}")
    place = Workplace.open(folder)
    refusals = wrong_answers(place.mlflow)
    say(f"MLflow's logins: {'; '.join(refusals) or 'every request answered as it should be'}")
    if place.postgres is None:
        say("no PostgreSQL here: MLflow runs on SQLite, and postgres-restart is not run")
    possible = [
        kind for kind in KINDS.values() if place.postgres or kind.name != "postgres-restart"
    ]
    kinds = [kind for kind in possible if kind.name in names]
    drawn = random.Random(arguments.seed).choices(possible, k=arguments.chaos)
    undisturbed = place.victim("undisturbed").finish()
    say(f"undisturbed: {undisturbed.seconds:.0f} s, stages {undisturbed.stages}")
    write(
        merged(
            arguments.docs, [], undisturbed, chaos=False, outage=arguments.outage, command=COMMAND
        ),
        arguments.docs,
    )
    struck: list[dict[str, Any]] = []
    for waiting, each in ((kinds, 1), (drawn, CHAOS_EACH)):
        here: list[dict[str, Any]] = []
        while waiting:
            some, waiting = first_sweep(waiting, each=each)
            done, late = disturbed(
                place,
                f"sweep{len(struck)}",
                some,
                undisturbed,
                seed=arguments.seed,
                outage=arguments.outage,
            )
            struck, here, waiting = struck + done, here + done, late + waiting
            found = merged(
                arguments.docs,
                here,
                undisturbed,
                chaos=each > 1,
                outage=arguments.outage,
                command=COMMAND,
            )
            write(found, arguments.docs)
            if done[-1]["wrong"]:  # what it left behind must not disturb the next
                place.cluster.down()
                place.cluster.up()
    return int(bool(refusals) or any(one["wrong"] for one in struck))


if __name__ == "__main__":
    sys.exit(main())
