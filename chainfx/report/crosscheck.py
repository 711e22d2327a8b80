"""A cross-check as text: what every tool counts, and where and why it differs from chainfx."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction

from chainfx.bitops import CrossCheck, Difference, ToolCheck

__all__ = ["cross_check_text"]

_SHOWN = 3


def cross_check_text(check: CrossCheck) -> str:
    """The MACs that chainfx counts and what it could not count, then the tools one after the other."""
    lines = [f"MACs of one sample (1 MAC = 2 FLOPs): chainfx {check.macs:,}"]
    lines += [f"NOT COUNTED by chainfx: {item.node} ({item.operator}, {item.reason})" for item in check.uncounted]
    return "\n".join([*lines, *(line for tool in check.tools for line in _lines(tool, check.macs))])


def _lines(tool: ToolCheck, macs: int) -> Iterator[str]:
    """One line for a tool, and one for every operator and reason, with the modules where it occurs."""
    name = f"{tool.tool} {tool.version}".rstrip()
    if tool.macs is None:
        yield f"{name}: {tool.note}"
        return
    same = "equal in total, by differences that cancel" if tool.differences else "equal"
    yield f"{name}: {_text(tool.macs)} ({_signed(tool.macs - macs)})" if tool.macs != macs else f"{name}: {same}"
    groups: dict[tuple[str, str], list[Difference]] = defaultdict(list)
    for each in tool.differences:
        groups[each.reason, each.operator].append(each)
    for (reason, operator), members in groups.items():
        amount = sum((Fraction(each.theirs - each.ours) for each in members), Fraction(0))
        yield f"  {_signed(amount):>16}  {operator}{_places([each.module for each in members])}: {reason}"


def _places(modules: Sequence[str]) -> str:
    named = [module for module in dict.fromkeys(modules) if module]
    if not named:
        return ""
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f" in {', '.join(named[:_SHOWN])}{more}"


def _text(value: int | Fraction) -> str:
    return f"{int(value):,}" if value == int(value) else f"{float(value):,.1f}"


def _signed(value: int | Fraction) -> str:
    return f"+{_text(value)}" if value >= 0 else f"-{_text(-value)}"
