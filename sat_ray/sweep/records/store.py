"""Stages and their records. Records are the truth: whatever else exists is rebuilt from them.

A record is one JSON file under state/<stage>/, named by its key and committed last, after the files
it lists. Its key hashes the stage's version, the semantic inputs and the numerical environment, so
a committed record is never computed again.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sat_ray.storage.sealed import UNSEALED, read_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.renewed_lease import check_lease
from sat_ray.sweep.records.shapes import AnyRecord, BegunRecord, record_fault
from sat_ray.utils.code_hash import code_hashes
from sat_ray.utils.serialization import content_hash, json_bytes

STATE = "state"
SUPERSEDED = "superseded"  # records that were moved aside
BEGUN = f"{STATE}/progress"  # trainings under way: what they began with, and their states
AGAIN = "move it away and run again"
ELSEWHERE = "choose another --name or --storage, or move the folder of the sweep away"
# Field of a record's inputs: the names, module:function, of user-defined code. It stays "own",
# because keys hash it.
USER_DEFINED = "own"
SURVIVORS_OF = (
    "survivors_of"  # among those of an evaluation: the record whose surviving images it attacks
)


@dataclass(frozen=True)
class Stage:
    """One node of the pipeline.

    version: raise it when the meaning of the results changes; modules: the code whose change a
    record must notice (with all of this package that it imports); shape: of its records.
    """

    name: str
    version: int
    modules: tuple[str, ...]
    shape: Any = AnyRecord


@dataclass(frozen=True, kw_only=True)
class Record:
    """The committed result of one task. payload: its result as JSON.

    code: hash per module; created: unix time; seconds: of work.
    """

    stage: str
    key: str
    inputs: dict[str, Any]
    payload: dict[str, Any]
    code: dict[str, str]
    created: float
    seconds: float

    @property
    def content(self) -> str:
        """Hash what was computed, not when or how fast."""
        return content_hash(
            {"stage": self.stage, "key": self.key, "payload": _timeless(self.payload)}
        )


def _timeless(value: Any) -> Any:
    """Drop what differs between equal computations: times, what processes used, paths."""
    dropped = ("seconds", "images_per_second", "path", "created", "history", "gpu", "system/")
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not any(word in k for word in dropped)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def record_key(stage: Stage, inputs: dict[str, Any]) -> str:
    """Return the key of the result that `inputs` determine.

    inputs: semantic settings, hashes of what is read, environment.
    """
    return content_hash({"stage": stage.name, "version": stage.version, "inputs": inputs})[:32]


class Records:
    """The records of one sweep. Any number of processes may use it at once.

    A key has one record, the first committed.

    `all` keeps what it has read, because a committed record never changes; so callers that read
    often should keep one of these objects. There may be tens of thousands of evaluation shards:
    `each` and `new` hold one record at a time.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._read: dict[tuple[str, str], Record] = {}
        self._seen: dict[str, set[str]] = {}

    def find(self, stage: Stage, key: str) -> Record | None:
        """Return the committed record with this key, or None.

        ValueError names one that is damaged or was changed.
        """
        path = f"{STATE}/{stage.name}/{key}.json"
        try:
            record = self._record(path, stage.shape)
        except FileNotFoundError:
            return None
        if (record.stage, record.key) != (stage.name, key):
            raise ValueError(
                f"record {self.storage.full(path)} is that of {record.stage} {record.key}; {AGAIN}"
            )
        return record

    def _record(self, path: str, shape: Any) -> Record:
        try:
            found = read_sealed(self.storage, path)
        except ValueError as error:
            advice = ELSEWHERE if str(error) == UNSEALED else AGAIN
            raise ValueError(f"record {self.storage.full(path)} {error}; {advice}") from None
        if found.keys() != {field.name for field in fields(Record)}:
            raise ValueError(
                f"record {self.storage.full(path)} has the fields of another version; {ELSEWHERE}"
            )
        if fault := record_fault(found, shape, source=self.storage.full(path)):
            raise ValueError(f"record {self.storage.full(path)}: {fault}; {AGAIN}")
        return Record(**found)

    def commit(
        self,
        stage: Stage,
        key: str,
        *,
        inputs: dict[str, Any],
        payload: dict[str, Any],
        seconds: float,
    ) -> Record:
        """Commit a result and return the record that counts.

        It is this one, or the one that another attempt committed before.

        LostLeaseError where this process works for a driver that has lost the sweep.
        """
        check_lease(self.storage)
        record = Record(
            stage=stage.name,
            key=key,
            inputs=inputs,
            payload=payload,
            code=code_hashes(modules_behind(stage, inputs)),
            created=time.time(),
            seconds=seconds,
        )
        data = json_bytes(sealed(asdict(record)))
        while not self.storage.commit(f"{STATE}/{stage.name}/{key}.json", data):
            if (winner := self.find(stage, key)) is not None:
                return winner
        return record

    def begin(self, stage: Stage, key: str, *, inputs: dict[str, Any]) -> None:
        """Write down with which code work begins whose state is kept before it is committed.

        Replaces what an earlier start wrote.
        """
        check_lease(self.storage)
        code = code_hashes(modules_behind(stage, inputs))
        begun = Record(
            stage=stage.name,
            key=key,
            inputs=inputs,
            payload={"begun": True},
            code=code,
            created=time.time(),
            seconds=0.0,
        )
        self.storage.write_json(f"{BEGUN}/{key}.json", sealed(asdict(begun)))

    def end(self, key: str) -> None:
        """Forget that work began."""
        self.storage.discard(f"{BEGUN}/{key}.json")

    def begun(self) -> Iterator[Record]:
        """Yield what `begin` wrote and `end` has not removed."""
        for name in self.storage.names(BEGUN):
            if not name.endswith(".json") or name.endswith(".error.json"):
                continue
            if (record := self.find_begun(name.removesuffix(".json"))) is not None:
                yield record

    def find_begun(self, key: str) -> Record | None:
        """Return what `begin` wrote, None where the work has ended since."""
        with contextlib.suppress(FileNotFoundError):
            return self._record(f"{BEGUN}/{key}.json", BegunRecord)
        return None

    def keys(self, stage: Stage) -> list[str]:
        """List the keys committed so far."""
        return [name.removesuffix(".json") for name in self.storage.names(f"{STATE}/{stage.name}")]

    def all(self, stage: Stage) -> list[Record]:
        """Return every committed record of a stage, oldest first.

        Only those that came since the last call are read.
        """
        found = (self._kept(stage, key) for key in self.keys(stage))
        return sorted(
            (record for record in found if record), key=lambda record: (record.created, record.key)
        )

    def each(self, stage: Stage) -> Iterator[Record]:
        """Yield every committed record of a stage, by key, and keep none."""
        return (record for key in self.keys(stage) if (record := self.find(stage, key)))

    def new(self, stage: Stage) -> Iterator[Record]:
        """Yield the records of a stage that were not yielded before, by key.

        Their keys alone are kept.
        """
        seen = self._seen.setdefault(stage.name, set())
        for key in self.keys(stage):
            if key not in seen and (record := self.find(stage, key)):
                seen.add(key)
                yield record

    def _kept(self, stage: Stage, key: str) -> Record | None:
        name = (stage.name, key)
        if name not in self._read and (record := self.find(stage, key)) is not None:
            self._read[name] = record
        return self._read.get(name)

    def supersede(self, record: Record) -> None:
        """Move a record, or the states of a task that has only begun, aside: it is done again.

        Nothing is deleted.
        """
        check_lease(self.storage)
        states = [
            f"progress/{record.key}.safetensors",
            f"progress/second/{record.key}.safetensors",
            f"progress/{record.key}.json",
        ]
        aside = f"{SUPERSEDED}/{attempt_name()}"
        for name in (
            states if record.payload.get("begun") else [f"{record.stage}/{record.key}.json"]
        ):
            if self.storage.exists(f"{STATE}/{name}"):
                self.storage.move(f"{STATE}/{name}", f"{aside}/{name}")
        self._read.pop((record.stage, record.key), None)


