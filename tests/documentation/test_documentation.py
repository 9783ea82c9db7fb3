"""The documentation builds without a warning, renders every include, and has no dead link."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from sweeps import ROOT

RAW = (
    "--8",
    "::: sat_ray",
    "[TOC]",
)  # of Markdown extensions; a page that shows one was not rendered


class Page(HTMLParser):
    """Collect what a page links to, the anchors that it has, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and anchors."""
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        """Note where hidden text ends."""
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        """Note visible text."""
        if not self._hidden:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation as `make docs` does, in a copy, and return its folder."""
    copy = tmp_path_factory.mktemp("documentation")
    shutil.copy(ROOT / "mkdocs.yml", copy)
    for name in ("docs", "sat_ray"):
        shutil.copytree(ROOT / name, copy / name)
    command = [Path(sys.executable).parent / "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def test_no_include_or_directive_is_left_unrendered(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for path in pages:
        text = "".join(Page(path.read_text()).text)
        for raw in RAW:
            assert raw not in text, f"{path.relative_to(site)} shows {raw!r}"


def test_the_samples_of_the_five_ways_are_those_of_the_demonstration(site: Path) -> None:
    text = "".join(Page((site / "five-ways" / "index.html").read_text()).text)
    source = (ROOT / "docs" / "demos" / "five_ways.py").read_text()
    samples = re.findall(r"# --8<-- \[start:\w+\]\n(.*?)# --8<-- \[end", source, re.S)
    assert len(samples) == 5
    for sample in samples:
        assert sample.strip() in text


def test_every_link_and_picture_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link) or path.name == "404.html":
                continue
            target, anchor = urldefrag(unquote(link))
            there = (path.parent / target).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{path.relative_to(site)} links to {link}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors, f"{path.relative_to(site)}: no {link}"


def test_pages_of_the_navigation_are_all_pages() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}
