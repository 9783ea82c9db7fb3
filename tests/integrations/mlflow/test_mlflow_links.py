"""Names and addresses for MLflow's pages; whether the pages open as meant: tests/browser."""

import json
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sat_ray.integrations.mlflow.links import (
    compare_link,
    described,
    how_to_serve,
    table_link,
    view_of,
)
from sat_ray.integrations.mlflow.metrics import compared_name
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.search.search_space import SearchPoint


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_ten_characters_of_a_name_tell_the_configurations_of_a_recipe_apart(
    recipe: str,
) -> None:
    found = RECIPES[recipe]().search.points()
    assert len({compared_name(one)[:10] for one in found}) == len(set(found))


def test_names_start_with_what_differs() -> None:
    assert compared_name(SearchPoint(activation="silu")) == "silu"
    assert (
        compared_name(SearchPoint(activation="parametric_softplus", alpha=10.0))
        == "α=10 parametric_softplus"
    )
    pair = SearchPoint(
        activation="relu", attacker_activation="relu_smooth_backward", attacker_alpha=10.0
    )
    assert compared_name(pair) == "(relu|α=10 relu_smooth_backward)"


def test_the_address_of_a_comparison_names_the_runs_and_their_experiment() -> None:
    found = urlsplit(compare_link("http://host:5000", "7", ["ab", "cd"]))
    path, _, query = found.fragment.partition("?")
    assert (found.netloc, path) == ("host:5000", "/compare-runs")
    assert {name: json.loads(value) for name, (value,) in parse_qs(query).items()} == {
        "runs": ["ab", "cd"],
        "experiments": ["7"],
    }


def test_the_view_of_a_sweep_fits_into_a_tag_and_orders_by_what_it_shows() -> None:
    view = view_of("s" * 64)
    assert len(json.dumps(view)) < 5000  # the most that MLflow keeps in a tag
    assert (
        view["orderByKey"] in view["selectedColumns"] and "'configuration'" in view["searchFilter"]
    )
    assert (
        table_link("http://host", "7", "sat_ray-a b")
        == "http://host/#/experiments/7/runs?viewStateShareKey=sat_ray-a%20b"
    )


def test_the_command_that_serves_the_pages_is_right_for_any_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, other, spaced = (Storage.at(tmp_path / name) for name in ("runs", "other", "a b"))
    assert how_to_serve(f"sqlite:///{usual.uri}/mlflow.db", usual) == "make ui"
    assert how_to_serve(f"sqlite:///{other.uri}/mlflow.db", other) == f"make ui STORAGE={other.uri}"
    words = shlex.split(how_to_serve(f"sqlite:///{spaced.uri}/mlflow.db", spaced))
    assert (
        words[1:4] == ["-m", "mlflow", "server"]
        and words[-1] == f"sqlite:///{spaced.uri}/mlflow.db"
    )
    assert "s3cret" not in how_to_serve("postgresql+psycopg://me:s3cret@host/db", usual)
    assert how_to_serve("https://mlflow.example", usual) == ""
    assert described({"compare": "http://x"}, "make ui") == [
        "start MLflow's pages with: make ui",
        "compare: http://x",
    ]
