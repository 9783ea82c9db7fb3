"""What a prepared dataset holds, and what is odd about it, in one line."""

from sat_ray.data.class_names import numbers_out_of_order
from sat_ray.data.shards.manifest import MANIFEST
from sat_ray.data.sources.registry import DATASETS
from sat_ray.sweep.tasks import Dataset

SHOWN_IMAGES = 3


def described(dataset: Dataset) -> str:
    """Return what a prepared dataset holds and where it is, and what is odd about it."""
    splits = dataset.manifest["splits"]
    classes = len(dataset.manifest["class_names"])
    stored = ", ".join(f"{splits[name]:,} {name}" for name in ("train", "val"))
    stored += f" and {splits['test']:,} test images of {classes:,} classes in {dataset.uri}"
    mixed_up = numbers_out_of_order(dataset.manifest["class_names"])
    odd = (*other_counts(dataset), mixed_up, enlarged(dataset), left_out(dataset))
    return "; ".join(filter(None, (stored, *odd)))


def other_counts(dataset: Dataset) -> list[str]:
    """Return warnings where a dataset has not the classes or images that it is known for.

    One that was not unpacked to its end lacks some.
    """
    manifest = dataset.manifest
    source = DATASETS.get(manifest["dataset"])
    if source is None:
        return []
    images = sum(manifest["splits"].values()) + len(manifest.get("corrupt", []))
    images += manifest.get("test_images", {}).get("left_out", 0)  # a list chose the others
    found = {
        "classes": (source.classes, len(manifest["class_names"])),
        "images": (source.images, images),
    }
    return [
        f"{manifest['dataset']} has {known:,} {what}, this one {here:,}"
        for what, (known, here) in found.items()
        if known not in (0, here)
    ]


def enlarged(dataset: Dataset) -> str:
    """Return how many images were smaller than they are stored; "" where none was."""
    count = dataset.manifest.get("enlarged", 0)
    _, height, width = dataset.manifest["shape"]
    return f"images smaller than {width} x {height}, enlarged: {count:,}" if count else ""


def left_out(dataset: Dataset) -> str:
    """Name the images that could not be read when a dataset was prepared; "" where all could."""
    corrupt = dataset.manifest.get("corrupt", [])
    if not corrupt:
        return ""
    shown = "; ".join(f"{one['image']} ({one['reason']})" for one in corrupt[:SHOWN_IMAGES])
    more = f" and {len(corrupt) - SHOWN_IMAGES} more" if len(corrupt) > SHOWN_IMAGES else ""
    return (
        f"corrupt images left out, {len(corrupt)}: {shown}{more}; "
        f"all are listed in {dataset.uri}/{MANIFEST}"
    )
