"""Image folders: one sub-folder per class, perhaps below train/, val/ and test/."""

import os
from collections.abc import Collection, Sequence

import numpy as np

from sat_ray.class_names import normal
from sat_ray.data.images import Place
from sat_ray.data.remote import Folder, RemotePath
from sat_ray.data.source import LayoutError, Listing
from sat_ray.data.split import SPLITS

IMAGE_FOLDER_LAYOUT = (
    "CLASS/IMAGE (split by hash, a tenth each for test and val), or train/CLASS/IMAGE with test/CLASS/IMAGE, val/CLASS/IMAGE or both; "
    "without test/, val/ is the test split; without a val split, a tenth of train is taken by hash"
)
SUFFIXES = (".png", ".jpg", ".jpeg")
Found = list[tuple[str, str]]  # (class, path below the folder)


def entries(folder: Folder, *, folders: bool) -> list[str]:
    """Return the names of the visible sub-folders of a folder, or of its visible files, sorted."""
    if isinstance(folder, RemotePath):
        return [name for name in folder.entries(folders=folders) if not name.startswith(".")]
    with os.scandir(folder) as found:
        return sorted(one.name for one in found if one.is_dir() == folders and not one.name.startswith("."))


def is_loose(name: str) -> bool:
    """Say whether a file beside class folders, by its name, is an image that nobody would read."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def class_files(folder: Folder) -> Found:
    """List every visible file in the sub-folders of a folder, by class, then by file name. Raises LayoutError where there is none.

    Nothing is looked into: a file that is no image is found when it is decoded, and counts as a corrupt image.
    """
    found = [(name, f"{name}/{file}") for name in entries(folder, folders=True) for file in entries(folder / name, folders=False)]
    if not found:
        raise LayoutError(f"{folder.name}/ has no files in sub-folders")
    return found


def list_image_folder(path: Folder) -> Listing:
    """List an image folder; the image id is the place in the order train, val, test, then class, then file name.

    Raises LayoutError where no class or no image is found, where images lie beside the class folders, or where a split has a class that
    train has not.
    """
    if not path.is_dir():
        raise LayoutError("it is not a folder")
    parts = {name: path / name for name in SPLITS if (path / name).is_dir()}
    if "train" not in parts:
        parts = {"train": path}
    found = {split: class_files(folder) for split, folder in parts.items()}
    for one in (path, *parts.values()):
        if loose := [name for name in entries(one, folders=False) if is_loose(name)]:
            raise LayoutError(f"{one.name}/ has images beside its folders ({len(loose)}, {loose[0]} first)")
    listed = _listing(path, {split: [(name, parts[split] / file) for name, file in files] for split, files in found.items()})
    if len(listed.class_names) < 2:
        raise LayoutError(f"it has {len(listed.class_names)} class, and a classifier needs two")
    return listed


def _other_classes(split: str, foreign: Sequence[str], known: Collection[str]) -> str:
    """Say which classes train/ lacks, and which it has in another Unicode form."""
    written = {normal(name): name for name in known}
    for name in foreign:
        if (twin := written.get(normal(name))) is not None:
            return (
                f"{split}/{name} and train/{twin} look alike, but their accented letters are of two "
                f"Unicode forms ({name!a} and {twin!a}); rename one folder as the other"
            )
    return f"{split}/ has classes that train/ has not: {', '.join(foreign[:3])}"


def _listing(root: Folder, parts: dict[str, list[tuple[str, Folder]]]) -> Listing:
    """Join the (class, file) pairs of several splits, train first; a lone val split is what there is to test on."""
    classes = sorted({name for name, _ in parts["train"]})
    index = {name: number for number, name in enumerate(classes)}
    places: list[Place] = []
    labels: list[int] = []
    held_out: dict[str, np.ndarray] = {}
    for split, files in parts.items():
        if foreign := sorted({name for name, _ in files} - index.keys()):
            raise LayoutError(_other_classes(split, foreign, index))
        if split != "train":
            held_out[split] = np.arange(len(places), len(places) + len(files))
        places += [Place(str(file).removeprefix(f"{root}/"), str(file)) for _, file in files]
        labels += [index[name] for name, _ in files]
    if "val" in held_out and "test" not in held_out:
        held_out["test"] = held_out.pop("val")
    return Listing(places, np.array(labels, dtype=np.int64), tuple(classes), held_out)
