"""Weights on disk: safetensors beside a JSON description, never a pickle."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sat_ray.models import ModelSpec, Normalized, model_from_spec
from sat_ray.reference import check_confirmed, confirm, stored_names
from sat_ray.sealed import read_perhaps_sealed, sealed
from sat_ray.sentinel import Memory
from sat_ray.storage import Storage
from sat_ray.training_state import TrainingState, joined, part_of

FORMAT, UNSEALED_FORMAT = 2, 1  # of format 1 model.json has no checksum
RESTORE = "restore the folder, or train the model again"
MODEL_JSON, MODEL_WEIGHTS = "model.json", "model.safetensors"


def sha256(data: bytes) -> str:
    """Return the hex digest that records and manifests quote."""
    return hashlib.sha256(data).hexdigest()


def save_model(storage: Storage, weights: dict[str, Tensor], *, spec: ModelSpec, about: dict[str, Any]) -> str:
    """Write a model into a folder and return the sha256 of its weights. about: anything worth knowing, as JSON."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    digest = sha256(data)
    storage.write(MODEL_WEIGHTS, data)
    storage.write_json(MODEL_JSON, sealed({"format": FORMAT, "spec": dataclasses.asdict(spec), "sha256": digest, "about": about}))
    return digest


def read_description(storage: Storage) -> dict[str, Any]:
    """Return what the model.json of a checkpoint's folder says: `spec`, `sha256` of the weights, `about`.

    Raises FileNotFoundError where there is none, ValueError where it is damaged or was changed.
    """
    try:
        found = read_perhaps_sealed(storage, MODEL_JSON, required=lambda found: found.get("format") == FORMAT)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {MODEL_JSON} in {storage.uri}; give the folder of a checkpoint") from None
    except ValueError as error:
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_JSON} {error}; {RESTORE}") from None
    if found.get("format") not in (FORMAT, UNSEALED_FORMAT):
        raise ValueError(f"checkpoint {storage.uri} has format {found.get('format')!r}; this version reads {FORMAT}")
    kinds = {"spec": dict, "sha256": str, "about": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_JSON} has no {' and no '.join(wrong)} that can be read; {RESTORE}")
    return found


def load_model(path_or_uri: str, *, expected_sha256: str | None = None, allow_code: Collection[str] = ()) -> Normalized:
    """Load a checkpoint folder, local or s3://, as a module in eval mode: [0, 1] pixels -> logits.

    allow_code: names, `module:function`, of your own network and activation that the checkpoint may
    name; they are imported, which runs them. Raises FileNotFoundError where no model is,
    UnconfirmedCodeError where it names other code, ValueError where it is damaged or was changed.
    """
    confirm(allow_code)
    storage = Storage.at(path_or_uri)
    about = read_description(storage)
    data = storage.read(MODEL_WEIGHTS)
    if sha256(data) != about["sha256"] or expected_sha256 not in (None, about["sha256"]):
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_WEIGHTS} does not match its sha256; it is damaged or was replaced")
    spec = about["spec"]
    check_confirmed([str(spec.get("name")), str(spec.get("activation"))], source=storage.full(MODEL_JSON))
    try:
        with stored_names():
            given = ModelSpec(**spec)
        model = model_from_spec(given, seed=0)
        model.load_state_dict(safetensors.torch.load(data))
    except (TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_JSON} and {MODEL_WEIGHTS} do not fit together ({reason}); {RESTORE}") from None
    return model.eval()


_PARTS = ("weights", "momentum", "average", "best", "good")


def pack_state(state: TrainingState) -> bytes:
    """Spell a training state as one safetensors file, its plain values and a sha256 of everything in the header."""
    # best and weights may be the same tensors; safetensors wants each to own its memory
    tensors = {name: t.clone().contiguous() for name, t in joined(**{part: getattr(state, part) for part in _PARTS}).items()}
    plain = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in _PARTS}
    text = json.dumps(plain | {"sentinel": dataclasses.asdict(state.sentinel)})
    packed: bytes = safetensors.torch.save(tensors, metadata={"state": text, "sha256": _digest(text, tensors)})
    return packed


def unpack_state(data: bytes) -> TrainingState:
    """Rebuild the training state that `pack_state` spelled; ValueError where it is damaged."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = safetensors.torch.load(data)
        sound = header["sha256"] == _digest(header["state"], tensors)
        plain = json.loads(header["state"])
        plain |= {name: tuple(plain[name]) for name in ("best_score", "sums")} | {"sentinel": Memory(**plain["sentinel"])}
        parts: dict[str, Any] = {part: part_of(tensors, part) for part in _PARTS}
        state = TrainingState(**plain, **parts)
    except Exception:  # bytes that are no state of ours fail in as many ways as there are readers of headers, tensors and JSON
        sound = False
    if not sound:
        raise ValueError("training state does not match its sha256; it is damaged, or not one of this version")
    return state


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    running = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        running.update(name.encode())
        running.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return running.hexdigest()
