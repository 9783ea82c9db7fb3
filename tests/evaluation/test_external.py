"""Models and images that others made: what is read, what is refused in one line, and that the
verdict is evaluate()'s own.
"""

import html
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from prepared_data import prepared
from sweeps import ROOT, environment
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.attacks.base import require_inference_mode
from sat_ray.checkpoint import save_model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.convert import ROWS_PER_SHARD
from sat_ray.data.shards.manifest import CorruptShardError
from sat_ray.data.shards.reading import image_ids, read_rows, read_split
from sat_ray.data.split import Split
from sat_ray.evaluation.card import robustness_card
from sat_ray.evaluation.external.loading import kind_of, load_source
from sat_ray.evaluation.external.validation import ZeroGradients
from sat_ray.evaluation.intervals import anytime_interval, wilson_interval
from sat_ray.evaluation.robustness import evaluate
from sat_ray.integrations.command_line.evaluate import evaluate_model, names_a_model
from sat_ray.integrations.command_line.external import run as external
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.run import claim_evaluation
from sat_ray.integrations.command_line.external.subject import PROBED_CALLS, identify, open_subject
from sat_ray.integrations.command_line.external.tasks import tasks_of
from sat_ray.integrations.command_line.parsing import parse_options
from sat_ray.models import ModelSpec, Normalized, model_from_spec
from sat_ray.models.pt2.load import load_exported
from sat_ray.report.evaluation_summary import claim, summary
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import evaluate_and_commit, rows_of, sampled_rows
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import EVALUATE, Dataset, EvaluationTask
from sat_ray.threat import ThreatModel

