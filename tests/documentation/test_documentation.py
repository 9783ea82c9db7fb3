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
    text = "".join(Page((site / "explanation" / "five-ways" / "index.html").read_text()).text)
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
    docs = ROOT / "docs"
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks", "cluster"])
def test_links_of_pages_outside_the_documentation_lead_somewhere(page: str) -> None:
    path = ROOT / page
    path = path / "README.md" if path.is_dir() else path
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    assert links
    for link in links:
        target, anchor = urldefrag(link)
        if re.match(r"[a-z]+:", link) or not target:
            continue
        there = path.parent / target
        assert there.exists(), f"{page} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert anchor in anchors, f"{page}: no {link}"


NAMING = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    ROOT / "benchmarks" / "README.md",
]


def test_every_python_file_and_every_test_that_a_page_names_is_there() -> None:
    files = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("[!.]*/**/*.py")]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in NAMING:
        text = page.read_text()
        for name in re.findall(r"`([\w/]+\.py)[`: ]", text):
            assert any(path.endswith(f"/{name}") for path in files), f"{page} names {name}"
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{page} names {name}"


@pytest.mark.parametrize(
    ("page", "most"), [("README.md", 1200), ("docs/explanation/architecture.md", 900)]
)
def test_what_everybody_reads_first_stays_short(page: str, most: int) -> None:
    assert len((ROOT / page).read_text().split()) <= most


def test_every_test_that_the_makefile_runs_is_there() -> None:
    named = re.findall(r"\btests/[\w/]+\.py", (ROOT / "Makefile").read_text())
    assert named and all((ROOT / name).is_file() for name in named)


def test_every_page_that_the_code_names_is_there() -> None:
    for path in [*(ROOT / "sat_ray").rglob("*.py"), *(ROOT / "pipelines").glob("*.py")]:
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text()):
            assert (ROOT / page).is_file(), f"{path.relative_to(ROOT)} names {page}"
