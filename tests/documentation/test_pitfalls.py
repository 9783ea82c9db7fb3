"""docs/pitfalls.md: every test that it names is there."""

import ast
import re

import pytest
from repository import ROOT, TESTS

PAGE = (ROOT / "docs" / "pitfalls.md").read_text()
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ") and "what goes wrong" not in row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_pitfall_is_answered_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
    assert named
    for file, name in named:
        (path,) = TESTS.rglob(file)
        functions = {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{file} has no {name}"