CPU = torch.device("cpu")
GRAY = np.random.default_rng(0).integers(0, 256, (6, 1, 9, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 3, 9, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MODELS = """
import os
import torch
from torch import nn
from sat_ray.checkpoint import load_model

HERE = os.path.dirname(os.path.abspath(__file__))

def digits(): return load_model(HERE + "/checkpoint")
def training(): return digits().train()
def half(): return digits().half()
def softmax(): return nn.Sequential(digits(), nn.Softmax(dim=1)).eval()
def nine(): return nn.Sequential(digits(), nn.Linear(10, 9)).eval()
def flat(): return nn.Sequential(digits(), nn.Flatten(0)).eval()
def colour(): return nn.Sequential(nn.Conv2d(3, 1, 1), digits()).eval()
def unseeded(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
def number(): return 3
def fails(): raise RuntimeError("no weights\\nat all")
constant = 1

class Broken(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.body = kind, digits()
    def forward(self, x):
        if self.kind == "detached": return self.body(x.detach())
        return self.body(x) / (0 if self.kind == "nan" else 1)

class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.body, self.does = digits(), forward
    def forward(self, x):
        return self.does(self.body, x)

def odd(forward): return Odd(forward).eval()
def noisy(): return odd(lambda body, x: body(x + 0.1 * torch.randn_like(x)))
def of_the_batch(): return odd(lambda body, x: body(x - x.mean(0, keepdim=True)))
def in_place(): return odd(lambda body, x: body(x.sub_(0.2)))
def rounded(): return odd(lambda body, x: body((x * 255).round() / 255))
def tuples(): return odd(lambda body, x: (body(x), x))
def nothing(): return odd(lambda body, x: None)
def scalar(): return odd(lambda body, x: body(x).sum())
def imaginary(): return odd(lambda body, x: body(x) + 0j)
def root_of_zero(x): return (x - x.detach()).sum((1, 2, 3)).abs().sqrt()[:, None]
def slope_of_nan(): return odd(lambda body, x: body(x) + root_of_zero(x))
def noise_of(x, seed): return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
def seeded(): return odd(lambda body, x: body(x + 0.25 * noise_of(x, 0)))
def noise_again(x): torch.manual_seed(0); return torch.randn_like(x)
def seeded_globally(): return odd(lambda body, x: body(x + 0.25 * noise_again(x)))
def per_cent(): return odd(lambda body, x: 100 * body(x).softmax(1))
def sigmoids(): return odd(lambda body, x: body(x).sigmoid())
def root(): return odd(lambda body, x: body(x) + 0 * x.flatten(1).square().sum(1).sqrt()[:, None])
def holds_a_file():
    model = digits()
    model.kept = open(__file__)
    return model
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()
def script(): return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval())
def meta(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta")).eval()
def nan(): return Broken("nan").eval()
def detached(): return Broken("detached").eval()
"""


OF_DIGITS = (
    "--model external_models:digits --data digits.npz --epsilon 40/255 --steps 20 "
    "--step-size 8/255 --images 40 --slots 16"
)


def options(words: str) -> ExternalOptions:
    """Return the options of a command."""
    return parse_options(shlex.split(words), ExternalOptions(), about="")


def evaluated(words: str, cwd: Path) -> tuple[str, Path]:
    """Run the command in a process of its own; return what it printed and the folder it wrote
    below its storage.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "evaluate.py"), *shlex.split(words)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = Path(options(words).storage).glob("external_models-digits-digits-*")
    return done.stdout, folder


def save_npz(path: Path, **arrays: Any) -> Path:
    """Write an .npz of six small gray images, changed as asked; None leaves an array out."""
    content = {"images": GRAY, "labels": LABELS} | arrays
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def image_folder(
    root: Path, *, size: Callable[[int], tuple[int, int]] = lambda number: (8, 9)
) -> Path:
    """Write three classes of two colour images each, size(number) = (width, height),
    and one hidden file.
    """
    for number in range(6):
        folder = root / ("zebra", "apple", "Moon")[number // 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(
            0, 256, (*size(number)[::-1], 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{number}.{'png' if number % 2 else 'jpeg'}")
    (root / "apple" / ".hidden").write_text("not an image")
    return root


def exported(model: nn.Module, *, batch: int | None = None) -> bytes:
    """Export a model of digits, for any number of images or for exactly `batch`."""
    shapes = None if batch else ({0: torch.export.Dim("n")},)
    sink = io.BytesIO()
    torch.export.save(
        torch.export.export(model, (torch.rand(batch or 2, 1, 8, 8),), dynamic_shapes=shapes), sink
    )
    return sink.getvalue()


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory, digits_model: Normalized, held_out: Split
) -> Path:
    """Return a folder with one model in every form, and held-out digits as digits.npz."""
    folder = tmp_path_factory.mktemp("shelf")
    assert digits_model.spec is not None
    save_model(
        Storage(str(folder / "checkpoint")),
        digits_model.state_dict(),
        spec=digits_model.spec,
        about={},
    )
    named = {"class_names": DIGIT_NAMES}
    save_model(
        Storage(str(folder / "named_checkpoint")),
        digits_model.state_dict(),
        spec=digits_model.spec,
        about=named,
    )
    (folder / "external_models.py").write_text(MODELS)
    (folder / "model.pt2").write_bytes(exported(digits_model))
    (folder / "static.pt2").write_bytes(exported(digits_model, batch=8))
    torch.save(digits_model.state_dict(), folder / "model.pt")
    ids = held_out.image_ids.numpy()
    np.savez(
        folder / "digits.npz",
        images=held_out.images.numpy(),
        labels=held_out.labels.numpy(),
        image_ids=ids,
    )
    return folder


@pytest.fixture
def on_the_shelf(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in the shelf's folder, whose module is importable there alone."""
    monkeypatch.chdir(shelf)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield shelf
    sys.modules.pop("external_models", None)


@pytest.mark.parametrize(("images", "channels"), [(GRAY, 1), (COLOUR, 3)])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_an_npz_becomes_a_dataset_of_its_own_images_labels_and_ids(
    images: np.ndarray, channels: int, last: bool, tmp_path: Path
) -> None:
    given = images.transpose(0, 2, 3, 1) if last else images
    path = save_npz(
        tmp_path / "some.npz",
        images=given,
        image_ids=np.array([7, 3, 11, 0, 5, 2]),
        class_names=np.array(["a", "b", "c"]),
    )
    uri = prepared(str(path), Storage(str(tmp_path)))
    split = read_split(Storage(uri), "test")
    assert np.array_equal(split.images.numpy(), images) and split.images.shape[1] == channels
    assert split.labels.tolist() == LABELS.tolist() and split.image_ids.tolist() == [
        7,
        3,
        11,
        0,
        5,
        2,
    ]
    dataset = Dataset.open(uri)
    assert dataset is not None and dataset.manifest["class_names"] == ["a", "b", "c"]
    assert prepared(uri, Storage(str(tmp_path))) == uri  # a prepared dataset is its own
    files = {file: file.stat().st_mtime_ns for file in Path(uri).iterdir()}
    assert prepared(str(path), Storage(str(tmp_path))) == uri
    assert files == {file: file.stat().st_mtime_ns for file in Path(uri).iterdir()}, (
        "the same content was written again"
    )


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"images": GRAY / np.float32(255)}, "must be uint8 pixels, 0 to 255, got float32"),
    "no labels": (
        {"labels": None},
        "images and labels (and may hold image_ids and class_names), got ['images']; rename",
    ),
    "pickled labels": (
        {"labels": np.array([{}, 1, 2, 3, 4, 5], dtype=object)},
        "plain arrays without objects",
    ),
    "labels of another count": ({"labels": LABELS[:5]}, "labels of"),
    "float labels": (
        {"labels": LABELS / 1.0},
        "must be (6,) whole numbers, one per image, got (6,) float64",
    ),
    "negative labels": ({"labels": LABELS - 1}, "must lie in 0 to 2147483647, got -1 to 1"),
    "labels that int32 would wrap into classes": (
        {"labels": LABELS + 2**40},
        "must lie in 0 to 2147483647, got 1099511627776 to 1099511627778",
    ),
    "labels that int64 would wrap": (
        {"labels": LABELS.astype(np.uint64) + np.uint64(2**63)},
        "to 9223372036854775810",
    ),
    "ids that int64 would wrap": (
        {"image_ids": np.arange(6, dtype=np.uint64) + np.uint64(2**64 - 6)},
        "must lie in -9223372036854775808 to 9223372036854775807, got 18446744073709551610 to",
    ),
    "labels beyond the names": (
        {"class_names": np.array(["a", "b"])},
        "must lie in 0 to 1, one of class_names, got 0 to 2",
    ),
    "equal names": ({"class_names": np.array(["a", "b", "b"])}, "all different"),
    "equal names in two Unicode forms": (
        {"class_names": np.array(["a", "\u00e9", "e\u0301"])},
        "all different",
    ),
    "doubled ids": (
        {"image_ids": np.array([0, 1, 2, 3, 3, 4])},
        "must hold each id once, got [3] more than once",
    ),
    "three axes": ({"images": GRAY[:, 0]}, "must have shape (N, C, H, W) or (N, H, W, C)"),
    "no channels": ({"images": GRAY[:, [0, 0]]}, "neither can be channels"),
    "two axes of channels": ({"images": GRAY[..., :1]}, "both can be channels"),
    "nothing": ({"images": GRAY[:0], "labels": LABELS[:0]}, "none of them 0"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_an_npz_of_anything_else_is_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refused:
        prepared(str(save_npz(tmp_path / "bad.npz", **arrays)), Storage(str(tmp_path)))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "data").exists()


def npy(array: np.ndarray) -> bytes:
    """Return an array as np.save writes it."""
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def zipped(images: bytes, *, ending: str = ".npy", labels: bytes = npy(LABELS)) -> bytes:
    """Return a zip of two members, images and labels, of any bytes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"images{ending}", images)
        archive.writestr(f"labels{ending}", labels)
    return sink.getvalue()


def headed(header: str) -> bytes:
    """Return the bytes of six images below a .npy header of one's own."""
    return (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + GRAY.tobytes()
    )


def damaged(data: bytes) -> bytes:
    """Return bytes of which some, early in the first member of a zip, are others."""
    return data[:100] + bytes(byte ^ 0x5A for byte in data[100:160]) + data[160:]


