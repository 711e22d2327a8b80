"""Rules for products of two activations, such as attention.

In ``left @ right`` the rows of the left and the columns of the right operand become those of the result. Along the
index that is summed over, the channels of both operands are coupled, pair by pair: a pair that is gone adds nothing to
the sum. Operands of attention carry their channels as (heads, width). What is kept of them must be a rectangle, which
is the same positions of every head, or whole heads.
"""

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from chainfx.ir.channels.labels import Labels, blank, select_first, varying
from chainfx.ir.channels.walk import Flow, Rule

__all__ = ["PRODUCTS", "linear_product"]

Letters = tuple[str, ...]
Operand = tuple[Labels, Letters]


def matmul(flow: Flow, node: Node) -> Labels:
    """The rule for ``matmul``, ``bmm`` and ``@``: (..., i, k) times (..., k, j)."""
    left, right = (flow.label(flow.argument(node, i, name)) for i, name in enumerate(("input", "other")))
    return _matrices(flow, node, left, right).expand(flow.shape(node))


def baddbmm(flow: Flow, node: Node) -> Labels:
    """The rule for ``baddbmm``: a tensor is added to the product."""
    added, left, right = (flow.label(flow.argument(node, i, n)) for i, n in enumerate(("input", "batch1", "batch2")))
    return flow.combine(added, _matrices(flow, node, left, right).expand(flow.shape(node)), node)


