"""The parts that a sweep on a cluster needs, each a real one: an S3 server, PostgreSQL, an MLflow
server with logins, Ray nodes.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import s3_server
import waiting
import yaml
from repository import ROOT

from faults.hosts import DISK, OUTSIDE, Host

S3_PORT, MLFLOW_PORT, POSTGRES_PORT, RAY_PORT = 8080, 5000, 5432, 6379
BUCKET = "faults"
MEMORY = str(150 * 1024**2)  # of a node's object store
POSTGRES = "postgres"  # the system's user for it: the server refuses to be run by root
until = partial(waiting.until, pause=0.2)


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this environment without anything that would redirect a part, plus changes."""
    redirecting = re.compile("RAY_|AWS_|MLFLOW_|PG|SAT_RAY_|.*_proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not redirecting.match(name)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return (
        kept
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        | changes
    )


class Server:
    """A process outside the cluster that can be killed and started again."""

    name = "server"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

    def run(self, command: Sequence[str], **environment: str) -> None:
        """Start its process, with everything that it prints in a log."""
        with (self.folder / "log").open("ab") as log:
            settings: dict[str, Any] = {
                "stdout": log,
                "stderr": subprocess.STDOUT,
                "start_new_session": True,
                "cwd": self.folder,
            }
            self.process = subprocess.Popen(
                command, env=clean_environment(**environment), **settings
            )

    def kill(self) -> None:
        """Kill it with all its children."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        """Return the end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]


class S3(Server):
    """OpenStack Swift with its S3 API."""

    name = "s3"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that lead to it."""
        return s3_server.environment(S3_PORT) | {"AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{S3_PORT}"}

    def start(self) -> None:
        """Start it with the bucket."""
        self.run(
            [
                *(sys.executable, "-W", "ignore", s3_server.__file__),
                *(str(self.folder), str(S3_PORT), OUTSIDE),
            ]
        )
        until(
            lambda: waiting.answers(f"http://{OUTSIDE}:{S3_PORT}/healthcheck", any_status=True),
            what=f"S3 server {self.log()}",
        )
        with contextlib.suppress(self.client().exceptions.BucketAlreadyOwnedByYou):
            self.client().create_bucket(Bucket=BUCKET)

    def client(self) -> Any:
        """Return a boto3 client for it."""
        return s3_server.client(f"http://{OUTSIDE}:{S3_PORT}")


class Postgres(Server):
    """PostgreSQL with an empty database; Debian keeps its programs off the PATH."""

    name = "postgres"
    database, password = "mlflow", "db-" + secrets.token_hex(8)

    def __init__(self, folder: Path, *, address: str = OUTSIDE, clients: str = f"{OUTSIDE}/24"):
        """address: where it listens. clients: the addresses that may log in, as a CIDR."""
        super().__init__(folder)
        self.address, self.clients = address, clients

    @staticmethod
    def programs() -> Path | None:
        """Return the newest version's folder of programs; None where there is none."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        return found[-1].parent if found and shutil.which("runuser") else None

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that lead to it, as the manifests name them."""
        address = {
            "PGHOST": self.address,
            "PGPORT": str(POSTGRES_PORT),
            "PGDATABASE": self.database,
        }
        return address | {"PGUSER": self.database, "PGPASSWORD": self.password}

    def _as_its_user(self, program: str, *words: str) -> None:
        command = ["runuser", "-u", POSTGRES, "--", str(self.programs() / program), *words]  # type: ignore[operator]
        done = subprocess.run(
            command, env=clean_environment(), cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Make the cluster of databases at the first start, and start it."""
        data, sockets, first = (
            self.folder / "data",
            self.folder / "run",
            not (self.folder / "data").exists(),
        )
        if first:
            for place in (self.folder, data, sockets):
                place.mkdir(exist_ok=True)
                shutil.chown(place, POSTGRES)
            (self.folder / "password").write_text(self.password)
            login = [
                "--username=mlflow",
                f"--pwfile={self.folder / 'password'}",
                "--auth=scram-sha-256",
                "--no-sync",
            ]
            self._as_its_user("initdb", "-D", str(data), *login)
            (self.folder / "password").unlink()
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {self.clients} scram-sha-256\n")
        options = f"-c listen_addresses={self.address} -p {POSTGRES_PORT} -k {sockets}"
        self._as_its_user(
            "pg_ctl",
            "start",
            "-w",
            "-D",
            str(data),
            "-o",
            options,
            "-l",
            str(self.folder / "server.log"),
        )
        if first:
            with self.connect("postgres") as connection:
                connection.autocommit = True
                connection.execute(f"CREATE DATABASE {self.database}")

    def connect(self, database: str) -> Any:
        """Return a connection to it."""
        import psycopg

        login = {"user": self.database, "password": self.password}
        return psycopg.connect(
            host=self.address, port=POSTGRES_PORT, dbname=database, autocommit=True, **login
        )

    def restart(self) -> None:
        """Restart it as an upgrade would: connections are closed, transactions in flight undone."""
        self.kill()
        self.start()

    def kill(self) -> None:
        """Stop it without waiting for anybody."""
        self._as_its_user(
            "pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data")
        )


