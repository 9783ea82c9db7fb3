"""Weights on disk: safetensors beside a JSON description, never a pickle."""

import dataclasses
import hashlib
import json
from typing import Any

import safetensors.torch
from torch import Tensor

from sat_ray.models import ModelSpec, Normalized, model_from_spec
from sat_ray.storage import Storage, json_bytes
from sat_ray.training import TrainingState

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


def load_model(path_or_uri: str, *, expected_sha256: str | None = None) -> Normalized:
    """Load a checkpoint folder, local or s3://, as a module in eval mode: [0, 1] pixels -> logits.

    Raises FileNotFoundError where no model is, ValueError where the weights are not those that model.json describes.
    """
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
    model = model_from_spec(ModelSpec(**about["spec"]), seed=0)
    model.load_state_dict(safetensors.torch.load(data))
    return model.eval()


def pack_state(state: TrainingState) -> bytes:
    """Spell a training state as one safetensors file, its plain values in the header."""
    tensors: dict[str, Tensor] = {}
    for part in ("weights", "momentum", "best"):
        # best and weights may be the same tensors; safetensors wants each to own its memory
        tensors |= {f"{part}/{name}": tensor.clone().contiguous() for name, tensor in getattr(state, part).items()}
    plain = {key: getattr(state, key) for key in ("epoch", "best_epoch", "best_score", "history", "seconds")}
    packed: bytes = safetensors.torch.save(tensors, metadata={"state": json.dumps(plain)})
    return packed


def unpack_state(data: bytes) -> TrainingState:
    """Rebuild the training state that `pack_state` spelled."""
    length = int.from_bytes(data[:8], "little")
    plain = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    plain["best_score"] = tuple(plain["best_score"])
    state = TrainingState(**plain)
    for key, tensor in safetensors.torch.load(data).items():
        part, _, name = key.partition("/")
        getattr(state, part)[name] = tensor
    return state
