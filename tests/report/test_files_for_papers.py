"""What a paper includes: the tables as LaTeX, and the figures as vector PDF."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import HOSTILE, board_of, evaluated, seeds_of

from sat_ray.report.figures.leaderboard import clean_against_robust, pdf, png
from sat_ray.report.latex import latex_table, latex_text
from sat_ray.report.leaderboard.tables import to_latex
from sat_ray.report.table import NAME, Column, Table, narrow

COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"$L_\infty$": "L∞",
    r"$\pm$": "±",
    r"$\alpha$": "α",
    r"$\varepsilon$": "ε",
    r"$\infty$": "∞",
    r"$\star$": "★",
    r"$\cdot$": "·",
    "$-$": "−",
    "$<$": "<",
    "$>$": ">",
    "$|$": "|",
    "--": "–",
}


def board(*, sweep: str = "a_sweep") -> dict[str, Any]:
    """Return a leaderboard with names that hold underscores and an alpha."""
    return board_of(
        [
            *seeds_of("relu", [400, 405, 398]),
            *seeds_of("parametric_softplus", [601, 604, 600], alpha=10.0),
        ],
        sweep=sweep,
    )


def shown(tex: str) -> str:
    """Return the text that LaTeX would show for what `latex_text` wrote."""
    for command, character in COMMANDS.items():
        tex = tex.replace(command, f"\0{ord(character[0])};" + character[1:])
    tex = re.sub(r"\\([&%$#_{}])", lambda found: f"\0{ord(found[1])};", tex)
    assert not re.search(r"[&%$#_\\~^<>|]", tex), f"LaTeX reads a command in {tex!r}"
    assert re.sub(r"\{[\[\]*]\}", "", tex).count("{") == 0
    tex = re.sub(r"\{(.)\}", r"\1", tex)
    return re.sub("\0(\\d+);", lambda found: chr(int(found[1])), tex)


def rows_of(tex: str) -> list[list[str]]:
    """Return the cells of every tabular line; check that environments and braces nest."""
    opened: list[str] = []
    for begins, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        if begins == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = re.sub(r"\\[{}]", "", tex)
    assert bare.count("{") == bare.count("}")
    lines = [line for line in tex.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines]


def test_the_tables_hold_the_cells_of_the_leaderboard_with_intervals() -> None:
    tex = to_latex(board())
    cells = [[shown(cell.strip()) for cell in line] for line in rows_of(tex)]
    flat = [cell for line in cells for cell in line]
    assert "parametric_softplus α=10 ★" in flat
    assert "60.2 ± 0.2" in flat, "mean and standard deviation over seeds"
    assert any(re.fullmatch(r"\+\d+\.\d to \+\d+\.\d", cell) for cell in flat), "difference to relu"
    assert any(re.fullmatch(r"60\.1 \(\d+\.\d – \d+\.\d\)", cell) for cell in flat), "Wilson"
    assert tex.count(r"\toprule") == tex.count(r"\begin{table}") == 3
    assert re.findall(r"\\label\{(.*)\}", tex) == [
        f"tab:a_sweep:{name}" for name in ("configurations", "differences", "models")
    ]
    assert tex.isascii() and to_latex(board()) == tex


def test_every_line_has_as_many_cells_as_the_table_has_columns() -> None:
    for tex in to_latex(board()).split(r"\begin{table}")[1:]:
        (alignment,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", tex)
        lines = rows_of(r"\begin{table}" + tex)
        assert {len(line) for line in lines} == {len(alignment)}


def test_without_a_difference_to_relu_there_is_no_table_of_them() -> None:
    tex = to_latex(board_of([evaluated("silu")]))
    assert "differences" not in tex and tex.count(r"\begin{table}") == 2


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
def test_any_text_is_shown_literally(text: str) -> None:
    if '"' not in text and "--" not in text:
        assert shown(latex_text(text)) == text


@pytest.mark.parametrize("text", [HOSTILE, "a_b & 50 % [x]\\\\", "−0.3 ± 1.2 · α=2.5 ★ (L∞)"])
def test_hostile_names_are_shown_literally(text: str) -> None:
    assert shown(latex_text(text)) == text.replace('"', "''")
    table = Table([Column("na_me", "name", kind=NAME)], [{"name": text}])
    assert len(narrow(table.columns)) == 1
    title, line = rows_of(latex_table(table, label="tab:x"))
    assert [shown(cell.strip()) for cell in (*title, *line)] == [
        "na_me",
        text.replace('"', "''"),
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX: nothing was compiled")
def test_the_tables_compile(tmp_path: Path) -> None:
    for name, tex in {
        "plain": to_latex(board()),
        "hostile": to_latex(board(sweep=HOSTILE)),
    }.items():
        (tmp_path / "report.tex").write_text(tex)
        (tmp_path / f"{name}.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs,graphicx}\n"
            "\\begin{document}\\input{report}\\end{document}\n"
        )
        command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert "Overfull \\hbox" not in done.stdout, "no table is wider than the text"


def test_a_figure_becomes_the_same_vector_pdf_every_time() -> None:
    figures = [clean_against_robust(board()) for _ in range(2)]
    for figure in figures:
        png(figure)
    first, again, other = pdf(figures[0]), pdf(figures[0]), pdf(figures[1])
    assert first == again == other
    assert first.startswith(b"%PDF-") and len(first) < 60_000
    assert b"Date" not in first and b"/Type3" not in first
    assert b"/Subtype /Image" not in first, "drawn as lines and letters, not as pixels"
