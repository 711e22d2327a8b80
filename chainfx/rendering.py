"""How a value is shown: :mod:`chainfx.report` says it, and values ask here, so that they need not know it."""

from collections.abc import Callable
from typing import Any, Literal

__all__ = ["Form", "register_renderer", "rendered"]

Form = Literal["text", "html", "csv"]

_RENDERERS: dict[tuple[type, Form], Callable[[Any], str]] = {}


def register_renderer(of: type, form: Form, renderer: Callable[[Any], str]) -> None:
    """Let ``renderer`` show values of the class ``of`` in a form; raises ``ValueError`` if one does already."""
    if (of, form) in _RENDERERS:
        raise ValueError(f"{of.__name__} already has a renderer for {form}; it can have one.")
    _RENDERERS[of, form] = renderer


def rendered(value: object, form: Form) -> str:
    """The value in a form; raises ``LookupError`` if no renderer was registered for its class."""
    renderer = _RENDERERS.get((type(value), form))
    if renderer is None:
        raise LookupError(
            f"nothing shows a {type(value).__name__} as {form}; import chainfx.report, which registers it."
        )
    return renderer(value)
