"""Check the user's own parts and this machine's compiler before Ray is started.

The user's own parts are checked again when images are prepared.
"""

import torch
from torch import nn

from sat_ray.activations.registry import make_activation
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.sources.user_defined import opened
from sat_ray.evaluation.low_precision.surrogate import check_gradient, emulated
from sat_ray.integrations.network_check import check_network, is_checked, spec_of_trial
from sat_ray.models import model_from_spec
from sat_ray.models.export import NotExportedError, check_exportable
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.tasks import Dataset
from sat_ray.utils.compile import check_compiler
from sat_ray.utils.import_string import is_reference


def user_defined_names(config: SweepConfig) -> list[str]:
    """Return every name, module:function, of the user's own code that a sweep uses."""
    activations = [
        name for one in config.search.points() for name in (one.activation, one.attacker_activation)
    ]
    return sorted(
        {
            name
            for name in (*activations, config.model.name, config.data.dataset, config.data.extra)
            if is_reference(name)
        }
    )


def check_user_defined_parts(config: SweepConfig, root: Storage, *, download: bool = True) -> str:
    """Raise ValueError, in one line, where a user's own dataset or network is not as it must be.

    Return what is taken from initial weights, "" where there are none or it is not known yet.

    Networks of timm and initial weights are checked too. download: see `check_network`.

    Activations were checked when the config was made. A dataset that is prepared is not read again;
    a network for images that are still in their files is checked when they are prepared.
    """
    if not (user_defined_names(config) or is_checked(config)):
        return ""
    known = _shape_known(config, root)
    return "" if known is None else check_network(config, *known, download=download)


def export_warnings(config: SweepConfig, root: Storage) -> list[str]:
    """Return a sentence for each part, not of this package, that prevents exporting a model.

    Such a model is trained, evaluated and reported; MLflow gets no model and registers none.
    A network for images that are still in their files is not tried.
    """
    found = []
    for name, alpha in _user_defined_activations(config).items():
        alone = nn.Sequential(make_activation(name, alpha=alpha))
        found.append(_not_exported(alone, (1, 8, 8), what=f"activation {name}"))
    known = _shape_known(config, root) if is_checked(config) else None
    if known is not None:
        model = model_from_spec(spec_of_trial(config, *known), seed=0)
        found.append(_not_exported(model, known[1], what=f"model {config.model.name}"))
    return [sentence for sentence in found if sentence]


def _user_defined_activations(config: SweepConfig) -> dict[str, float | None]:
    """Return the user's activations with one alpha of each."""
    return {
        one.activation: one.alpha for one in config.search.points() if is_reference(one.activation)
    }


def _not_exported(model: nn.Module, shape: tuple[int, ...], *, what: str) -> str:
    try:
        check_exportable(model, shape, what=what)
    except NotExportedError as error:
        return f"{error}: the sweep will end with a report, but without a model in MLflow"
    return ""


def _shape_known(config: SweepConfig, root: Storage) -> tuple[int, tuple[int, ...]] | None:
    """Return the classes and (C, H, W) of the images; None while they are still in their files."""
    prepared = Dataset.open(dataset_uri(config, root))
    source = dataset_source(config.data.dataset)
    if prepared is not None:
        manifest = prepared.manifest
        return len(manifest["class_names"]), tuple(manifest["shape"])
    shape = config.data.shape()
    if shape is not None and source.classes:
        return source.classes, shape
    if source.encoded:
        return None
    found = opened(source, config.data.path)
    return len(found.class_names), tuple(found.images.shape[1:])  # type: ignore[union-attr]


def check_machine(
    *, gradient: str, field: str, accelerator: str, compiles_training: bool = False
) -> None:
    """Raise ValueError where a private Ray, on this machine alone, could not compile.

    On a cluster its workers check. gradient, field: of the attacks, and the setting's name;
    accelerator: name of a GPU, "" for none.
    """
    device = _device_here(accelerator)
    if device is not None:
        if compiles_training:
            check_compiler(device, asked="training.compile is True", instead="False")
        check_gradient(gradient, device, field=field)


def slow_here(*, gradient: str, accelerator: str) -> str:
    """Return a hint where a private Ray only imitates the arithmetic of the gradients; "" else."""
    device = _device_here(accelerator)
    if device is None or not emulated(gradient, device):
        return ""
    return (
        f"this machine imitates {gradient}: gradients in float32 would take a fraction of the time"
    )


def _device_here(accelerator: str) -> torch.device | None:
    """Return where a private Ray computes; None for a cluster, whose machines may be others."""
    from sat_ray.integrations.ray.session import is_private

    return torch.device("cuda" if accelerator else "cpu") if is_private() else None
