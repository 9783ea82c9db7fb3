"""The example of docs/from-python.md runs,
and the names that docs/api.md documents are those that a script imports.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
from types import ModuleType

import pytest
import torch
from sweeps import ROOT

from sat_ray.evaluation.card import CardSettings

PUBLIC = (
    "sat_ray.activations:ACTIVATIONS",
    "sat_ray.activations:make_activation",
    "sat_ray.activations:curvature",
    "sat_ray.threat:ThreatModel",
    "sat_ray.models:build_model",
    "sat_ray.models:view",
    "sat_ray.attacks:pgd",
    "sat_ray.attacks:AttackSpec",
    "sat_ray.checkpoint:load_model",
    "sat_ray.evaluation:evaluate",
    "sat_ray.training:fit",
    "sat_ray.training:TrainingSettings",
    "sat_ray.training:TrainingState",
    "sat_ray.training:EpochReport",
    "sat_ray.data:Split",
    "sat_ray.evaluation.card:robustness_card",
    "sat_ray.evaluation.card:CardSettings",
)
FIELDS = (
    "sat_ray.attacks:AttackSpec",
    "sat_ray.training:EpochReport",
    "sat_ray.training:TrainingState",
    "sat_ray.training:TrainingSettings",
    "sat_ray.data:Split",
    "sat_ray.threat:ThreatModel",
    "sat_ray.evaluation.card:CardSettings",
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Import docs/demos/from_python.py."""
    path = ROOT / "docs" / "demos" / "from_python.py"
    spec = importlib.util.spec_from_file_location("from_python", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_trains_attacks_and_judges(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = example.digits()
    assert (images.shape, str(images.dtype), len(labels)) == ((1797, 1, 8, 8), "uint8", 1797)
    parts = slice(900), slice(1000, 1100), slice(1200, 1250)
    train, val, test = ((images[part], labels[part]) for part in parts)
    small = CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5)
    card = example.train_attack_judge(train, val, test, epochs=4, steps=20, settings=small)
    printed = capsys.readouterr().out
    assert len(re.findall(r"epoch \d: loss \d\.\d\d", printed)) == 4
    found = re.search(r"robust accuracy under pgd-20: .*: (\d+\.\d)% of 50 test images", printed)
    assert found is not None and 20 < float(found[1]) < 100
    assert card["n"] == 24 and f"\n{card['verdict']}\n" in printed
    assert torch.get_num_threads() == 1


def imported(name: str) -> object:
    """Return what `module:name` says."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_entry_and_the_entry_is_that_object(name: str) -> None:
    entries = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    wanted = name.partition(":")[2]
    places = [module for module, attribute in entries if attribute == wanted]
    assert len(places) == 1
    assert imported(f"{places[0]}:{wanted}") is imported(name)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_documented(name: str) -> None:
    owner = imported(name)
    assert isinstance(owner, type) and dataclasses.is_dataclass(owner)
    (body,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(body, ast.ClassDef)
    documented = {
        field.target.id
        for field, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(owner)}
