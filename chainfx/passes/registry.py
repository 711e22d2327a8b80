"""The passes that can be named in a recipe or a record: chainfx's own and those of installed packages.

A package offers a pass by an entry point of the group ``chainfx.passes`` whose name is the pass name.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from chainfx.errors import PassError
from chainfx.passes.base import Pass

__all__ = ["get_pass", "pass_from_spec", "pass_names"]


@cache
def _found() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group="chainfx.passes"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PassError(
                f"two packages offer a pass named {point.name!r}: {other.value} and {point.value}; uninstall one."
            )
    return found


def pass_names() -> tuple[str, ...]:
    """The names of all installed passes, sorted."""
    return tuple(sorted(_found()))


def get_pass(name: str) -> type[Pass]:
    """The pass class of that name; raises :class:`PassError` with close matches if there is none."""
    if name not in _found():
        close = get_close_matches(name, pass_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PassError(f"there is no pass named {name!r}; {hint}installed are {', '.join(pass_names())}.")
    try:
        cls = _found()[name].load()
    except (ImportError, AttributeError) as error:
        raise PassError(
            f"the pass {name!r} ({_found()[name].value}) cannot be imported: {error}; mend or remove its package."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise PassError(f"the entry point {name!r} ({_found()[name].value}) is not a Pass; mend its package.")
    if cls.info.name != name:
        raise PassError(f"the entry point {name!r} names a pass that calls itself {cls.info.name!r}; make them equal.")
    return cls


def pass_from_spec(spec: Mapping[str, Any]) -> Pass:
    """The pass that :meth:`Pass.spec` described."""
    return get_pass(str(spec["pass"])).from_spec(spec)
