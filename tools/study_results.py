"""Recompute what the pages of docs/results say from the records beside them.

Usage: .venv/bin/python -m tools.study_results

A page ``NAME.md`` has the verdicts and the law of the packed study ``NAME.json`` between two marks, as
``chainfx study analyse docs/results/NAME.json`` prints them.
"""

import re
from pathlib import Path

import chainfx.report  # noqa: F401  # registers how results are shown
from chainfx.study import analyse

RESULTS = Path(__file__).parent.parent / "docs" / "results"
_SECTION = re.compile(r"(<!-- verdicts -->\n).*?(<!-- /verdicts -->)", flags=re.DOTALL)


def refreshed(page: str, packed: Path) -> str:
    """The text of a page with the verdicts as they come out of the records."""
    result = analyse(packed)
    lines = "\n".join(line.rstrip() for line in f"{result.design}\n\n{result}".splitlines())
    return _SECTION.sub(lambda found: f"{found[1]}\n```text\n{lines}\n```\n\n{found[2]}", page)


def main() -> None:
    """Rewrite every page whose records say something else now."""
    for packed in sorted(RESULTS.glob("*.json")):
        path = packed.with_suffix(".md")
        page = path.read_text()
        new = refreshed(page, packed)
        path.write_text(new)
        print(f"{path.name}: {'changed' if new != page else 'as it was'}")


if __name__ == "__main__":
    main()
