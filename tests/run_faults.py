#!/usr/bin/env python3
"""Put faults into running sweeps and say what they cost. Needs root on Linux: every node is a host in a network namespace of its own.

python tests/run_faults.py                      every kind once, at most one in a stage of a sweep
python tests/run_faults.py --only node          one kind
python tests/run_faults.py --chaos 20 --seed 1  that many faults of kinds drawn by the seed

Real parts: an S3 server (OpenStack Swift), PostgreSQL, an MLflow server as cluster/mlflow starts it, Ray nodes. After each sweep its
numbers must be those of an undisturbed one.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3_server
from faults.hosts import enter, missing
from faults.injections import KINDS, STAGES, Kind, Scene, await_work
from faults.logins import secrets_left, wrong_answers
from faults.parts import PATIENCE_SECONDS, S3, Cluster, Mlflow, Postgres, clean_environment
from faults.report import ROOT, merged, write
from faults.victim import Left, Victim, faults_of


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
        s3, postgres = S3(folder), Postgres(folder) if Postgres.programs() and _installed("psycopg") else None
        s3.start()
        if postgres:
            postgres.start()
        mlflow = Mlflow(folder, s3, postgres)
        mlflow.migrate()
        mlflow.start()
        patience = {"RAY_raylet_start_wait_time_s": str(int(PATIENCE_SECONDS))}
        environment = clean_environment(**s3.environment, **mlflow.environment, **patience, RAY_AUTH_MODE="disabled")
        cluster = Cluster(folder, environment)
        cluster.up()
        return cls(folder, s3, postgres, mlflow, cluster)

    def secrets_left(self) -> list[str]:
        """Say where a credential is that should not be there: objects, database, drivers' and Ray's logs."""
        logs = [node.host.disk() for node in self.cluster.everyone()]
        kept = self.folder / "printed"
        kept.mkdir(exist_ok=True)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, kept)
        secrets = [s3_server.SECRET_KEY, self.mlflow.password, Postgres.password]
        return secrets_left([self.folder / "s3" / "node", kept, *logs], secrets, self.postgres)

    def victim(self, name: str) -> Victim:
        """Return a new sweep, started."""
        victim = Victim(name, self.cluster, self.s3, self.mlflow, log=self.folder / f"{name}.log")
        victim.start()
        return victim


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def disturbed(place: Workplace, name: str, kinds: list[Kind], undisturbed: Left, *, seed: int, outage: float) -> list[dict[str, Any]]:
    """Run one sweep with at most one fault in each stage; return what each of them did."""
    victim = place.victim(name)
    scene = Scene(victim, place.s3, place.mlflow, place.postgres, random.Random(f"{name} {seed}"), outage)
    struck: list[dict[str, Any]] = []
    try:
        for kind in sorted(kinds, key=lambda one: STAGES.index(one.stage)):
            await_work(victim, kind.stage)
            say(f"{name}: {kind.name} in {kind.stage}")
            since = time.time() - max(victim.committed(kind.stage), default=0.0)
            struck.append({"kind": kind.name, "stage": kind.stage, "bound": kind.bound, "since_last_stored": since})
            struck[-1]["interrupted"] = kind.inject(scene)
        left = victim.finish()
        wrong = faults_of(left, undisturbed, name, place.mlflow, place.cluster) + place.secrets_left()
    except Exception as error:
        wrong, left = [f"{type(error).__name__}: {error}"], None
        victim.process.kill()
    for one in struck:
        if left is not None:
            whole = KINDS[one["kind"]].alone
            one["seconds_lost"] = (
                left.seconds - undisturbed.seconds if whole else left.stages[one["stage"]] - undisturbed.stages[one["stage"]]
            )
            each = one["since_last_stored"] if one["stage"] == "train" else victim.longest(one["stage"])
            one["repeated_seconds_at_most"] = round(one["interrupted"] * each, 1)
        one["wrong"] = wrong
    say(f"{name}: {'; '.join(wrong) or 'the same numbers, nothing lost, nothing doubled, nothing left behind'}")
    return struck or [{"kind": kind.name, "stage": kind.stage, "wrong": wrong} for kind in kinds]


def packed(kinds: Iterable[Kind]) -> list[list[Kind]]:
    """Spread kinds over as few sweeps as hold at most one in each stage."""
    sweeps: list[list[Kind]] = []
    for kind in kinds:
        open_to_it = (one for one in sweeps if not any(other.alone or other.stage == kind.stage for other in one))
        room = None if kind.alone else next(open_to_it, None)
        if room is None:
            sweeps.append(room := [])
        room.append(kind)
    return sweeps


def say(text: str) -> None:
    """Print a line with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", flush=True)


BEGAN = time.monotonic()


def main() -> int:
    """Run the faults asked for; the exit status is 0 if every sweep survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(KINDS), nargs="+", help="kinds to run")
    parser.add_argument("--chaos", type=int, default=0, metavar="N", help="draw N faults instead")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims among processes and nodes, and of --chaos")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that a server or a connection stays away")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of faults.json and faults.md")
    arguments = parser.parse_args()
    if lacking := missing():
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    enter()
    kinds = [KINDS[name] for name in arguments.only or KINDS]
    if arguments.chaos:
        kinds = random.Random(arguments.seed).choices(kinds, k=arguments.chaos)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    say(f"starting everything; logs in {folder}")
    place = Workplace.open(folder)
    refusals = wrong_answers(place.mlflow)
    say(f"MLflow's logins: {'; '.join(refusals) or 'every request answered as it should be'}")
    if place.postgres is None:
        say("no PostgreSQL here: MLflow runs on SQLite, and postgres-restart is not run")
        kinds = [kind for kind in kinds if kind.name != "postgres-restart"]
    undisturbed = place.victim("undisturbed").finish()
    say(f"undisturbed: {undisturbed.seconds:.0f} s, stages {undisturbed.stages}")
    struck = []
    for number, some in enumerate(packed(kinds)):
        struck += disturbed(place, f"sweep{number}", some, undisturbed, seed=arguments.seed, outage=arguments.outage)
        write(merged(arguments.docs, struck, undisturbed, chaos=bool(arguments.chaos), outage=arguments.outage), arguments.docs)
        if struck[-1]["wrong"]:  # what it left behind must not disturb the next
            place.cluster.down()
            place.cluster.up()
    return int(bool(refusals) or any(one["wrong"] for one in struck))


if __name__ == "__main__":
    sys.exit(main())
