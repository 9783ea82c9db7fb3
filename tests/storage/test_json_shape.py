"""A record whose checksum is right and whose fields are not is refused in one line, by every
reader.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeps import digits_shards, filled

from sat_ray.integrations.command_line.checks.prepared import described
from sat_ray.integrations.command_line.status import Asked, answer
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import RESULT
from sat_ray.sweep.plan.datasets import dataset_uri, prepared_dataset
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.store import Records, Stage
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import CARD, SEARCH, STAGES, TRAIN
from sat_ray.utils.serialization import to_json

GIVEN: dict[Stage, dict[str, Any]] = {
    stage: {
        "name": "relu-s0",
        "configuration": SearchPoint(activation="relu").to_json(),
        "history": [{"epoch": 0, "val/robust_accuracy": 0.5}],
        "until": 1,
    }
    for stage in (SEARCH, TRAIN)
}
CHECK = {"name": "a", "found": "b", "meaning": "c", "passed": False}
GIVEN[CARD] = {"card": {"verdict": "FLAG", "checks": [CHECK]}}
GIVEN[RESULT] = {"finalists": [SearchPoint(activation="relu").to_json()]}
OTHERS: tuple[Any, ...] = ("x", 1.5, True, None, [], {}, ["x"], {"x": "x"})


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each value in a JSON value is."""
    if at:
        yield at
    inside: Any = value if isinstance(value, dict) else ()
    if isinstance(value, list):
        inside = range(len(value))
    for name in inside:
        yield from _paths(value[name], (*at, name))


def _changed(value: dict[str, Any], at: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Yield a record without the value at a place, and with others there."""
    for other in (KeyError, *OTHERS):
        made = copy.deepcopy(value)
        place = made
        for name in at[:-1]:
            place = place[name]
        if other is KeyError:
            del place[at[-1]]
        else:
            place[at[-1]] = other
        yield made


@pytest.mark.parametrize("stage", [*STAGES, RESULT], ids=lambda stage: stage.name)
def test_a_record_of_another_shape_is_named_with_its_field(stage: Stage, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "runs" / "s")
    storage.write_json("config.json", sealed(to_json(RECIPES["digits_smoke"]())))
    records = Records(storage)
    quick = replace(stage, modules=())  # no code is hashed
    records.commit(quick, "k", **filled(stage, GIVEN.get(stage, {})), seconds=1.0)
    path = f"state/{stage.name}/k.json"
    assert records.find(stage, "k") is not None
    good = storage.read_object(path)
    del good["checksum"]
    refused = 0
    for at in _paths(good):
        for made in _changed(good, at):
            storage.write_json(path, sealed(made))
            if said := _refusal(records, stage):
                refused += 1
                assert said.startswith(f"record {storage.full(path)}") and "\n" not in said
            else:  # it may still be refused, in one line
                shown = json.loads(answer(Asked(json=True), Storage.at(tmp_path / "runs")))
                assert len(shown) == 1
    assert refused > 7 * len(good)


NO_CONFIGURATIONS = (
    ({"activation": "none"}, "activation 'none' is unknown; choose celu"),
    ({"alpha": 2.0}, "alpha of relu must be left out for relu"),
    ({"activation": "parametric_softplus", "alpha": 1e9}, "alpha of parametric_softplus must be"),
    ({"attacker_activation": "silu"}, "attacker_activation must share its forward pass"),
    ({"beta": 1}, "configuration must be a JSON object with fields of activation, alpha"),
    ({"activation": "strangers:net"}, "names code, and importing it runs it: strangers:net"),
)


@pytest.mark.parametrize(("changed", "said"), NO_CONFIGURATIONS)
@pytest.mark.parametrize("stage", [SEARCH, TRAIN, RESULT], ids=lambda stage: stage.name)
def test_a_record_of_a_configuration_that_there_is_not_is_named(
    stage: Stage, changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    records = Records(Storage.at(tmp_path))
    given = copy.deepcopy(GIVEN[stage])
    (given.get("configuration") or given["finalists"][0]).update(changed)
    quick = replace(stage, modules=())
    records.commit(quick, "k", **filled(stage, given), seconds=1.0)
    refusal = _refusal(records, stage)
    assert said in refusal and records.storage.full(f"state/{stage.name}/k.json") in refusal
    assert "\n" not in refusal and ("; move it away" in refusal or "--allow-code" in refusal)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "a/../../b", "s3://bucket/b"])
def test_a_record_of_files_outside_its_sweep_is_named(path: str, tmp_path: Path) -> None:
    records = Records(Storage.at(tmp_path))
    quick = replace(TRAIN, modules=())
    records.commit(quick, "k", **filled(TRAIN, GIVEN[TRAIN] | {"path": path}), seconds=1.0)
    assert "train/k.json: payload.path must be a text that is a relative path" in _refusal(
        records, TRAIN
    )


@pytest.mark.parametrize("moment", [-1.0, 1e308])
def test_a_record_of_no_time_at_all_is_named(moment: float, tmp_path: Path) -> None:
    """The status shows the time of the newest record."""
    records = Records(Storage.at(tmp_path))
    quick = replace(TRAIN, modules=())
    records.commit(quick, "k", **filled(TRAIN, GIVEN[TRAIN]), seconds=1.0)
    good = records.storage.read_object("state/train/k.json")
    del good["checksum"]
    records.storage.write_json("state/train/k.json", sealed(good | {"created": moment}))
    assert "train/k.json: created must be a number from 0 to" in _refusal(records, TRAIN)


def _refusal(records: Records, stage: Stage) -> str:
    try:
        records.find(stage, "k")
    except ValueError as error:
        return str(error)
    return ""


def test_a_manifest_of_another_shape_is_named_with_its_field(tmp_path: Path) -> None:
    config = RECIPES["digits_smoke"]()
    uri = dataset_uri(config, Storage.at(tmp_path))
    digits_shards(Path(uri))
    storage = Storage(uri)
    good = storage.read_object("manifest.json")
    del good["checksum"]
    good |= {"corrupt": [{"image": "a", "reason": "b"}], "enlarged": 1}
    refused = 0
    places = [at for at in _paths(good) if at == ("shards",) or "shards" not in at]
    for at in (at for at in places if at[:1] != ("class_names",) or at[1:] in ((), (0,))):
        for made in _changed(good, at):
            storage.write_json("manifest.json", sealed(made))
            said = _manifest_refusal(config, Storage.at(tmp_path))
            assert "\n" not in said
            refused += storage.full("manifest.json") in said
    assert refused > 7 * len(good)


def _manifest_refusal(config: SweepConfig, root: Storage) -> str:
    try:
        dataset = prepared_dataset(config, root)
    except ValueError as error:
        return str(error)
    assert dataset is not None
    assert described(dataset)
    return ""
