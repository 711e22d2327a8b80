"""Which tests run which of some lines: a plugin of pytest that notes it while the tests run.

What a fixture wider than one test runs counts for every test of its file. Code that runs at import, or in a process
that a test starts, is not seen.
"""

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

Line = tuple[str, int]


@dataclass(eq=False)  # a plugin has a hash
class Noting:
    """The plugin: notes which of the ``watched`` lines tests run, and writes that to ``out`` at the end.

    ``watched``: the numbers of lines by the path of their file below ``folder``. No other function is followed line by
    line, which would take longer than the tests.
    """

    folder: Path
    out: Path
    watched: dict[Path, set[int]]
    followed: dict[CodeType, bool] = field(default_factory=dict)
    running: set[Line] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[Line]] = field(default_factory=dict)
    shared: dict[str, set[Line]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        self.files = {str(self.folder / path): lines for path, lines in self.watched.items()}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note what a test runs, and how long it takes."""
        start, self.running = time.monotonic(), set()
        threading.settrace(self._note)
        sys.settrace(self._note)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.seconds[item.nodeid] = time.monotonic() - start
            self.lines[item.nodeid] = self.running

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Note what a fixture runs for all tests of its file, if it is made once for them."""
        before, self.running = self.running, set()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.shared[fixturedef.baseid] |= self.running
            self.running |= before

    def pytest_sessionfinish(self) -> None:
        """Write what was noted."""
        tests: dict[str, list[str]] = defaultdict(list)
        for test, own in self.lines.items():
            for path, line in sorted(own | self.shared[test.split("::")[0]]):
                tests[f"{Path(path).relative_to(self.folder)}:{line}"].append(test)
        self.out.write_text(json.dumps({"seconds": self.seconds, "tests": tests}))

    def _note(self, frame: FrameType, _event: str, _value: object) -> Any:
        code = frame.f_code
        if code.co_filename not in self.files:
            return None
        if code not in self.followed:
            lines = {line for *_, line in code.co_lines()}
            self.followed[code] = not lines.isdisjoint(self.files[code.co_filename])
        if not self.followed[code]:
            return None
        self.running.add((code.co_filename, frame.f_lineno))
        return self._note


@dataclass(eq=False)
class Chosen:
    """The plugin: of the tests that were collected, runs those with seconds, the quickest of each file first."""

    seconds: dict[str, float]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others out; the files stay in the order in which they were given."""
        files = list(dict.fromkeys(item.nodeid.split("::")[0] for item in items))
        chosen = [item for item in items if item.nodeid in self.seconds]
        items[:] = sorted(chosen, key=lambda item: (files.index(item.nodeid.split("::")[0]), self.seconds[item.nodeid]))
