"""A cost report as a table to read: a tree by module path, folded to fit a screen."""

from fractions import Fraction

from rich.table import Table

from chainfx.bitops import HOROWITZ_2014, CostReport
from chainfx.errors import InputError
from chainfx.report.cost_tree import Branch, Sort, fitting_depth, tree_of
from chainfx.report.text_tables import lines_of, plain_table

__all__ = ["branch_cells", "render", "report_headings", "report_title", "report_totals"]

_LINES = 40
_INDENT = "  "
_MEMORY_HEADINGS = ["module", "operator", "w x a", "MACs", "BitOps", "MB moved", "energy uJ"]


def render(
    report: CostReport, *, depth: int | None = None, sort: Sort = "order", flat: bool = False, memory: bool = False
) -> str:
    """The report as text of at most 120 columns: the tree of modules with a total for each, then those of the network.

    ``depth``: how many levels are unfolded, 0 for the totals alone; by default as many as fit on a screen of 40 lines,
    at least one. ``sort``: within every module, ``"order"`` as the nodes run, ``"macs"`` or ``"bitops"`` the dearest
    first. ``flat``: every node on a line of its own, without modules. ``memory``: in place of shapes and element-wise
    work the bytes that are moved and an estimate of the energy, and below them the memory needed at the peak. Raises
    :class:`InputError` on other values.

    >>> import torch, chainfx
    >>> report = chainfx.count(torch.nn.Linear(8, 4), torch.zeros(1, 8))
    >>> print(render(report, depth=0))
    cost of one sample, convention mac_bw_ba (1 MAC = 2 FLOPs)
    MACs 32, BitOps 32,768, element-wise 0
    storage 1,152 bits (0.000 MB), parameters 36
    """
    if depth is not None and (type(depth) is not int or depth < 0):
        raise InputError(f"depth={depth!r} is not a whole number from 0; give the number of levels to unfold.")
    root = tree_of(report, sort, flat=flat)
    depth = fitting_depth(root, _LINES) if depth is None else depth
    head = lines_of(_table(report, root, depth, memory)) if depth and root.nodes else [report_title(report)]
    return "\n".join([*head, *report_totals(report), *(_memory(report) if memory else ())])


def report_title(report: CostReport) -> str:
    """What the numbers are, in one line."""
    return f"cost of one sample, convention {report.convention} (1 MAC = 2 FLOPs)"


def report_headings(report: CostReport) -> list[str]:
    """The headings of the columns; the first three hold text, the others numbers."""
    headings = ["module", "operator", "output", "MACs", "element-wise", "w x a", "BitOps", "share"]
    optional = {"nonzero": is_sparse(report), "segment": bool(report.exits)}
    return headings + [heading for heading, shown in optional.items() if shown]


def branch_cells(branch: Branch, report: CostReport, *, folded: bool = False) -> list[str]:
    """The texts of the columns for a module or node; a folded module says how many nodes it holds."""
    row, bits = branch.row, branch.widths()
    operator = row.operator if row else f"{branch.nodes} nodes" if folded else ""
    output = "x".join(map(str, row.shape)) if row else ""
    width = "mixed" if len(bits) > 1 else "".join(f"{weight} x {activation}" for weight, activation in bits)
    share = f"{float(branch.bitops / Fraction(report.bitops)):.1%}" if branch.bitops else ""
    cells = [branch.name, operator, output, _number(branch.macs), _number(branch.elementwise), width]
    cells += [_number(branch.bitops), share]
    if is_sparse(report):
        cells.append(f"{float(Fraction(branch.nonzero_macs) / branch.macs):.1%}" if branch.macs else "")
    if report.exits:
        cells.append(str(row.segment) if row else "")
    return cells


def _number(value: int | float | Fraction) -> str:
    """A number with thousands separators and, if it is not whole, one decimal; nothing for zero."""
    if not value:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{float(value):,.1f}"