def modules_behind(stage: Stage, inputs: dict[str, Any]) -> tuple[str, ...]:
    """Return the modules whose code determines a record.

    They are those of the stage, and the user-defined ones that its inputs name.
    """
    return (
        *stage.modules,
        *sorted({name.partition(":")[0] for name in inputs.get(USER_DEFINED, [])}),
    )


def changed_modules(record: Record, stage: Stage) -> list[str]:
    """Name the modules that are not what they were when the record was made."""
    now = code_hashes(modules_behind(stage, record.inputs))
    return sorted(
        name for name in now.keys() | record.code.keys() if now.get(name) != record.code.get(name)
    )


def numerical_environment(
    *, accelerator: str, threads: int, slots: int, compiled: bool = False
) -> dict[str, Any]:
    """Describe what the bits of a result depend on beside its inputs.

    accelerator: GPU model, "" for this machine's CPU; compiled: torch.compile makes the kernels
    (those of torch itself have no entry).
    """
    import torch  # records can be read without it

    device = (
        f"cuda:{accelerator}" if accelerator else f"cpu:{torch.backends.cpu.get_cpu_capability()}"
    )
    kernels = {"kernels": "torch.compile"} if compiled else {}
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": threads,
        "precision": "float32",
        "slots": slots,
        **kernels,
    }


def require_environment(environment: Mapping[str, Any]) -> None:
    """Raise ValueError where this process's GPU or CPU is not the one of the environment.

    It would compute other bits.
    """
    import torch

    kind, _, wanted = str(environment["device"]).partition(":")
    if kind == "cuda":
        found = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
        )
        if wanted.lower() not in found.lower():
            raise ValueError(
                f"the accelerator must be a part of the name of this node's GPU, {found!r}, "
                f"got {wanted!r}"
            )
    elif (here := torch.backends.cpu.get_cpu_capability()) != wanted:
        raise ValueError(
            f"this node's processor computes with {here}, the driver's with {wanted}, and their "
            "bits differ; use nodes of one kind, or set ATEN_CPU_CAPABILITY (default, avx2 or "
            "avx512) to the lesser of the two on all of them"
        )


def attempt_name() -> str:
    """Return a name that no other attempt at the same work uses."""
    return f"{time.time_ns():x}-{os.getpid():x}-{os.urandom(3).hex()}"


def attempt_began(name: str) -> float | None:
    """Return the unix time of the attempt at the end of a file's or folder's name.

    None where there is none.
    """
    found = re.fullmatch(r"(?:.*-)?([0-9a-f]{15,16})-[0-9a-f]+-[0-9a-f]{6}(?:\.\w+)?", name)
    return int(found[1], 16) / 1e9 if found else None
