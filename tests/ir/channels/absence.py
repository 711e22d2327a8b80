"""The network without some of its channels, computed on the full-size graph: what a pruned network must equal.

Nothing is removed here. NaN marks what is *absent*: the removed slices of parameters are NaN, element-wise functions
and views carry NaN along by themselves, and the few functions that mix channels are redefined for absent operands:

* what multiplies and sums (layers, products of activations) ignores absent factors, as if they were zero;
* LayerNorm, RMSNorm and one-group GroupNorm take their statistics over what is present (that is the definition of
  pruning them); of a GroupNorm with several groups only whole groups can be absent;
* every other function sees NaN, so that a channel that may not be removed spoils the output.

Factors that meet must be absent together: a layer whose weight ignores other channels than its input lacks is an error.
Knows nothing of surgery, and of the analysis only which slices of which parameters belong to a unit.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Interpreter
from torch.overrides import TorchFunctionMode

from chainfx.ir.graph import edit


def present(tensor):
    return ~tensor.isnan()


def filled(tensor):
    """Zero for what is absent; the tensor itself if nothing is."""
    lacks = isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(tensor.isnan().any())
    return torch.where(tensor.isnan(), 0, tensor) if lacks else tensor


def without(tensor, mask):
    """The tensor with NaN where ``mask`` is False."""
    return torch.where(mask, tensor, torch.nan)


def agree(condition, what):
    if not bool(torch.as_tensor(condition).all()):
        raise AssertionError(f"absent channels meet present ones: {what}")


class Absence(TorchFunctionMode):
    """Functions that mix channels, for operands with absent elements; ``macs`` counts the products that are left."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        rule = RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, func, *args, **(kwargs or {}))

    def linear(self, func, x, weight, bias=None):
        columns, outputs = present(weight).any(0), present(weight).any(1)
        rows = present(x).any(-1, keepdim=True)
        agree(present(x) == (rows & columns), "the input of linear")
        agree(present(weight) == (outputs[:, None] & columns), "the weight of linear")
        self.macs += int(rows.sum()) * int(present(weight).sum())
        return without(func(filled(x), filled(weight), filled(bias)), rows & outputs)

    def conv(self, func, x, weight, bias=None, *options, **named):
        transposed = func in edit.TRANSPOSED
        groups = options[3] if len(options) > 3 else named.get("groups", 1)
        taken = self._channels(x, weight.dim() - 2).view(groups, -1)
        slices = present(weight).flatten(2)
        agree(slices == slices[:, :, :1], "the positions of a kernel")
        table = slices[:, :, 0].view(groups, -1, slices.shape[1])
        table = table.transpose(1, 2) if transposed else table
        made = table.any(2)
        agree(table == (made[:, :, None] & taken[:, None]), "the weight of a convolution")
        agree(taken == table.any(1), "the input of a convolution")
        out = func(filled(x), filled(weight), filled(bias), *options, **named)
        places = (x if transposed else out).numel() // (taken if transposed else made).numel()
        self.macs += places * int(present(weight).sum())
        return without(out, made.reshape(-1, *[1] * (weight.dim() - 2)))

    def _channels(self, x, spatial):
        """Which channels of (N, C, ...) or (C, ...) are present, shape (C,)."""
        flat = present(x).movedim(-1 - spatial, 0).flatten(1)
        agree(flat == flat[:, :1], "elements of one channel")
        return flat[:, 0]

    def product(self, func, left, right):
        """Products of two tensors, summed over a shared axis: matmul, bmm, ...; of whatever shapes ``func`` takes."""
        both = self._pairs(func, left, right)
        self.macs += int(both.sum())
        return without(func(filled(left), filled(right)), both > 0)

    def _pairs(self, func, left, right):
        """For each output of a product how many summands have both factors."""
        mine, yours = (present(each).to(torch.float64) for each in (left, right))
        both = func(mine, yours)
        if not left.isnan().any() and not right.isnan().any():
            return both
        alone = func(mine, torch.ones_like(yours)), func(torch.ones_like(mine), yours)
        needed = (alone[0] > 0) & (alone[1] > 0)
        agree((both == alone[0]) & (both == alone[1]) | ~needed, "the summed axis of a product")
        return both

    def einsum(self, _func, equation, *operands):
        def product(left, right):
            return torch.einsum(equation, left, right)

        return self.product(product, *(operands[0] if isinstance(operands[0], list | tuple) else operands))

    def added_product(self, func, added, left, right):
        """``baddbmm`` and ``addmm``: ``added`` is absent where the product is."""
        plain = torch.bmm if func is torch.baddbmm else torch.mm
        return self.product(plain, left, right) + added

    def attention(self, func, query, key, value, mask=None, *options, **named):
        mask = named.pop("attn_mask", mask)
        scores = self._pairs(torch.matmul, query, key.transpose(-2, -1))
        agree(mask is None or ~(mask.isnan() & (scores > 0)), "the mask of an attention")
        mixed = self._pairs(torch.matmul, without(scores, scores > 0), value)
        self.macs += int(scores.sum()) + int(mixed.sum())
        return without(func(*(filled(each) for each in (query, key, value, mask)), *options, **named), mixed > 0)

    def layer_norm(self, func, x, shape, weight=None, bias=None, eps=1e-5):
        if not x.isnan().any():
            return func(x, shape, weight, bias, eps)
        dims = tuple(range(x.dim() - len(shape), x.dim()))
        return affine(standardized(x, dims, eps), weight, bias)

    def rms_norm(self, func, x, shape, weight=None, eps=None):
        if not x.isnan().any():
            return func(x, shape, weight, eps)
        dims = tuple(range(x.dim() - len(shape), x.dim()))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return affine(x / (x.square().nanmean(dims, keepdim=True) + eps).sqrt(), weight, None)

    def group_norm(self, func, x, groups, weight=None, bias=None, eps=1e-5):
        if not x.isnan().any():
            return func(x, groups, weight, bias, eps)
        table = x.reshape(x.shape[0], groups, -1)
        agree(groups == 1 or table.isnan().any(2) == table.isnan().all(2), "channels of one group of a GroupNorm")
        shape = (-1, *[1] * (x.dim() - 2))
        scales = [None if each is None else each.view(shape) for each in (weight, bias)]
        return affine(standardized(table, (2,), eps).view(x.shape), *scales)

    def pad(self, func, x, amounts, mode="constant", value=None):
        """What is added beside an absent channel is absent."""
        if mode != "constant":
            return func(x, amounts, mode, value)
        for index in range(len(amounts) // 2):
            dim = x.dim() - 1 - index
            pair = (0,) * (2 * index) + tuple(amounts[2 * index : 2 * index + 2])
            x = without(func(x, pair, mode, value), present(x).any(dim, keepdim=True)) if any(pair) else x
        return x

    def ignoring(self, func, x, *options, **named):
        """What is the same for zeros as without them, and keeps the shape."""
        return without(func(filled(x), *options, **named), present(x))

    def sum(self, func, x, *options, **named):
        if not x.isnan().any():
            return func(x, *options, **named)
        return without(func(filled(x), *options, **named), func(present(x), *options, **named) > 0)


def standardized(x, dims, eps):
    centred = x - x.nanmean(dims, keepdim=True)
    return centred / (centred.square().nanmean(dims, keepdim=True) + eps).sqrt()


def affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


RULES = {
    F.linear: Absence.linear,
    **dict.fromkeys((*edit.CONVOLUTIONS, *edit.TRANSPOSED), Absence.conv),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), Absence.product),
    torch.einsum: Absence.einsum,
    torch.baddbmm: Absence.added_product,
    torch.addmm: Absence.added_product,
    F.scaled_dot_product_attention: Absence.attention,
    F.layer_norm: Absence.layer_norm,
    F.rms_norm: Absence.rms_norm,
    F.group_norm: Absence.group_norm,
    F.pad: Absence.pad,
    F.normalize: Absence.ignoring,
    torch.sum: Absence.sum,
    Tensor.sum: Absence.sum,
}