def linear_product(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.linear`` with a computed weight: (..., k) times (j, k)."""
    left, right = flow.label(node.args[0]), flow.label(node.args[1])
    rows = tuple(f"row{i}" for i in range(left.dim() - 1))
    result = _contract(flow, node, [(left, (*rows, "k")), (right, ("j", "k"))], (*rows, "j"))
    if node.args[2] is None:
        return result.expand(flow.shape(node))
    return flow.combine(result.expand(flow.shape(node)), flow.label(node.args[2]), node)


def einsum(flow: Flow, node: Node) -> Any:
    """The rule for ``einsum``: an index that is not in the output is summed over."""
    equation, *given = node.args
    tensors = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    labels = [flow.label(each) for each in tensors]
    inputs, output = _parsed(str(equation), [each.dim() for each in labels])
    if any(len(set(letters)) < len(letters) for letters in inputs):
        return flow.unknown(node, "einsum takes a diagonal")
    operands = list(zip(labels, inputs, strict=True))
    return _contract(flow, node, operands, output).expand(flow.shape(node))


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[Letters], Letters]:
    """The index letters of every dimension of the operands, and of the output."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = [_letters(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    if arrow:
        dots = max(rank - len(term.replace("...", "")) for term, rank in zip(left.split(","), ranks, strict=True))
        return inputs, _letters(right, len(right.replace("...", "")) + ("..." in right) * dots)
    every = [letter for letters in inputs for letter in letters]
    once = sorted(x for x in set(every) if every.count(x) == 1 and len(x) == 1)
    return inputs, (*sorted({x for x in every if len(x) > 1}, reverse=True), *once)


def _letters(term: str, rank: int) -> Letters:
    before, dots, after = term.partition("...")
    middle = range(rank - len(before) - len(after), 0, -1) if dots else ()
    return (*before, *(f"...{i}" for i in middle), *after)


def attention(flow: Flow, node: Node) -> Labels:
    """The rule for scaled dot-product attention: two products, and a scale that must stay what it was."""
    names = ("query", "key", "value", "attn_mask")
    query, key, value, mask = (flow.argument(node, i, name) for i, name in enumerate(names))
    q, k, v = (flow.label(each) for each in (query, key, value))
    if flow.argument(node, 6, "scale") is None:
        flow.literal(node, "scale", ("scale",), ((q, q.dim() - 1),))
    if flow.argument(node, 7, "enable_gqa", False):
        q, k, v = (flow.ledger.pin(each, tuple(range(each.dim() - 2)), _why(node)) for each in (q, k, v))
        q, k, v = (select_first(each, tuple(range(each.dim() - 2))) for each in (q, k, v))
    shape = (*flow.shape(query)[:-1], k.size(-2))
    scores = _matrices(flow, node, q, k.transpose(-1, -2))
    if mask is not None:
        scores = flow.combine(scores.expand(shape), flow.label(mask), node)
    columns = tuple(d for d in varying(scores) if d >= scores.dim() - 2)
    scores = flow.ledger.pin(scores, columns, f"attention weights are taken over it (node {node.name!r})")
    return _matrices(flow, node, scores, v).expand(flow.shape(node))


def _matrices(flow: Flow, node: Node, left: Labels, right: Labels) -> Labels:
    """The labels of ``left @ right`` with broadcast batch dimensions; a vector has no rows, or no columns."""
    rows, columns = ("i",)[: left.dim() - 1], ("j",)[: right.dim() - 1]
    batch = [tuple(f"b{i}" for i in range(max(each.dim() - 2, 0), 0, -1)) for each in (left, right)]
    operands = [(left, (*batch[0], *rows, "k")), (right, (*batch[1], "k", *columns))]
    return _contract(flow, node, operands, (*max(batch, key=len), *rows, *columns))


def _contract(flow: Flow, node: Node, operands: Sequence[Operand], output: Letters) -> Labels:
    """The labels of a sum of products over all indices that are not in the output, in a shape that broadcasts."""
    flow.products.setdefault(node)
    shared = {x for x in output if all(x in letters for _, letters in operands)}
    folded = [(_folded(flow, node, each, shared, set(output)), each[1]) for each in operands]
    flow.attended.extend(labels for labels, _ in folded)
    for letter in dict.fromkeys(x for _, letters in folded for x in letters if x not in output):
        _pair(flow, node, [_line(labels, letters.index(letter)) for labels, letters in folded if letter in letters])
    result = blank((1,) * len(output))
    for labels, letters in folded:
        result = flow.combine(result, _placed(labels, letters, output), node)
    return result


def _why(node: Node) -> str:
    return f"its product with another activation needs whole heads or the same of each (node {node.name!r})"


def _folded(flow: Flow, node: Node, operand: Operand, shared: set[str], output: set[str]) -> Labels:
    """The labels of an operand, pinned along all dimensions but its width, or but its heads."""
    labels, letters = operand
    moving = varying(labels)
    if flow.fold == "heads":
        return flow.ledger.pin(labels, tuple(d for d in moving if letters[d] not in shared), _why(node))
    rank = {d: (letters[d] in shared, letters[d] in output) for d in moving}
    keep = min(moving, key=rank.__getitem__, default=0)
    return flow.ledger.pin(labels, tuple(d for d in moving if d != keep), _why(node))


def _line(labels: Labels, dim: int) -> Labels:
    """The labels along one dimension, shape (size,), at index 0 of the others; zeros if they do not differ along it."""
    if dim not in varying(labels):
        return blank((labels.size(dim),))
    return select_first(labels, tuple(d for d in range(labels.dim()) if d != dim)).reshape(-1)


def _pair(flow: Flow, node: Node, lines: Sequence[Labels]) -> None:
    """Couple the labels of the operands along an index that is summed over; those of a single operand are frozen."""
    if len(lines) == 1:
        flow.freeze(lines[0], node, "it is summed over")
    for other in lines[1:]:
        size = max(lines[0].size(0), other.size(0))
        reason = f"a product sums over it and a tensor whose size is fixed (node {node.name!r})"
        flow.ledger.couple(lines[0].expand(size), other.expand(size), reason)


def _placed(labels: Labels, letters: Letters, output: Letters) -> Labels:
    """The labels of an operand with the dimensions of the output, of size 1 where the operand has none."""
    if any(letters[d] not in output for d in varying(labels)):
        labels = blank(labels.shape)
    labels = labels[tuple(slice(None) if x in output else 0 for x in letters)]
    own = [x for x in letters if x in output]
    labels = labels.permute([own.index(x) for x in output if x in own])
    return labels[tuple(slice(None) if x in own else None for x in output)]


PRODUCTS: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "baddbmm": baddbmm,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
