"""Check that rendered manifests name images by digest: `python -m cluster.checks.pinned FILE`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from cluster.checks.documents import Document, pods

DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


def pinned_images(documents: list[Document]) -> Iterator[str]:
    """Yield one sentence for each image that a tag alone names:
    a tag may be moved to another image.
    """
    tags: dict[str, list[str]] = {}
    for pod in pods(documents):
        for container in pod.containers:
            if not DIGEST.fullmatch(container["image"]):
                tags.setdefault(container["image"], []).append(f"{pod.where}, {container['name']}")
    for image, places in tags.items():
        yield (
            f"{image} ({places[0]}) has no digest; add it to `images:` of your overlay "
            "(cluster/README.md)"
        )


def main(arguments: list[str]) -> int:
    """Print what is not pinned, and return 1 where anything is not."""
    documents = [
        document for document in yaml.safe_load_all(Path(arguments[0]).read_text()) if document
    ]
    found = list(pinned_images(documents))
    print("\n".join(found) or "every image is named by its digest")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
