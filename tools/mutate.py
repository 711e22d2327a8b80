"""A round of deliberate faults: does a test notice when the code is wrong?

Usage: .venv/bin/python -m tools.mutate --seed 0 --count 100 --jobs 2

Draws faults from the code of the areas below (``--areas trainer exits``, or any files with ``--files``). A first run of
the tests of these areas and of the whole chain notes which tests run which lines (:mod:`tools.touched`). Then puts one
fault at a time into a copy of the repository and runs the tests that run its lines, the file that is named after the
faulty one first and the quick ones first, until one fails; all of the area's if no test runs them, as at import. Says
which faults no test noticed and the share that was noticed; the exit status is 1 below ``--least``. What is known
stands in ``--outcomes``: a round that was stopped goes on where it was, and ``--again`` tries those that survived once
more, when there are new tests.

Faults: a comparison turned round or off by its edge, ``and`` for ``or``, a dropped ``not``, a number one higher, a
truth value turned round, a sum for a difference, a product for a quotient, the first two arguments swapped, a call or a
``raise`` left out, a function that returns at once. They are drawn by kind in turns, so that kinds which any test
notices do not make up the share. What nobody can notice is not drawn: annotations, decorators, docstrings and texts.

mutmut puts a trampoline around every function, which torch.fx would trace, and cosmic-ray starts a process for each
fault, which imports torch for longer than most of the tests here run; this one forks processes that have it.
"""

import argparse
import ast
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.touched import Chosen, Noting

ROOT = Path(__file__).parent.parent
WHOLE_CHAIN = "test_compiler.py test_orders.py scheduler test_recipe.py"
AREAS = {  # name: files of chainfx, and the tests that are there for them
    "trainer": (
        "training/trainer.py training/running.py training/losses.py training/machine.py training/modes.py",
        "training",
    ),
    "quantizers": (
        "ir/graph/ops.py passes/quantize.py passes/quantizing/*.py",
        "passes/test_quantize.py passes/quantizing passes/test_golden.py passes/test_masks.py ir/graph/test_ops.py "
        "deploy",
    ),
    "exits": (
        "ir/graph/exits.py passes/early_exit.py passes/exiting/*.py",
        "passes/test_early_exit.py passes/test_exit_thresholds.py passes/test_exits_at_positions.py "
        "passes/test_golden.py ir/graph/test_exits.py deploy",
    ),
    "deploy": ("deploy/*.py", "deploy passes/test_masks.py"),
    "artefact": ("ir/artifact/*.py", "ir/artifact deploy passes/test_masks.py"),
    "runner": ("scheduler/runner.py scheduler/fact_checks.py progress.py", "scheduler test_progress.py"),
    "study": ("study/*.py studying.py", "study test_studying.py"),
    "records": ("scheduler/records.py scheduler/store.py scheduler/keys.py", "scheduler"),
}

PRELOADED = (  # by the process that the others are forked from
    *("accelerate", "networkx", "pydantic", "rich", "scipy.stats", "sklearn", "torchvision"),
    *("torch._dynamo", "torch.export", "typer"),
)

COMPARISONS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
WORDING = ast.JoinedStr | ast.Raise  # what stands in them is not looked at
HIDDEN_FIELDS = {"annotation", "returns", "decorator_list", "bases"}
GUARDS = {"strict", "digest_size", "indent"}  # arguments by keyword that guard or format
UNSWAPPED = {
    *("isinstance", "issubclass", "hasattr", "getattr"),  # what cannot even run with swapped arguments
    *("max", "min"),  # whose arguments nobody can tell apart
}


@dataclass(frozen=True)
class Fault:
    """One change of a file: the bytes between two offsets and the text that stands there instead."""

    path: str
    line: int
    last_line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        before, after = (" ".join(text.split())[:60] for text in (self.before, self.after))
        return f"{self.path}:{self.line} (byte {self.start}): {self.kind}: {before} -> {after}"

    def put_into(self, source: bytes) -> bytes:
        """The source with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def faults_of(path: str) -> list[Fault]:
    """All faults of a file with which it still compiles."""
    source = (ROOT / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in looked_at(ast.parse(source)):
        for place, kind, after in faults_at(node):
            start = starts[place.lineno - 1] + place.col_offset
            lines = place.lineno, place.end_lineno or place.lineno
            end = starts[lines[1] - 1] + (place.end_col_offset or 0)
            fault = Fault(path, *lines, start, end, kind, source[start:end].decode(), after)
            with contextlib.suppress(SyntaxError):
                compile(fault.put_into(source), path, "exec")
                found.append(fault)
    return found


def looked_at(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what stands in it, without what nobody can notice."""
    yield node
    if isinstance(node, WORDING):
        return
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            guard = isinstance(child, ast.keyword) and child.arg in GUARDS
            if isinstance(child, ast.AST) and name not in HIDDEN_FIELDS and not text and not guard:
                yield from looked_at(child)


