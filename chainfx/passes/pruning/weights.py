"""The tensors of a network and sums over them; each sum is computed once, however many criteria ask for it."""

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.ir.graph import edit, modules_by_path, ops, value_of

__all__ = ["Weights"]

_PIECE = 1 << 18  # elements whose powers are held at once


class Weights:
    """The parameters and buffers of a network by their paths, and sums over their first two dimensions.

    The sums are remembered; make a new object after a tensor was changed or replaced.
    """

    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.modules = modules_by_path(graph_module)
        self._decoded = {
            str(edit.input_of(node).target): value_of(graph_module, node)
            for target in (ops.look_up, ops.dequantize_weight)
            for node in graph_module.graph.find_nodes(op="call_function", target=target)
        }
        self._sums: dict[tuple[str, float], tuple[Tensor, ...]] = {}
        self._rows: dict[str, Tensor] = {}

    def tensor(self, path: str) -> Tensor:
        """The tensor at a path; of codes the weights that they stand for, in the same shape."""
        if path in self._decoded:
            return self._decoded[path]
        prefix, _, name = path.rpartition(".")
        found: Tensor = getattr(self.modules[prefix], name)
        return found

    def power_sum(self, path: str, dim: int, order: float) -> Tensor:
        """The sum of |w|^order at every position of a dimension, float64 on the CPU, shape (positions,)."""
        if dim > 1:
            return _power(self.tensor(path), order).movedim(dim, 0).flatten(1).sum(1).to("cpu", torch.float64)
        key = (path, order)
        if key not in self._sums:
            sums = _sums(self.tensor(path), order)
            self._sums[key] = tuple([each.to("cpu", torch.float64) for each in sums])
        return self._sums[key][dim]

    def row_sums(self, path: str) -> Tensor:
        """One number for each row of a matrix or filter bank: 0 if all of it is 0, not finite if some of it is not."""
        for order in (2, 1):
            if (path, order) in self._sums:
                return self._sums[path, order][0]
        if path not in self._rows:
            tensor = self.tensor(path).detach()
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            self._rows[path] = tensor.flatten(1).sum(1, dtype=dtype)
        return self._rows[path]


def _sums(tensor: Tensor, order: float) -> tuple[Tensor, ...]:
    """The sums over everything else at every position of the first and the second dimension, if there is one."""
    if tensor.dim() < 2:
        return (_power(tensor, order),)
    matrix = tensor.flatten(1)
    rows, columns = [], []
    for part in matrix.split(max(1, _PIECE // matrix.shape[1])):
        values = _power(part, order)
        rows.append(values.sum(1))
        columns.append(values.sum(0))
    column = columns[0] if len(columns) == 1 else torch.stack(columns).sum(0)
    if column.shape != tensor.shape[1:]:
        column = column.view(tensor.shape[1], -1).sum(1)
    return rows[0] if len(rows) == 1 else torch.cat(rows), column


def _power(tensor: Tensor, order: float) -> Tensor:
    values = tensor.detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.abs() if order == 1 else values.square() if order == 2 else values.abs().pow(order)
