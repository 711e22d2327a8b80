"""Tables as plain text: rich lays them out, without colours, markup or anything that depends on the terminal."""

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["lines_of", "plain_table", "text_of"]

_WIDTH = 120


def plain_table(heading: str, columns: Sequence[str], texts: int) -> Table:
    """An empty table in the style of all cost reports; the first ``texts`` columns hold text, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="", pad_edge=False)
    for column in columns[:texts]:
        table.add_column(column, overflow="fold")
    for column in columns[texts:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def text_of(*items: RenderableType, width: int) -> str:
    """Tables and lines as text of at most ``width`` columns, one below the other; longer lines are wrapped."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, markup=False, highlight=False, emoji=False)
    for item in items:
        console.print(item)
    return stream.getvalue()


def lines_of(table: Table) -> list[str]:
    """The lines of a table of at most 120 columns, without trailing blanks."""
    return [line.rstrip() for line in text_of(table, width=_WIDTH).splitlines()]
