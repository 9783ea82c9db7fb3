"""External models: which kinds are accepted, how their contents are hashed, and how they load.

    checkpoint    a folder that this package wrote               sha256 of the weights
    pt2           a file that torch.export.save wrote            sha256 of the bytes
    pickled_pt2   such a file with pickled parts, if allowed     sha256 of the bytes
    pickle        a pickled module, if allowed                   sha256 of the bytes
    function      module:function of an importable module that   sha256 of the name, of all that the
                  returns the model when called without          model holds (`contents`), and of
                  arguments; weights may come from a file        the code that it is made of

Every one maps [0, 1] pixels (N, C, H, W) to logits (N, K).
"""

import functools
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from sat_ray.checkpoint import MODEL_JSON, load_model, read_description
from sat_ray.evaluation.external.contents import Contents, UnreadableModelError
from sat_ray.evaluation.external.weights_file import read_weights
from sat_ray.evaluation.external.weights_fit import FittedWeights, fit_weights
from sat_ray.models.memory_format import settle_layout
from sat_ray.models.normalized import Normalized
from sat_ray.models.pt2.load import load_exported
from sat_ray.models.pt2.trial_load import try_in_child
from sat_ray.storage.store import Storage
from sat_ray.utils.code_hash import PACKAGE, hash_code, is_installed
from sat_ray.utils.import_string import first_line, import_module, is_reference
from sat_ray.utils.serialization import sha256

ALLOWED = (
    "a checkpoint folder of sat_ray, an MLflow model (models:/..., runs:/... or its folder), "
    "a torch.export file (.pt2), or module:function that returns a model on [0, 1] pixels"
)
MLFLOW_SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")
WEIGHTS = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin", ".tar")


def kind_of(text: str) -> str:
    """Return the kind of a model that a user named: checkpoint, mlflow, pt2 or function.

    Raises ValueError that names what is allowed.
    """
    if text.startswith(MLFLOW_SCHEMES):
        return "mlflow"
    path = Path(text.removeprefix("file://")).expanduser()
    if text.startswith("s3://") or (path / MODEL_JSON).is_file():
        return "checkpoint"
    if (path / "MLmodel").is_file():
        return "mlflow"
    if path.suffix == ".pt2" and path.is_file():
        return "pt2"
    if is_reference(text):
        return "function"
    reason = "is not there"
    if path.is_dir():
        reason = f"is a folder without {MODEL_JSON} or MLmodel"
    elif path.exists():
        reason = "is another kind of file"
        if path.suffix in WEIGHTS:
            reason = (
                "is a file of weights or a pickled model; for weights name their network too, "
                f"--model module:function --weights {text}; write a pickled model with "
                "torch.export.save, because loading it could run code"
            )
    raise ValueError(f"model {text} {reason}; give {ALLOWED}")


def load_source(
    kind: str,
    uri: str,
    digest: str | None = None,
    *,
    device: torch.device | None = None,
    weights: str = "",
) -> tuple[nn.Module, str]:
    """Load a model onto a device with frozen parameters; return it and the digest of its contents.

    digest: the expected digest, None where it is not known; device: None for the CPU; weights: a
    file of weights for the network that a function returns, "" where it returns the whole model.
    Raises ValueError in one line.
    """
    device = device or torch.device("cpu")
    if weights:
        model, found = _identified(uri, network_with_weights(uri, weights)[0], device)
    else:
        model, found = _LOADERS[kind](uri, device)
    if digest not in (None, found):
        hint = ""
        if kind == "function":
            hint = (
                ": every process must find the same code and weights, "
                "so seed it or load them from a file"
            )
        raise ValueError(
            f"model {uri} is not what it was when the evaluation began "
            f"({found[:12]}, not {str(digest)[:12]}){hint}"
        )
    return model.requires_grad_(False), found


def network_with_weights(
    uri: str, weights: str, *, entry: str = ""
) -> tuple[nn.Module, FittedWeights]:
    """Return the network of a function with the weights of a file, and what was taken from it.

    It is in inference mode, on [0, 1] pixels: where the file has mean and deviation of the images
    and the network does not, they are applied in front of it. entry: see `fit_weights`.
    """
    network = _call(uri)
    fitted = fit_weights(read_weights(weights), network, entry=entry)
    network.load_state_dict(fitted.tensors)
    if fitted.normalization is not None:
        mean, std = fitted.normalization
        network = Normalized(network, mean=mean, std=std)
    return network.eval(), fitted


