"""Tables as plain text: rich lays them out, without colours, markup or anything that depends on the terminal."""

import copy
import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["amount", "lines_of", "plain_table", "size", "stage_table", "text_of", "times", "wrapped"]

_WIDTH = 120
_AMOUNTS = (("M", 10**6), ("G", 10**9), ("T", 10**12))
_SIZES = (("KiB", 2**13), ("MiB", 2**23), ("GiB", 2**33))  # in bits


def plain_table(heading: str, columns: Sequence[str], texts: int) -> Table:
    """An empty table in the style of all cost reports; the first ``texts`` columns hold text, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="", pad_edge=False)
    for column in columns[:texts]:
        table.add_column(column, overflow="fold")
    for column in columns[texts:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def stage_table(heading: str, columns: Sequence[str]) -> Table:
    """An empty table with one row a stage, for 80 columns: the first column folds, the others hold short numbers."""
    table = plain_table(heading, columns, texts=1)
    table.show_edge = False
    table.collapse_padding = True
    return table


def amount(number: int) -> str:
    """A count in at most 7 columns: whole below a million, else three digits and a unit, as in ``25.6 M``."""
    if number < 1_000_000:
        return f"{number:,}"
    unit, one = next((each for each in _AMOUNTS if number < 999.5 * each[1]), _AMOUNTS[-1])
    return f"{number / one:.3g} {unit}"


def size(bits: float) -> str:
    """A number of bits as KiB, MiB or GiB, with one digit behind the point."""
    unit, one = next((each for each in _SIZES if bits < 999.95 * each[1]), _SIZES[-1])
    return f"{bits / one:,.1f} {unit}"


def times(ratio: float) -> str:
    """A ratio in about three digits, as in ``8.0x`` or ``997x``."""
    return f"{ratio:.1f}x" if ratio < 99.95 else f"{ratio:,.0f}x"


def text_of(*items: RenderableType, width: int) -> str:
    """Tables and lines as text of at most ``width`` columns, one below the other; longer lines are wrapped."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, markup=False, highlight=False, emoji=False)
    for item in items:
        for part in _title_apart(item):
            console.print(part)
    return stream.getvalue()


def _title_apart(item: RenderableType) -> list[RenderableType]:
    """The title of a table as a line of its own, which else would be wrapped in the width of a narrow table."""
    if not isinstance(item, Table) or not item.title:
        return [item]
    bare = copy.copy(item)
    bare.title = None
    return [item.title, bare]


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A text in lines of at most ``width`` columns that begin with ``indent``, all but the first with two more."""
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def lines_of(table: Table) -> list[str]:
    """The lines of a table of at most 120 columns, without trailing blanks."""
    return [line.rstrip() for line in text_of(table, width=_WIDTH).splitlines()]
