"""How a value is shown: :mod:`chainfx.report` says it, and values ask here, so that they need not know it."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from rich.table import Table

__all__ = ["Form", "register_renderer", "rendered"]

Form = Literal["text", "html", "csv", "table"]
_Value = TypeVar("_Value")

_RENDERERS: dict[tuple[type, Form], Callable[[Any], Any]] = {}


@overload
def register_renderer(of: type[_Value], form: Literal["table"], renderer: Callable[[_Value], Table]) -> None: ...
@overload
def register_renderer(
    of: type[_Value], form: Literal["text", "html", "csv"], renderer: Callable[[_Value], str]
) -> None: ...
def register_renderer(of: type, form: Form, renderer: Callable[[Any], Any]) -> None:
    """Let ``renderer`` show values of the class ``of`` in a form; raises ``ValueError`` if one does already."""
    if (of, form) in _RENDERERS:
        raise ValueError(f"{of.__name__} already has a renderer for {form}; it can have one.")
    _RENDERERS[of, form] = renderer


@overload
def rendered(value: object, form: Literal["table"]) -> Table: ...
@overload
def rendered(value: object, form: Literal["text", "html", "csv"]) -> str: ...
def rendered(value: object, form: Form) -> str | Table:
    """The value in a form: a :class:`rich.table.Table` for ``"table"``, else a string.

    The renderer is that of the value's class or of its nearest base that has one. Raises ``LookupError`` if there is
    none.
    """
    found = [_RENDERERS[cls, form] for cls in type(value).__mro__ if (cls, form) in _RENDERERS]
    if not found:
        raise LookupError(
            f"nothing shows a {type(value).__name__} as {form}; import chainfx.report, which registers its renderers."
        )
    shown: str | Table = found[0](value)
    return shown
