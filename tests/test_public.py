"""The public names and the cost of importing them, so that a change of either is seen."""

import ast
import importlib
import inspect
import itertools
import types
from pathlib import Path

import pytest

import chainfx
from tests.fresh import fresh

MANIFEST = Path(__file__).with_name("public_names.txt")
ROOMS = (
    "chainfx",
    "chainfx.bitops",
    "chainfx.coding",
    "chainfx.deploy",
    "chainfx.errors",
    "chainfx.ir",
    "chainfx.ir.artifact",
    "chainfx.ir.capture",
    "chainfx.ir.channels",
    "chainfx.ir.graph",
    "chainfx.linting",
    "chainfx.passes",
    "chainfx.report",
    "chainfx.scheduler",
    "chainfx.study",
    "chainfx.testing",
    "chainfx.training",
    "chainfx.zoo",
)


def names_of(room):
    return importlib.import_module(room).__all__


def test_the_public_names_are_those_of_the_manifest():
    """``public_names.txt`` has one name a line, sorted; a change there is a change for users."""
    found = sorted(f"{room}.{name}" for room in ROOMS for name in names_of(room))
    assert MANIFEST.read_text().split() == found


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_documented(room):
    assert importlib.import_module(room).__doc__
    assert [name for name in names_of(room) if not documentation(room, name)] == []


def documentation(room, name):
    """The docstring of a module, class or function, or the string below the assignment of a constant."""
    value = inspect.unwrap(getattr(importlib.import_module(room), name))
    if not isinstance(value, types.ModuleType | type | types.FunctionType):
        return string_below(home_of(room, name), name)
    text = value.__doc__ or ""
    return "" if text.startswith(f"{name}(") else text  # which a dataclass makes of its fields


def home_of(room, name):
    """The module that a room imports a name from; the room itself if it imports it from nowhere."""
    for statement in tree_of(room).body:
        if isinstance(statement, ast.ImportFrom) and name in {alias.name for alias in statement.names}:
            return home_of(statement.module, name)
    return room


def string_below(module, name):
    """The string that stands below the assignment to ``name`` at the top of a module, where editors look for it."""
    for statement, following in itertools.pairwise(tree_of(module).body):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            match following:
                case ast.Expr(ast.Constant(str(text))) if name in map(ast.unparse, targets):
                    return text
    return ""


def tree_of(module):
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def test_the_attributes_users_rely_on():
    report = {"macs", "bitops", "expected_bitops", "storage_bits", "rows", "uncounted", "convention"}
    fields = set(chainfx.CostReport.__dataclass_fields__) | set(dir(chainfx.CostReport))
    assert report <= fields
    assert {"order", "edges"} <= set(chainfx.Plan.__dataclass_fields__) | set(dir(chainfx.Plan))


def test_importing_chainfx_loads_no_heavy_library():
    code = (
        "import sys, chainfx; heavy = ('torchvision', 'torchao', 'accelerate', 'sklearn', 'scipy', 'timm', 'pandas');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert fresh(code).out.strip() == "[]"
