"""Image folders: one sub-folder per class, perhaps below train/, val/ and test/.

A class has every image below its folder, however deep, in the order of torchvision's ImageFolder:
by folder, then by name. Names that begin with a dot are left out. Everything else that would not be
read is refused: a forgotten image is not noticed later.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sat_ray.data.class_names import doubled, normal
from sat_ray.data.images import SUFFIXES
from sat_ray.data.sources.base import LayoutError, Listing, Place
from sat_ray.data.split_ids import SPLITS
from sat_ray.storage.s3_path import Folder, RemotePath
from sat_ray.utils.names import printable

IMAGE_FOLDER_LAYOUT = (
    "CLASS/IMAGE (split by hash, a tenth each for test and val), or train/CLASS/IMAGE with "
    "test/CLASS/IMAGE, val/CLASS/IMAGE or both; without test/, val/ is the test split; without a "
    f"val split, a tenth of train is taken by hash; images are {', '.join(SUFFIXES)} of 8 bits"
)
# words in the names of splits of other layouts: training_set, seg_test, val2017
NEAR_SPLITS = ("training", "trainset", "valid", "validation", "testing", "testset", "eval", "dev")
Found = list[tuple[str, Place]]  # (class, where the image is)


def entries(folder: Folder, *, folders: bool) -> list[str]:
    """Return the names of the visible sub-folders of a folder, or of its visible files, sorted."""
    if isinstance(folder, RemotePath):
        return [name for name in folder.entries(folders=folders) if not name.startswith(".")]
    with os.scandir(folder) as found:
        return sorted(
            one.name for one in found if one.is_dir() == folders and not one.name.startswith(".")
        )


def class_files(folder: Folder) -> Found:
    """List the images of every class, the sub-folders of a folder. Raises LayoutError.

    Refused are a class without images, files that are no images by their names, and images beside
    the classes. Nothing is opened: a file that holds no image is found when it is decoded.
    """
    found: Found = []
    empty = []
    for name in entries(folder, folders=True):
        files = sorted(_below(folder / name, path=name, seen=(_identity(folder / name),)))
        if not files:
            empty.append(name)
        for path, file, stamp in files:
            found.append((name, Place(f"{path}/{file}", f"{folder}/{path}/{file}", stamp=stamp)))
    if not found:
        raise LayoutError(f"{printable(folder.name)}/ has no files in sub-folders")
    if name := doubled(sorted({name for name, _ in found})):
        raise LayoutError(
            f"{printable(folder.name)}/ has two folders for the class {printable(name)}, one in "
            "each Unicode form, NFC and NFD; put their images into one folder"
        )
    if strange := [place.name for _, place in found if not is_image(place.name)]:
        raise LayoutError(
            f"{printable(folder.name)}/ has {len(strange)} files that are no images by their "
            f"names, {printable(strange[0])} first; move them away"
        )
    if empty:
        raise LayoutError(
            f"{printable(folder.name)}/ has {len(empty)} class folders without images, "
            f"{printable(empty[0])} first; remove them, or fill them"
        )
    _refuse_loose(folder)
    return found


def is_image(name: str) -> bool:
    """Say whether a file is an image by its name."""
    return name.lower().endswith(SUFFIXES)


def _below(
    folder: Folder, *, path: str, seen: tuple[object, ...]
) -> Iterator[tuple[str, str, str]]:
    """Yield (path of its folder, name, stamp) of every visible file below a folder.

    path: of the folder, from where classes are; seen: the folders on the way here, one of which a
    link may lead back to.
    """
    for name, stamp in _stamped(folder):
        yield path, name, stamp
    for name in entries(folder, folders=True):
        identity = _identity(folder / name)
        if identity in seen:
            raise LayoutError(
                f"{printable(f'{path}/{name}')}/ is a link to a folder that it is in; remove it"
            )
        yield from _below(folder / name, path=f"{path}/{name}", seen=(*seen, identity))


def _identity(folder: Folder) -> object:
    """Return what is the same for two names of one folder."""
    if isinstance(folder, RemotePath):
        return folder
    found = folder.stat()
    return found.st_dev, found.st_ino


def _stamped(folder: Folder) -> list[tuple[str, str]]:
    """Return the visible files of a folder with size and time of the last change of each."""
    if isinstance(folder, RemotePath):
        return [(name, stamp) for name, stamp in folder.stamps() if not name.startswith(".")]
    found = []
    with os.scandir(folder) as listed:
        for one in listed:
            if not one.is_dir() and not one.name.startswith("."):
                try:
                    about = one.stat()
                except FileNotFoundError:
                    name = printable(f"{folder.name}/{one.name}")
                    raise LayoutError(f"{name} is a link to nothing; remove it") from None
                found.append((one.name, f"{about.st_size}:{about.st_mtime_ns}"))
    return found


def split_folders(path: Folder) -> dict[str, Folder]:
    """Return the folder of every split by its name; {} where a folder has classes and no splits.

    Raises LayoutError where some sub-folders are splits and others are not, and where all have
    names of splits, but other ones than train, val and test, or no classes in them.
    """
    names = entries(path, folders=True)
    likely = [name for name in names if _sounds_like_a_split(name)]
    splits = [name for name in SPLITS if name in likely and entries(path / name, folders=True)]
    if not splits and (not likely or likely != names):
        return {}
    where = f"{printable(path.name)}/"
    if flat := [name for name in names if name in SPLITS and name not in splits]:
        raise LayoutError(
            f"{where} has the split {flat[0]} without folders of classes in it; sort its images "
            "into one folder per class, or move it away"
        )
    if other := [name for name in names if name not in splits]:
        beside = f" beside {', '.join(splits)}" if splits else ""
        raise LayoutError(
            f"{where} has {len(other)} folders{beside} that are no splits, {printable(other[0])} "
            "first; name the splits train, val and test, and move the rest away"
        )
    return {name: path / name for name in splits}


def _sounds_like_a_split(name: str) -> bool:
    """Say whether a folder's name is a split's, or has a word of one in it."""
    words = re.split(r"[^a-z]+", name.lower())
    return any(word in (*SPLITS, *NEAR_SPLITS) for word in words)


def list_image_folder(path: Folder) -> Listing:
    """List an image folder.

    The image id is the place in the order train, val, test, then class, then file.

    Raises LayoutError where anything would be left out, where there are fewer than two classes, or
    where a split has a class that train has not.
    """
    if not path.is_dir():
        raise LayoutError("it is not a folder")
    parts = split_folders(path)
    if parts:
        if "train" not in parts:
            raise LayoutError(f"{printable(path.name)}/ has {' and '.join(parts)} and no train")
        _refuse_loose(path)
    parts = parts or {"train": path}
    listed = _listing(path, {split: class_files(folder) for split, folder in parts.items()})
    if len(listed.class_names) < 2:
        raise LayoutError(f"it has {len(listed.class_names)} class, and a classifier needs two")
    return listed


def _refuse_loose(folder: Folder) -> None:
    """Raise LayoutError for images beside class folders: without a class they would be left out."""
    if loose := [name for name in entries(folder, folders=False) if is_image(name)]:
        raise LayoutError(
            f"{printable(folder.name)}/ has images beside its folders ({len(loose)}, "
            f"{printable(loose[0])} first); move them into a class"
        )


def _listing(root: Folder, parts: dict[str, Found]) -> Listing:
    """Join the images of the splits, train first; without a test split, val is the test split."""
    classes = sorted({name for name, _ in parts["train"]})
    index = {name: number for number, name in enumerate(classes)}
    places: list[Place] = []
    labels: list[int] = []
    held_out: dict[str, np.ndarray] = {}
    for split, files in parts.items():
        if unknown := sorted({name for name, _ in files} - index.keys()):
            shown = ", ".join(map(printable, unknown[:3]))
            raise LayoutError(
                f"{split}/ has classes that train/ has not: {shown}{_spelling(unknown[0], classes)}"
            )
        if split != "train":
            held_out[split] = np.arange(len(places), len(places) + len(files))
        places += [replace(place, name=place.path.removeprefix(f"{root}/")) for _, place in files]
        labels += [index[name] for name, _ in files]
    if "val" in held_out and "test" not in held_out:
        held_out["test"] = held_out.pop("val")
    return Listing(places, np.array(labels, dtype=np.int64), tuple(classes), held_out)


def _spelling(name: str, classes: list[str]) -> str:
    """Return a hint where a class differs from one in train/ only by its Unicode form."""
    same = normal(name) in (normal(one) for one in classes)
    return (
        " (train/ has it in another Unicode form, NFC or NFD; rename one of the two)"
        if same
        else ""
    )