def try_source(kind: str, uri: str, shape: Sequence[int]) -> None:
    """Load a .pt2 file in a child process first; raise ValueError in one line.

    A crash there does not end this process. shape: (C, H, W) of the images.
    """
    if kind != "pt2":
        return
    try:
        try_in_child(_bytes(uri), shape)
    except ValueError as error:
        raise ValueError(f"model {uri} {error}") from None


def _checkpoint(uri: str, device: torch.device) -> tuple[nn.Module, str]:
    model = load_model(uri).to(device)
    settle_layout(model)
    return model, str(read_description(Storage.at(uri))["sha256"])


def _pt2(uri: str, device: torch.device, *, allow_pickle: bool = False) -> tuple[nn.Module, str]:
    data = _bytes(uri)
    try:
        return load_exported(data, device=device, allow_pickle=allow_pickle), sha256(data)
    except ValueError as error:
        raise ValueError(f"model {uri} {error}") from None


def _pickle(uri: str, device: torch.device) -> tuple[nn.Module, str]:
    data = _bytes(uri)
    try:
        model = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise ValueError(f"model {uri} cannot be unpickled here ({first_line(error)})") from None
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {uri} must be a pickled torch.nn.Module, got a {type(model).__name__}"
        )
    _require_weights(model, uri)
    return model.eval().to(device), sha256(data)


def _bytes(uri: str) -> bytes:
    folder, name = Storage.of_file(uri)
    return folder.read(name)


def _function(uri: str, device: torch.device) -> tuple[nn.Module, str]:
    return _identified(uri, _call(uri), device)


def _identified(uri: str, model: nn.Module, device: torch.device) -> tuple[nn.Module, str]:
    content = _content(uri, model)
    return model.to(device), content


def _call(uri: str) -> nn.Module:
    """Call a function of the user's and return its model; ValueError where it gives none."""
    module_name, _, name = uri.partition(":")
    module = import_module(uri, what="model")
    function = getattr(module, name, None)
    if not callable(function) or isinstance(function, nn.Module):
        kind = "has no" if function is None else f"has a {type(function).__name__} called"
        raise ValueError(
            f"model {uri}: module {module_name} {kind} {name}; "
            "give a function without arguments that returns the model"
        )
    try:
        model = function()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"model {uri}: calling {name}() failed ({type(error).__name__}: {first_line(error)})"
        ) from None
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {uri} must return a torch.nn.Module in inference mode, "
            f"got a {type(model).__name__}"
        )
    _require_weights(model, uri)
    return model


def _require_weights(model: nn.Module, uri: str) -> None:
    """Raise ValueError where a parameter or buffer holds no values yet, or for a torch.jit script.

    A script can be neither frozen nor copied.
    """
    if isinstance(model, RecursiveScriptModule):
        raise ValueError(
            f"model {uri} is a torch.jit script; give the module that it was made of, "
            "or what torch.export.save writes"
        )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"model {uri}: {name} is not initialized (a lazy layer); "
                "call the model on a batch of images once, then return it"
            )
        if tensor.is_meta:
            raise ValueError(
                f"model {uri}: {name} is on the meta device and holds no values; "
                "give a model with its weights"
            )


def _content(uri: str, model: nn.Module) -> str:
    """Hash a module: its name, all that it holds, and the code that it runs."""
    try:
        contents = Contents(model, name="model")
    except UnreadableModelError as error:
        raise ValueError(f"model {uri}: {error}") from None
    code = _code(uri.partition(":")[0], contents.modules)
    described = [uri, contents.hexdigest(), code]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _code(module: str, classes: set[str]) -> dict[str, str]:
    """Hash the user's code: a module, the modules of a model's classes, and what these import.

    Only imports of their own packages or of files beside them are followed. A class of an installed
    package counts with its own file alone. This package's code is compared when a record is read;
    torch's version is part of the numerical environment.
    """
    installed = {name for name in classes if is_installed(name)}
    found = {
        name: text
        for name, text in hash_code({module} | classes - installed).items()
        if name.partition(".")[0] != PACKAGE
    }
    for name in sorted(installed):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.partition(".")[0] not in (PACKAGE, "torch"):
            found.setdefault(name, sha256(Path(file).read_bytes()))
    return dict(sorted(found.items()))


_LOADERS: dict[str, Callable[[str, torch.device], tuple[nn.Module, str]]] = {
    "checkpoint": _checkpoint,
    "pt2": _pt2,
    "pickled_pt2": functools.partial(_pt2, allow_pickle=True),
    "pickle": _pickle,
    "function": _function,
}
