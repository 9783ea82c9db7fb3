"""The page of licences names every package that is pinned."""

import re
from pathlib import Path

import pytest

import sat_ray

ROOT = Path(sat_ray.__file__).parents[1]
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-no-deps.lock")


@pytest.mark.parametrize("file", FILES)
def test_every_pinned_package_is_on_the_page_of_licences(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    pinned = {found[1] for line in lines if (found := re.match(r"([\w-]+)(\[\w+.*\])?==", line))}
    page = (ROOT / "docs/reference/dependencies.md").read_text()
    assert len(pinned) >= 2
    assert pinned <= set(re.findall(r"[\w-]+", page))