class AbsentNetwork(Interpreter):
    """Runs a graph with the removed slices of its parameters absent; the graph and its tensors stay as they are.

    ``macs``: after a run, the multiply-accumulates that are left of each node, for the whole batch.
    """

    def __init__(self, graph_module, analysis, keep):
        super().__init__(graph_module)
        self.removed = {}
        for group in analysis.groups:
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[torch.as_tensor(keep.get(group.name, range(group.size)))] = False
            for member in group.members:
                positions = torch.from_numpy(member.positions)[gone[torch.from_numpy(member.units)]]
                tensor = edit.get_tensor(graph_module, member.path)
                self.removed.setdefault(id(tensor), []).append((member.dim, positions))
        self.codes = {}
        self.macs = {}

    def run(self, *inputs):
        with torch.no_grad():
            return super().run(*inputs)

    def run_node(self, n):
        mode = Absence()
        with contextlib.nullcontext() if n.op in ("placeholder", "output") else mode:
            value = self._dialect(n) if edit.is_dialect(n) else super().run_node(n)
        if mode.macs:
            self.macs[n.name] = mode.macs
        return value

    def get_attr(self, target, args, kwargs):
        return self._cut(super().get_attr(target, args, kwargs))

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return torch.func.functional_call(module, {name: self._cut(each) for name, each in tensors}, args, kwargs)

    def _cut(self, value):
        slices = self.removed.get(id(value), ()) if isinstance(value, Tensor) else ()
        if not slices:
            return value
        absent = torch.zeros(value.shape, dtype=torch.bool)
        for dim, positions in slices:
            absent.index_fill_(dim, positions, True)
        if value.is_floating_point():
            return value.detach().masked_fill(absent, torch.nan)
        copy = value.clone()
        self.codes[id(copy)] = copy, absent
        return copy

    def _dialect(self, node):
        """Quantizers, masks and code books see zeros, and what they make of absent elements is absent."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        _, absent = self.codes.get(id(args[0]), (None, None))
        absent = args[0].isnan() if absent is None else absent
        result = node.target(*(filled(each) for each in args), **kwargs)
        return without(result, ~absent) if bool(absent.any()) else result
