"""What the MLflow server that cluster/mlflow describes must refuse,
and what a run must not leave behind.
"""

import base64
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from faults.parts import Mlflow, Postgres, clean_environment

READER = ("reader", "reader-password-1")


def wrong_answers(mlflow: Mlflow) -> list[str]:
    """Ask as nobody, with a wrong password, under another host name and as a reader; say in a
    sentence each what was answered wrongly.
    """
    admin = (mlflow.user, mlflow.password)
    new = {"username": READER[0], "password": READER[1]}
    expected: list[tuple[str, int, tuple[Any, ...]]] = [
        ("a request without a login", 401, ("experiments/search?max_results=1", None)),
        ("a wrong password", 401, ("experiments/search?max_results=1", (mlflow.user, "wrong"))),
        (
            "an unlisted host name",
            403,
            ("experiments/search?max_results=1", admin, None, "elsewhere:5000"),
        ),
        ("the administrator", 200, ("experiments/search?max_results=1", admin)),
        ("an account made by the administrator", 200, ("users/create", admin, new)),
        (
            "an account made by a reader",
            403,
            ("users/create", READER, new | {"username": "another"}),
        ),
        ("a reader's reading", 200, ("experiments/get?experiment_id=0", READER)),
        ("a reader's run", 403, ("runs/create", READER, {"experiment_id": "0"})),
        ("a reader's deletion", 403, ("experiments/delete", READER, {"experiment_id": "0"})),
    ]
    found = [(what, status, _status(mlflow, *call)) for what, status, call in expected]
    return [f"{what}: status {got}, not {status}" for what, status, got in found if got != status]


def _status(
    mlflow: Mlflow,
    path: str,
    login: tuple[str, str] | None,
    body: dict[str, str] | None = None,
    host: str | None = None,
) -> int:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    if host:
        headers["Host"] = host
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{mlflow.uri}/api/2.0/mlflow/{path}", data=data, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def secrets_left(
    places: list[Path], secrets: dict[str, str], postgres: Postgres | None
) -> list[str]:
    """Search files, and a dump of the database, for secrets, given by name;
    say which was found where.
    """
    found = []
    for place in places:
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [
                    f"{name} is in {path}"
                    for name, secret in secrets.items()
                    if secret.encode() in data
                ]
    if postgres is not None:
        dump = [str(postgres.programs() / "pg_dump"), "--inserts"]  # type: ignore[operator]
        text = subprocess.run(
            dump, env=clean_environment(**postgres.environment), capture_output=True, check=True
        ).stdout
        found += [
            f"{name} is in MLflow's database"
            for name, secret in secrets.items()
            if secret.encode() in text
        ]
        assert b"sat_ray.key" in text, "the dump holds no run"
    return found
