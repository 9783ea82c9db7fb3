"""Small archives in the official formats of CIFAR and ImageNet, written byte by byte:
nothing of the readers is used.
"""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WORDNET_IDS = ("n01440764", "n01443537", "n02084071")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Put a file into a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tarred(files: dict[str, bytes], *, mode: str = "w") -> bytes:
    """Return a tar of some files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            add(tar, name, data)
    return sink.getvalue()


# --- pickles as Python 2 wrote them: protocol 2, byte strings ---


def py2_string(text: bytes) -> bytes:
    """Spell a Python 2 string: SHORT_BINSTRING or BINSTRING."""
    return (
        b"U" + bytes([len(text)]) + text
        if len(text) < 256
        else b"T" + struct.pack("<i", len(text)) + text
    )


def py2_int(value: int) -> bytes:
    """Spell a whole number: BININT1, BININT2 or BININT."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return (
        b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)
    )


def py2_list(items: list[bytes]) -> bytes:
    """Spell a list of spelt items."""
    return b"](" + b"".join(items) + b"e"


def py2_array(array: np.ndarray) -> bytes:
    """Spell a uint8 array as numpy's own __reduce__ does."""
    kind = b"cnumpy\ndtype\n" + py2_string(b"u1") + py2_int(0) + py2_int(1) + b"\x87R"
    kind += (
        b"("
        + py2_int(3)
        + py2_string(b"|")
        + b"NNN"
        + py2_int(-1)
        + py2_int(-1)
        + py2_int(0)
        + b"tb"
    )
    start = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + py2_int(0)
        + b"\x85"
        + py2_string(b"b")
        + b"\x87R"
    )
    shape = b"".join(map(py2_int, array.shape)) + b"\x86"
    return start + b"(" + py2_int(1) + shape + kind + b"\x89" + py2_string(array.tobytes()) + b"tb"


def py2_pickle(items: dict[bytes, bytes]) -> bytes:
    """Spell a dictionary of spelt values."""
    return b"\x80\x02}(" + b"".join(py2_string(key) + value for key, value in items.items()) + b"u."


# --- IDX ---


def idx(array: np.ndarray) -> bytes:
    """Spell an array of uint8 as an IDX file."""
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def idx_files(
    *, train: int = 36, test: int = 6, seed: int = 0
) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Return the four files of MNIST's family, their images (N, 28, 28) and labels, train images
    first; every class is there.
    """
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    parts = {"train": slice(0, train), "t10k": slice(train, None)}
    files = {}
    for name, rows in parts.items():
        files[f"{name}-images-idx3-ubyte"] = idx(images[rows])
        files[f"{name}-labels-idx1-ubyte"] = idx(labels[rows])
    return files, images, labels


# --- CIFAR ---


def cifar_batch(rows: np.ndarray, labels: np.ndarray, *, fine: bool) -> bytes:
    """Spell a batch of the Python version. rows: (N, 3072) uint8."""
    names = py2_list([py2_string(b"image_%05d.png" % i) for i in range(len(rows))])
    numbers = py2_list([py2_int(int(label)) for label in labels])
    said = {
        b"batch_label": py2_string(b"a batch"),
        (b"fine_labels" if fine else b"labels"): numbers,
        b"data": py2_array(rows),
    }
    return py2_pickle(said | {b"filenames": names} | ({b"coarse_labels": numbers} if fine else {}))


def cifar(
    name: str, *, per_batch: int = 6, seed: int = 0
) -> tuple[dict[str, bytes], dict[str, bytes], np.ndarray, np.ndarray]:
    """Return the files of the Python and the binary version, and their images (N,
    3072) and labels in the official order.
    """
    fine, classes = name == "cifar100", 100 if name == "cifar100" else 10
    draw, batches = np.random.default_rng(seed), 2 if fine else 6
    rows = draw.integers(0, 256, (batches * per_batch, 3072), dtype=np.uint8)
    labels = draw.integers(0, classes, len(rows))
    names = [f"class {i}" for i in range(classes)]
    spelt = py2_list([py2_string(one.encode()) for one in names])
    train = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    folder, test = ("cifar-100", "test") if fine else ("cifar-10-batches", "test_batch")
    python, binary = {}, {}
    for number, batch in enumerate([*train, test]):
        part = slice(number * per_batch, (number + 1) * per_batch)
        python[f"{folder}-{'python' if fine else 'py'}/{batch}"] = cifar_batch(
            rows[part], labels[part], fine=fine
        )
        head = (
            [labels[part] // 5, labels[part]] if fine else [labels[part]]
        )  # the coarse label first
        records = np.concatenate(
            [*(column.astype(np.uint8)[:, None] for column in head), rows[part]], axis=1
        )
        binary[f"{folder}-{'binary' if fine else 'bin'}/{batch}.bin"] = records.tobytes()
    if fine:
        python["cifar-100-python/meta"] = py2_pickle(
            {b"fine_label_names": spelt, b"coarse_label_names": py2_list([])}
        )
        binary["cifar-100-binary/fine_label_names.txt"] = "\n".join(names).encode() + b"\n"
    else:
        python["cifar-10-batches-py/batches.meta"] = py2_pickle(
            {b"num_cases_per_batch": py2_int(10000), b"label_names": spelt}
        )
        binary["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(names).encode() + b"\n\n"
    return python, binary, rows, labels


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- images and ImageNet ---


def image_file(
    seed: int, size: tuple[int, int] = (40, 30), *, mode: str = "RGB", kind: str = "JPEG"
) -> bytes:
    """Return a smooth picture (width, height) as a file."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(
        sink, format=kind
    )
    return sink.getvalue()


