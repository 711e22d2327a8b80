"""Run the demo and put what it prints into README.md, so that every number there came from that command.

Usage: .venv/bin/python tools/update_readme.py        (or `make readme`)
"""

import io
from pathlib import Path

from rich.console import Console

from chainfx.demo import run_demo

README = Path(__file__).parent.parent / "README.md"
START, END = "by hand -->\n```\n", "```\n<!-- /demo -->"


def main() -> None:
    """Replace the block between the demo's markers."""
    output = io.StringIO()
    run_demo(Console(file=output, width=140))
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{START}{output.getvalue().rstrip()}\n{END}{after}")
    print(output.getvalue())


if __name__ == "__main__":
    main()
