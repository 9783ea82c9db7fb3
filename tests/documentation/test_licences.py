"""The page of licences shows what the pinned packages state."""

from licences import ALL, ROOT, WITH_SAT_RAY, pinned, table


def test_the_page_shows_the_licence_of_every_pinned_package() -> None:
    page = (ROOT / "docs/reference/dependencies.md").read_text().splitlines()
    missing = [row for row in table() if row not in page]
    assert not missing, "print the table again: python tests/documentation/licences.py"
    assert len(page) - page.index(table()[0]) == len(table()), "a row of earlier packages is left"


def test_what_comes_with_the_package_is_pinned_and_not_under_the_gpl() -> None:
    assert {"ray", "torch", "certifi"} <= pinned(WITH_SAT_RAY) < {*pinned(ALL[0]), *pinned(ALL[1])}
    rows = [row.split(" | ") for row in table()]
    gpl = [row for row in rows if "GPL" in row[0]]
    assert len(gpl) >= 2 and not any(brought.strip() for _, brought, _ in gpl)
