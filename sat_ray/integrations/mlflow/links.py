"""Addresses of MLflow's pages that show a sweep's configurations: as a table, and compared.

MLflow's page of runs keeps its filter, order and columns in a shared view: a tag of the experiment
that the address names. Without an order of its own it hides every run below the sweep's.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sat_ray.storage.store import Storage
from sat_ray.storage.uris import redacted

FIRST_COLUMNS = (
    "metrics.`robust_accuracy`",
    "metrics.`clean_accuracy`",
    "metrics.`against_relu/difference`",
    "metrics.`against_relu/beyond_noise`",
    "metrics.`cost/accelerator_seconds`",
    "metrics.`cost/money`",
    "params.`activation`",
    "params.`alpha`",
    "params.`attacker_activation`",
    "metrics.`seeds`",
    "tags.`sat_ray.against_relu`",
)


def view_of(sweep: str) -> dict[str, Any]:
    """Return the state of MLflow's page of runs that shows a sweep's configurations, best first."""
    wanted = f"tags.`sat_ray.kind` = 'configuration' AND tags.`sat_ray.sweep` = '{sweep}'"
    return {
        "searchFilter": wanted,
        "orderByKey": FIRST_COLUMNS[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(FIRST_COLUMNS),
    }


def table_link(pages: str, experiment_id: str, view: str) -> str:
    """Return the address of the page of runs with a shared view. pages: see `pages_of`."""
    return f"{pages}/#/experiments/{experiment_id}/runs?viewStateShareKey={quote(view)}"


def compare_link(pages: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the address of the page that compares these runs, and no other."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id], separators=(",", ":")))
    return f"{pages}/#/compare-runs?runs={runs}&experiments={experiments}"


def how_to_serve(tracking_uri: str, root: Storage, *, in_clone: bool = True) -> str:
    """Return the command that serves MLflow's pages for a database; "" where a server has them.

    in_clone: whether the user works in a clone, which has a Makefile.
    """
    if tracking_uri.startswith(("http://", "https://")):
        return ""
    ours = in_clone and root.is_local and tracking_uri == f"sqlite:///{root.uri}/mlflow.db"
    if ours and root.uri == str(Path("runs").resolve()):
        return "make ui"
    if ours and shlex.quote(root.uri) == root.uri:  # make splits a name at spaces
        return f"make ui STORAGE={root.uri}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", "5000", "--backend-store-uri"]
    return shlex.join([*command, redacted(tracking_uri)])


def described(links: Mapping[str, str], serve: str) -> list[str]:
    """Return the lines that say how to look at a sweep."""
    where = f"start MLflow's pages with: {serve}" if serve else ""
    return [line for line in (where, *(f"{what}: {link}" for what, link in links.items())) if line]
