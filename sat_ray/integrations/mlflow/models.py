"""Models in MLflow's format: written as a pt2 export with a signature, fetched without unpickling anything."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from sat_ray.activations.module import Activation
from sat_ray.integrations.mlflow.connection import global_tracking_uri
from sat_ray.integrations.mlflow.database import settle_database, sole_creator
from sat_ray.integrations.mlflow.preflight import check_tracking, login_to_environment, sqlite_path
from sat_ray.models.copying import NotCopiedError
from sat_ray.models.export import NotExportedError, exportable, quiet
from sat_ray.storage.uris import redacted
from sat_ray.utils.import_string import first_line


def model_digest(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Hash what the model computes: its structure with every alpha, its weights, its input shape."""
    digest = hashlib.sha256(
        repr(
            (
                list(input_shape),
                model,
                [m.alpha for m in model.modules() if isinstance(m, Activation)],
            )
        ).encode()
    )
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: nn.Module, folder: str, input_shape: Sequence[int], logged: Any) -> None:
    """Write the pt2 export with its signature; the requirements are given, since inferring them loads the model in a new process."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    try:
        exported = exportable(model)
    except NotCopiedError as error:
        raise NotExportedError(f"the model cannot be exported: {error}") from error
    example = np.random.default_rng(0).random((2, *input_shape), dtype=np.float32)
    with torch.no_grad():
        classes = exported(torch.from_numpy(example)).shape[1]
    kind = np.dtype("float32")
    signature = ModelSignature(
        Schema([TensorSpec(kind, (-1, *input_shape))]), Schema([TensorSpec(kind, (-1, classes))])
    )
    try:
        with quiet():
            mlflow.pytorch.save_model(
                exported,
                folder,
                mlflow_model=Model(
                    logged.artifact_location,
                    logged.source_run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                ),
                signature=signature,
                input_example=example,
                pip_requirements=[
                    f"torch=={torch.__version__.partition('+')[0]}",
                    f"numpy=={np.__version__}",
                ],
                serialization_format="pt2",
            )
    except OSError:  # a full disk, not the network
        raise
    except Exception as error:
        raise NotExportedError(f"the model cannot be exported ({first_line(error)})") from error


def fetch_model(uri: str, *, tracking_uri: str, folder: str, allow_pickle: bool = False) -> Path:
    """Return the one file that holds a PyTorch model, downloaded into `folder` where it is not on this machine: .pt2 or a pickle.

    uri: models:/..., runs:/..., mlflow-artifacts:/... or the model's own folder; tracking_uri: unused for the last. Raises ValueError in
    one line, for a pickled model too unless allow_pickle.
    """
    from mlflow.models import Model

    local = Path(uri.removeprefix("file://")).expanduser()
    root = (local if local.is_dir() else _download(uri, tracking_uri, folder)).resolve()
    try:
        flavors = Model.load(str(root)).flavors
    except Exception as error:
        raise ValueError(
            f"model {uri} has no MLmodel file that MLflow can read ({type(error).__name__})"
        ) from None
    if "pytorch" not in flavors:
        raise ValueError(
            f"model {uri} has the flavors {', '.join(sorted(flavors))}; allowed: pytorch, stored as pt2 (torch.export)"
        )
    data = (root / str(flavors["pytorch"].get("model_data", "data"))).resolve()
    found = next(
        (file for name in ("model.pt2", "model.pth") if (file := data / name).is_file()), None
    )
    if found is None or not found.is_relative_to(root):
        raise ValueError(
            f"model {uri} holds neither model.pt2 nor model.pth; allowed: what mlflow.pytorch.log_model writes"
        )
    if found.suffix != ".pt2" and not allow_pickle:
        raise ValueError(
            f"model {uri} is pickled, and loading it would run whatever code it holds; log it again with serialization_format='pt2', or, "
            "if you trust who made it, give --allow-pickle"
        )
    return found


def _download(uri: str, tracking_uri: str, folder: str) -> Path:
    check_tracking(tracking_uri)
    if tracking_uri.startswith("sqlite") and not sqlite_path(tracking_uri).exists():
        raise ValueError(
            f"model {uri} is to be looked up in {redacted(tracking_uri)}, which is not there; give --tracking-uri"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.artifacts

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    login = urlsplit(tracking_uri).netloc.rpartition("@")[0]
    bare = login_to_environment(tracking_uri)
    try:
        with sole_creator(bare), global_tracking_uri(bare):
            settle_database(bare)
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = reason.replace(f"{login}@", "***@") if login else reason
        raise ValueError(
            f"model {uri} cannot be had from {redacted(tracking_uri)} ({reason})"
        ) from None
