"""The example of docs/from-python.md runs,
and the names that docs/reference/api.md documents are those that a script imports.
"""

import ast
import dataclasses
import importlib
import inspect
import re

import from_python
import pytest
import torch
from sweeps import ROOT

from sat_ray.evaluation.card import CardSettings

PACKAGES = ("activations", "attacks", "data", "evaluation", "evaluation.card", "models", "training")
CONTRACT = (
    "sat_ray.activations:ACTIVATIONS",
    "sat_ray.activations:make_activation",
    "sat_ray.threat:ThreatModel",
    "sat_ray.models:build_model",
    "sat_ray.models:view",
    "sat_ray.attacks:pgd",
    "sat_ray.attacks:AttackSpec",
    "sat_ray.checkpoint:load_model",
    "sat_ray.evaluation:evaluate",
    "sat_ray.training:fit",
    "sat_ray.training:TrainingSettings",
    "sat_ray.data:Split",
)
PUBLIC = sorted(
    {*CONTRACT}
    | {
        f"sat_ray.{package}:{name}"
        for package in PACKAGES
        for name in importlib.import_module(f"sat_ray.{package}").__all__
    }
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


def test_the_example_trains_attacks_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = from_python.digits()
    assert (images.shape, str(images.dtype), len(labels)) == ((1797, 1, 8, 8), "uint8", 1797)
    parts = slice(900), slice(1000, 1100), slice(1200, 1250)
    train, val, test = ((images[part], labels[part]) for part in parts)
    small = CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5)
    card = from_python.train_attack_judge(train, val, test, epochs=4, steps=20, settings=small)
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


def entries() -> list[str]:
    """Return the dotted names that the page documents, with an entry or in words."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    return re.findall(r"^::: (\S+)$", page, re.M) + re.findall(r"`(sat_ray(?:\.\w+)+)`", page)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_entry_and_the_entry_is_that_object(name: str) -> None:
    package, _, wanted = name.partition(":")
    places = [entry for entry in entries() if entry.rpartition(".")[2] == wanted]
    assert len(places) == 1
    assert places[0].startswith(f"{package}.")
    assert imported(":".join(places[0].rsplit(".", 1))) is imported(name)


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
