"""Weights on disk: safetensors beside a JSON description, never a pickle."""

from collections.abc import Collection
from typing import Any

import safetensors.torch
from torch import Tensor

from sat_ray.models import ModelSpec, Normalized, model_from_spec
from sat_ray.models.build import misfit
from sat_ray.storage.sealed import read_perhaps_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.utils.import_string import (
    UnconfirmedCodeError,
    check_confirmed,
    confirm,
    stored_names,
)
from sat_ray.utils.serialization import sha256

FORMAT = 2
UNSEALED_FORMAT = 1  # its model.json has no checksum
RESTORE = "restore the folder, or train the model again"
MODEL_JSON = "model.json"
MODEL_WEIGHTS = "model.safetensors"


def save_model(
    storage: Storage, weights: dict[str, Tensor], *, spec: ModelSpec, about: dict[str, Any]
) -> str:
    """Write a model into a folder and return the sha256 of its weights.

    about: anything worth knowing, as JSON.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    digest = sha256(data)
    storage.write(MODEL_WEIGHTS, data)
    storage.write_json(
        MODEL_JSON,
        sealed({"format": FORMAT, "spec": spec.described(), "sha256": digest, "about": about}),
    )
    return digest


def read_description(storage: Storage) -> dict[str, Any]:
    """Return what model.json says: `spec`, `sha256` of the weights, `about`.

    Raises FileNotFoundError where there is none, ValueError where it is damaged or was changed.
    """
    try:
        found = read_perhaps_sealed(
            storage, MODEL_JSON, required=lambda found: found.get("format") == FORMAT
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no {MODEL_JSON} in {storage.uri}; give the folder of a checkpoint"
        ) from None
    except ValueError as error:
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_JSON} {error}; {RESTORE}") from None
    if found.get("format") not in (FORMAT, UNSEALED_FORMAT):
        raise ValueError(
            f"checkpoint {storage.uri}: {MODEL_JSON} must have format {FORMAT} or less, "
            f"got {found.get('format')!r}; load it with the version that wrote it"
        )
    kinds = {"spec": dict, "sha256": str, "about": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
        raise ValueError(
            f"checkpoint {storage.uri}: {MODEL_JSON} has no {' and no '.join(wrong)} that can be "
            f"read; {RESTORE}"
        )
    return found


def load_model(
    path_or_uri: str, *, expected_sha256: str | None = None, allow_code: Collection[str] = ()
) -> Normalized:
    """Load a checkpoint folder, local or s3://, as a module in eval mode: [0, 1] pixels -> logits.

    allow_code: names, `module:function`, of the user-defined network and activation that the
    checkpoint may name; they are imported, which runs them. Raises FileNotFoundError where no model
    is, UnconfirmedCodeError where it names other code, ValueError where it is damaged or was
    changed.
    """
    confirm(allow_code)
    storage = Storage.at(path_or_uri)
    about = read_description(storage)
    try:
        data = storage.read(MODEL_WEIGHTS)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"checkpoint {storage.uri}: there is no {MODEL_WEIGHTS}; {RESTORE}"
        ) from None
    if sha256(data) != about["sha256"] or expected_sha256 not in (None, about["sha256"]):
        raise ValueError(
            f"checkpoint {storage.uri}: {MODEL_WEIGHTS} does not match its sha256 in {MODEL_JSON}; "
            f"it is damaged or was replaced: {RESTORE}"
        )
    spec = about["spec"]
    check_confirmed(
        [str(spec.get("name")), str(spec.get("activation"))], source=storage.full(MODEL_JSON)
    )
    try:
        with stored_names():
            given = ModelSpec(**spec)
        weights = safetensors.torch.load(data)
        if wrong := misfit(given, weights):
            raise RuntimeError(wrong)
        model = model_from_spec(given, seed=0)
        model.load_state_dict(weights)
    except UnconfirmedCodeError:
        raise
    except ValueError as error:
        raise ValueError(f"checkpoint {storage.uri}: {MODEL_JSON}: {error}; {RESTORE}") from None
    except (TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint {storage.uri}: {MODEL_JSON} and {MODEL_WEIGHTS} do not fit together "
            f"({reason}); {RESTORE}"
        ) from None
    return model.eval()
