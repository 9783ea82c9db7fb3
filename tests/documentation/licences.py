"""The table of licences of docs/reference/dependencies.md; run this file to print it."""

import re
from collections import defaultdict
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITH_SAT_RAY = "cluster/images/requirements-ray.txt"
ALL = ("requirements.lock", "requirements-no-deps.lock")
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
# of packages whose metadata have no name of a licence: what the licence file in them says
FROM_THEIR_FILES = {
    "cuda-toolkit": NVIDIA,  # an empty package that needs NVIDIA's libraries
    "huey": "MIT",
    "skops": "MIT",
}
# what metadata write, by name: the exact one where both a classifier and a text are there
SPELLINGS = {
    "MIT": ("MIT License", "MIT license", "MIT Licence"),
    "Apache-2.0": (
        "Apache 2.0",
        "Apache",
        "Apache License 2.0",
        "Apache License, Version 2.0",
        "Apache Software License",
    ),
    "BSD-3-Clause": ("BSD 3-Clause License", "3-Clause BSD License"),
    "BSD-2-Clause": (),
    "BSD": ("BSD License",),
    "PSF-2.0": (),
    "PSF": ("Python Software Foundation License",),
    "MPL-2.0": ("Mozilla Public License 2.0 (MPL 2.0)",),
    "MPL-2.0 AND MIT": (),
    "ISC": ("ISC license", "ISC License (ISCL)"),
    "GPL-3.0": (),
    NVIDIA: ("NVIDIA Proprietary Software", "Other/Proprietary License"),
}
NAMES = {text: name for name, texts in SPELLINGS.items() for text in (name, *texts)}


def pinned(file: str) -> set[str]:
    """Return the packages that a file of requirements pins."""
    return set(re.findall(r"(?m)^([\w.-]+)(?:\[.*\])?==", (ROOT / file).read_text()))


def licence(package: str) -> str:
    """Return the licence that an installed package states."""
    if package in FROM_THEIR_FILES:
        return FROM_THEIR_FILES[package]
    about = metadata(package)
    if expression := about.get("License-Expression"):
        return str(expression)
    stated = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or ()]
    texts = [str(about.get("License", "")).partition("\n")[0], *stated]
    found = next((NAMES[text] for text in texts if text in NAMES), None)
    assert found, f"{package} states no licence that NAMES lists: {texts}"
    return found


def table() -> list[str]:
    """Return the rows: a licence, packages that come with sat_ray, and the other ones."""
    core = pinned(WITH_SAT_RAY)
    rows: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for package in sorted({name for file in ALL for name in pinned(file)}):
        rows[licence(package)][package not in core].append(package)
    shown = [
        "| licence | with `pip install sat_ray` | extras, tests, documentation |",
        "|---|---|---|",
    ]
    for name, groups in sorted(rows.items(), key=lambda row: -sum(map(len, row[1]))):
        brought, others = (", ".join(group) for group in groups)
        shown.append(f"| {name} | {brought} | {others} |")
    return shown


if __name__ == "__main__":
    print("\n".join(table()))
