"""Linear layers whose weights are mostly zeros: products with the weights that are left, where that is faster."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.deploy.integers import Lowered, Machine
from chainfx.deploy.lower import read_by
from chainfx.ir.graph import Layer, edit, input_of, layers_of, operator_of, value_of

__all__ = ["SparseLinear", "largest_batch", "lower_to_sparse"]

_RULE = ((0.9, 2**20, 256), (0.8, 2**23, 16))
"""Shares of zeros and numbers of weights from which on sparse products up to a batch are at least a quarter faster."""


def largest_batch(weights: int, zeros: int) -> int:
    """The largest batch that a linear layer of so many weights, with so many zeros, takes as a sparse product; else 0.

    A rule, not a timing; it follows from the table of ``benchmarks/deep_compression.py --part latency``, measured on
    one thread of an AVX2 processor. A sparse product takes about four times as long for each weight that is left as a
    dense one takes for each weight, in large batches eight times, and each call some ten microseconds more, which small
    layers do not win back.

    >>> largest_batch(4096 * 4096, zeros=4096 * 4000), largest_batch(4096 * 4096, zeros=0), largest_batch(1000, 999)
    (256, 0, 0)
    """
    fits = (batch for share, fewest, batch in _RULE if weights >= fewest and zeros >= share * weights)
    return next(fits, 0)


class SparseLinear(nn.Module):
    """A linear layer on the weights that are not zero, row by row (CSR), for batches of up to ``most`` samples.

    ``starts`` (out + 1,), ``columns`` and ``entries`` (one for each weight that is left) are those of
    ``weight.to_sparse_csr()``, the places as int32, which MKL reads as they are. Larger batches, inputs with a gradient
    and autocast take the dense weight, which is an input, as is the bias. Equal to the dense product up to rounding for
    finite inputs; an infinite one counts for nothing where it meets a zero, which a dense product makes NaN.
    """

    starts: Tensor
    columns: Tensor
    entries: Tensor

    def __init__(self, weight: Tensor, most: int) -> None:
        super().__init__()
        self.most = most
        _quieten()
        rows = weight.detach().to_sparse_csr()
        self.register_buffer("starts", rows.crow_indices().int())
        self.register_buffer("columns", rows.col_indices().int())
        self.register_buffer("entries", rows.values().clone())  # torch.compile takes no view of a sparse tensor

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in), weight (out, in) and bias (out,) give (..., out)."""
        trains = x.requires_grad and torch.is_grad_enabled()
        if trains or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, weight, bias)
        product = torch.ops.chainfx.sparse_linear if torch.compiler.is_compiling() else _product
        result: Tensor = product(x, weight, bias, self.starts, self.columns, self.entries, self.most)
        return result


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor, columns: Tensor, entries: Tensor, most: int
) -> Tensor:
    """``F.linear(x, weight, bias)``, by the weights that are left for 1 to ``most`` samples."""
    flat = x.reshape(-1, x.shape[-1])
    if not 0 < len(flat) <= most:
        return F.linear(x, weight, bias)
    _quieten()
    rows = torch.sparse_csr_tensor(starts, columns, entries, weight.shape, check_invariants=False)
    if len(flat) == 1:
        found = torch.mv(rows, flat[0]) if bias is None else torch.addmv(bias, rows, flat[0])
    else:
        columnwise = rows @ flat.t() if bias is None else torch.addmm(bias[:, None], rows, flat.t())
        found = columnwise.t().contiguous()
    return found.view(*x.shape[:-1], weight.shape[0])


@functools.cache
def _quieten() -> None:
    """Let torch say where nobody hears it that its sparse tensors are in beta, which it says once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1, device="cpu").to_sparse_csr()


# what torch.compile sees of a layer: one operator over plain tensors, which decides by the batch that it is given
_LIBRARY = torch.library.Library("chainfx", "FRAGMENT")
_LIBRARY.define(
    "sparse_linear(Tensor x, Tensor weight, Tensor? bias, Tensor starts, Tensor columns, Tensor entries, int most)"
    " -> Tensor"
)
_LIBRARY.impl("sparse_linear", _product, "CPU")


@torch.library.register_fake("chainfx::sparse_linear")  # type: ignore[untyped-decorator]  # of torch
def _shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor, columns: Tensor, entries: Tensor, most: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def lower_to_sparse(graph_module: GraphModule, machine: Machine) -> dict[str, Lowered]:
    """Let linear layers of a network compute with the weights that are not zero, where the rule says so.

    Returns by path a row for each of them; see :func:`largest_batch`. Works on layers in float32 on the CPU whose
    weight is stored, on machines whose torch has the sparse kernels of MKL.
    """
    made: dict[tuple[object, ...], tuple[str, str] | None] = {}
    rows = {}
    for layer in filter(_could_be_sparse, layers_of(graph_module) if machine.sparse else ()):
        key = read_by(layer.weight_read)
        if key not in made:
            made[key] = _placed(graph_module, layer)
        found = made[key]
        if found is None:
            continue
        path, reason = found
        rows[layer.path] = Lowered(layer.path, operator_of(layer.node).spelling, "sparse", reason)
        with graph_module.graph.inserting_before(layer.node):
            arguments = (input_of(layer.node), layer.weight_read, layer.bias_read)
            product = graph_module.graph.call_module(path, arguments)
        product.meta = dict(layer.node.meta)
        layer.node.replace_all_uses_with(product)
        graph_module.graph.erase_node(layer.node)
    graph_module.recompile()  # not tidied: its modules are those of the network that it is a copy of
    return rows


def _could_be_sparse(layer: Layer) -> bool:
    """Whether a layer is linear and large enough, on the CPU in float32."""
    if layer.node.target is not F.linear or not largest_batch(layer.tensor.numel(), layer.tensor.numel()):
        return False
    dtype: torch.dtype = layer.node.meta["val"].dtype
    return layer.tensor.device.type == "cpu" and dtype == torch.float32


def _placed(graph_module: GraphModule, layer: Layer) -> tuple[str, str] | None:
    """Store the sparse form of a weight: where, and the words of the rule; ``None`` where the dense one is faster."""
    with torch.no_grad():
        weight = value_of(graph_module, layer.weight_read)
    zeros = weight.numel() - int(weight.count_nonzero())
    most = largest_batch(weight.numel(), zeros)
    if not most or weight.dtype != torch.float32:
        return None
    path = edit.fresh_path(graph_module, f"sparse_{layer.path.replace('.', '_')}")
    edit.place_module(graph_module, path, SparseLinear(weight, most))
    share = zeros / weight.numel()
    return path, f"{share:.1%} of its weights are zero; dense for more than {most} samples at once"
