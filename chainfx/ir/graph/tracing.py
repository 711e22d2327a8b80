"""Functions of chainfx that a tracer of ``torch.fx`` records as one call."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.fx import Proxy

__all__ = ["one_node"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def one_node(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let every tracer record a call of the function as one node, and not what the function does.

    ``torch.fx.wrap`` does the same by replacing the function in its file while anything is traced. A pass that another
    thread runs meanwhile would then put the replacement into its graph, which no table of operators knows.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return value.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[return-value]  # a proxy
        return function(*args, **kwargs)

    return call