def imagenet(*, per_class: int = 8, val: int = 9) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return a small ImageNet as class folders and as the official tar files,
    images of several sizes.
    """
    sizes = ((40, 30), (30, 40), (33, 33), (64, 31))
    train = {
        wordnet_id: {
            f"{wordnet_id}_{i}.JPEG": image_file(100 * c + i, sizes[i % 4])
            for i in range(per_class)
        }
        for c, wordnet_id in enumerate(WORDNET_IDS)
    }
    images = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": image_file(900 + i, sizes[i % 4]) for i in range(val)
    }
    truth = [WORDNET_IDS[i % 3] for i in range(val)]
    folders = {
        f"train/{w}/{name}": data for w, files in train.items() for name, data in files.items()
    }
    folders |= {
        f"val/{w}/{name}": data for w, (name, data) in zip(truth, images.items(), strict=True)
    }
    shuffled = dict(reversed(images.items()))  # the order inside a tar is nobody's promise
    tars = {
        "ILSVRC2012_img_train.tar": tarred(
            {f"{w}.tar": tarred(dict(reversed(train[w].items()))) for w in reversed(WORDNET_IDS)}
        ),
        "ILSVRC2012_img_val.tar": tarred(shuffled),
        "ILSVRC2012_devkit_t12.tar.gz": devkit(truth),
    }
    return folders, tars


def devkit(truth: list[str]) -> bytes:
    """Return the development kit: numbers of the classes,
    which are not in the order of the WordNet ids, and what they mean.
    """
    numbers = {
        wordnet_id: number for number, wordnet_id in enumerate(reversed(WORDNET_IDS), start=1)
    }
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array(
        [(n, w, "a thing", 0) for w, n in numbers.items()] + [(1001, "n00001740", "entity", 3)],
        dtype=fields,
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets[:, None]})
    lines = "".join(f"{numbers[w]}\n" for w in truth).encode()
    files = {
        "data/ILSVRC2012_validation_ground_truth.txt": lines,
        "data/meta.mat": meta.getvalue(),
        "readme.txt": b"hello",
    }
    return tarred(
        {f"ILSVRC2012_devkit_t12/{name}": data for name, data in files.items()}, mode="w:gz"
    )
