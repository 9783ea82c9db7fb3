"""What the records of each stage hold, as far as anything reads it.

A record with another shape is refused in one line that names the field, instead of failing
wherever that field is read. A checksum does not show this: whoever changes a record can make one.
"""

from collections.abc import Iterator
from typing import Annotated, Any, NotRequired, TypedDict

from sat_ray.storage.json_shape import RelativePath, misfit
from sat_ray.utils.bounds import Bounds
from sat_ray.utils.import_string import UnconfirmedCodeError, stored_names

Seconds = Annotated[float, Bounds(0, 10**11)]  # of work, or since 1970: three thousand years
Number = Annotated[int, Bounds(0, 10**15)]  # of images, calls or epochs
USED = "system/"  # what workers used, in the payload of any record: numbers


class _Record(TypedDict):
    stage: str
    key: str
    code: dict[str, str]
    created: Seconds
    seconds: Seconds


class _Inputs(TypedDict):
    own: NotRequired[list[str]]
    environment: NotRequired[dict[str, Any]]


class AnyRecord(_Record):
    """A record of a stage whose payload nothing here knows."""

    inputs: _Inputs
    payload: dict[str, Any]


class Configuration(TypedDict):
    """How a training was made, as `SearchPoint` has it."""

    activation: str
    alpha: NotRequired[float | None]
    attacker_activation: NotRequired[str]
    attacker_alpha: NotRequired[float | None]


class _BegunInputs(_Inputs):
    configuration: Configuration
    seed: int


class BegunRecord(_Record):
    """What is written when a training begins."""

    inputs: _BegunInputs
    payload: dict[str, Any]


class _Training(TypedDict):
    name: RelativePath  # of its files
    configuration: Configuration
    seed: int
    until: Number
    path: RelativePath
    sha256: str
    val_robust_accuracy: float
    last_val: tuple[float, float]
    history: list[dict[str, float]]
    history_times: NotRequired[list[float]]
    accelerator_seconds: Seconds
    train_images_per_second: float
    guard_events: NotRequired[list[dict[str, float]]]
    state: NotRequired[RelativePath]


class TrainingRecord(_Record):
    """A training of the search or of the leaderboard."""

    inputs: _Inputs
    payload: _Training


class _ShardInputs(_Inputs):
    weights: str
    rows: tuple[int, int]


class _Shard(TypedDict):
    name: RelativePath  # of its files
    path: RelativePath
    sha256: str
    n: Number
    robust: Number
    passes: Number
    calibrations: NotRequired[list[dict[str, Any]]]
    gpus: NotRequired[float]
    gpu_memory: NotRequired[float]


class ShardRecord(_Record):
    """A shard of images under attacks."""

    inputs: _ShardInputs
    payload: _Shard


class _Corrupted(TypedDict):
    name: RelativePath  # of its files
    n: Number
    passes: Number
    correct: dict[str, list[int]]
    gpus: NotRequired[float]


class CorruptionsRecord(_Record):
    """A shard of images under common corruptions."""

    inputs: _ShardInputs
    payload: _Corrupted


class _Check(TypedDict):
    name: str
    found: str
    meaning: str
    passed: bool


class _Threat(TypedDict):
    norm: str
    epsilon: float


class Card(TypedDict):
    """A robustness card."""

    verdict: str
    reasons: list[str]
    checks: list[_Check]
    n: int
    seed: int
    attack: str
    threat_model: _Threat
    ladder: dict[str, float]
    curves: dict[str, Any]


class _CardInputs(_Inputs):
    weights: str


class _Carded(TypedDict):
    name: RelativePath  # of its files
    card: Card
    gpus: NotRequired[float]


class CardRecord(_Record):
    """The robustness card of a model."""

    inputs: _CardInputs
    payload: _Carded


class _Searched(TypedDict):
    finalists: list[Configuration]
    done: Number
    planned: Number
    unit: str
    cut: bool
    left_out: list[str]


class SearchResultRecord(_Record):
    """What a search came to."""

    inputs: _Inputs
    payload: _Searched


class _Stopped(TypedDict):
    until: Number


class StoppedRecord(_Record):
    """Where an asynchronous search stopped a trial."""

    inputs: _Inputs
    payload: _Stopped


def record_fault(found: dict[str, Any], shape: Any, *, source: str) -> str:
    """Return which field of a record has another shape, and what it must be; "" where all fit.

    source: the record's file. Raises UnconfirmedCodeError, with its name, where a configuration
    names code that no person named.
    """
    if fault := misfit(found, shape):
        return fault
    used = {name: one for name, one in found["payload"].items() if name.startswith(USED)}
    if fault := misfit(used, dict[str, float], field="payload"):
        return fault
    with stored_names(source):
        return next(filter(None, map(_fault_of, _configurations(found))), "")


def _configurations(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the configurations in a record, with the names of their fields."""
    for part in ("inputs", "payload"):
        if "configuration" in found[part]:
            yield f"{part}.configuration", found[part]["configuration"]
    for number, one in enumerate(found["payload"].get("finalists", [])):
        yield f"payload.finalists[{number}]", one


def _fault_of(named: tuple[str, Any]) -> str:
    from sat_ray.sweep.search.search_space import SearchPoint  # keeps the chain of imports short

    field, value = named
    try:
        SearchPoint.stored(value)
    except UnconfirmedCodeError:
        raise
    except ValueError as error:
        return f"{field}: {error}"
    return ""
