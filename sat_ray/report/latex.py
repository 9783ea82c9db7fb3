"""The tables of the report as LaTeX, with the rules of booktabs."""

import re

from sat_ray.report.table import NUMBER, Table, narrow
from sat_ray.utils.names import printable

# What LaTeX reads as a command, and the symbols of the report. Other letters stay: LaTeX reads
# UTF-8. A line that begins with [ or * would be an argument of the line end before it.
_SPELLED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},
    **{character: f"${character}$" for character in "<>|"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': "''",
    "“": "``",
    "”": "''",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "∞": r"$\infty$",
    "★": r"$\star$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
}
_ESCAPES = str.maketrans(_SPELLED)
HEAD = r"% Needs \usepackage{booktabs,graphicx}; then \input{report} shows the tables."
# A table that is wider than the text is made as wide; one with fewer columns stays readable.
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex_text(text: str) -> str:
    """Return a text as LaTeX shows it literally; symbols of the report in math mode."""
    return printable(text).translate(_ESCAPES).replace(r"L$\infty$", r"$L_\infty$")


def latex_table(table: Table, *, label: str) -> str:
    """Return a table float without the wide columns; its caption is title and caption.

    label: what \\ref takes; other characters than letters, digits and :._- become hyphens.
    """
    columns = narrow(table.columns)
    alignment = "".join("r" if column.kind == NUMBER else "l" for column in columns)
    rows = [[column.cell(item).line for column in columns] for item in table.items]
    name = re.sub(r"[^A-Za-z0-9:._-]", "-", label)
    caption = ". ".join(filter(None, (table.title, table.caption)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{{name}}}",
            FITTED,
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            _line([column.title for column in columns]),
            r"\midrule",
            *map(_line, rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _line(cells: list[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
