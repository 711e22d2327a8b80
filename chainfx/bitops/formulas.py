"""How many multiply-accumulates (MACs) one call of an operator takes, from the shapes alone: one formula per operator.

Counting semantics. A MAC is one multiplication and one addition into a sum; bias additions are not counted. The work is
that of the dense operator on these shapes: zeros in a weight, causal masks and padding count like everything else.
FLOPs, where somebody needs them, are twice the MACs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chainfx.errors import InputError
from chainfx.ir.graph import name_of

__all__ = ["Call", "Formula", "find_formula", "register_formula"]

Slot = tuple[int, str]


class Call(NamedTuple):
    """One call of an operator, as a formula sees it.

    In its arguments and its output, fake tensors, which have a shape but no data, stand in place of nodes. ``module``
    is the module if the call is that of a module.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any
    module: nn.Module | None = None

    def get(self, position: int, name: str) -> Any:
        """An argument, by its position or its name; if a module is called, also the parameter of that name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, getattr(self.module, name, None))

    def shape(self, position: int, name: str) -> tuple[int, ...]:
        """The shape of the tensor that is an argument, by its position or its name."""
        return tuple(self.get(position, name).shape)


@dataclass(frozen=True, slots=True)
class Formula:
    """MACs of a call (whole batch; ``None`` if the call is of a form that the formula does not know), and its operands.

    ``activation`` and ``weight`` say which arguments (position, name) the two factors are. An empty tuple means that
    the factor is computed inside the operator, and so has the format of the output's dtype.
    """

    macs: Callable[[Call], int | None]
    activation: tuple[Slot, ...] = field(default=((0, "input"),))
    weight: tuple[Slot, ...] = field(default=((1, "weight"),))


_FORMULAS: dict[str, Formula] = {}


def register_formula(
    names: str, activation: tuple[Slot, ...] = ((0, "input"),), weight: tuple[Slot, ...] = ((1, "weight"),)
) -> Callable[[Callable[[Call], int | None]], Callable[[Call], int | None]]:
    """Register the MACs of the operators ``names`` (space separated, any spelling).

    Raises :class:`InputError` for an operator that has a formula. The fields are those of :class:`Formula`.
    """

    def add(macs: Callable[[Call], int | None]) -> Callable[[Call], int | None]:
        for key in dict.fromkeys(name_of(name) for name in names.split()):
            if key in _FORMULAS:
                raise InputError(f"the operator {key!r} has a formula already; each operator has exactly one.")
            _FORMULAS[key] = Formula(macs, activation, weight)
        return macs

    return add


def find_formula(key: str) -> Formula | None:
    """The formula of an operator, by the name that :func:`~chainfx.ir.graph.name_of` gives it, or ``None``."""
    return _FORMULAS.get(key)


@register_formula("conv2d")
def convolution(call: Call) -> int:
    """Outputs * C_in / groups * kernel size; weight (C_out, C_in / groups, *kernel)."""
    return int(call.output.numel()) * math.prod(call.shape(1, "weight")[1:])


@register_formula("conv_transpose2d")
def transposed_convolution(call: Call) -> int:
    """Inputs * C_out / groups * kernel size; weight (C_in, C_out / groups, *kernel)."""
    return math.prod(call.shape(0, "input")) * math.prod(call.shape(1, "weight")[1:])


@register_formula("convolution")
def aten_convolution(call: Call) -> int | None:
    """``aten.convolution``, whose argument ``transposed`` says which of the two it is."""
    return transposed_convolution(call) if call.get(6, "transposed") else convolution(call)


@register_formula("linear")
def linear(call: Call) -> int:
    """Outputs * input features; weight (out, in)."""
    return int(call.output.numel()) * call.shape(1, "weight")[-1]


@register_formula("bilinear", activation=((0, "input1"), (1, "input2")), weight=((2, "weight"),))
def bilinear(call: Call) -> int:
    """x1^T A first, then times x2: outputs * (in1 * in2 + in2); weight (out, in1, in2)."""
    _, first, second = call.shape(2, "weight")
    return int(call.output.numel()) * (first * second + second)


@register_formula("matmul imatmul bmm mm mv dot vdot inner linalg_matmul linalg_vecdot", weight=((1, "other"),))
def matmul(call: Call) -> int:
    """Outputs * length of the axis that is summed over, which is the last one of the first operand."""
    return int(call.output.numel()) * call.shape(0, "input")[-1]


def _register_added_matmul(names: str, first: str, second: str) -> None:
    """``input + first @ second``: elements of the first matrix (``addbmm``: of all of them) * columns of the second."""

    @register_formula(names, activation=((1, first),), weight=((2, second),))
    def added_matmul(call: Call) -> int:
        columns = call.shape(2, second)
        return math.prod(call.shape(1, first)) * (columns[-1] if len(columns) > 1 else 1)


_register_added_matmul("addmm", "mat1", "mat2")
_register_added_matmul("addmv", "mat", "vec")
_register_added_matmul("baddbmm addbmm", "batch1", "batch2")


@register_formula("tensordot", activation=((0, "a"),), weight=((1, "b"),))
def tensordot(call: Call) -> int:
    """M * K * N, the root of the product of elements of (M, K), (K, N) and (M, N)."""
    a, b = math.prod(call.shape(0, "a")), math.prod(call.shape(1, "b"))
    return math.isqrt(a * b * int(call.output.numel()))


@register_formula("scaled_dot_product_attention", activation=(), weight=((1, "key"), (2, "value")))
def attention(call: Call) -> int:
    """Query positions * key positions * (E + Ev), heads and batch included; query (..., L, E), key (..., S, E)."""
    query, key, value = (call.shape(i, name) for i, name in enumerate(("query", "key", "value")))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@register_formula(
    "LSTM GRU RNN RNN_tanh RNN_relu LSTMCell GRUCell RNNCell RNN_tanh_cell RNN_relu_cell", activation=(), weight=()
)
def recurrent(call: Call) -> int | None:
    """Steps * elements of all weight matrices (input, hidden, projection; every layer and direction).

    Functions take their weights as ``(input, hx, weights, ...)``, packed ``(data, batch_sizes, hx, weights, ...)``,
    cells as ``(input, hx, weight, weight, ...)``. Of packed sequences only the steps that are there count.
    """
    given = call.get(0, "input")
    sequence = given.data if isinstance(given, PackedSequence) else given
    if not isinstance(sequence, Tensor) or (call.module is None and len(call.args) < 4):
        return None
    tensors: Sequence[Tensor]
    if call.module is not None:
        tensors = list(call.module.parameters())
    elif isinstance(call.args[3], Tensor):
        tensors = call.args[2:4]
    else:
        tensors = [each for each in call.args if isinstance(each, list | tuple)][-1]
    return sequence.numel() // sequence.shape[-1] * sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)


@register_formula("einsum", activation=((1, "operands"),), weight=((2, "operands"),))
def einsum(call: Call) -> int | None:
    """The pairs contracted from left to right; a pair without a summed index is an element-wise product, not MACs.

    An index that is in one operand only and not in the result is summed before, which costs no MACs. Equations with
    sublists are not known.
    """
    if not isinstance(call.args[0], str):
        return None
    operands = call.args[1] if isinstance(call.args[1], list | tuple) else call.args[1:]
    shapes = [tuple(operand.shape) for operand in operands]
    terms, result = _einsum_terms(call.args[0].replace(" ", ""), shapes)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    total, left = 0, set(terms[0])
    for position, term in enumerate(terms[1:], start=2):
        needed = set(result).union(*terms[position:])
        pair = {index for index in left | set(term) if index in needed or (index in left and index in term)}
        if not pair <= needed:
            total += math.prod(sizes[index] for index in pair)
        left = pair & needed
    return total


def _einsum_terms(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str]:
    """The index letters of every operand and of the result; an ellipsis becomes digits, counted from the right."""
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    hidden = max(len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True))
    digits = "".join(chr(0x2460 + position) for position in range(max(hidden, 0)))
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        result = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    terms = [
        term.replace("...", digits[len(digits) - (len(shape) - len(term) + 3) :])
        for term, shape in zip(terms, shapes, strict=True)
    ]
    return terms, result.replace("...", digits)
