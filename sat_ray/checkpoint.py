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
from sat_ray.sentinel import Memory
from sat_ray.storage import Storage, json_bytes
from sat_ray.training_state import TrainingState, joined, part_of

FORMAT = 1
MODEL_JSON, MODEL_WEIGHTS = "model.json", "model.safetensors"


def sha256(data: bytes) -> str:
    """Return the hex digest that records and manifests quote."""
    return hashlib.sha256(data).hexdigest()


def save_model(storage: Storage, weights: dict[str, Tensor], *, spec: ModelSpec, about: dict[str, Any]) -> str:
    """Write a model into a folder and return the sha256 of its weights. about: anything worth knowing, as JSON."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    digest = sha256(data)
    storage.write(MODEL_WEIGHTS, data)
    storage.write(MODEL_JSON, json_bytes({"format": FORMAT, "spec": dataclasses.asdict(spec), "sha256": digest, "about": about}))
    return digest


def load_model(path_or_uri: str, *, expected_sha256: str | None = None, allow_code: Collection[str] = ()) -> Normalized:
    """Load a checkpoint folder, local or s3://, as a module in eval mode: [0, 1] pixels -> logits.

    allow_code: names, `module:function`, of your own network and activation that the checkpoint may
    name; they are imported, which runs them. Raises FileNotFoundError where no model is,
    UnconfirmedCodeError where it names other code, ValueError where the weights are not those that
    model.json describes.
    """
    confirm(allow_code)
    storage = Storage.at(path_or_uri)
    try:
        about = storage.read_json(MODEL_JSON)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {MODEL_JSON} in {storage.uri}; give the folder of a checkpoint") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"checkpoint {storage.uri} has format {about.get('format')!r}; this version reads {FORMAT}")
    data = storage.read(MODEL_WEIGHTS)
    if sha256(data) != about["sha256"] or expected_sha256 not in (None, about["sha256"]):
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_WEIGHTS} does not match its sha256; it is damaged or was replaced")
    spec = about["spec"]
    check_confirmed([str(spec.get("name")), str(spec.get("activation"))], source=storage.full(MODEL_JSON))
    with stored_names():
        given = ModelSpec(**spec)
    model = model_from_spec(given, seed=0)
    model.load_state_dict(safetensors.torch.load(data))
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
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError):
        sound = False
    if not sound:
        raise ValueError("training state does not match its sha256; it is damaged, or not one of this version")
    plain = json.loads(header["state"])
    plain |= {name: tuple(plain[name]) for name in ("best_score", "sums")} | {"sentinel": Memory(**plain["sentinel"])}
    parts: dict[str, Any] = {part: part_of(tensors, part) for part in _PARTS}
    return TrainingState(**plain, **parts)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    running = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        running.update(name.encode())
        running.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return running.hexdigest()
