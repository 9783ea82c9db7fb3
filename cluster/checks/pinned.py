"""Check that a file may be applied: images have digests, and every example was replaced.

python -m cluster.checks.pinned FILE
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from cluster.checks.documents import Document, pods

EXAMPLE = re.compile(r"\S*(?:REPLACE|111122223333|sat-ray-example|example\.internal)\S*")
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


def left_to_fill_in(text: str) -> Iterator[str]:
    """Yield one sentence for each line with a name that only its user can know."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.lstrip().startswith("#") and (found := EXAMPLE.search(line)):
            yield f"line {number} holds the example {found[0]}; put your own in its place"


def main(arguments: list[str]) -> int:
    """Print what is not pinned or not filled in, and return 1 where anything is not."""
    text = Path(arguments[0]).read_text()
    documents = [document for document in yaml.safe_load_all(text) if document]
    manifests = [document for document in documents if "kind" in document]
    found = [*pinned_images(manifests), *left_to_fill_in(text)]
    print("\n".join(found) or "every image is named by its digest, and no example is left")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
