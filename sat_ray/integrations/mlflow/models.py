"""Models in MLflow's format: written as pt2 with a signature, fetched without unpickling."""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from sat_ray.activations.module import Activation
from sat_ray.integrations.mlflow.connection import global_tracking_uri
from sat_ray.integrations.mlflow.database import settle_database, sole_creator
from sat_ray.integrations.mlflow.errors import reason_of
from sat_ray.integrations.mlflow.preflight import check_tracking, login_to_environment, sqlite_path
from sat_ray.models.copying import NotCopiedError
from sat_ray.models.export import NotExportedError, exportable, quiet
from sat_ray.storage.uris import redacted
from sat_ray.utils.import_string import first_line

BESIDE_WEIGHTS = 8 * 2**20  # bytes of an export's graph, example and description, at most
TORCH_WRITER = "inline_container"  # in the text of what torch raises where it cannot write a file


def model_digest(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Hash what the model computes: its structure with every alpha, its weights, its input shape."""
    alphas = [module.alpha for module in model.modules() if isinstance(module, Activation)]
    digest = hashlib.sha256(repr((list(input_shape), model, alphas)).encode())
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: nn.Module, folder: str, input_shape: Sequence[int], logged: Any) -> None:
    """Write the pt2 export with its signature into a new folder.

    Requirements are given, since inferring them loads the model in a new process. Raises
    NotExportedError, and OSError where the disk is full.
    """
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model

    try:
        exported = exportable(model)
    except NotCopiedError as error:
        raise NotExportedError(f"the model cannot be exported: {error}") from error
    example = np.random.default_rng(0).random((2, *input_shape), dtype=np.float32)
    about = Model(
        logged.artifact_location,
        logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    _require_room(model, Path(folder).parent)
    try:
        with quiet():
            mlflow.pytorch.save_model(
                exported,
                folder,
                mlflow_model=about,
                signature=_signature(exported, example),
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
        if TORCH_WRITER in str(error):
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {first_line(error)}"
            ) from error
        raise NotExportedError(f"the model cannot be exported ({first_line(error)})") from error


def _signature(model: nn.Module, example: Any) -> Any:
    """Describe what a model takes and returns. example: float32 images (N, C, H, W), an array."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    with torch.no_grad():
        classes = model(torch.from_numpy(example)).shape[1]
    images = TensorSpec(example.dtype, (-1, *example.shape[1:]))
    logits = TensorSpec(example.dtype, (-1, classes))
    return ModelSignature(Schema([images]), Schema([logits]))


def _require_room(model: nn.Module, folder: Path) -> None:
    """Raise OSError where a folder has no room for a model's export.

    torch does not raise there: on a disk that fills while it writes it may end the whole process.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    wanted = weights + weights // 4 + BESIDE_WEIGHTS
    if shutil.disk_usage(folder).free < wanted:
        said = f"{os.strerror(errno.ENOSPC)}: a model's export takes {wanted / 2**20:.0f} MiB"
        raise OSError(errno.ENOSPC, said, str(folder))


def fetch_model(uri: str, *, tracking_uri: str, folder: str, allow_pickle: bool = False) -> Path:
    """Return the one file that holds a PyTorch model, .pt2 or a pickle.

    It is downloaded into `folder` where it is not on this machine. uri: models:/..., runs:/...,
    mlflow-artifacts:/... or the model's own folder; tracking_uri: unused for the last. Raises
    ValueError in one line, for a pickled model too unless allow_pickle.
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
            f"model {uri} must have the flavor pytorch, stored as pt2 (torch.export), "
            f"got {', '.join(sorted(flavors))}"
        )
    data = (root / str(flavors["pytorch"].get("model_data", "data"))).resolve()
    files = (data / name for name in ("model.pt2", "model.pth"))
    found = next((file for file in files if file.is_file()), None)
    if found is None or not found.is_relative_to(root):
        raise ValueError(
            f"model {uri} must hold model.pt2 or model.pth, got neither; "
            "log it with mlflow.pytorch.log_model"
        )
    if found.suffix != ".pt2" and not allow_pickle:
        raise ValueError(
            f"model {uri} is pickled, and loading it would run whatever code it holds; log it "
            "again with serialization_format='pt2', or, if you trust who made it, give "
            "--allow-pickle"
        )
    return found


def _download(uri: str, tracking_uri: str, folder: str) -> Path:
    check_tracking(tracking_uri)
    if tracking_uri.startswith("sqlite") and not sqlite_path(tracking_uri).exists():
        raise ValueError(
            f"model {uri} is looked up in {redacted(tracking_uri)}, which does not exist; "
            "give --tracking-uri"
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
        reason = reason_of(error)
        reason = reason.replace(f"{login}@", "***@") if login else reason
        raise ValueError(
            f"model {uri} cannot be fetched from {redacted(tracking_uri)} ({reason})"
        ) from None
