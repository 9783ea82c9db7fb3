"""ImageNet (ILSVRC 2012) from class folders or from the official tar files.

Tar files are read in place and never unpacked.

Classes are WordNet ids in alphabetical order. The image id is the place in the official order: the
train images by class and file name, then the 50,000 validation images by file name. Both layouts
hold the same files, so they make the same dataset.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sat_ray.data.sources.base import LayoutError, Listing, Place
from sat_ray.data.sources.image_folder import class_files
from sat_ray.storage.s3_path import Folder

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
VAL_IDS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"
IMAGENET_LAYOUT = (
    f"a folder with train/WNID/*.JPEG or {TRAIN_TAR}, and with val/WNID/*.JPEG or {VAL_TAR} "
    f"beside {DEVKIT} or {VAL_IDS} (50,000 lines, the WordNet id of each validation image in order)"
)
Labelled = tuple[str, Place]  # (WordNet id, where the image is)


def list_imagenet(path: Folder) -> Listing:
    """List ImageNet below a folder; both halves in either layout.

    Raises LayoutError naming what is missing or wrong.
    """
    if not path.is_dir():
        raise LayoutError("it is not a folder")
    train = sorted(_train(path), key=lambda one: (one[0], one[1].name))
    val = sorted(_val(path), key=lambda one: one[1].name)
    classes = sorted({name for name, _ in train})
    index = {name: number for number, name in enumerate(classes)}
    if unknown := sorted({name for name, _ in val} - index.keys()):
        raise LayoutError(
            f"validation images have classes that train has not: {', '.join(unknown[:3])}"
        )
    both = train + val
    labels = np.array([index[name] for name, _ in both], dtype=np.int64)
    return Listing(
        [place for _, place in both],
        labels,
        tuple(classes),
        held_out={"test": np.arange(len(train), len(both))},
    )


def _train(path: Folder) -> list[Labelled]:
    if (path / "train").is_dir():
        return _folder(path / "train")
    if not (path / TRAIN_TAR).is_file():
        raise LayoutError(f"it has neither train/ nor {TRAIN_TAR}")
    found = []
    try:
        with (path / TRAIN_TAR).open("rb") as stream, tarfile.open(fileobj=stream) as outer:
            for member in outer:
                inner = outer.extractfile(member) if member.name.endswith(".tar") else None
                if inner is not None:
                    name = Path(member.name).stem
                    found += [
                        (name, place)
                        for place in _places(path / TRAIN_TAR, inner, start=member.offset_data)
                    ]
    except (tarfile.TarError, EOFError) as error:
        raise LayoutError(f"{TRAIN_TAR} is damaged ({error})") from None
    if not found:
        raise LayoutError(f"{TRAIN_TAR} holds no tar files of classes")
    return found


def _val(path: Folder) -> list[Labelled]:
    if (path / "val").is_dir():
        return _folder(path / "val")
    if not (path / VAL_TAR).is_file():
        raise LayoutError(f"it has neither val/ nor {VAL_TAR}")
    try:
        with (path / VAL_TAR).open("rb") as stream:
            places = sorted(_places(path / VAL_TAR, stream, start=0), key=lambda place: place.name)
    except (tarfile.TarError, EOFError) as error:
        raise LayoutError(f"{VAL_TAR} is damaged ({error})") from None
    names = _val_wordnet_ids(path)
    if len(names) != len(places):
        raise LayoutError(
            f"{VAL_TAR} has {len(places)} images and its ground truth {len(names)} lines"
        )
    return list(zip(names, places, strict=True))


def _folder(folder: Folder) -> list[Labelled]:
    return [
        (name, replace(place, name=place.name.rpartition("/")[2]))
        for name, place in class_files(folder)
    ]


def _places(archive: Folder, stream: object, *, start: int) -> Iterator[Place]:
    """Yield every file of an uncompressed tar as a range of an archive's bytes.

    start: the byte of the archive at which the tar begins.
    """
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            if member.isfile():
                yield Place(
                    Path(member.name).name, str(archive), start + member.offset_data, member.size
                )


def _val_wordnet_ids(path: Folder) -> list[str]:
    """Return the class of each validation image, in order.

    The classes come from the text file or the development kit.
    """
    if (path / VAL_IDS).is_file():
        return (path / VAL_IDS).read_text().split()
    if not (path / DEVKIT).is_file():
        raise LayoutError(f"{VAL_TAR} needs {DEVKIT} or {VAL_IDS} beside it")
    wanted: dict[str, bytes] = {}
    try:
        with (path / DEVKIT).open("rb") as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                stream = (
                    tar.extractfile(member) if member.name.endswith((GROUND_TRUTH, META)) else None
                )
                if stream is not None:
                    wanted[GROUND_TRUTH if member.name.endswith(GROUND_TRUTH) else META] = (
                        stream.read()
                    )
        numbers = [int(line) for line in wanted[GROUND_TRUTH].split()]
        names = _wordnet_ids(wanted[META])
        return [names[number] for number in numbers]
    except (tarfile.TarError, EOFError, ValueError, KeyError) as error:
        raise LayoutError(
            f"{DEVKIT} does not give the classes of the validation images "
            f"({type(error).__name__}: {error})"
        ) from None


def _wordnet_ids(meta: bytes) -> dict[int, str]:
    """Read the development kit's meta.mat: ILSVRC2012_ID -> WordNet id."""
    from scipy.io import loadmat  # plain MATLAB arrays; no objects are made

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {
        int(number): str(name)
        for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
    }
