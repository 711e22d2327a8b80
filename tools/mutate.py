# ruff: noqa: D102 (the methods of a visitor are named after what they visit)
"""A round of deliberate faults: does a test notice when the code is wrong?

Usage: .venv/bin/python -m tools.mutate --seed 0 --count 100 --jobs 2

Draws faults from the code of the areas below (``--areas trainer exits``, or any files with ``--files``), puts one at a
time into a copy of the repository and runs the tests of its area, then those of the whole chain, until one fails. Says
which faults no test noticed, and the share that was noticed; the exit status is 1 below ``--least``. What is known
stands in ``--outcomes``: a round that was stopped goes on where it was, and after new tests the faults that survived
are tried again with ``--again``.

Faults: a comparison turned round or off by its edge, ``and`` for ``or``, a dropped ``not``, a number one higher, a
truth value turned round, a sum for a difference, a product for a quotient, the first two arguments swapped, a call or a
``raise`` left out, a function that returns at once; as many of each kind as there are, so that those which every test
notices do not make up the share. What nobody can notice is not drawn: annotations, decorators, docstrings, texts.

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
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS_OF_ALL = ("tests/test_compiler.py", "tests/test_orders.py", "tests/scheduler", "tests/test_recipe.py")


@dataclass(frozen=True)
class Area:
    """Files of the code, as patterns, and the tests that are there for them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "trainer": Area(
        ("training/trainer.py", "training/losses.py", "training/machine.py", "training/modes.py"), ("training",)
    ),
    "quantizers": Area(
        ("ir/graph/ops.py", "passes/quantize.py", "passes/quantizing/*.py"),
        ("passes/test_quantize.py", "passes/test_golden.py", "ir/graph/test_ops.py", "passes/test_masks.py", "deploy"),
    ),
    "exits": Area(
        ("ir/graph/exits.py", "passes/early_exit.py", "passes/exiting/*.py"),
        (
            "passes/test_early_exit.py",
            "passes/test_golden.py",
            "ir/graph/test_exits.py",
            "bitops/test_exits.py",
            "deploy",
        ),
    ),
    "deploy": Area(("deploy/*.py",), ("deploy", "passes/test_masks.py")),
    "artefact": Area(("ir/artifact/*.py",), ("ir/artifact", "deploy", "passes/test_masks.py")),
    "runner": Area(("scheduler/runner.py", "progress.py"), ("scheduler", "test_progress.py", "test_compiler.py")),
    "records": Area(
        ("scheduler/records.py", "scheduler/store.py", "scheduler/keys.py"), ("scheduler", "test_compiler.py")
    ),
}

COMPARISONS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
UNNOTICEABLE = {"strict", "digest_size", "indent"}  # arguments by keyword that guard or format
ASKING = {"isinstance", "issubclass", "hasattr", "getattr"}  # what cannot even run with swapped arguments


@dataclass(frozen=True)
class Fault:
    """One change of a file: the source between two offsets and what stands there instead."""

    path: str
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        before, after = (" ".join(text.split())[:60] for text in (self.before, self.after))
        return f"{self.path}:{self.line}: {self.kind}: {before} -> {after}"


class Finder(ast.NodeVisitor):
    """Finds all faults of one file."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source = path, source
        self.starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.faults: list[Fault] = []

    def add(self, node: ast.expr | ast.stmt, kind: str, after: str) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        before = self.source.encode()[start:end].decode()
        self.faults.append(Fault(self.path, node.lineno, start, end, kind, before, after))

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, operator in enumerate(node.ops):
            operators = [*node.ops]
            operators[place] = COMPARISONS[type(operator)]()
            self.add(node, "comparison", f"({ast.unparse(ast.Compare(node.left, operators, node.comparators))})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.add(node, "and/or", f"({ast.unparse(ast.BoolOp(other, node.values))})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add(node, "dropped not", f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = ARITHMETIC.get(type(node.op))
        if other is not None and not isinstance(node.left, ast.Constant | ast.JoinedStr | ast.Tuple | ast.List):
            self.add(node, "arithmetic", f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, "truth value", str(not node.value))
        elif isinstance(node.value, int | float):
            self.add(node, "number", repr(node.value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        asks = isinstance(node.func, ast.Name) and node.func.id in ASKING
        if len(node.args) > 1 and not asks and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
            first, second, *others = node.args
            self.add(
                node, "swapped arguments", ast.unparse(ast.Call(node.func, [second, first, *others], node.keywords))
            )
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNNOTICEABLE:
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.add(node, "dropped call", "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if body:
            self.add(body[0], "early return", "return None")
        for value in (*node.args.defaults, *filter(None, node.args.kw_defaults), *body):
            self.visit(value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(node, "dropped raise", "pass")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What stands in a text is wording."""


def faults_of(path: str) -> list[Fault]:
    """All faults of a file that still compile."""
    source = (ROOT / path).read_text()
    finder = Finder(path, source)
    finder.visit(ast.parse(source))
    return [fault for fault in finder.faults if _compiles(changed(source, fault))]


