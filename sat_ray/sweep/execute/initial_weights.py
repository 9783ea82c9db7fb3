"""The weights that a training starts from: a file of weights, a checkpoint, or timm's own.

What is read is fitted to the network by name (`sat_ray.evaluation.external.weights_fit`). The last
layer keeps its random weights where the classes are others, activations keep their own alphas, and
the mean and deviation of the weights' images, where they come with them, take the place of those of
the training images.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.checkpoint import MODEL_JSON, MODEL_WEIGHTS
from sat_ray.evaluation.external.weights_file import PublishedWeights, read_weights
from sat_ray.evaluation.external.weights_fit import FittedWeights, fit_weights
from sat_ray.models import ModelSpec, model_from_spec
from sat_ray.models.architectures.timm_names import PREFIX, is_timm
from sat_ray.storage.store import Storage
from sat_ray.utils.import_string import first_line
from sat_ray.utils.serialization import sha256

DEFAULT_TAG = "pretrained"  # `timm:pretrained`: the weights that timm takes by itself


@dataclass(frozen=True)
class InitialWeights:
    """Where the weights are, and the sha256 of their content, which the keys of records hold."""

    uri: str
    sha256: str


def initial_weights(uri: str, spec: ModelSpec) -> InitialWeights:
    """Return the weights at an address. spec: of the network."""
    return InitialWeights(uri, _content_of(uri, _described(spec)))


def start_from(weights: InitialWeights, model: nn.Module, spec: ModelSpec, *, seed: int) -> str:
    """Load weights into a new model in place; return in one line what was taken.

    spec, seed: those that the model was built from. Raises ValueError, in one line, where they do
    not fit the network or have changed since the sweep read them.
    """
    found = _read(weights.uri, _described(spec))
    if found.sha256 != weights.sha256:
        raise ValueError(
            f"weights {weights.uri} have changed since this sweep began; restore them, or start "
            "the same command again to train from the new ones"
        )
    fitted = fitted_to(found, spec, seed=seed)
    model.load_state_dict(fitted.tensors, strict=False)  # only alphas are missing
    return str(fitted)


def check_initial_weights(uri: str, spec: ModelSpec, *, download: bool = True) -> str:
    """Return in one line what a network takes from weights; ValueError where they do not fit it.

    download: False: of weights on a hub, check the name alone, and return "".
    """
    if is_timm(uri) and not download:
        source_of(uri, spec.name)
        return ""
    return f"weights {uri}: {fitted_to(_read(uri, _described(spec)), spec, seed=0)}"


def source_of(uri: str, network: str) -> str:
    """Return in words where weights come from, without reading them; network: name of the model.

    Raises ValueError where timm has no such weights.
    """
    if not is_timm(uri):
        return uri
    found = _timm_config(uri, network)
    place = f"{found.hf_hub_id} of the Hugging Face hub" if found.hf_hub_id else found.url
    return f"{uri}, downloaded when the sweep starts: {place}"


def fitted_to(weights: PublishedWeights, spec: ModelSpec, *, seed: int) -> FittedWeights:
    """Fit weights to the network of a spec, without the alphas of its activations."""
    network = model_from_spec(replace(spec, activation="relu", alpha=None), seed=seed)
    learned = tuple(
        f"{path.removeprefix('body.')}.beta"
        for path, module in network.named_modules()
        if isinstance(module, Activation)
    )
    tensors = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if not (tensor.dim() == 0 and name.endswith(learned))
    }
    return fit_weights(replace(weights, tensors=tensors), network, heads=heads_of(network, spec))


def heads_of(network: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    """Return the paths of the layers that make the logits, () where it cannot be told.

    timm names those of its networks; of another one it is the last with an output for each class.
    """
    if is_timm(spec.name):
        from sat_ray.models.architectures.timm_network import classifier_names  # imports timm

        return tuple(f"body.{name}" for name in classifier_names(network.get_submodule("body")))
    outputs = [
        path
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] == spec.num_classes
    ]
    return tuple(outputs[-1:])


def _described(spec: ModelSpec) -> ModelSpec | None:
    """Return what of a spec says which weights of timm fit; None for other networks."""
    if not is_timm(spec.name):
        return None
    return replace(spec, activation="relu", alpha=None, num_classes=2)


@functools.lru_cache(maxsize=8)
def _content_of(uri: str, network: ModelSpec | None) -> str:
    """Hash weights once per process: they may be large, and every task of a sweep names them."""
    return _read(uri, network).sha256


def _read(uri: str, network: ModelSpec | None) -> PublishedWeights:
    if is_timm(uri):
        return _weights_of_timm(uri, network)
    place = Storage.at(uri)
    file = place.full(MODEL_WEIGHTS) if place.is_file(MODEL_JSON) else place.uri
    folder, name = Storage.of_file(file)
    if not folder.is_file(name):
        raise ValueError(
            f"model.initial-weights must be a file of weights or the folder of a checkpoint, got "
            f"{uri}, where there is none"
        )
    return read_weights(file)


def _timm_config(uri: str, network: str) -> Any:
    """Return what timm says about weights; ValueError where it has none of this name."""
    import timm

    name = network.removeprefix(PREFIX)
    tag = uri.removeprefix(PREFIX)
    known = [one.partition(".")[2] for one in timm.list_pretrained(f"{name}.*")]
    if not known or tag not in (DEFAULT_TAG, *known):
        tags = ", ".join(f"{PREFIX}{one}" for one in known) or "none"
        raise ValueError(f"model.initial-weights {uri} is unknown; timm has for {name}: {tags}")
    return timm.get_pretrained_cfg(name if tag == DEFAULT_TAG else f"{name}.{tag}")


def _weights_of_timm(uri: str, network: ModelSpec | None) -> PublishedWeights:
    """Download weights as timm does, adapted to the network's images, with their mean and std."""
    import timm
    import torch

    assert network is not None  # ModelSettings refuses other networks
    name = network.name.removeprefix(PREFIX)
    tag = uri.removeprefix(PREFIX)
    config = _timm_config(uri, network.name)
    options = {"patch_size": network.patch_size} if network.patch_size else {}
    if network.image_size and config.fixed_input_size:
        options["img_size"] = network.image_size  # type: ignore[assignment]
    try:
        with torch.random.fork_rng(devices=[]):
            net = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg=None if tag == DEFAULT_TAG else tag,
                in_chans=network.in_channels,
                **options,
            )
    except Exception as error:  # of the network, of the hub, or of the code that adapts weights
        raise ValueError(
            f"model.initial-weights {uri}: timm cannot load the weights of {name} "
            f"({type(error).__name__}: {first_line(error)}); where there is no network, copy the "
            "file from elsewhere and name it"
        ) from None
    tensors: dict[str, Tensor] = {
        one: tensor.detach().float().contiguous() for one, tensor in net.state_dict().items()
    }
    if len(config.mean) == network.in_channels:
        tensors |= {"mean": torch.tensor(config.mean), "std": torch.tensor(config.std)}
    return PublishedWeights(
        uri=uri,
        sha256=sha256(safetensors.torch.save(tensors)),
        tensors=tensors,
        groups=dict.fromkeys(tensors, ""),
    )
