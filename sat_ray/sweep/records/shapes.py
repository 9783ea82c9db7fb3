"""What the records of each stage hold, as far as anything reads it.

A record with another shape is refused in one line that names the field, instead of failing
wherever that field is read. A checksum does not show this: whoever changes a record can make one.
"""

from typing import Any, NotRequired, TypedDict

from sat_ray.storage.json_shape import misfit

USED = "system/"  # what workers used, in the payload of any record: numbers


class _Record(TypedDict):
    stage: str
    key: str
    code: dict[str, str]
    created: float
    seconds: float


class _Inputs(TypedDict):
    own: NotRequired[list[str]]
    environment: NotRequired[dict[str, Any]]


class AnyRecord(_Record):
    """A record of a stage whose payload nothing here knows."""

    inputs: _Inputs
    payload: dict[str, Any]


class _Configuration(TypedDict):
    activation: str
    alpha: NotRequired[float | None]
    attacker_activation: NotRequired[str]
    attacker_alpha: NotRequired[float | None]


class _BegunInputs(_Inputs):
    configuration: _Configuration
    seed: int


class BegunRecord(_Record):
    """What is written when a training begins."""

    inputs: _BegunInputs
    payload: dict[str, Any]


class _Training(TypedDict):
    name: str
    configuration: _Configuration
    seed: int
    until: int
    path: str
    sha256: str
    val_robust_accuracy: float
    last_val: tuple[float, float]
    history: list[dict[str, float]]
    history_times: NotRequired[list[float]]
    accelerator_seconds: float
    train_images_per_second: float
    guard_events: NotRequired[list[dict[str, float]]]
    state: NotRequired[str]


class TrainingRecord(_Record):
    """A training of the search or of the leaderboard."""

    inputs: _Inputs
    payload: _Training


class _ShardInputs(_Inputs):
    weights: str
    rows: tuple[int, int]


class _Shard(TypedDict):
    name: str
    path: str
    sha256: str
    n: int
    robust: int
    passes: int
    calibrations: NotRequired[list[dict[str, Any]]]
    gpus: NotRequired[float]
    gpu_memory: NotRequired[float]


class ShardRecord(_Record):
    """A shard of images under attacks."""

    inputs: _ShardInputs
    payload: _Shard


class _Corrupted(TypedDict):
    name: str
    n: int
    passes: int
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
    name: str
    card: Card
    gpus: NotRequired[float]


class CardRecord(_Record):
    """The robustness card of a model."""

    inputs: _CardInputs
    payload: _Carded


class _Searched(TypedDict):
    finalists: list[_Configuration]
    done: int
    planned: int
    unit: str
    cut: bool
    left_out: list[str]


class SearchResultRecord(_Record):
    """What a search came to."""

    inputs: _Inputs
    payload: _Searched


class _Stopped(TypedDict):
    until: int


class StoppedRecord(_Record):
    """Where an asynchronous search stopped a trial."""

    inputs: _Inputs
    payload: _Stopped


def record_fault(found: dict[str, Any], shape: Any) -> str:
    """Return which field of a record has another shape, and what it must be; "" where all fit."""
    if fault := misfit(found, shape):
        return fault
    used = {name: one for name, one in found["payload"].items() if name.startswith(USED)}
    return misfit(used, dict[str, float], field="payload")
