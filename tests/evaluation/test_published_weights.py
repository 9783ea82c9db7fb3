"""Weights as others publish them: every common layout gives the same network, and a file that does
not fit is refused in one line that names the tensors.
"""

import argparse
import functools
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.external.loading import load_source
from sat_ray.evaluation.external.weights_file import read_weights
from sat_ray.evaluation.external.weights_fit import fit_weights
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.subject import identify, open_subject, staged
from sat_ray.integrations.command_line.external.tasks import tasks_of
from sat_ray.models import Normalized, build_model
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import evaluate_and_commit
from sat_ray.sweep.records.store import Records

Weights = dict[str, Tensor]
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, classes: int = 4) -> nn.Module:
    """Build a residual network without normalization, as many others define theirs."""
    torch.manual_seed(seed)
    model = build_model("small_resnet", num_classes=classes, width=4, seed=seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model.body.eval()


def behind(prefix: str, weights: Weights) -> Weights:
    """Put a prefix before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def pair(prefix: str, mean: str, std: str) -> Weights:
    """Return mean and deviation as normalization layers hold them."""
    return {
        f"{prefix}{mean}": torch.tensor(MEAN).view(1, 3, 1, 1),
        f"{prefix}{std}": torch.tensor(STD).view(1, 3, 1, 1),
    }


LAYOUTS: dict[str, tuple[Callable[[Weights], object], bool]] = {  # whether it has mean and std
    "plain": (lambda own: own, False),
    "data parallel": (lambda own: behind("module.", own), False),
    "compiled": (lambda own: behind("_orig_mod.", own), False),
    "compiled inside": (lambda own: behind("module.model._orig_mod.", own), False),
    "a training's checkpoint": (
        lambda own: {
            "epoch": 90,
            "best": np.float64(51.5),
            "args": argparse.Namespace(lr=0.1),
            "state_dict": behind("module.", own),
            "optimizer": {"state": {0: {"momentum": torch.ones(3)}}, "param_groups": [{"lr": 1}]},
        },
        False,
    ),
    "nested twice": (lambda own: {"net": {"state_dict": behind("backbone.", own)}}, False),
    "nested nine times": (
        lambda own: functools.reduce(lambda inner, _: {"a": inner}, range(9), own),
        False,
    ),
    "an average with its counter": (
        lambda own: {"n_averaged": torch.tensor(7), **behind("module.", own)},
        False,
    ),
    "normalization in front": (
        lambda own: behind("0.", pair("", "mean", "std")) | behind("1.module.", own),
        True,
    ),
    "named normalization": (
        lambda own: {"model": pair("mu_sigma.", "mu", "sigma") | behind("model.", own)},
        True,
    ),
    "a model beside its attacker's copy": (
        lambda own: {
            "model": pair("module.normalizer.", "new_mean", "new_std")
            | behind("module.model.", own)
            | pair("module.attacker.normalize.", "new_mean", "new_std")
            | behind("module.attacker.model.", own)
        },
        True,
    ),
}


def saved(content: object, folder: Path) -> str:
    """Write a file with torch.save and return its path."""
    torch.save(content, folder / "weights.pt")
    return str(folder / "weights.pt")


@pytest.mark.parametrize(("layout", "normalized"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_gives_the_same_network(
    layout: Callable[[Weights], object], normalized: bool, tmp_path: Path
) -> None:
    published, other = network(seed=1), network(seed=2)
    fitted = fit_weights(read_weights(saved(layout(published.state_dict()), tmp_path)), other)
    other.load_state_dict(fitted.tensors)
    assert torch.equal(other(IMAGES), published(IMAGES))
    assert (fitted.normalization is not None) == normalized
    if fitted.normalization is not None:
        assert fitted.normalization == (pytest.approx(MEAN), pytest.approx(STD))


def test_a_network_with_a_place_for_mean_and_deviation_takes_those_of_the_file(
    tmp_path: Path,
) -> None:
    published = Normalized(network(seed=1), mean=MEAN, std=STD).eval()
    other = Normalized(network(seed=2), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    path = str(tmp_path / "weights.safetensors")
    Path(path).write_bytes(safetensors.torch.save(published.state_dict()))
    fitted = fit_weights(read_weights(path), other)
    other.load_state_dict(fitted.tensors)
    assert torch.equal(other(IMAGES), published(IMAGES)) and fitted.normalization is None


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_counts_stay_whole_numbers(
    half: torch.dtype, tmp_path: Path
) -> None:
    own = network(seed=1).state_dict()
    halved = {
        name: tensor.to(half) if tensor.is_floating_point() else tensor
        for name, tensor in own.items()
    }
    tensors = fit_weights(read_weights(saved(halved, tmp_path)), network(seed=2)).tensors
    for name, tensor in tensors.items():
        assert tensor.dtype == own[name].dtype
        assert torch.equal(tensor, own[name].to(half).to(own[name].dtype))


@pytest.mark.parametrize("averaged", ["state_dict_ema", "ema", "module.ema_model"])
def test_averaged_weights_are_taken_unless_another_entry_is_named(
    averaged: str, tmp_path: Path
) -> None:
    raw, ema = network(seed=1).state_dict(), network(seed=2).state_dict()
    weights = read_weights(saved({"state_dict": raw, averaged: ema}, tmp_path))
    fitted = fit_weights(weights, network())
    assert torch.equal(fitted.tensors["conv1.weight"], ema["conv1.weight"])
    assert fitted.entry in averaged and fitted.others == ("state_dict",)
    assert "others that fit: state_dict" in str(fitted)
    chosen = fit_weights(weights, network(), entry="state_dict")
    assert torch.equal(chosen.tensors["conv1.weight"], raw["conv1.weight"])
    with pytest.raises(ValueError, match=r"not in the entry swa; they are in .*, state_dict$"):
        fit_weights(weights, network(), entry="swa")


def test_the_head_of_other_classes_stays_the_networks_own(tmp_path: Path) -> None:
    published, other = network(seed=1, classes=7).state_dict(), network(seed=2)
    weights = read_weights(saved(behind("module.", published), tmp_path))
    with pytest.raises(ValueError, match=r"fc.weight must have the shape \(4, 16\), got \(7, 16\)"):
        fit_weights(weights, other)
    fitted = fit_weights(weights, other, heads=("fc",))
    assert fitted.kept == ("fc.weight", "fc.bias")
    for name, tensor in fitted.tensors.items():
        wanted = other.state_dict() if name.startswith("fc.") else published
        assert torch.equal(tensor, wanted[name])
    same = fit_weights(weights, network(seed=2, classes=7), heads=("fc",))
    assert not same.kept and torch.equal(same.tensors["fc.weight"], published["fc.weight"])
    without = {name: tensor for name, tensor in published.items() if not name.startswith("fc.")}
    assert fit_weights(read_weights(saved(without, tmp_path)), other, heads=("fc",)).kept


class Pickled(nn.Linear):
    """A class that a whole pickled model names."""


def scripted() -> bytes:
    """Return a TorchScript file."""
    sink = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), sink)
    return sink.getvalue()


def without(*names: str) -> Weights:
    """Return the network's weights but some."""
    return {name: one for name, one in network().state_dict().items() if name not in names}


def itself() -> Weights:
    """Return a dictionary of tensors that holds itself."""
    found: dict[str, Any] = {**without()}
    found["again"] = found
    return found


MISFITS: dict[str, tuple[Callable[[], object], str]] = {
    "no tensors": (lambda: {"epoch": 3}, "hold no tensors"),
    "a pickled model": (
        lambda: Pickled(2, 2),
        r"hold pickled code \(.*\.Pickled\), which is not run; .* torch.save\(model.state_dict\(\)",
    ),
    "missing": (
        lambda: without("fc.bias", "bn1.running_var"),
        r"the file lacks 2 tensors \(bn1.running_var, fc.bias\); give the weights of this",
    ),
    "left over": (
        lambda: without() | behind("head.", without("fc.weight")),
        r"the network has no place for \d+ tensors \(head.conv1.weight, .*\.\.\.\)",
    ),
    "another network": (
        lambda: nn.Linear(3, 2).state_dict(),
        r"the file lacks \d+ tensors .* and the network has no place for 2 tensors \(weight, b",
    ),
    "NaN": (
        lambda: without() | {"fc.bias": torch.full((4,), torch.nan)},
        "fc.bias holds NaN or infinite numbers",
    ),
    **{
        f"of another kind: {name}": (
            functools.partial(lambda tensor: without() | {"fc.bias": tensor}, tensor),
            r"hold fc.bias, a tensor of another kind \(torch",
        )
        for name, tensor in {
            "complex": torch.zeros(4, dtype=torch.complex64),
            "sparse": torch.eye(4).to_sparse(),
            "on the meta device": torch.zeros(4, device="meta"),
        }.items()
    },
    **{
        f"whole numbers: {kind}": (
            functools.partial(lambda one: without() | {"fc.bias": torch.zeros(4, dtype=one)}, kind),
            f"fc.bias must hold real numbers, got {kind}; give weights that are not quantized",
        )
        for kind in (torch.int8, torch.int32)
    },
    "more elements than bytes": (
        lambda: without() | {"fc.bias": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**7)},
        r"announce 10,000,000,000,000 elements for fc.bias in a file of [\d,]+ bytes; write the",
    ),
    "too deep": (
        lambda: functools.reduce(lambda inner, _: {"a": inner}, range(40), without()),
        "hold dictionaries that are nested more than 32 deep",
    ),
    "a dictionary in itself": (itself, "hold dictionaries that are nested more than 32 deep"),
    "a dictionary many times in others": (
        lambda: functools.reduce(lambda inner, _: dict.fromkeys("abcdefghij", inner), range(9), {}),
        "or have more than 200,000 entries",
    ),
    "two of one name": (
        lambda: without() | {"fc": {"bias": torch.zeros(4)}},
        "hold two tensors called fc.bias; rename one",
    ),
}


