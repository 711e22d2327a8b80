"""What the type checker is told not to look at: little, and each with its reason."""

import re
from pathlib import Path

import chainfx

MOST = 30


def test_few_lines_are_hidden_from_the_type_checker_and_each_says_why():
    sources = {path: path.read_text().splitlines() for path in Path(chainfx.__file__).parent.rglob("*.py")}
    hidden = [line for lines in sources.values() for line in lines if "type: ignore" in line]
    assert len(hidden) <= MOST
    assert [line for line in hidden if not re.search(r"# type: ignore\[[\w-]+(, [\w-]+)*\]  # \w", line)] == []
