"""report.html as people open it: from a file, on a phone and on a desk, light and dark, printed,
without scripts.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from small_sweep import Made

pytestmark = pytest.mark.browser
WIDTHS = {
    "phone": (390, 844),
    "tablet": (800, 1100),
    "window": (1000, 800),
    "laptop": (1080, 800),
    "desktop": (1280, 900),
}


@pytest.fixture(
    params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids="-".join
)
def opened(
    request: pytest.FixtureRequest, browser: Browser, made: Made
) -> Iterator[tuple[Page, list[str], list[str]]]:
    """Open the report and return it with what the console complained of and what was requested."""
    width, scheme = request.param
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    page, complaints, requests = context.new_page(), list[str](), list[str]()
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((made.folder / "report.html").as_uri())
    yield page, complaints, requests
    context.close()


def column(page: Page, table: str, heading: str) -> list[str]:
    """Return the cells of a table's column, from top to bottom."""
    heads = page.locator(f"{table} thead th").all_inner_texts()
    index = next(place for place, text in enumerate(heads) if text.strip().startswith(heading))
    return [
        row.locator("td").nth(index).inner_text().strip()
        for row in page.locator(f"{table} tbody tr").all()
    ]


def test_the_page_reads_without_complaint_offline_and_without_scrolling_sideways(
    opened: Any, made: Made
) -> None:
    page, complaints, requests = opened
    assert page.locator("h1").inner_text() == made.board["headline"]["sentence"] + "."
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert cut_off(page) == []
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    pictures = page.locator("figure img")
    assert pictures.count() >= 6
    assert all(
        picture.evaluate("image => image.complete && image.naturalWidth > 300")
        for picture in pictures.all()
    )


def cut_off(page: Page) -> list[str]:
    """Return the sections with a table wider than its place:
    its last columns would have to be scrolled for.
    """
    found: list[str] = page.evaluate(
        """[...document.querySelectorAll(".scroll")]
        .filter(box => box.scrollWidth > box.clientWidth + 1)
        .map(box => `${box.closest("section").id}: ${box.scrollWidth} of ${box.clientWidth} pixels`)
        """
    )
    return found


def test_text_stands_out_from_its_ground_in_both_schemes(opened: Any) -> None:
    page, _, _ = opened
    for selector in (
        "h1",
        "#leaderboard p.faint",
        "#leaderboard tbody td.name",
        "nav a",
        ".cards span",
        "#reproduce pre",
    ):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.1, level AA


def contrast(page: Page, selector: str) -> float:
    """Return the contrast ratio of an element's text with
    the first opaque ground below it (WCAG 2.1, 1.4.3).
    """
    colours = page.locator(selector).first.evaluate(
        """element => { const text = getComputedStyle(element).color; let ground = element;
        while (ground && /rgba\\(.*, 0\\)/.test(getComputedStyle(ground).backgroundColor))
          ground = ground.parentElement;
        return [text, getComputedStyle(ground || document.body).backgroundColor]; }"""
    )
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_headings_sort_the_leaderboard_both_ways(opened: Any, made: Made) -> None:
    page, _, _ = opened
    means = {
        group["configuration"]: group["clean_accuracy"]["mean"] for group in made.board["groups"]
    }
    button = page.locator("#leaderboard thead button", has_text="clean")
    for direction, reverse in (("descending", True), ("ascending", False)):
        button.click()
        names = [name.removesuffix(" ★") for name in column(page, "#leaderboard", "configuration")]
        assert [means[name] for name in names] == sorted(means.values(), reverse=reverse)
        assert (
            page.locator("#leaderboard th", has_text="clean").get_attribute("aria-sort")
            == direction
        )
    page.locator("#leaderboard thead button", has_text="configuration").click()
    names = column(page, "#leaderboard", "configuration")
    assert names == sorted(names)


def test_the_page_answers_which_activation_at_what_cost_and_whether_it_is_real(
    opened: Any, made: Made
) -> None:
    page, _, _ = opened
    assert set(column(page, "#differences", "configuration")) == {"silu", made_alpha(made)}
    assert set(column(page, "#differences", "real?")) <= {"yes", "within noise", "not after Holm"}
    assert len(column(page, "#cost", "training time")) == 3
    assert (
        "python pipelines/sweep.py digits_smoke --search.activations relu silu:1"
        in page.locator("#reproduce pre").first.inner_text()
    )
    assert made.board["rows"][0]["mlflow_run_id"] in str(
        page.locator("#rows a").first.get_attribute("href")
    )
    for wanted in (
        "dataset",
        "config",
        "training code",
        "torch",
        "computed: 20",
        "report written:",
        "code: sat_ray",
    ):
        assert wanted in page.locator("#reproduce").inner_text()


def test_the_page_says_what_every_stage_took_and_was_expected_to_take(
    opened: Any, made: Made
) -> None:
    page, _, _ = opened
    table, cost = "#took > .scroll > table", made.board["cost"]
    assert column(page, table, "stage") == [*(stage["name"] for stage in cost["stages"]), "total"]
    spent, expected = (
        column(page, table, heading) for heading in ("accelerator-seconds", "estimated")
    )
    assert spent[-1] == f"{cost['total']['accelerator_seconds']:,.0f}"
    assert (
        expected[-1] == f"{cost['total']['estimated_accelerator_seconds']:,.0f}"
        and "no estimate" not in expected
    )
    assert (
        len(column(page, "#leaderboard", "EUR")) == 3
        and len(column(page, "#rows > .scroll > table", "EUR")) == 9
    )
    page.locator("#took summary").click()
    assert len(column(page, "#took details table", "trial")) == len(cost["trials"]) == 4


def made_alpha(made: Made) -> str:
    """Return the name of the parametric softplus that came through the search."""
    return next(
        group["configuration"]
        for group in made.board["groups"]
        if group["activation"] == "parametric_softplus"
    )


def test_without_scripts_and_on_paper_everything_is_still_there(
    browser: Browser, made: Made
) -> None:
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 794, "height": 1123}
    )  # A4 at 96 dots per inch
    page = context.new_page()
    page.goto((made.folder / "report.html").as_uri())
    best_first = [group["configuration"] for group in made.board["groups"]]
    assert [
        name.removesuffix(" ★") for name in column(page, "#leaderboard", "configuration")
    ] == best_first
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("nav").is_visible()
    assert (
        luminance(page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"))
        == 1.0
    )  # white, whatever the scheme
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert (
        5 <= printed.count(b"/Type /Page\n") <= 9
    )  # checkpoint paths alone once took half of eleven
    context.close()