class Mlflow(Server):
    """An MLflow server with logins, started from cluster/mlflow's own settings;
    on SQLite where there is no PostgreSQL.
    """

    name = "mlflow"
    user, password = "admin", "admin-" + secrets.token_hex(8)

    def __init__(self, folder: Path, s3: S3, postgres: Postgres | None) -> None:
        super().__init__(folder)
        config = yaml.safe_load((ROOT / "cluster/mlflow/config.yaml").read_text())["data"]
        (self.folder / "basic_auth.ini").write_text(config.pop("basic_auth.ini"))
        config |= s3.environment | {"MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow"}
        config |= {
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{OUTSIDE}:{MLFLOW_PORT}",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "basic_auth.ini"),
        }
        config |= {
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        if postgres is None:
            config["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{self.folder}/mlflow.db"
            ini = (
                (self.folder / "basic_auth.ini")
                .read_text()
                .replace("postgresql+psycopg://", f"sqlite:///{self.folder}/auth.db")
            )
            (self.folder / "basic_auth.ini").write_text(ini)
        self.settings = config | (postgres.environment if postgres else {})

    @property
    def uri(self) -> str:
        """Return its address."""
        return f"http://{OUTSIDE}:{MLFLOW_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that lead to it."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def migrate(self) -> None:
        """Do what the init containers do."""
        pod, environment = (
            _deployment()["spec"]["template"]["spec"],
            clean_environment(**self.settings),
        )
        for container in pod["initContainers"]:
            script = container["command"][-1].replace(
                "exec mlflow", f"exec {sys.executable} -m mlflow"
            )
            script = script.replace("exec python", f"exec {sys.executable}")
            done = subprocess.run(
                ["sh", "-ec", script], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it with the arguments of the Deployment and wait until it answers."""
        container = _deployment()["spec"]["template"]["spec"]["containers"][0]
        words = [word.replace("0.0.0.0", OUTSIDE) for word in container["args"]]
        self.run([sys.executable, "-m", "mlflow", "server", *words], **self.settings)
        until(lambda: waiting.answers(f"{self.uri}/health"), what="MLflow server")


def _deployment() -> dict[str, Any]:
    found = yaml.safe_load_all((ROOT / "cluster/mlflow/server.yaml").read_text())
    return next(one for one in found if one["kind"] == "Deployment")


class Node:
    """A Ray node on a host of its own."""

    def __init__(
        self, host: Host, environment: dict[str, str], *, log: Path, head: str = ""
    ) -> None:
        self.host, self.log = host, log
        words = [
            "start",
            f"--node-ip-address={host.address}",
            "--block",
            "--disable-usage-stats",
            "--num-gpus=0",
        ]
        words += [f"--object-store-memory={MEMORY}"]
        if head:
            words += [f"--address={head}", "--num-cpus=1"]
        else:
            words += [
                "--head",
                f"--port={RAY_PORT}",
                "--num-cpus=0",
                f"--temp-dir={DISK}/ray",
                f"--dashboard-host={host.address}",
            ]
        command = host.command([sys.executable, "-m", "ray.scripts.scripts", *words])
        with log.open("ab") as stream:
            settings: dict[str, Any] = {
                "stdout": stream,
                "stderr": subprocess.STDOUT,
                "start_new_session": True,
            }
            self.process = subprocess.Popen(command, env=environment | {"TMPDIR": DISK}, **settings)

    def ready(self) -> "Node":
        """Wait until it has joined."""

        def joined() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return "Ray runtime started" in self.log.read_text()

        until(joined, what=f"Ray node {self.host.name}")
        return self

    def workers(self, title: str) -> list[int]:
        """Return the processes of Ray workers that do something
        whose title matches a regular expression.
        """
        found = []
        for pid in self.host.processes():
            with contextlib.suppress(psutil.Error):
                if re.match(title, " ".join(psutil.Process(pid).cmdline())):
                    found.append(pid)
        return found


class Cluster:
    """A head without work and nodes with one CPU each, every one on its own host."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.number = folder, environment, 1
        self.head: Node
        self.nodes: list[Node] = []

    @property
    def address(self) -> str:
        """Return where drivers connect to."""
        return f"{self.head.host.address}:{RAY_PORT}"

    def up(self) -> None:
        """Start the head and the nodes on new hosts."""
        self.head = self._node("head").ready()
        self.nodes = []
        for _ in range(2):
            self.add()

    def add(self) -> Node:
        """Add one node on a new host, as a cluster that replaces a lost one."""
        self.nodes.append(self._node("worker", head=self.address).ready())
        return self.nodes[-1]

    def _node(self, role: str, *, head: str = "") -> Node:
        self.number += 1
        host = Host(role, self.number)
        return Node(host, self.environment, log=self.folder / f"{host.name}.log", head=head)

    def crash(self, node: Node) -> None:
        """Lose a node."""
        self.nodes.remove(node)
        node.host.crash()

    def down(self) -> None:
        """Lose everything."""
        for node in [*self.nodes, self.head]:
            node.host.crash()
        self.nodes = []

    def everyone(self) -> list[Node]:
        """Return all nodes, the head first."""
        return [self.head, *self.nodes]