def faults_at(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """The faults that can be put in place of a node or a statement in it: the place, the kind and the text."""
    match node:
        case ast.Compare(left, operators, others):
            for place, operator in enumerate(operators):
                turned = [*operators[:place], COMPARISONS[type(operator)](), *operators[place + 1 :]]
                yield node, "comparison", f"({ast.unparse(ast.Compare(left, turned, others))})"
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield node, "and/or", f"({ast.unparse(ast.BoolOp(other, values))})"
        case ast.UnaryOp(ast.Not(), value):
            yield node, "dropped not", f"({ast.unparse(value)})"
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield node, "arithmetic", f"({ast.unparse(ast.BinOp(left, ARITHMETIC[type(operator)](), right))})"
        case ast.Constant(bool(value)):
            yield node, "truth value", str(not value)
        case ast.Constant(int(value) | float(value)):
            yield node, "number", repr(value + 1)
        case ast.Call(ast.Name(name)) if name in UNSWAPPED:
            pass
        case ast.Call(function, [first, second, *others], keywords) if not isinstance(first, ast.Starred):
            yield node, "swapped arguments", ast.unparse(ast.Call(function, [second, first, *others], keywords))
        case ast.Expr(ast.Call()):
            yield node, "dropped call", "pass"
        case ast.Raise():
            yield node, "dropped raise", "pass"
        case ast.FunctionDef(body=body):
            first = body[0 if ast.get_docstring(node) is None or len(body) == 1 else 1]
            yield first, "early return", "return None"


def tests_of(path: str) -> tuple[str, ...]:
    """The tests to run for a file: those of its area, or of the mirrored folder, then those of the whole chain."""
    inner = Path(path).relative_to("chainfx")
    mirrored = next(str(each) for each in inner.parents if (ROOT / "tests" / each).is_dir())
    of_area = (tests for files, tests in AREAS.values() if any(fnmatch(str(inner), each) for each in files.split()))
    return tuple(f"tests/{name}" for name in [*next(of_area, mirrored).split(), *WHOLE_CHAIN.split()])


def drawn(options: argparse.Namespace) -> list[Fault]:
    """The faults of this round: always the same for a seed and a code."""
    patterns = options.files or [f"chainfx/{each}" for name in options.areas for each in AREAS[name][0].split()]
    paths = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})
    found = [fault for path in paths for fault in faults_of(path)]
    random.Random(options.seed).shuffle(found)
    turn = {fault: [each for each in found if each.kind == fault.kind].index(fault) for fault in found}
    return sorted(found, key=turn.__getitem__)[: options.count]


@dataclass(frozen=True)
class Touched:
    """What the first run noted: the seconds of each test, and the tests that run a line (``path:line``)."""

    seconds: dict[str, float]
    tests: dict[str, list[str]]

    def tests_for(self, fault: Fault) -> dict[str, float]:
        """The tests to run for a fault, with their seconds: the file named after the faulty one first."""
        lines = [f"{fault.path}:{line}" for line in range(fault.line, fault.last_line + 1)]
        chosen = {test for line in lines for test in self.tests.get(line, ())} or {
            test for test in self.seconds if test.startswith(tests_of(fault.path))
        }
        totals: dict[str, float] = {}
        for test in sorted(chosen):
            totals[test.split("::")[0]] = totals.get(test.split("::")[0], 0) + self.seconds[test]
        own = f"/test_{Path(fault.path).name}"
        files = sorted(totals, key=lambda file: (not file.endswith(own), totals[file]))
        place = {file: number for number, file in enumerate(files)}
        return {test: self.seconds[test] for test in sorted(chosen, key=lambda each: place[each.split("::")[0]])}


