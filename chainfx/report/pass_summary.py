"""A pass as one entry of a list: its name, what it declares, what it is for, and its options with their defaults."""

import textwrap

from chainfx.passes import PassSummary

__all__ = ["summary_text"]

_WIDTH = 80
_INDENT = "  "


def summary_text(summary: PassSummary) -> str:
    """A line for what the pass declares, and below it, indented, its purpose and its options; 80 columns wide."""
    declared = f"{summary.name}: {summary.kind}, {summary.granularity}"
    needs = f"; needs {', '.join(summary.needs)}" if summary.needs else ""
    options = [f"{name} (required)" for name in summary.required]
    options += [f"{name}={value!r}" for name, value in summary.options.items()]
    paragraphs = [summary.purpose, ", ".join(options) or "no options"]
    return "\n".join([declared + needs, *(_indented(text) for text in paragraphs if text)])


def _indented(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)