VAST = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 224, 224), }\n"
DAMAGED_NPZ: dict[str, tuple[bytes, str]] = {
    "one array": (npy(GRAY), "holds one array without a name, as np.save writes"),
    "compressed bytes": (damaged(zipped(npy(GRAY))), "Error -3 while decompressing"),
    "members that are no .npy": (zipped(b"foo", ending="", labels=b"bar"), "images is no array"),
    "members without an array": (zipped(b"foo", labels=b"bar"), "images.npy is no array"),
    "a later format": (
        zipped(npy(GRAY).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x03")),
        "images.npy has the header of an array with named fields",
    ),
    "no zip file": (b"foo", "it is no zip file"),
    "header": (zipped(headed("{'descr': ((((((\n")), "without objects, got another file ("),
    "more images than memory": (
        zipped(headed(VAST)),
        "images.npy announces 150,528,000,000,000,000 bytes and has",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED_NPZ.values(), ids=DAMAGED_NPZ.keys())
def test_a_damaged_npz_is_named_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        prepared(str(tmp_path / "bad.npz"), Storage(str(tmp_path)))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"data {tmp_path}/bad.npz must be an .npz of plain arrays")


def test_an_image_folder_of_many_sizes_is_resized_and_cropped(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", size=lambda number: (20 + 3 * number, 31 - number))
    with pytest.raises(ValueError, match=r"differ in size: .*give --image-size"):
        prepared(str(folder), Storage(str(tmp_path)))
    split = read_split(
        Storage(prepared(str(folder), Storage(str(tmp_path)), image_size=16)), "test"
    )
    theirs = ImageFolder(
        str(folder), transform=v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])
    )
    assert torch.equal(split.images, torch.stack([image for image, _ in theirs]))
    given = ExternalOptions(image_size=14, image_crop=0.875)
    cut = prepared(str(folder), Storage(str(tmp_path)), image_size=14, resize=given.image_resize)
    theirs.transform = v2.Compose([v2.Resize(16), v2.CenterCrop(14), v2.PILToTensor()])
    split = read_split(Storage(cut), "test")
    assert torch.equal(split.images, torch.stack([theirs[place][0] for place in range(6)]))
    with pytest.raises(ValueError, match="--image-crop means nothing without --image-size"):
        ExternalOptions(image_crop=0.875)


def test_gray_images_stay_gray_unless_some_are_in_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "gray" / name).mkdir(parents=True)
        Image.fromarray(GRAY[0, 0]).save(tmp_path / "gray" / name / "1.png")
    root = Storage(str(tmp_path))
    split = read_split(Storage(prepared(str(tmp_path / "gray"), root)), "test")
    assert torch.equal(split.images, torch.from_numpy(GRAY[[0, 0]]))
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(tmp_path / "gray" / "b" / "1.png")
    split = read_split(Storage(prepared(str(tmp_path / "gray"), root)), "test")
    assert torch.equal(
        split.images, torch.from_numpy(np.stack([GRAY[0].repeat(3, axis=0), COLOUR[0]]))
    )


def test_every_file_of_an_image_folder_that_cannot_be_used_is_listed(tmp_path: Path) -> None:
    folder, root = image_folder(tmp_path / "photos"), Storage(str(tmp_path))
    whole = (folder / "zebra" / "1.png").read_bytes()
    (folder / "zebra" / "1.png").write_bytes(whole[:-60])  # found only when the pixels are decoded
    (folder / "apple" / "3.png").write_bytes(whole[:-60])
    with pytest.raises(
        ValueError, match=r"2 of 6 files cannot be used: .*apple/3.png .*; .*zebra/1.png"
    ):
        prepared(str(folder), root)


def test_images_beside_the_class_folders_are_refused_and_other_files_are_not(
    tmp_path: Path,
) -> None:
    folder, root = image_folder(tmp_path / "photos"), Storage(str(tmp_path))
    (folder / "README.txt").write_text("mine")
    (folder / ".preview.png").write_bytes(b"hidden")
    assert len(read_split(Storage(prepared(str(folder), root)), "test")) == 6
    for name in ("b.PNG", "a.jpg"):
        Image.fromarray(GRAY[0, 0]).save(folder / name)
    with pytest.raises(
        ValueError,
        match=r"sub-folder per class.*photos/ has images beside its folders \(2, a\.jpg first\)",
    ):
        prepared(str(folder), root)


@pytest.mark.parametrize("side", [0, 4097, 100_000_000])
def test_a_size_that_no_memory_holds_is_refused_before_anything_is_decoded(
    side: int, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"image_size must be a whole number from 1 to 4096, got {side}"
    ):
        prepared(str(image_folder(tmp_path / "photos")), Storage(str(tmp_path)), image_size=side)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.csv", "s3.npz"])
