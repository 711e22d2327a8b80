"""Subclasses of torch's normalization and dropout layers, opened.

A subclass with a ``forward`` of its own, such as timm's ``BatchNormAct2d``, is traced like any other module. The
normalization in it becomes a call of the torch layer that it extends, under the path and with the tensors of the
subclass, and what the subclass adds becomes nodes after it::

    norm = BatchNormAct2d(8)     ->     norm = BatchNorm2d(8), norm.act = ReLU()

The torch layer keeps the count of batches and follows train and eval mode by itself.
"""

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Proxy
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from chainfx.ir.capture.hooks import watcher_here
from chainfx.ir.graph import modules_by_path

__all__ = ["NORMALIZATIONS", "is_counter", "is_whole", "normalized_by", "put_torch_layers", "unchecked"]

NORMALIZATIONS = (F.batch_norm, F.instance_norm)
"""The functions that the layers call which keep statistics."""

_STATEFUL = (_NormBase, _DropoutNd)
_TENSORS = ("running_mean", "running_var", "weight", "bias")


def is_whole(module: nn.Module) -> bool:
    """Whether a module is a normalization with statistics, or a dropout, that does what torch's own layer does."""
    return isinstance(module, _STATEFUL) and type(module).forward.__module__.startswith("torch.nn.")


def is_counter(name: str, path: str, kind: type | None) -> bool:
    """Whether ``name`` is the count of batches of the module of type ``kind`` at ``path``, an opened normalization."""
    return bool(path) and name == f"{path}.num_batches_tracked" and kind is not None and issubclass(kind, _NormBase)


@contextlib.contextmanager
def unchecked(module: nn.Module) -> Iterator[None]:
    """Let a normalization take traced inputs, whose rank cannot be asked for."""
    if not isinstance(module, _NormBase):
        yield
        return
    check: Any = module._check_input_dim
    own = vars(module)
    own["_check_input_dim"] = lambda x: None if watcher_here() else check(x)
    try:
        yield
    finally:
        del own["_check_input_dim"]


def normalized_by(
    module: nn.Module | None, path: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a call of one of :data:`NORMALIZATIONS` normalizes, if the torch layer of ``module`` does the same.

    ``None`` for a call that is not made by a layer with statistics: it stays a function. Raises ``TraceError`` for a
    layer that normalizes in another way than torch's, with statistics that no graph would keep.
    """
    if not path or not isinstance(module, _NormBase):
        return None
    given = inspect.signature(target).bind(*args, **kwargs).arguments
    own = {name: f"{path}.{name}" for name in _TENSORS if getattr(module, name) is not None}
    read = {name: given.get(name) for name in _TENSORS}
    found = {name: str(value.node.target) for name, value in read.items() if isinstance(value, Proxy)}
    in_turn = {name: path for name, path in own.items() if name in found or not name.startswith("running")}
    by_batch = given.get("training", False) if target is F.batch_norm else given.get("use_input_stats", True)
    in_mode = by_batch is (module.training or module.running_mean is None)
    if found != in_turn or given.get("eps", 1e-5) != module.eps or not in_mode:
        raise TraceError(f"module {path!r} does not normalize as the torch layer that it extends")
    return given["input"]


def put_torch_layers(graph_module: GraphModule, opened: Collection[str]) -> None:
    """Put the torch layer that they extend in the place of the normalizations at the paths ``opened``.

    So it is done for those, and dropouts, that differ from the torch layer in nothing but their class.
    """
    called = {str(node.target) for node in graph_module.graph.find_nodes(op="call_module")}
    modules = modules_by_path(graph_module)
    for path in sorted(called):
        module = modules[path]
        if (is_whole(module) or path in opened) and not type(module).__module__.startswith("torch.nn."):
            prefix, _, name = path.rpartition(".")
            modules[prefix]._modules[name] = modules[path] = _torch_layer(module, path, called)


def _torch_layer(module: nn.Module, path: str, called: set[str]) -> nn.Module:
    """The layer of torch.nn that a module extends, with the same tensors and those children that are called."""
    cls = next(each for each in type(module).__mro__ if each.__module__.startswith("torch.nn."))
    layer: nn.Module = object.__new__(cls)
    nn.Module.__init__(layer)
    # hooks of an opened layer are traced, those of one that does what torch's does are run by it
    vars(layer).update({key: each for key, each in vars(module).items() if key[:1] != "_" or is_whole(module)})
    vars(layer)["_modules"] = {
        name: child
        for name, child in module._modules.items()
        if child is not None and any(f"{each}.".startswith(f"{path}.{name}.") for each in called)
    }
    for held in ("_parameters", "_buffers"):
        vars(layer)[held] = dict(getattr(module, held))
    return layer
