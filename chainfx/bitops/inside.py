"""Count the work inside of a node for which there is no formula, such as a function of the user's own.

The node runs on tensors without data, and the ATen operators that run inside of it are counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from chainfx.bitops.formulas import Call, find_formula
from chainfx.bitops.reading import tensors_in
from chainfx.ir.graph import Trait, call_operator, evaluating, name_of, names_with

__all__ = ["Inside", "work_inside"]

_ARITHMETIC, _CONSTRUCTORS, _MOVEMENT = map(names_with, (Trait.ARITHMETIC, Trait.CONSTRUCTOR, Trait.MOVEMENT))
_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Inside:
    """What was found inside of a node.

    MACs and element-wise operations are those of the whole batch; operators that nobody can count are there by name.
    """

    macs: int
    elementwise: int
    unknown: tuple[str, ...] = ()


def work_inside(node: Node, module: nn.Module | None, varying: Iterable[Node]) -> Inside | None:
    """What a node does for its inputs, after ``propagate_shapes``; ``None`` if it does not run without data.

    ``module``: what a ``call_module`` node calls. ``varying``: the nodes that depend on the sample. As in the graph
    around it, what depends on none of them is computed once and costs nothing.
    """
    recorder = _Recorder()
    fresh = {source: _fresh(source.meta.get("val")) for source in node.all_input_nodes}
    recorder.vary(fresh[source] for source in node.all_input_nodes if source in set(varying))
    args, kwargs = map_arg((node.args, node.kwargs), fresh.__getitem__)
    try:
        with torch.no_grad(), torch.device("meta"), recorder:
            _run(node, module, args, kwargs)
    except _FAILURES:
        return None
    return Inside(recorder.macs, recorder.elementwise, tuple(dict.fromkeys(recorder.unknown)))


def _run(node: Node, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if module is None:
        call_operator(node, args, kwargs)
        return
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    with evaluating(module):
        torch.func.functional_call(module, _fresh(tensors), tuple(args), dict(kwargs))


def _fresh(value: Any) -> Any:
    """New tensors of the same shape without data, also in tuples, lists and dictionaries; all else as it is."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, dict):
        return {key: _fresh(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fresh(item) for item in value)
    return value


class _Recorder(TorchDispatchMode):
    """Adds up the work of every ATen operator that has an input which depends on the sample."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.macs = self.elementwise = 0
        self.unknown: list[str] = []
        self._varying: dict[
            int, Any
        ] = {}  # storages, so that a write to a view counts; an id lives as long as its object

    def vary(self, values: Iterable[Any]) -> None:
        """Remember that tensors depend on the sample."""
        storages = [tensor.untyped_storage() for value in values for tensor in tensors_in(value)]
        self._varying |= {id(storage): storage for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs = tensors_in([*args, *kwargs.values()])
        namespace, _, name = func._schema.name.partition("::")
        key = name_of(name) if namespace == "aten" else ""
        if key in _CONSTRUCTORS or not any(id(tensor.untyped_storage()) in self._varying for tensor in inputs):
            return output
        self.vary([output])
        formula = find_formula(key)
        macs = formula.macs(Call(args, kwargs, output)) if formula else None
        if macs is not None:
            self.macs += macs
        elif key in _ARITHMETIC:
            self.elementwise += max(tensor.numel() for tensor in [*inputs, *tensors_in(output)])
        elif key not in _MOVEMENT:
            self.unknown.append(name)
        return output
