"""The words after an option: what its type takes passes,
anything else is one line that names option, kind and value.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from sat_ray.integrations.command_line.option_values import (
    NUMBERS,
    UsageError,
    check_words,
    option_kinds,
    positionals,
    values_of,
)
from sat_ray.utils.bounds import as_float


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings inside settings."""

    count: int = 1
    rate: float = 0.5
    many: tuple[float, ...] = ()
    method: Literal["grid", "asha"] = "grid"
    limit: float | None = None
    switch: bool = False
    word: str = ""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of a command with one word of its own."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="A name.")] = ""
    part: Inner = field(default_factory=Inner)
    quiet: Annotated[bool, tyro.conf.arg(help="Say nothing.")] = False


KINDS = option_kinds(Outer())


def test_every_option_has_its_dotted_name_and_positional_words_are_counted_apart() -> None:
    assert set(KINDS) == {
        f"part.{name}" for name in ("count", "rate", "many", "method", "limit", "switch", "word")
    } | {"quiet"}
    assert positionals(Outer()) == 1
    assert positionals(Inner()) == 0


@pytest.mark.parametrize(
    "words",
    [
        "--part.count 3",
        "--part.count=3",
        "--part.count -3",
        "--part.rate 8/255",
        "--part.rate inf",
        "--part.many",
        "--part.many 1 2/3 1e-3",
        "--part.method asha",
        "--part.limit None",
        "--part.limit 3",
        "--part.switch --quiet",
        "--part.no-switch",
        "--part.word a",
        "--part.word=-x",
        "name --quiet",
        "--help",
        "-h",
        "name -h",
    ],
)
def test_what_an_option_takes_passes(words: str) -> None:
    check_words(words.split(), KINDS, allowed_before=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--part.count ten", "--part.count must be an integer, got 'ten'"),
        ("--part.count 2.5", "--part.count must be an integer, got '2.5'"),
        ("--part.count 1/2", "--part.count must be an integer, got '1/2'"),
        ("--part.count \uff11\uff12", "--part.count must be an integer, got '\uff11\uff12'"),
        (
            f"--part.count {'9' * 5000}",
            f"--part.count must be an integer, got '{'9' * 76}...; an integer has at most 100 dig",
        ),
        ("--part.count", "--part.count needs a value: an integer"),
        ("--part.count 3 4", "--part.count takes one value, got 2: 3 4"),
        ("--part.rate fast", "--part.rate must be a number (k/255 may be written), got 'fast'"),
        ("--part.rate 1/0", "--part.rate must be a number (k/255 may be written), got '1/0'"),
        ("--part.many 1 x", "--part.many must be a number (k/255 may be written), got 'x'"),
        ("--part.method foo", "--part.method must be one of grid, asha, got 'foo'"),
        ("--part.limit x", "--part.limit must be a number (k/255 may be written) or None, got 'x'"),
        (
            "--part.switch yes",
            "--part.switch takes no value, got yes: write --part.switch alone, or --part.no-switch",
        ),
        (
            "--part.no-switch=1",
            (
                "--part.no-switch takes no value, got 1: write --part.no-switch alone, or "
                "--part.switch"
            ),
        ),
        ("--quiet yes", "--quiet takes no value, got yes: write --quiet alone, or --no-quiet"),
        ("name other", "unexpected word 'other'"),
        ("-x", "unexpected word '-x': an option begins with --"),
        (
            "--part.word -x",
            "--part.word must be followed by a word that does not begin with '-', as options do, "
            "got -x; if it is the value, write --part.word=-x",
        ),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(words: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_words(words.split(), KINDS, allowed_before=1)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("word", "value"), [("8/255", 8 / 255), ("127.5/255", 0.5), ("1e-3", 1e-3), ("inf", math.inf)]
)
def test_a_number_may_be_written_as_a_fraction(word: str, value: float) -> None:
    assert as_float(word) == value


@pytest.mark.parametrize("word", ["1/0", "-1/2", "2024/10/x", "1/2/3", "fast", ""])
def test_what_spells_no_number_is_refused(word: str) -> None:
    with pytest.raises(ValueError):
        as_float(word)


def test_the_words_after_an_option_are_all_that_follow_it() -> None:
    words = ["x", "--a", "1", "2", "--b", "--a=3"]
    assert values_of(words, "--a") == ["1", "2", "3"]
    assert values_of(words, "--b") == values_of(words, "--c") == []


def test_fractions_are_read_where_a_float_is_expected_and_nowhere_else() -> None:
    words = [
        "--part.rate",
        "8/255",
        "--part.word",
        "8/255",
        "--part.many",
        "1/2",
        "3",
        "--part.limit",
        "1/4",
    ]
    part = tyro.cli(Outer, args=words, registry=NUMBERS).part
    assert (part.rate, part.word, part.many, part.limit) == (8 / 255, "8/255", (0.5, 3.0), 0.25)