@pytest.mark.parametrize(("content", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_weights_that_do_not_fit_are_refused_in_one_line(
    content: Callable[[], object], message: str, tmp_path: Path
) -> None:
    path = saved(content(), tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        fit_weights(read_weights(path), network())
    assert str(refused.value).startswith(f"weights {path}") and "\n" not in str(refused.value)


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    stored = zipfile.ZipFile(saved(without() | {"fc.bias": torch.zeros(10**6)}, tmp_path))
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in stored.infolist():
            packed.writestr(part.filename, stored.read(part))
    with pytest.raises(ValueError, match=r"its parts announce [\d,]+ bytes, and it has [\d,]+"):
        read_weights(str(path))


@pytest.mark.parametrize(("kind", "size"), [("F4", 4), ("F6_E2M3", 6), ("NEW", 8)])
def test_a_type_that_torch_has_not_is_named(kind: str, size: int, tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": kind, "shape": [8], "data_offsets": [0, size]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=kind) as refused:
        read_weights(str(tmp_path / "weights.safetensors"))
    assert "\n" not in str(refused.value)


class Hostile:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_code_in_a_file_of_weights_is_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = saved({"state_dict": without(), "args": Hostile(str(trace))}, tmp_path)
    with pytest.raises(ValueError, match=r"hold pickled code \(.*open\), which is not run"):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)["args"].close()
    assert trace.exists()  # so it would have run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("weights.pt", lambda: b"foo", "are no file that torch.save wrote, or a damaged one"),
        ("weights.pth.tar", lambda: b"", "are an empty file; where the model was made"),
        ("weights.safetensors", lambda: b"foo", "is no safetensors file"),
        ("weights.pt", scripted, "is a TorchScript file"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(
    name: str, data: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data())
    with pytest.raises(ValueError, match=message) as refused:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "weights.pt"):
        with pytest.raises(ValueError, match=rf"^weights {path} must be a file, and there is none"):
            read_weights(str(path))
    with pytest.raises(ValueError, match=r"^weights must be a local path or begin with s3://, got"):
        read_weights("https://x.org/weights.pt")


def test_weights_are_read_from_s3_as_from_a_disk(s3: Storage, tmp_path: Path) -> None:
    path = saved(network(seed=1).state_dict(), tmp_path)
    s3.write("folder/weights.pt", Path(path).read_bytes())
    local, remote = read_weights(path), read_weights(s3.full("folder/weights.pt"))
    assert local.sha256 == remote.sha256 and local.tensors.keys() == remote.tensors.keys()


@pytest.mark.parametrize("normalized", [False, True], ids=["bare", "with mean and std"])
def test_an_evaluation_of_published_weights_has_the_model_in_every_worker(
    normalized: bool,
    digits_model: Normalized,
    held_out: Split,
    published_network: str,
    tmp_path: Path,
) -> None:
    layers = behind("module.model.", digits_model.body.state_dict())
    if normalized:
        layers |= {"module.mean": digits_model.mean, "module.std": digits_model.std}
    saved({"epoch": 3, "state_dict": layers}, tmp_path)
    arrays = {"images": held_out.images.numpy(), "labels": held_out.labels.numpy()}
    np.savez(tmp_path / "digits.npz", **arrays)
    given = ExternalOptions(
        model=published_network,
        weights="weights.pt",
        data="digits.npz",
        slots=32,
        steps=1,
        step_size=8 / 255,
    )
    root = Storage(str(tmp_path / "runs"))
    subject = open_subject(given, root, tmp_path)
    name, _ = identify(given, subject)
    assert name.startswith("weights-digits-")
    subject = staged(subject, root.child(name))
    assert subject.weights_taken.startswith("entry state_dict.model")
    worker, digest = load_source("function", subject.uri, weights=subject.weights)
    expected = digits_model if normalized else digits_model.body
    x = to_pixels(held_out.images)
    assert digest == subject.digest and torch.equal(worker(x), expected(x))
    (task,) = tasks_of(given, subject, name)
    record = evaluate_and_commit(task, Records(root.child(name)))
    right = int((expected(x).argmax(1) == held_out.labels).sum())
    assert record.payload["clean_correct"] == right > 0
