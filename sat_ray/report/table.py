"""The model of every table, and its forms in Markdown and in a terminal.

A column has a title, a value taken from each item, and a way to show that value.
`pages/parts.html.j2` holds the third form, the HTML of the pages.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import table as rich_table
from rich.text import Text

from sat_ray.report.formatting import ABSENT
from sat_ray.utils.names import printable

Item = Any
_SEVERAL_WORDS = re.compile("[a-z] [a-z]")
# Kinds of columns. LINES: text that is not broken; STRIP: a picture, on the pages only.
NAME, WORDS, LINES, NUMBER, STRIP = "name", "words", "lines", "number", "strip"
CODE, WRAP, REMARK = "code", "wrap", "wrap faint"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hold the contents of one cell.

    value: sort key, None last; lines: further lines like the first; notes: smaller remarks;
    link: address behind the text.
    """

    text: str
    lines: tuple[str, ...] = ()
    value: float | None = None
    notes: tuple[str, ...] = ()
    link: str = ""

    @property
    def line(self) -> str:
        """Return everything on one line, as Markdown and terminals need it."""
        notes = (f"({note})" for note in self.notes)
        return " ".join([" · ".join([self.text, *self.lines]), *notes])


@dataclass(frozen=True)
class Column:
    """Hold one column.

    value: key of an item, or a function of the item; show: text for a value, not used where
    the value is a Cell; kind: NAME, WORDS, LINES, NUMBER, STRIP, CODE, WRAP or REMARK;
    best_first: the items are sorted by it; wide: omitted where there is little room;
    missing: text where the value is None.
    """

    title: str
    value: str | Callable[[Item], Any]
    show: Callable[[Any], str] = str
    kind: str = NUMBER
    best_first: bool = False
    wide: bool = False
    missing: str = ABSENT

    def cell(self, item: Item) -> Cell:
        """Return the cell of an item."""
        value = item[self.value] if isinstance(self.value, str) else self.value(item)
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(text=self.missing)
        key = value["mean"] if isinstance(value, Mapping) else value
        return Cell(text=self.show(value), value=key if isinstance(key, (int, float)) else None)


@dataclass(frozen=True)
class Table:
    """Hold the columns and the items of a table, one line for each item.

    marked: whether a line is emphasised; sums: positions of lines with a rule above them.
    """

    columns: Sequence[Column]
    items: Sequence[Item]
    title: str = ""
    caption: str = ""
    marked: Callable[[Item], bool] = lambda item: False
    sums: Collection[int] = ()


def narrow(columns: Sequence[Column]) -> list[Column]:
    """Return the columns for terminals and notes."""
    return [column for column in columns if not column.wide and column.kind != STRIP]


def markdown_table(table: Table) -> str:
    """Return a Markdown table."""
    shown = [column for column in table.columns if column.kind != STRIP]
    lines = [
        [column.title for column in shown],
        ["--:" if column.kind == NUMBER else ":--" for column in shown],
        *([column.cell(item).line for column in shown] for item in table.items),
    ]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Escape what would end a table cell or start HTML in a Markdown viewer."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def terminal_text(text: str) -> Text:
    """Return a text for the terminal that is shown literally; a name in it may hold escapes."""
    return Text(printable(text, kept="\n"))


def terminal_table(table: Table) -> rich_table.Table:
    """Return a table for the terminal; names are shown literally, markup in them included."""
    drawn = rich_table.Table(
        title=terminal_text(table.title) if table.title else None,
        title_justify="left",
        caption=terminal_text(table.caption) if table.caption else None,
        caption_justify="left",
    )
    columns = narrow(table.columns)
    cells = [[column.cell(item) for column in columns] for item in table.items]
    for place, column in enumerate(columns):
        number = column.kind == NUMBER
        # Numbers stay on one line, sentences may be broken.
        unbroken = number and not any(_SEVERAL_WORDS.search(line[place].line) for line in cells)
        drawn.add_column(
            terminal_text("\n".join(column.title.rsplit(" ", 1)) if number else column.title),
            justify="right" if number else "left",
            no_wrap=unbroken,
            overflow="fold",
        )
    for place, line in enumerate(cells):
        if place in table.sums:
            drawn.add_section()
        style = "bold" if table.marked(table.items[place]) else None
        drawn.add_row(*(terminal_text(cell.line) for cell in line), style=style)
    return drawn
