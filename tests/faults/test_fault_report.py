"""How faults are dealt to sweeps, and what their page says; the faults themselves:
tests/run_faults.py.
"""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from repository import ROOT
from run_faults import first_sweep

from faults.injections import KINDS
from faults.report import brief, merged, page
from faults.victim import Left

QUIET = Left(
    rows=[], outcomes={}, stages={"search": 20.0, "train": 45.0, "evaluate": 18.0}, seconds=187.0
)


@pytest.mark.parametrize("each", [1, 3])
def test_every_drawn_fault_is_in_one_sweep_with_no_more_than_allowed_in_a_stage(each: int) -> None:
    drawn = random.Random(1).choices(list(KINDS.values()), k=40)
    sweeps, waiting = [], drawn
    while waiting:
        now, waiting = first_sweep(waiting, each=each)
        sweeps.append(now)
    assert Counter(kind.name for sweep in sweeps for kind in sweep) == Counter(
        kind.name for kind in drawn
    )
    for sweep in sweeps:
        assert max(Counter(kind.stage for kind in sweep).values()) <= each
        assert len(sweep) == 1 or not any(kind.alone for kind in sweep)


def test_the_page_says_what_a_fault_cost_what_failed_and_what_was_not_run(tmp_path: Path) -> None:
    survived = {
        "kind": "node",
        "stage": "train",
        "sweep": "sweep0",
        "wrong": [],
        "measured": "train",
        "seconds": 60.0,
    }
    failed = {
        "kind": "trial",
        "stage": "search",
        "sweep": "sweep0",
        "wrong": ["an outcome is lost"],
    }
    found = merged(
        tmp_path,
        [survived | {"repeated_seconds_at_most": 2.0}, failed],
        QUIET,
        chaos=False,
        outage=60.0,
        command="it",
    )
    text = page(found, {})
    lines = {
        line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")
    }
    assert "| survived | 15 | 2 |" in lines["node"]
    assert "| **not survived**: an outcome is lost | – | – |" in lines["trial"]
    assert "| not measured | – | – |" in lines["head"]
    assert "`it` on" in text and "took 187 s (search 20, train 45, evaluate 18)" in text


def test_the_page_shows_single_tests_and_a_kubernetes_and_what_was_not_measured() -> None:
    tried = {"fault": "a kill", "effect": "survived", "test": "test_it"}
    quickest = QUIET.stages | {"sweep": QUIET.seconds}
    found = {"kinds": {}, "chaos": [], "undisturbed": quickest, "one_machine": [tried]}
    seen = {
        "rights": {"list pods": "no"},
        "pod deleted": {"result": 212.4, "zero pods": "not measured", "equal_numbers": False},
        "head deleted": {
            "result": 1.0,
            "zero pods": 2.0,
            "equal_numbers": True,
            "reused": "search 4 of 4",
        },
        "several nodes: undisturbed": {"equal_numbers": True, "peak_mib": {"all pods": 4000}},
        "undisturbed": {"result": 300.0, "zero pods": 400.0, "equal_numbers": True},
    }
    text = page(found, seen)
    assert "| a kill | survived | not measured | `test_it` |" in text
    assert text.splitlines()[-4:] == [
        "| undisturbed | not measured | 300 | 400 | not measured | – | yes |",
        f"| pod deleted | not measured | 212{' | not measured' * 2} | – | **no** |",
        "| head deleted | not measured | 1 | 2 | not measured | search 4 of 4 | yes |",
        f"| several nodes: undisturbed{' | not measured' * 3} | 4000 | – | yes |",
    ]
    assert "rights" not in text.partition("## On a Kubernetes")[2]


def test_of_an_error_the_page_keeps_its_first_line_and_its_cause_and_no_path() -> None:
    text = (
        'AssertionError: sweep ended with 1:\nFile "/home/me/sweep.py", line 3, in '
        "main\nray.ActorDiedError: it died\n  pid: 7"
    )
    assert brief(text) == "AssertionError: sweep ended with 1: ray.ActorDiedError: it died"
    assert brief("an outcome is lost") == "an outcome is lost"


def test_the_page_of_the_documentation_shows_the_recorded_faults() -> None:
    reference = ROOT / "docs" / "reference"
    found = json.loads((reference / "faults.json").read_text())
    seen = json.loads((ROOT / "docs" / "kubernetes.json").read_text())["scenarios"]
    assert page(found, seen) == (reference / "faults.md").read_text(), (
        "make it again: python tests/faults/report.py"
    )