def test_data_of_another_kind_is_answered_with_what_is_allowed(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("1,2")
    (tmp_path / "s3.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"^data .*must be .*, got ") as refused:
        prepared(str(tmp_path / name), Storage(str(tmp_path)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("n", "expected"), [(10, 256), (899, 256), (10_000, 625), (50_000, 1024)])
def test_shards_are_large_enough_to_keep_slots_full_and_small_enough_to_share(
    n: int, expected: int
) -> None:
    assert ExternalOptions(slots=64).images_per_shard(n) == expected
    assert ExternalOptions(slots=64, shard_size=7).images_per_shard(n) == 7


def test_rows_are_read_from_the_shards_that_hold_them_alone(tmp_path: Path) -> None:
    count = 2 * ROWS_PER_SHARD + 9
    images = np.random.default_rng(2).integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)
    path = save_npz(
        tmp_path / "many.npz",
        images=images,
        labels=np.arange(count) % 3,
        image_ids=np.arange(count)[::-1],
    )
    storage = Storage(prepared(str(path), Storage(str(tmp_path))))
    whole = read_split(storage, "test")
    rows = torch.tensor([0, 7, ROWS_PER_SHARD - 1, ROWS_PER_SHARD, count - 1])
    some, expected = read_rows(storage, "test", rows), whole.take(rows)
    assert (
        torch.equal(some.images, expected.images)
        and some.labels.tolist() == expected.labels.tolist()
    )
    assert torch.equal(some.image_ids, expected.image_ids) and torch.equal(
        image_ids(storage, "test"), whole.image_ids
    )
    (Path(storage.uri) / "test-00001.parquet").unlink()
    assert torch.equal(read_rows(storage, "test", rows[:3]).images, expected.images[:3])
    with pytest.raises(CorruptShardError, match="test-00001"):
        read_rows(storage, "test", rows)


def test_a_sample_is_drawn_by_the_seed_and_grows_without_changing() -> None:
    small, large = sampled_rows(1000, 50, seed=0), sampled_rows(1000, 200, seed=0)
    assert len(set(small.tolist())) == 50 and small.tolist() == sorted(small.tolist())
    assert set(small.tolist()) < set(large.tolist())
    assert small.tolist() != sampled_rows(1000, 50, seed=1).tolist()
    assert 350 < large.float().mean() < 650, "not spread over the split"


@pytest.mark.parametrize(
    ("model", "kind"),
    [("checkpoint", "checkpoint"), ("model.pt2", "pt2"), ("external_models:digits", "function")],
    ids=lambda v: v,
)
def test_every_kind_loads_in_inference_mode_with_the_same_logits_and_gradients(
    model: str, kind: str, on_the_shelf: Path, digits_model: Normalized, held_out: Split
) -> None:
    assert kind_of(model) == kind
    loaded, digest = load_source(kind, model)
    require_inference_mode(loaded)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x = to_pixels(held_out.images[:8]).requires_grad_()
    gradients = []
    for one in (digits_model, loaded):
        logits = one(x)
        gradients.append(
            torch.autograd.grad(
                nn.functional.cross_entropy(logits, held_out.labels[:8], reduction="sum"), x
            )[0]
        )
    torch.testing.assert_close(logits, digits_model(x))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert load_source(kind, model, digest)[1] == digest
    with pytest.raises(ValueError, match="is not what it was when the evaluation began"):
        load_source(kind, model, "0" * 64)


def test_the_digest_of_a_function_follows_weights_name_and_source(on_the_shelf: Path) -> None:
    digests = {
        load_source("function", f"external_models:{name}")[1]
        for name in ("digits", "nan", "unseeded")
    }
    assert len(digests) == 3
    assert load_source("function", "external_models:unseeded")[1] not in digests, (
        "other weights, the same digest"
    )
    before = load_source("function", "external_models:digits")[1]
    with open(on_the_shelf / "external_models.py", "a") as file:
        file.write("# comments and layout do not count\n")
    assert load_source("function", "external_models:digits")[1] == before
    with open(on_the_shelf / "external_models.py", "a") as file:
        file.write("changed = True\n")
    assert load_source("function", "external_models:digits")[1] != before


@pytest.mark.parametrize("changed", ["nets/blocks.py", "nets/deep/scale.py", "beside.py"])
def test_the_digest_of_a_function_follows_all_that_its_module_imports_of_its_own(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "nets/__init__.py": "",
        "nets/deep/__init__.py": "",
        "nets/deep/scale.py": "SCALE = 0.5",
        "nets/blocks.py": "from nets.deep import scale\ndef pre(x): return x * scale.SCALE",
        "beside.py": "CLASSES = 10",
        "nets/made.py": """
import torch
import beside
from nets import blocks
class Net(torch.nn.Sequential):
    def forward(self, x): return super().forward(blocks.pre(x))
def make():
    torch.manual_seed(0)
    return Net(torch.nn.Flatten(), torch.nn.Linear(64, beside.CLASSES)).eval()
""",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        before = load_source("function", "nets.made:make")[1]
        assert load_source("function", "nets.made:make")[1] == before
        with open(tmp_path / changed, "a") as file:
            file.write("\nCHANGED = True\n")
        assert load_source("function", "nets.made:make")[1] != before
    finally:
        for name in [one for one in sys.modules if one.partition(".")[0] in ("nets", "beside")]:
            del sys.modules[name]


def test_a_model_exported_in_train_mode_is_refused_though_its_flag_says_nothing(
    digits_model: Normalized,
) -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x.flatten(1), 0.5, self.training)

    with pytest.raises(ValueError, match=r"exported in train mode \(aten.dropout"):
        load_exported(exported(Dropping()), device=CPU)
    honest = load_exported(exported(Dropping().eval()), device=CPU)
    require_inference_mode(honest)
    assert honest.batch_size is None


def refusals(folder: Path) -> dict[str, tuple[str, str]]:
    """Return commands that must fail, each with a part of its message.
    One that is not given model or data gets good ones.
    """
    return {
        "no model": ("--model=", "--model is missing"),
        "no such model": ("--model nothing.here", "is not there; give a checkpoint folder"),
        "a pickled file": (
            "--model model.pt",
            "is a file of weights or a pickled model; for weights name their network too",
        ),
        "weights of a checkpoint": (
            "--model checkpoint --weights model.pt",
            "--weights needs --model module:function",
        ),
        "an entry of no weights": ("--weights-entry ema", "means nothing without --weights"),
        "weights that are not there": ("--weights nothing.pt", "nothing.pt"),
        "weights of another network": (
            "--model external_models:nine --weights model.pt",
            "weights model.pt do not fit the network: the file lacks 47 tensors (0.body.conv1.",
        ),
        "a folder of something": (f"--model {folder}", "is a folder without model.json or MLmodel"),
        "no such module": ("--model no_such_module:f", "cannot be imported (ModuleNotFoundError"),
        "no such function": (
            "--model external_models:f",
            "has no f; give a function without arguments",
        ),
        "not a function": ("--model external_models:constant", "has a int called constant"),
        "not a model": (
            "--model external_models:number",
            "must return a torch.nn.Module in inference mode, got a int",
        ),
        "a failing function": (
            "--model external_models:fails",
            "calling fails() failed (RuntimeError: no weights)",
        ),
        "train mode": (
            "--model external_models:training",
            "must be in inference mode, got train mode",
        ),
        "probabilities": ("--model external_models:softmax", "returns probabilities"),
        "NaN": ("--model external_models:nan", "NaN or inf logits for image ids"),
        "one axis of output": ("--model external_models:flat", "got shape"),
        "another input": (
            "--model external_models:colour",
            "; if it takes colour images, store the images as RGB",
        ),
        "too few classes": ("--model external_models:nine", "but the model has 9 classes"),
        "noise of a fixed seed": (
            "--model external_models:seeded",
            "gives an image other logits at another row of the batch",
        ),
        "noise of the global seed": (
            "--model external_models:seeded_globally",
            "gives an image other logits at another row",
        ),
        "scaled probabilities": (
            "--model external_models:per_cent",
            "returns scaled probabilities (rows of one sign that sum to 100)",
        ),
        "a file in a model": (
            "--model external_models:holds_a_file",
            "holds_a_file: model.kept is a TextIOWrapper, whose content",
        ),
        "other channels": (
            "--data colour.npz",
            "must have 1 channel(s), as the model's mean and std have, got 3",
        ),
        "a gradient of NaN at a later image": (
            "--model external_models:root --data late_black.npz",
            (
                "root has a gradient of NaN or infinity for image ids [60], though its logits are "
                "finite"
            ),
        ),
        "classes of another name": (
            "--model named_checkpoint --data named.npz",
            (
                "must have the classes that the model was trained on (zero, one, two, three, four "
                "and "
                "5 more), got class 0, class 1,"
            ),
        ),
        "noise": (
            "--model external_models:noisy",
            "noisy gives other logits the second time in inference mode",
        ),
        "noise under square": (
            "--model external_models:noisy --attack square",
            "gives other logits the second time",
        ),
        "statistics of the batch": (
            "--model external_models:of_the_batch",
            "gives an image other logits in a batch than alone",
        ),
        "work in place": ("--model external_models:in_place", "in_place changes its input images"),
        "a tuple of outputs": (
            "--model external_models:tuples",
            "got a tuple; wrap the model in a module whose forward returns the logits alone",
        ),
        "weights of 16 bits": (
            "--model external_models:half",
            "; its parameters are float16: call .float() on the network before you return it",
        ),
        "data without a model": ("--model= --card", "--model is missing; --model URI and"),
        "no output": (
            "--model external_models:nothing",
            "must return one tensor of (N, K) logits, K >= 2 classes, got a NoneType",
        ),
        "no axis of output": ("--model external_models:scalar", "got shape () for 16 images"),
        "complex output": (
            "--model external_models:imaginary",
            "of real numbers, got torch.complex64",
        ),
        "a gradient of NaN": (
            "--model external_models:slope_of_nan",
            "has a gradient of NaN or infinity for image ids [",
        ),
        "a torch.jit script": (
            "--model external_models:script",
            "script is a torch.jit script; give",
        ),
        "a byte of a .pt2 file": (
            "--model flipped.pt2",
            "model flipped.pt2 is damaged (Bad CRC-32",
        ),
        "no queries": (
            "--attack square --queries 0",
            "--queries must be a whole number from 1 to 1000000, got 0",
        ),
        "GPUs that are no number": (
            "--gpus-per-task nan --accelerator H200",
            "--gpus-per-task must be a number from 0 to 65536, got nan",
        ),
        "a lazy layer": (
            "--model external_models:lazy",
            "1.weight is not initialized (a lazy layer)",
        ),
        "no weights": ("--model external_models:meta", "1.weight is on the meta device"),
        "a label beyond the first slots": (
            "--data late.npz --images 1",
            (
                "data late.npz has labels in [0, 10] (image id 19 has 10) but the model has 10 "
                "classes; labels must be from 0 to 9"
            ),
        ),
        "no gradient": ("--model external_models:detached", "has no gradient at its input"),
        "a static batch": ("--model static.pt2", "exactly 8 images a call; give --slots 8"),
        "class names of another count": ("--data named.npz", "has 10 classes, the dataset 11"),
        "no such data": ("--data nowhere", "data must be a prepared dataset"),
        "split": ("--split val", "has no images; choose test"),
        "too many images": ("--images 78", "--images must be an integer from 1 to 77"),
        "image size of an npz": (
            "--image-size 8",
            "only the images of an image folder are resized",
        ),
        "epsilon in 255ths": ("--epsilon 8", "did you mean 8/255?"),
        "unreachable edge": ("--steps 2 --step-size 1/255", "out of reach"),
        "norm": ("--norm l1", "linf"),
        "no steps": ("--steps 0", "--steps must be a whole number from 1"),
        "a loss of another attack": (
            "--attack cascade --loss dlr",
            "--loss means nothing to --attack cascade; leave it out, or",
        ),
        "a step size of another attack": (
            "--attack apgd --step-size 1/255",
            "--step-size means nothing to --attack apgd",
        ),
        "steps of queries": (
            "--attack square --steps 9",
            "--steps means nothing to --attack square",
        ),
        "a gradient of none": (
            "--attack square --gradient bf16",
            "--gradient bf16 means nothing to --attack square",
        ),
        "no restarts": (
            "--restarts 0",
            "--restarts must be a whole number from 1 to 1000000, got 0",
        ),
        "more targets than classes": (
            "--attack apgd --targets 10",
            "needs at least 11 classes, the model has 10",
        ),
        "slots": ("--slots 0", "--slots must be a whole number from 1"),
        "GPUs without a name": (
            "--gpus-per-task 1",
            "--accelerator and --gpus-per-task must be given together",
        ),
        "option": ("--epsilom 1/255", "did you mean --epsilon"),
        "name that leaves the storage": ("--name ../elsewhere", "name must be up to 64 letters"),
        "name of the data folder": ("--name data", "not data"),
        "another evaluation's folder": ("--name taken", "holds something else than an evaluation"),
    }


@pytest.fixture
def refused(
    on_the_shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Return a function that runs the command, requires exit status 2 and no Ray,
    and returns the one line on stderr.
    """
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what is not refused must not start
    for name in ("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "SAT_RAY_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    images, labels = np.full((2, 1, 8, 8), 128, dtype=np.uint8), np.array([0, 1])
    np.savez(on_the_shelf / "colour.npz", images=images.repeat(3, axis=1), labels=labels)
    late = (
        np.load(on_the_shelf / "digits.npz")["images"] * (np.arange(77) != 60)[:, None, None, None]
    )
    np.savez(on_the_shelf / "late_black.npz", images=late, labels=np.zeros(77, dtype=np.int64))
    np.savez(
        on_the_shelf / "named.npz",
        images=images,
        labels=labels,
        class_names=np.array([f"class {k}" for k in range(11)]),
    )
    flipped = bytearray((on_the_shelf / "model.pt2").read_bytes())
    flipped[flipped.index(b'"use_pickle"')] ^= 1
    (on_the_shelf / "flipped.pt2").write_bytes(flipped)
    np.savez(
        on_the_shelf / "late.npz",
        images=images[np.zeros(20, dtype=int)],
        labels=np.arange(20) // 19 * 10,
    )
    Storage(str(on_the_shelf / "runs" / "taken")).write_json("config.json", {"something": "else"})

    def run(*arguments: str) -> str:
        given = {"--model": "external_models:digits", "--data": "digits.npz", "--slots": "16"}
        defaults = [
            f"{flag}={value}"
            for flag, value in given.items()
            if not any(word.startswith(flag) for word in arguments)
        ]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *defaults, *arguments])
        assert evaluate_model(sys.argv[1:]) == 2
        return capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("case", refusals(Path()))
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    case: str, refused: Callable[..., str], on_the_shelf: Path
) -> None:
    words, message = refusals(on_the_shelf)[case]
    said = refused(*shlex.split(words))
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "attack",
    ["--attack square", "--attack cascade", "--restarts 50 --targets 9"],
)
def test_the_try_before_the_work_costs_a_few_model_calls_whatever_the_attack(
    attack: str, on_the_shelf: Path, tmp_path: Path
) -> None:
    given = options(f"--model external_models:counted --data digits.npz --slots 16 {attack}")
    with open("external_models.py", "a") as file:
        file.write("""
calls = []
def counted(): return odd(lambda body, x: calls.append(len(x)) or body(x))
""")
    subject = open_subject(given, Storage(str(tmp_path)), tmp_path)
    blocks = -(-77 // 16)  # of all images: two points each, of square the clean ones alone
    points = 1 if "square" in attack else 2
    assert (
        sys.modules["external_models"].calls == [16] * (7 + points * blocks)
        and not subject.zeros.images
    )


def test_a_file_that_a_model_reads_while_it_computes_is_named_in_a_warning(
    on_the_shelf: Path, tmp_path: Path
) -> None:
    np.save("scale.npy", np.float32(0.5))
    with open("external_models.py", "a") as file:
        file.write("""
import numpy
def reading(): return odd(lambda body, x: body(x * float(numpy.load("scale.npy"))))
once = {}
def first_time(body, x):
    if not once: once["scale"] = float(numpy.load("scale.npy"))
    return body(x * once["scale"])
def reading_once(): return odd(first_time)
""")
    for name in ("reading", "reading_once"):
        given = options(f"--model external_models:{name} --data digits.npz --attack pgd --steps 9")
        (warning,) = open_subject(given, Storage(str(tmp_path)), tmp_path).warnings
        assert warning.startswith(f"the model reads {Path('scale.npy').absolute()} while it comput")


def test_a_model_that_fails_amid_the_work_is_named_with_its_error_in_one_line(
    on_the_shelf: Path, tmp_path: Path
) -> None:
    with open("external_models.py", "a") as file:
        file.write("""
def fail(body, x):
    if (x == 0).flatten(1).all(dim=1).any(): raise RuntimeError("no kernel\\nfor black images")
    return body(x)
def fails_late(): return odd(fail)
""")
    looked_at = set(sampled_rows(80, PROBED_CALLS * 4, seed=0).tolist())
    black = max(set(range(80)) - looked_at)
    np.savez(
        "black.npz",
        images=np.arange(80 * 64).astype(np.uint8).reshape(80, 1, 8, 8)
        * (np.arange(80) != black)[:, None, None, None],
        labels=[0] * 80,
    )
    words = "--model external_models:fails_late --data black.npz --slots 4"
    given = options(f"{words} --storage {tmp_path}")
    subject = open_subject(given, Storage(str(tmp_path)), tmp_path)
    task = next(one for one in tasks_of(given, subject, "late") if one.first <= black < one.last)
    with pytest.raises(
        ValueError,
        match=r"model external_models:fails_late raised RuntimeError on some images: no kernel \(",
    ) as failed:
        evaluate_and_commit(task, Records(Storage(str(tmp_path))))
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reversed"])
def test_classes_are_matched_by_name_where_both_have_names(
    reverse: bool, on_the_shelf: Path, held_out: Split, tmp_path: Path
) -> None:
    """The same accuracy, whatever the order of the dataset's classes;
    the letters may be in another Unicode form.
    """
    order = list(range(10))[:: -1 if reverse else 1]
    labels = np.array([order.index(label) for label in held_out.labels.tolist()])
    names = np.array([DIGIT_NAMES[label] for label in order])
    np.savez("ordered.npz", images=held_out.images.numpy(), labels=labels, class_names=names)
    words = "--model named_checkpoint --data ordered.npz --slots 16 --epsilon 40/255"
    given = options(f"{words} --steps 2 --step-size 40/255")
    subject = open_subject(given, Storage(str(tmp_path)), tmp_path)
    assert subject.label_order == (tuple(order) if reverse else ())
    assert any("matched by name" in warning for warning in subject.warnings) == reverse
    task = tasks_of(given, subject, "ordered")[0]
    records = Records(Storage(str(tmp_path)))
    record = evaluate_and_commit(task, records)
    table = pq.read_table(io.BytesIO(records.storage.read(record.payload["path"])))
    assert table["label"].to_pylist()[0] == int(held_out.labels[0])
    right = (
        load_source("checkpoint", "checkpoint")[0](to_pixels(held_out.images[: task.last])).argmax(
            1
        )
        == held_out.labels[: task.last]
    ).sum()
    assert record.payload["clean_correct"] == int(right) > task.last / 2
    assert (record.inputs.get("label_order") == order) == reverse


def test_outputs_of_a_sigmoid_and_numbers_out_of_order_give_warnings(
    on_the_shelf: Path, held_out: Split, tmp_path: Path
) -> None:
    names = np.array(sorted(str(number) for number in range(3, 13)))
    np.savez(
        "numbers.npz",
        images=held_out.images.numpy(),
        labels=held_out.labels.numpy(),
        class_names=names,
    )
    given = options("--model external_models:sigmoids --data numbers.npz --slots 16")
    warnings = open_subject(given, Storage(str(tmp_path)), tmp_path).warnings
    assert any(warning.startswith("all outputs on 77 images lie in [0, 1]") for warning in warnings)
    assert any(
        "numbers in the order of text (10, 11, 12, 3, 4 and 5 more): class 0 is 10;" in warning
        for warning in warnings
    )


@pytest.mark.parametrize(
    ("model", "channels"), [("checkpoint", 1), ("colour", 3), ("external_models:colour", 3)]
)
def test_an_image_folder_has_the_channels_that_a_checkpoint_takes(
    model: str, channels: int, on_the_shelf: Path, held_out: Split, tmp_path: Path
) -> None:
    spec = ModelSpec(
        name="small_resnet",
        activation="silu",
        num_classes=10,
        in_channels=3,
        width=4,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_model(
        Storage(str(on_the_shelf / "colour")),
        model_from_spec(spec, seed=0).state_dict(),
        spec=spec,
        about={},
    )
    folder = tmp_path / "photos"
    for number, image in enumerate(held_out.images[:20].numpy()):
        place = folder / f"c{number % 10}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        gray = Image.fromarray(image[0])
        (gray.convert("RGB") if model == "external_models:colour" else gray).save(place)
    given = options(f"--model {model} --data {folder} --slots 8 --epsilon 8/255 --steps 8")
    subject = open_subject(given, Storage(str(tmp_path)), tmp_path)
    assert subject.dataset.manifest["shape"] == [channels, 8, 8]


def test_images_without_a_slope_are_counted_but_for_square(
    on_the_shelf: Path, held_out: Split, tmp_path: Path
) -> None:
    words = "--model external_models:rounded --data digits.npz --slots 16 --epsilon 40/255"
    for attack, warned in (("pgd", True), ("cascade", True), ("square", False)):
        given = options(f"{words} --attack {attack}")
        zeros = open_subject(given, Storage(str(tmp_path)), tmp_path).zeros
        model = load_source("function", "external_models:digits")[0]
        right = int(
            (model(to_pixels(held_out.images[:16])).argmax(1) == held_out.labels[:16]).sum()
        )
        assert zeros == ZeroGradients(right if warned else 0, right) and right > 8
        assert (
            f"{right} of {right} images tried have a gradient of exactly 0" in str(zeros)
        ) == warned


@pytest.mark.parametrize(
    ("words", "names", "runs"),
    [
        ("", ["pgd-200"], [1]),
        ("--restarts 5 --loss margin", ["pgd-margin-200"], [5]),
        ("--targets 3 --restarts 2", ["pgd-t-ce-200"], [6]),
        ("--attack apgd", ["apgd-ce-100"], [1]),
        (
            "--attack apgd --loss dlr --targets 9 --steps 20 --gradient bf16",
            ["apgd-t-dlr-20-bf16"],
            [9],
        ),
        ("--attack square --queries 70 --restarts 2", ["square-70"], [2]),
        (
            "--attack cascade --restarts 2",
            ["apgd-ce-100", "apgd-t-dlr-100", "square-5000"],
            [2, 18, 2],
        ),
    ],
)
def test_the_options_describe_any_attack_of_the_engine(
    words: str, names: list[str], runs: list[int]
) -> None:
    given = options(f"--model m:f --data d {words}")
    found = given.attacks(num_classes=10)
    assert [spec.name for spec in found] == names and [spec.runs for spec in found] == runs
    assert all(spec.threat_model == ThreatModel("linf", 8 / 255) for spec in found)
    examined = given.examined()
    assert options(given.command().split(maxsplit=2)[2]) == given
    assert (examined.algorithm, examined.loss, examined.targets, examined.gradient) == (
        "pgd",
        "cross_entropy",
        0,
        "float32",
    )


@pytest.mark.parametrize("spelling", ["--{} {}", "--{}={}"])
def test_radius_and_step_may_be_fractions_and_a_folder_may_look_like_one(spelling: str) -> None:
    given = {"epsilon": "4/255", "step-size": "1/510", "data": "2024/10", "name": "1/2"}
    read = options(" ".join(spelling.format(*item) for item in given.items()))
    assert (read.epsilon, read.step_size, read.data, read.name) == (
        4 / 255,
        1 / 510,
        "2024/10",
        "1/2",
    )


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "cascade"])
@pytest.mark.parametrize(
    ("norm", "epsilon", "step"), [("linf", 8 / 255, 1 / 255), ("l2", 0.1, 0.005), ("l2", 1.0, 0.05)]
)
def test_the_pgd_of_the_card_and_by_default_crosses_any_ball(
    attack: str, norm: str, epsilon: float, step: float
) -> None:
    given = options(f"--model m:f --data d --norm {norm} --epsilon {epsilon} --attack {attack}")
    examined = given.examined()
    assert (examined.steps, examined.step_size, examined.threat_model) == (
        200,
        step,
        ThreatModel(given.norm, epsilon),
    )
    assert attack != "pgd" or given.attacks(num_classes=10) == [examined]


def test_model_chooses_the_command_and_model_fields_do_not() -> None:
    assert names_a_model(["--model", "m:f"]) and names_a_model(["--data", "d", "--model=m:f"])
    assert names_a_model(["--data", "d", "--card"]) and names_a_model(["--attack=pgd"])
    assert not names_a_model(["digits", "--model.width", "8"]) and not names_a_model(
        ["--model.name=resnet18"]
    )


def test_what_a_sweep_does_not_ask_for_leaves_its_keys_alone() -> None:
    attack = AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=10, step_size=1 / 255)
    dataset = Dataset(uri="u", hash="h", manifest={})
    task = EvaluationTask(
        checkpoint="c",
        checkpoint_sha256="s",
        name="n",
        attacks=(attack,),
        first=0,
        last=5,
        seed=0,
        slots=8,
        dataset=dataset,
        environment={},
    )
    assert set(task.inputs) == {"weights", "attacks", "rows", "seed", "dataset", "environment"}
    others = [replace(task, split="val"), replace(task, sample=5), replace(task, cascade=True)]
    assert len({one.key for one in (task, *others)}) == 4


def test_the_summary_of_a_cascade_counts_what_each_attack_left(
    digits_model: Normalized, held_out: Split
) -> None:
    attacks = cascade(ThreatModel("linf", 40 / 255), num_classes=10, steps=4, queries=5)
    table = evaluate(
        digits_model,
        held_out.images,
        held_out.labels,
        held_out.image_ids,
        attacks=attacks,
        slots=32,
        cascade=True,
    )
    found = summary(table, attacks)
    rows = table.to_pylist()
    alive = {row["image_id"] for row in rows if row["clean_prediction"] == row["label"]}
    assert found["n"] == 77 and found["clean_accuracy"] == len(alive) / 77
    for attack in found["attacks"]:
        assert attack["attacked"] == len(alive)
        alive -= {
            row["image_id"] for row in rows if row["attack"] == attack["name"] and not row["robust"]
        }
        assert attack["robust_accuracy"] == len(alive) / 77
    assert found["robust_accuracy_interval"] == list(wilson_interval(len(alive), 77))
    assert (
        found["passes"]
        == sum(row["passes"] for row in rows)
        == sum(attack["passes"] for attack in found["attacks"])
    )
    said = claim(
        found | {"threat_model": {"norm": "linf", "epsilon": 40 / 255}, "n_split": 899, "seed": 5}
    )
    assert all(
        part in said
        for part in (
            "linf 40/255",
            "n = 77 of 899",
            "seed 5",
            "95 % interval",
            "apgd-ce-4 + apgd-t-dlr-4 + square-5",
        )
    )


def test_the_command_gives_the_outcomes_of_evaluate_and_repeats_without_work(
    on_the_shelf: Path, held_out: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{OF_DIGITS} --storage {tmp_path} --shard-size 20"
    printed, folder = evaluated(words, on_the_shelf)
    assert "2 shards: 2 computed, 0 reused" in printed
    found = json.loads((folder / "evaluation.json").read_text())
    assert claim(found) in printed
    assert claim(found) in html.unescape((folder / "evaluation.html").read_text())

    rows = sampled_rows(77, 40, seed=0)
    model, split = load_source("function", "external_models:digits")[0], held_out.take(rows)
    attack = AttackSpec(threat_model=ThreatModel("linf", 40 / 255), steps=20, step_size=8 / 255)
    table = evaluate(
        model, split.images, split.labels, split.image_ids, attacks=[attack], seed=0, slots=16
    )
    assert (
        pq.read_table(found["outcomes"])
        .replace_schema_metadata(None)
        .combine_chunks()
        .equals(table.combine_chunks())
    )
    assert {name: found[name] for name in summary(table, [attack])} == summary(table, [attack])

    before = (folder / "evaluation.json").read_bytes()
    # in this process: whatever started Ray here would show, and nothing has to
    external.evaluate_external(options(words))
    assert "2 shards: 0 computed, 2 reused" in capsys.readouterr().out
    assert (folder / "evaluation.json").read_bytes() == before
    assert EVALUATE.name in os.listdir(folder / "state")


def test_an_evaluation_that_knows_enough_stops_with_an_anytime_interval(
    on_the_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four shards is committed, and no Ray is started for the others."""
    given = ExternalOptions(
        model="external_models:digits",
        data="digits.npz",
        storage=str(tmp_path),
        epsilon=40 / 255,
        steps=4,
        step_size=20 / 255,
        slots=16,
        shard_size=20,
        stop_when_width=0.6,
    )
    root = Storage(str(tmp_path))
    subject = open_subject(given, root, tmp_path)
    name, _ = identify(given, subject)
    first, *_ = tasks_of(given, subject, name)
    payload = evaluate_and_commit(first, Records(root.child(name))).payload
    external.evaluate_external(given)
    said = capsys.readouterr().out
    assert "1 shards: 0 computed, 1 reused" in said
    found = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert found["n"] == payload["n"] < 77 and found["stopped"]["of"] == 77
    interval = anytime_interval(payload["robust"], payload["n"], total=77)
    assert found["robust_accuracy_interval"] == list(interval) and interval[1] - interval[0] <= 0.6
    assert claim(found) in said and "for all 77 images" in claim(found)
    assert set(pq.read_table(found["outcomes"])["image_id"].to_pylist()) == set(
        read_rows(Storage(subject.dataset.uri), "test", rows_of(first)).image_ids.tolist()
    )


@pytest.mark.fault
def test_the_card_of_a_model_brought_along_is_that_of_its_images_and_is_made_once(
    on_the_shelf: Path, held_out: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{OF_DIGITS} --storage {tmp_path} --card"
    printed, folder = evaluated(words, on_the_shelf)
    card = json.loads((folder / "card.json").read_text())
    assert f"robustness card: {card['verdict']}" in printed and card["n"] == 40
    assert all(reason in printed for reason in card["reasons"])

    attack = AttackSpec(threat_model=ThreatModel("linf", 40 / 255), steps=20, step_size=8 / 255)
    model, split = (
        load_source("function", "external_models:digits")[0],
        held_out.take(sampled_rows(77, 40, seed=0)),
    )
    assert (
        json.loads(json.dumps(robustness_card(model, split, attack=attack, seed=0, slots=16)))
        == card
    )

    external.evaluate_external(options(words))
    assert "robustness card: 40 images" not in capsys.readouterr().out, "computed again"


def test_a_folder_of_another_evaluation_says_what_differs(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ours = {"model": {"digest": "a"}, "data": {"hash": "x"}, "attacks": [], "seed": 0}
    claim_evaluation(storage, ours)
    claim_evaluation(storage, ours)
    words = r"differs in: model \(its weights or its code\), seed; choose another --name"
    with pytest.raises(ValueError, match=words):
        claim_evaluation(storage, ours | {"model": {"digest": "b"}, "seed": 1})
