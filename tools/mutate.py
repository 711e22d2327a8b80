"""A round of deliberate faults: does a test notice when the code is wrong?

Usage: .venv/bin/python -m tools.mutate --seed 0 --count 100 --jobs 2

Draws faults from the code of the areas below (``--areas trainer exits``, or any files with ``--files``), puts one at a
time into a copy of the repository and runs the tests of its area, then those of the whole chain, until one fails. Says
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHOLE_CHAIN = "test_compiler.py test_orders.py scheduler test_recipe.py"
AREAS = {  # name: files of chainfx, and the tests that are there for them
    "trainer": ("training/trainer.py training/losses.py training/machine.py training/modes.py", "training"),
    "quantizers": (
        "ir/graph/ops.py passes/quantize.py passes/quantizing/*.py",
        "passes/test_quantize.py passes/test_golden.py ir/graph/test_ops.py passes/test_masks.py deploy",
    ),
    "exits": (
        "ir/graph/exits.py passes/early_exit.py passes/exiting/*.py",
        "passes/test_early_exit.py passes/test_golden.py ir/graph/test_exits.py deploy",
    ),
    "deploy": ("deploy/*.py", "deploy passes/test_masks.py"),
    "artefact": ("ir/artifact/*.py", "ir/artifact deploy passes/test_masks.py"),
    "runner": ("scheduler/runner.py scheduler/fact_checks.py progress.py", "scheduler test_progress.py"),
    "records": ("scheduler/records.py scheduler/store.py scheduler/keys.py", "scheduler"),
}

COMPARISONS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
WORDING = ast.JoinedStr | ast.Raise  # what stands in them is not looked at
HIDDEN_FIELDS = {"annotation", "returns", "decorator_list", "bases"}
GUARDS = {"strict", "digest_size", "indent"}  # arguments by keyword that guard or format
ASKING = {"isinstance", "issubclass", "hasattr", "getattr"}  # what cannot even run with swapped arguments


@dataclass(frozen=True)
class Fault:
    """One change of a file: the bytes between two offsets and the text that stands there instead."""

    path: str
    line: int
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
            end = starts[(place.end_lineno or place.lineno) - 1] + (place.end_col_offset or 0)
            fault = Fault(path, place.lineno, start, end, kind, source[start:end].decode(), after)
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
        case ast.Call(ast.Name(name)) if name in ASKING:
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


_copy = Path()  # of this worker


def prepare(folder: str) -> None:
    """In each worker: make a copy of the repository below the folder."""
    global _copy  # noqa: PLW0603
    _copy = Path(tempfile.mkdtemp(dir=folder))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (_copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, _copy / name)


def outcome(fault: Fault, tests: tuple[str, ...], timeout: float) -> tuple[str, float]:
    """``noticed``, ``survived`` or ``timeout`` (something waits for ever: noticed, too), and the seconds that took."""
    start, target = time.monotonic(), _copy / fault.path
    source = target.read_bytes()
    target.write_bytes(fault.put_into(source))
    child = multiprocessing.get_context("fork").Process(target=_run, args=(tests,))
    try:
        child.start()
        child.join(timeout)
        found = "timeout" if child.exitcode is None else "noticed" if child.exitcode else "survived"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)
        target.write_bytes(source)
    return found, time.monotonic() - start


def _run(tests: tuple[str, ...]) -> None:
    """In a process of its own: run the tests in the copy, in silence; the exit status is 1 if one fails."""
    os.setsid()
    os.chdir(_copy)
    os.environ |= {"PYTHONPATH": str(_copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [str(_copy), *(each for each in sys.path if Path(each or ".").resolve() not in (ROOT, _copy))]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    import pytest

    failed = pytest.main(["-x", "-q", "--tb=no", "--show-capture=no", "-m", "not slow", *tests])
    os._exit(1 if failed else 0)


def outcomes(faults: list[Fault], options: argparse.Namespace) -> Iterator[tuple[Fault, str, float]]:
    """The outcome of each fault as it becomes known; :class:`SystemExit` if the tests fail without one."""
    tests = {fault: tests_of(fault.path) for fault in faults}
    with (
        tempfile.TemporaryDirectory(prefix="mutate-") as folder,
        ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork"), prepare, (folder,)) as workers,
    ):
        none = Fault("README.md", 0, 0, 0, "none", "", "")
        needed = tuple(dict.fromkeys(test for each in tests.values() for test in each))
        if faults and workers.submit(outcome, none, needed, len(AREAS) * options.timeout).result()[0] != "survived":
            raise SystemExit(f"tests fail without a fault; mend them first: {' '.join(needed)}")
        waiting = {workers.submit(outcome, fault, tests[fault], options.timeout): fault for fault in faults}
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
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one fault")
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
    for number, (fault, found, seconds) in enumerate(outcomes(waiting, options), start=1):
        known[str(fault)] = found
        options.outcomes.write_text(json.dumps(known, indent=1))
        print(f"{number}/{len(waiting)} {found} in {seconds:.0f} s: {fault}", flush=True)
    survived = [fault for fault in faults if known[str(fault)] == "survived"]
    share = 1 - len(survived) / max(1, len(faults))
    print(f"\n{len(faults)} faults, seed {options.seed}: {share:.0%} noticed", *survived, sep="\n  survived: ")
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    import torch
    import torchvision  # noqa: F401 (imported once here, not in every process)

    torch.set_num_threads(1)
    sys.exit(main())
