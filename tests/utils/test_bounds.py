"""Every field of every settings class has bounds:
a value outside them is refused in one line that names the field.
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.card import CardSettings
from sat_ray.integrations.command_line.export import Asked
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.models import ModelSpec
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.config.stored import stored_config
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.threat import ThreatModel
from sat_ray.utils.bounds import Bounds, Count, check_fields, fault
from sat_ray.utils.serialization import to_json
from sat_ray.utils.settings_json import from_json

VALUES: tuple[Any, ...] = (
    math.inf,
    -math.inf,
    math.nan,
    0,
    -1,
    10**26,
    1e26,
    10**400,
    "ten",
    True,
    [],
)
CONFIG = RECIPES["digits"]()
SECTIONS = {
    field.name: type(getattr(CONFIG, field.name))
    for field in dataclasses.fields(CONFIG)
    if field.name != "recipe"
}
CLASSES = (*SECTIONS.values(), CardSettings, ExternalOptions, Asked, AttackSpec, ModelSpec)
WITHOUT = {
    ("AttackSpec", "attacker_alpha"),
    ("ModelSpec", "alpha"),
}  # the bounds of an alpha are those of its activation


def of_config(section: str, field: str) -> Callable[[Any], object]:
    """Return a function that puts a value into a section of a config."""

    def build(value: Any) -> object:
        return dataclasses.replace(
            CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **{field: value})}
        )

    return build


def bounds_of(kind: type) -> dict[str, bool]:
    """Return the fields of a dataclass that hold numbers, and whether each has its own bounds."""
    return {
        name: has_bounds(field)
        for name, field in typing.get_type_hints(kind, include_extras=True).items()
        if holds_number(field)
    }


def holds_number(kind: Any) -> bool:
    """Return whether a type holds numbers."""
    return kind in (int, float) or any(
        holds_number(part) for part in typing.get_args(kind) if not isinstance(part, Bounds)
    )


def has_bounds(kind: Any) -> bool:
    """Return whether a type names bounds."""
    return isinstance(kind, Bounds) or any(has_bounds(part) for part in typing.get_args(kind))


def places() -> dict[str, Callable[[Any], object]]:
    """Return every field that holds numbers, by the name that a message gives it, with what builds
    settings that have a value there.
    """
    found = {
        f"{section}.{field}": of_config(section, field)
        for section, kind in SECTIONS.items()
        for field in bounds_of(kind)
    }
    for field in bounds_of(ExternalOptions):
        found[f"--{field.replace('_', '-')}"] = lambda value, field=field: ExternalOptions(
            **{field: value}
        )
    spec = AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=20, step_size=2 / 255)
    for field in bounds_of(AttackSpec):
        found[field] = lambda value, field=field: dataclasses.replace(spec, **{field: value})
    return found


PLACES = places()


def refusal(build: Callable[[], object]) -> str:
    """Return the message of the ValueError that a call ends with, "" where it succeeds."""
    try:
        build()
    except ValueError as error:
        return str(error) or "no message"
    return ""


def test_every_number_of_every_settings_class_has_bounds_of_its_own() -> None:
    missing = {
        (kind.__name__, field)
        for kind in CLASSES
        for field, has in bounds_of(kind).items()
        if not has
    }
    assert missing == WITHOUT
    assert {
        "training.warmup_epochs",
        "evaluation.slots",
        "search.rungs",
        "cost.budget",
        "--slots",
        "targets",
    } <= PLACES.keys()


@pytest.mark.parametrize("place", PLACES)
def test_a_number_is_refused_by_name_in_one_line_or_finite(place: str) -> None:
    """An accepted value is what was given,
    and a finite number of a size that a machine can hold.
    """
    repeated = place in ("search.rungs", "final.seeds")
    for value in VALUES:
        given = (value,) if repeated else value
        if message := refusal(lambda given=given: PLACES[place](given)):
            last = place.rpartition(".")[2].lstrip("-")
            assert "\n" not in message and len(message) < 400
            assert last in message or last.replace("-", "_") in message, (
                f"{place} = {value}: {message}"
            )
        else:
            limit = 1e30 if place == "training.learning_rate" else 1
            assert (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and abs(value) <= limit
            ), f"{place} = {value} was accepted"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CONFIG)])
def test_stored_json_of_another_shape_is_refused_in_one_line(field: str) -> None:
    whole = to_json(CONFIG)
    for value in (None, [], {}, "x", 5, [[]], {"x": 1}, {"seeds": {}}, {"steps": "ten"}, math.nan):
        message = refusal(lambda value=value: from_json(SweepConfig, whole | {field: value}))
        assert "\n" not in message
        assert message or (field, value) == ("recipe", "x") or value == {}, (
            f"{field} = {value!r} was accepted"
        )


@pytest.mark.parametrize("value", [{}, [], None, "text", 3, {"recipe": "digits"}])
def test_a_whole_config_of_another_shape_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"^(SweepConfig must be a JSON object, got a \w+|field \w+ of SweepConfig is "
            r"missing)$"
        ),
    ):
        from_json(SweepConfig, value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "null", "[" * 100_000, "\xff", '{"recipe": 5}', '{"threat_model": []}'],
)
def test_a_config_file_of_another_shape_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError,
        match=(
            r"/config\.json (cannot be read as a sweep's config \(.*\)|is no JSON \(.*\)|"
            r"must hold a JSON object, got a \w+); restore the file, or choose another --name or "
            r"--storage$"
        ),
    ) as caught:
        stored_config(Storage.at(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_config_file_that_was_changed_by_hand_is_refused_and_one_without_checksum_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage.at(tmp_path)
    given = to_json(RECIPES["digits_smoke"]())
    storage.write_json("config.json", given)
    assert stored_config(storage) == RECIPES["digits_smoke"]()
    assert "config.json has no checksum: an earlier version" in caplog.text
    changed = sealed(given) | {"training": given["training"] | {"epochs": 99}}
    storage.write_json("config.json", changed)
    with pytest.raises(ValueError, match=r"config\.json does not match its checksum: .*; restore"):
        stored_config(storage)


def test_a_config_of_an_earlier_version_says_what_its_fields_are_called_now(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": "digits", "evaluation": {"lanes": 64}}')
    with pytest.raises(
        ValueError, match=r"evaluation\.lanes is now evaluation\.slots\); .* --name"
    ):
        stored_config(Storage.at(tmp_path))


@dataclasses.dataclass(frozen=True)
class _Sample:
    free: float = 1.0
    count: Count = 1
    several: Annotated[tuple[int, ...], Bounds(0, 9)] = (1, 2)
    perhaps: Annotated[float | None, Bounds(0, 1, above=True)] = None
    kind: typing.Literal["a", "b"] = "a"
    yes: bool = False
    text: str = ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"perhaps": 1, "several": (), "free": -5}, ""),
        (
            {"free": math.inf},
            "x.free must be a number from -1000000000000 to 1000000000000, got inf",
        ),
        ({"count": 1.0}, "x.count must be a whole number from 1 to 1000000000, got 1"),
        ({"count": True}, "x.count must be a whole number from 1 to 1000000000, got True"),
        (
            {"several": (1, 10)},
            "x.several must be a list of which each is a whole number from 0 to 9, got (1, 10)",
        ),
        ({"several": 3}, "x.several must be a list, got 3"),
        ({"perhaps": 0}, "x.perhaps must be a number greater than 0 and at most 1, got 0"),
        ({"kind": "c"}, "x.kind must be one of a, b, got 'c'"),
        ({"yes": 1}, "x.yes must be True or False, got 1"),
        ({"text": None}, "x.text must be a text, got None"),
    ],
)
def test_the_check_of_fields_reads_bounds_and_types(changes: dict[str, Any], message: str) -> None:
    if not message:
        check_fields(_Sample(**changes), prefix="x.")
        return
    with pytest.raises(ValueError) as caught:
        check_fields(_Sample(**changes), prefix="x.")
    assert str(caught.value) == message


def test_edges_belong_to_the_bounds_unless_they_are_left_out() -> None:
    assert (
        fault(0, Annotated[float, Bounds(0, 1)]) == fault(1, Annotated[float, Bounds(0, 1)]) == ""
    )
    assert (
        fault(0.0, Annotated[float, Bounds(0, 1, above=True)])
        == "a number greater than 0 and at most 1"
    )
    assert (
        fault(1.0, Annotated[float, Bounds(0, 1, below=True)])
        == "a number at least 0 and less than 1"
    )


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    training = dataclasses.replace(CONFIG.training, warmup_epochs=CONFIG.training.epochs)
    assert dataclasses.replace(CONFIG, training=training)
    with pytest.raises(
        ValueError,
        match=r"training\.warmup_epochs must be a number from 0 to training\.epochs, 10, got 11",
    ):
        dataclasses.replace(CONFIG, training=dataclasses.replace(training, warmup_epochs=11))


@pytest.mark.parametrize("value", [[], "relu", 3, {"activation": "relu", "colour": 1}, {}])
def test_a_stored_configuration_of_another_shape_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match="configuration must be a JSON object with") as caught:
        SearchPoint.stored(value)
    assert "\n" not in str(caught.value)