def report_totals(report: CostReport) -> list[str]:
    """The lines below the table: the network's totals, and what nobody could count."""
    costs = report.cumulative[:-1]
    lines = [f"up to {cost.exit}: MACs {cost.macs:,}, BitOps {_number(cost.bitops) or '0'}" for cost in costs]
    lines += [_worst(report), *_expected(report), *_storage(report)]
    return lines + [f"NOT COUNTED: {item.node} ({item.operator}, {item.reason})" for item in report.uncounted]


def _worst(report: CostReport) -> str:
    nonzero = f" ({_number(report.nonzero_macs) or '0'} nonzero)" if is_sparse(report) else ""
    costs = (
        f"MACs {report.macs:,}{nonzero}, BitOps {_number(report.bitops) or '0'}, element-wise {report.elementwise:,}"
    )
    return f"{costs} (worst case)" if report.exits or report.conditions else costs


def _expected(report: CostReport) -> list[str]:
    """The expected cost, where it is another than the worst."""
    names = (*report.exits, *report.conditions)
    if not names:
        return []
    if report.exit_rates is None or report.true_rates is None:
        return [f"expected: unknown, nobody measured the rates of {', '.join(names)}"]
    costs = f"expected: MACs {report.expected_macs:,.0f}, BitOps {report.expected_bitops:,.0f}"
    shares = {"leaving": (report.exits, report.exit_rates), "true": (report.conditions, report.true_rates)}
    said = [
        f"{what}: " + ", ".join(f"{name} {rate:.1%}" for name, rate in zip(*pair, strict=True))
        for what, pair in shares.items()
        if pair[0]
    ]
    return [f"{costs} ({'; '.join(said)})"]


def _storage(report: CostReport) -> list[str]:
    dense = report.storage_bits
    lines = [f"storage {dense:,} bits ({dense / 8e6:,.3f} MB), parameters {report.parameters:,}"]
    others = {name: bits for name, bits in report.storage.items() if name not in ("dense", "nominal")}
    return lines + [f"storage encoded as {name}: {bits:,} bits" for name, bits in others.items()]


def is_sparse(report: CostReport) -> bool:
    """Whether any weight of the network is masked."""
    return any(row.pattern for row in report.rows)


def _memory(report: CostReport) -> list[str]:
    """The lines of the network's memory and energy, which are those of the average sample if there are exits."""
    names = (*report.exits, *report.conditions)
    peak = "unknown, as widths were changed without the graph"
    if report.peak_activation_bits is not None and report.peak_bits is not None:
        peak = f"{_megabytes(report.peak_bits)} MB, {_megabytes(report.peak_activation_bits)} MB of it activations"
    lines = [
        f"memory at the peak: {peak}",
        f"moved: {_megabytes(report.moved_bits)} MB" + " (worst case)" * bool(names),
    ]
    if names and (report.exit_rates is None or report.true_rates is None):
        return lines
    expected = f", {_megabytes(report.expected_moved_bits)} MB expected" if names else ""
    estimate = f"energy: about {report.energy():,.1f} uJ (an estimate, by the table {HOROWITZ_2014.name})"
    return [lines[0], lines[1] + expected, estimate]


def _megabytes(bits: float | Fraction) -> str:
    return f"{float(bits) / 8e6:,.3f}"


def _memory_cells(branch: Branch, report: CostReport, *, folded: bool) -> list[str]:
    """The texts of the columns of :data:`_MEMORY_HEADINGS` for a module or node."""
    name, operator, _, macs, _, width, bitops, *_ = branch_cells(branch, report, folded=folded)
    moved = _megabytes(branch.moved_bits) if branch.moved_bits else ""
    return [name, operator, width, macs, bitops, moved, f"{branch.energy:,.1f}" if branch.energy else ""]


def _table(report: CostReport, root: Branch, depth: int, memory: bool) -> Table:
    headings, cells_of = (_MEMORY_HEADINGS, _memory_cells) if memory else (report_headings(report), branch_cells)
    table = plain_table(report_title(report), headings, 3)
    for level, branch in root.walk(depth):
        name, *cells = cells_of(branch, report, folded=level == depth - 1)
        table.add_row(_INDENT * level + name, *cells)
    return table
