"""What has to be changed so that tracing sees what a model does, changed for the thread that traces and for no other.

``torch.fx.Tracer.trace`` replaces ``nn.Module.__call__``, ``nn.Module.__getattr__`` and functions of Python modules for
the whole process: other threads meet proxies, and ``torch.compile`` in another thread takes the hooks away. Here

* calls of modules and reads of parameters are seen through hooks that lie on the modules of the traced model only
  (:func:`hooked`);
* functions such as ``torch.zeros`` or ``math.sqrt`` are other objects for the thread that traces, and the very same
  objects as ever for all others (:func:`seen_here`);
* functions that users gave to ``torch.fx.wrap`` are found by name among the globals of their file, which all threads
  share. They are replaced there, by functions that call the original at once in every other thread (:func:`replaced`).

Captures wait for each other (:func:`alone`).
"""

import builtins
import contextlib
import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

from torch import nn
from torch.fx import _symbolic_trace as fx

__all__ = ["Watcher", "alone", "hooked", "recorded", "replaced", "seen_here", "watched_by", "watcher_here"]


class Watcher(Protocol):
    """What is told of the calls and reads that happen in its thread: a tracer."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """The result of calling a module; ``forward`` is what the call would do by itself."""

    def read(self, value: Any) -> Any:
        """What code that reads this parameter or buffer of a module is given."""


class _Here(threading.local):
    watcher: Watcher | None = None
    attributes: Mapping[tuple[ModuleType, str], Any] = {}  # replaced, never changed
    captures: int = 0


_here = _Here()
_lock = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread captures, and keep others waiting; the same thread may enter again.

    The compiler of torch is kept waiting too, since it replaces the same functions: its own lock is taken first, as it
    is where a capture is made in the course of a compilation. A capture that traced code itself makes is not traced.
    """
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    first = getattr(compiler, "compile_lock", None) if not _here.captures else None
    with first or contextlib.nullcontext(), _lock, watched_by(None):
        _here.captures += 1
        try:
            yield
        finally:
            _here.captures -= 1


def watcher_here() -> Watcher | None:
    """What watches this thread, if anything does."""
    return _here.watcher


class watched_by:  # noqa: N801  # a generator would say the same, and cost more than the rest of what a node costs
    """Tell ``watcher`` of what this thread does in a ``with`` block, or nobody."""

    __slots__ = ("_before", "_watcher")

    def __init__(self, watcher: Watcher | None) -> None:
        self._watcher = watcher

    def __enter__(self) -> None:
        self._before = _here.watcher
        _here.watcher = self._watcher

    def __exit__(self, *_: object) -> None:
        _here.watcher = self._before


class _Call:
    """Lies where ``module.compile()`` puts its result, which is what torch runs when the module is called."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = module._compiled_call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watcher = _here.watcher
        if watcher is None:
            return (self.before or self.module._call_impl)(*args, **kwargs)
        return watcher.call_module(self.module, self.module._call_impl, args, kwargs)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the module, made in whatever thread, is not traced


class _Held(dict[str, Any]):
    """The parameters or buffers of a traced module by name."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        watcher = _here.watcher
        return value if watcher is None else watcher.read(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


@contextlib.contextmanager
def hooked(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let the watcher of a thread know of calls of these modules and of reads of their parameters and buffers.

    Other threads may call and copy the modules meanwhile as ever.
    """
    before = []
    for module in dict.fromkeys(modules.values()):
        own = vars(module)
        hooks = {name: _Held(own[name]) for name in ("_parameters", "_buffers") if own.get(name)}
        before.append((own, {name: own[name] for name in hooks}, own.get("_compiled_call_impl")))
        own.update(hooks, _compiled_call_impl=_Call(module))
    try:
        yield
    finally:
        for own, held, compiled in before:
            own.update(held)
            if compiled is None:
                del own["_compiled_call_impl"]
            else:
                own["_compiled_call_impl"] = compiled


@contextlib.contextmanager
def seen_here(attributes: Mapping[tuple[ModuleType, str], Any]) -> Iterator[None]:
    """Let this thread see other attributes of Python modules than the rest of the process does.

    ``attributes`` are the values by module and name. Only in :func:`alone`.
    """
    before = _here.attributes
    _here.attributes = {**before, **attributes}
    kinds = {module: type(module) for module, _ in attributes}
    try:
        for module, kind in kinds.items():
            names = frozenset(name for owner, name in attributes if owner is module)
            module.__class__ = _view(kind, names)  # type: ignore[arg-type]  # mypy takes no type for hashable
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
        _here.attributes = before


class _Attribute:
    """An attribute of a Python module that depends on the thread that asks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: ModuleType, kind: type) -> Any:
        seen = _here.attributes
        return seen[module, self.name] if (module, self.name) in seen else vars(module)[self.name]

    def __set__(self, module: ModuleType, value: Any) -> None:
        vars(module)[self.name] = value


@functools.cache
def _view(kind: type[ModuleType], names: frozenset[str]) -> type[ModuleType]:
    """The type of a Python module with such attributes."""
    attributes = {name: _Attribute(name) for name in names}
    return type(kind.__name__, (kind,), {**attributes, "__getattr__": _no_attribute})


def _no_attribute(module: ModuleType, name: str) -> Any:
    # Python 3.14 looks into the dictionary of a module before its type, unless the type has this method
    raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=module)


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that, where this thread is watched and an argument is a proxy, records a call of ``function``."""
    record = fx._create_wrapped_func(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if _here.watcher is None else record)(*args, **kwargs)

    return call


@contextlib.contextmanager
def replaced(places: Mapping[tuple[int, str], dict[str, Any]]) -> Iterator[None]:
    """Replace functions among the globals of Python files by :func:`recorded` ones; only in :func:`alone`.

    ``places`` are the globals by their ``id`` and the name of the function, as ``torch.fx.wrap`` keeps them.
    """
    absent = object()
    before = [(names, name, names.get(name, absent)) for (_, name), names in places.items()]
    try:
        for names, name, function in before:
            names[name] = recorded(getattr(builtins, name) if function is absent else function)
        yield
    finally:
        for names, name, function in before:
            if function is absent:
                names.pop(name, None)
            else:
                names[name] = function