def touched_by(folder: Path, tests: tuple[str, ...], faults: list[Fault]) -> Touched:
    """Run tests without a fault in the folder and note which run faulty lines; :class:`SystemExit` if one fails."""
    out, watched = folder.with_suffix(".json"), defaultdict[Path, set[int]](set)
    for fault in faults:
        watched[Path(fault.path)] |= set(range(fault.line, fault.last_line + 1))
    noting = Noting(folder, out, watched)
    if ended(_run, (folder, tests, noting, False), None) != 0:
        raise SystemExit(f"tests fail without a fault; mend them first: {' '.join(tests)}")
    return Touched(**json.loads(out.read_text()))


def copy_repository(folder: Path) -> None:
    """Copy the files that git knows or would know."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


_copy = Path()  # of this worker


def prepare(first: Path) -> None:
    """In each worker: make a copy of the first copy, with the compiled tests that are in it."""
    global _copy  # noqa: PLW0603
    _copy = Path(tempfile.mkdtemp(dir=first.parent)) / first.name
    shutil.copytree(first, _copy)


def outcome(fault: Fault, tests: dict[str, float], timeout: float) -> tuple[str, float]:
    """``noticed``, ``survived`` or ``timeout`` (something waits for ever: noticed, too), and the seconds that took."""
    start, target = time.monotonic(), _copy / fault.path
    source = target.read_bytes()
    target.write_bytes(fault.put_into(source))
    files = tuple(dict.fromkeys(test.split("::")[0] for test in tests))
    try:
        status = ended(_run, (_copy, files, Chosen(tests), True), sum(tests.values()) + timeout)
    finally:
        target.write_bytes(source)
    return "timeout" if status is None else "noticed" if status else "survived", time.monotonic() - start


def ended(function: Any, arguments: tuple[Any, ...], timeout: float | None) -> int | None:
    """The exit status of a function in a process of its own, None if it had to be stopped after the seconds."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    try:
        child.start()
        child.join(timeout)
        return child.exitcode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)


def _run(folder: Path, tests: tuple[str, ...], plugin: object, faulty: bool) -> None:
    """In a process of its own: run the tests in a copy, with a fault in silence; the exit status is 1 if one fails."""
    os.setsid()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(each for each in sys.path if Path(each or ".").resolve() not in (ROOT, folder))]
    # what is compiled with a fault must not be found when the fault is gone
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1" if faulty else ""
    sys.dont_write_bytecode = faulty
    if faulty:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    failed = pytest.main(["-x", "-q", "--tb=no", "--show-capture=no", "-m", "not slow", *tests], [plugin])
    os._exit(1 if failed else 0)


def outcomes(faults: list[Fault], options: argparse.Namespace) -> Iterator[tuple[Fault, str, float]]:
    """The outcome of each fault as it becomes known; :class:`SystemExit` if the tests fail without one."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        first = Path(folder) / "first"
        copy_repository(first)
        needed = tuple(dict.fromkeys(test for each in faults for test in tests_of(each.path)))
        touched = touched_by(first, needed, faults)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(options.jobs, context, prepare, (first,)) as workers:
            waiting = {
                workers.submit(outcome, fault, touched.tests_for(fault), options.timeout): fault for fault in faults
            }
            for done in as_completed(waiting):
                yield waiting[done], *done.result()


def main() -> int:
    """Run a round and say what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--files", nargs="+", help="files, as patterns from the root, in place of the areas")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=100, help="seconds that tests may take longer with a fault")
    parser.add_argument("--outcomes", type=Path, default=Path("runs/faults.json"))
    parser.add_argument("--again", action="store_true", help="try those again that survived")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    parser.add_argument("--least", type=float, default=0.9, help="the share to notice, for the exit status")
    options = parser.parse_args()
    faults = drawn(options)
    if options.list:
        print(*faults, sep="\n")
        return 0
    options.outcomes.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(options.outcomes.read_text()) if options.outcomes.exists() else {}
    waiting = [each for each in faults if str(each) not in known or (options.again and known[str(each)] == "survived")]
    for number, (fault, found, seconds) in enumerate(outcomes(waiting, options) if waiting else (), start=1):
        known[str(fault)] = found
        options.outcomes.write_text(json.dumps(known, indent=1))
        print(f"{number}/{len(waiting)} {found} in {seconds:.0f} s: {fault}", flush=True)
    survived = [fault for fault in faults if known[str(fault)] == "survived"]
    share = 1 - len(survived) / max(1, len(faults))
    print(f"\n{len(faults)} faults, seed {options.seed}: {share:.0%} noticed", *survived, sep="\n  survived: ")
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    sys.exit(main())