def _compiles(source: str) -> bool:
    try:
        compile(source, "<fault>", "exec")
    except SyntaxError:
        return False
    return True


def changed(source: str, fault: Fault) -> str:
    """The source with the fault in it."""
    data = source.encode()
    return (data[: fault.start] + fault.after.encode() + data[fault.end :]).decode()


def tests_of(path: str) -> tuple[str, ...]:
    """The tests to run for a file: those of its area, or of the mirrored folder, then those of the whole chain."""
    inner = Path(path).relative_to("chainfx")
    for area in AREAS.values():
        if any(
            inner.full_match(pattern) if sys.version_info >= (3, 13) else inner.match(pattern) for pattern in area.files
        ):
            return (*(f"tests/{name}" for name in area.tests), *TESTS_OF_ALL)
    folder = next(
        each for each in [ROOT / "tests" / inner.parent, *(ROOT / "tests" / inner.parent).parents] if each.is_dir()
    )
    return (str(folder.relative_to(ROOT)), *TESTS_OF_ALL)


_scratch: Path | None = None


def prepare() -> None:
    """In each worker: a copy of the repository, and the libraries that every test imports."""
    global _scratch  # noqa: PLW0603
    _scratch = Path(tempfile.mkdtemp(prefix="mutate-"))
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (_scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, _scratch / name)


def outcome(fault: Fault | None, tests: tuple[str, ...], timeout: float) -> tuple[str, float]:
    """``noticed``, ``survived`` or ``timeout`` (a test hung: noticed, too), and the seconds that took."""
    assert _scratch is not None
    start = time.monotonic()
    target = _scratch / (fault.path if fault else "README.md")
    source = target.read_text()
    target.write_text(changed(source, fault) if fault else source)
    try:
        child = multiprocessing.get_context("fork").Process(target=_run, args=(tests,))
        child.start()
        child.join(timeout)
        if child.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
            return "timeout", time.monotonic() - start
        return ("noticed" if child.exitcode else "survived"), time.monotonic() - start
    finally:
        target.write_text(source)


def _run(tests: tuple[str, ...]) -> None:
    os.setsid()
    os.chdir(_scratch or ".")
    os.environ["PYTHONPATH"] = str(_scratch)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path[:] = [str(_scratch), *(each for each in sys.path if Path(each or ".").resolve() != ROOT)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    import pytest

    status = pytest.main(["-x", "-q", "--tb=no", "--show-capture=no", "-m", "not slow", *tests])
    os._exit(0 if status in (0, 5) else 1)


def drawn(options: argparse.Namespace) -> list[Fault]:
    """The faults of this round, always the same for a seed and a code."""
    patterns = options.files or [f"chainfx/{each}" for name in options.areas for each in AREAS[name].files]
    paths = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})
    found = [fault for path in paths for fault in faults_of(path)]
    random.Random(options.seed).shuffle(found)
    seen: Counter[str] = Counter()
    turns = []
    for fault in found:
        turns.append((seen[fault.kind], fault))
        seen[fault.kind] += 1
    return [fault for _, fault in sorted(turns, key=lambda turn: turn[0])][: options.count]


def rounds(faults: list[Fault], options: argparse.Namespace) -> Iterator[tuple[Fault, str, float]]:
    """The outcome of each fault as it is known."""
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork"), prepare) as workers:
        broken, _ = (
            workers.submit(
                outcome, None, tuple(dict.fromkeys(test for fault in faults for test in tests_of(fault.path))), 1e4
            ).result()
            if options.check
            else ("survived", 0.0)
        )
        if broken != "survived":
            raise SystemExit("the tests fail without a fault; mend them first")
        waiting = {
            workers.submit(partial(outcome, fault, tests_of(fault.path), options.timeout)): fault for fault in faults
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
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one fault")
    parser.add_argument("--outcomes", type=Path, default=Path("runs/faults.json"))
    parser.add_argument("--again", action="store_true", help="try those again that survived")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not run the tests without a fault first"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    parser.add_argument("--least", type=float, default=0.9, help="the share to notice, for the exit status")
    options = parser.parse_args()
    faults = drawn(options)
    if options.list:
        print(*faults, sep="\n")
        return 0
    options.outcomes.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(options.outcomes.read_text()) if options.outcomes.exists() else {}
    open_ones = [f for f in faults if str(f) not in known or (options.again and known[str(f)] == "survived")]
    for number, (fault, what, seconds) in enumerate(rounds(open_ones, options) if open_ones else (), start=1):
        known[str(fault)] = what
        options.outcomes.write_text(json.dumps(known, indent=1))
        print(f"{number}/{len(open_ones)} {what} in {seconds:.0f} s: {fault}", flush=True)
    counts = Counter(known[str(fault)] for fault in faults)
    share = 1 - counts["survived"] / max(1, len(faults))
    print(f"\n{len(faults)} faults, seed {options.seed}: {share:.0%} noticed ({dict(counts)})")
    print(*(f"survived: {fault}" for fault in faults if known[str(fault)] == "survived"), sep="\n")
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    import hypothesis  # noqa: F401 (these are imported once here, not in every process)
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    sys.exit(main())
