"""Weight sharing: the weights of a layer become entries of a small codebook, and the codebook is what trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.graph import Layer, edit, layer_path, ops, select, value_of
from chainfx.passes.base import (
    Granularity,
    Kind,
    Pass,
    PassContext,
    PassInfo,
    PassResult,
    Skipped,
    TuneRequest,
    is_number,
)
from chainfx.passes.objectives import Pull
from chainfx.passes.sharing import INITS, Init, Values, allocate, cluster, members

__all__ = ["ShareWeights"]

_MOST_BITS = 8
_FLOAT_BITS = 32
_GROWTH = 4


@final
@dataclass(frozen=True)
class ShareWeights(Pass):
    """Let the weights of each convolution and linear layer share the ``2**bits`` values of a codebook.

    What changes, for each layer::

        conv2d(x, weight, ...)  ->  conv2d(x, look_up(weight_codes, weight_codebook), ...)

    Formula (Han et al. 2016, arXiv 1510.00149, sec. 3): the codebook C is the k-means of the weights of the layer, by
    the squared distance; each weight becomes the entry I that is nearest. In tuning an entry has the sum of the
    gradients of all weights that share it, ``dL/dC_k = sum_ij dL/dW_ij 1(I_ij = k)``, and the places I stay.
    ``init``: ``"linear"`` (the source's choice), ``"density"``, ``"random"``, or ``"optimal"``, the least error there
    is; see :func:`chainfx.passes.sharing.cluster`. Exact only for weights of no more than ``2**bits`` values.

    ``rounds`` over 1 refreshes the places: after each round but the last the weights themselves are tuned, drawn to
    their entries by ``pull / 2 ||w - C_I||^2`` beside the loss, and clustered anew; the pull grows fourfold from round
    to round (Carreira-Perpinan and Idelbayev 2017, arXiv 1707.04319, with one learning step a round). That takes a
    trainer.

    ``bits``: of the places, 1 to 8. ``budget`` in its stead: a mean number of bits for each weight that is not masked,
    codebooks of 32-bit floats included; bits of 1 to 8 for each codebook are then chosen so that the sum over the
    codebooks of squared error / sum of squares is least, by an exact solver. ``groups``: patterns of layers; those that
    a pattern matches have one codebook together. ``biases``: biases get codebooks of ``bits`` too, those of more than
    ``2**bits`` finite numbers; the others are named in ``skipped``. ``entries="bfloat16"``: after tuning the entries of
    all codebooks are rounded to what bfloat16 can be, eight significant bits, in the type that they have; ``Encode``
    then stores two bytes for each. ``skip``: patterns (``fnmatch``) of layers to leave alone.

    Masked weights are in no codebook: the mask stays on top of the look-up, zeros stay zeros, and a later quantizer
    goes between the two, so that it keeps both. Layers that are quantized already are left alone. Needs nothing; asks
    for tuning of all parameters. MACs and bit operations stay. A weight takes ``bits`` to store, a
    codebook 32 bits an entry.

    Raises :class:`PassError` for options out of range, patterns that match nothing, a layer with fewer weights than its
    codebook would have entries, one whose weights are all masked or all zero, weights that are not finite, and a budget
    that is too small.

    >>> ShareWeights().label, ShareWeights(4, init="optimal").label
    ('share-weights(5)', "share-weights(4, init='optimal')")
    """

    info: ClassVar[PassInfo] = PassInfo(
        "share-weights",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        establishes=frozenset({"codebooks"}),
        family="sharing",
        headline=("bits",),
    )

    bits: int = 5
    init: Init = "linear"
    budget: float | None = None
    groups: tuple[str, ...] = ()
    biases: bool = False
    rounds: int = 1
    pull: float = 0.01
    entries: Literal["float32", "bfloat16"] = "float32"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check(type(self.bits) is int and 1 <= self.bits <= _MOST_BITS, "bits", "an integer of 1 to 8")
        self._check(self.init in INITS, "init", f"one of {', '.join(map(repr, INITS))}")
        allowed = self.budget is None or (is_number(self.budget, 0) and 0 < self.budget <= _FLOAT_BITS)
        self._check(allowed, "budget", "a mean number of bits above 0 and up to 32, or None")
        self._check(type(self.rounds) is int and self.rounds >= 1, "rounds", "an integer of at least 1")
        self._check(is_number(self.pull, 0) and self.pull > 0, "pull", "a number above 0")
        self._check(self.entries in ("float32", "bfloat16"), "entries", "'float32' or 'bfloat16'")
        for option in ("groups", "skip"):
            self._check(isinstance(getattr(self, option), tuple), option, "a tuple of patterns")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Cluster the weights; put the codebooks in place in the last round, and draw the weights to them before."""
        if self.rounds > 1:
            self._tuned_by("rounds", context)
        layers, skipped = select(graph_module, self.info.name, skip=self.skip)
        weights = []
        for weight in _weights(layers):
            reason = _obstacle(weight)
            skipped += [Skipped(layer.name, reason) for layer in weight.layers if reason]
            weights += [] if reason else [weight]
        groups = self._grouped(weights)
        bits = self._bits_of(groups)
        books = [self._book(group, width, context) for group, width in zip(groups, bits, strict=True)]
        if context.round + 1 < self.rounds:
            pull = Pull(_targets(groups, books), self.pull * _GROWTH**context.round)
            return PassResult(graph_module, False, TuneRequest(penalties=(pull,)) if weights else None)
        for group, book in zip(groups, books, strict=True):
            _put(graph_module, group, book)
        profile = {weight.path: width for group, width in zip(groups, bits, strict=True) for weight in group}
        if self.biases:
            skipped += self._share_biases(graph_module, layers, context)
        edit.tidy(graph_module)
        request = TuneRequest() if weights else None
        return PassResult(graph_module, bool(weights), request, tuple(skipped), {"bits": profile})

    def finish(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Round the entries of the codebooks, if they are to be; see the class."""
        if self.entries == "float32":
            return PassResult(graph_module, modified=False)
        for path in _codebooks(graph_module):
            entries = edit.get_tensor(graph_module, path)
            with torch.no_grad():
                entries.copy_(entries.bfloat16())
        return PassResult(graph_module, modified=True)

    def _grouped(self, weights: Sequence["_Weight"]) -> list[list["_Weight"]]:
        """The weights that have a codebook together: those that the same pattern of ``groups`` matches first."""
        for pattern in self.groups:
            if not any(fnmatchcase(weight.path, pattern) for weight in weights):
                raise PassError(
                    f"share-weights: the pattern {pattern!r} in groups matches no layer; "
                    f"layers are {', '.join(weight.path for weight in weights)}."
                )
        found: dict[str, list[_Weight]] = {}
        for weight in weights:
            matching = [f"pattern {each}" for each in self.groups if fnmatchcase(weight.path, each)]
            found.setdefault((*matching, f"weight {weight.name}")[0], []).append(weight)
        return list(found.values())

    def _bits_of(self, groups: Sequence[Sequence["_Weight"]]) -> list[int]:
        """The bits of each codebook: those of the option, or what the budget has room for."""
        if self.budget is None:
            return [self.bits for _ in groups]
        choices, total = [], 0
        for group in groups:
            values = _values(group)
            total += len(values)
            choices.append(_choices(values))
        found = allocate(choices, self.budget * total)
        if found is None:
            least = sum(min(size for _, size in each.values()) for each in choices) / max(total, 1)
            raise PassError(
                f"share-weights: budget={self.budget!r} bits a weight are too few; one bit for each takes {least:.3f} "
                f"with the codebooks, give at least that."
            )
        return found

    def _book(self, group: Sequence["_Weight"], bits: int, context: PassContext) -> NDArray[np.float64]:
        """The codebook of a group (at most 2**bits entries, ascending)."""
        values, name = _values(group), group[0].path
        if len(values) < 2**bits:
            raise PassError(
                f"share-weights: layer {name!r} has {len(values)} weights that are not masked, fewer than the "
                f"{2**bits} entries of a codebook of {bits} bits; use fewer bits, or add {name!r} to skip."
            )
        return self._clustered(values, 2**bits, name, context)

    def _clustered(self, values: NDArray[Any], entries: int, name: str, context: PassContext) -> NDArray[np.float64]:
        seed = context.rng(f"share-weights {name}").initial_seed() % 2**63
        return cluster(Values.of(values), entries, self.init, np.random.default_rng(seed))

    def _share_biases(
        self, graph_module: GraphModule, layers: Sequence[Layer], context: PassContext
    ) -> Iterator[Skipped]:
        """Give each bias that is a stored tensor of more values than entries a codebook; the others, with reasons."""
        done: dict[str, tuple[str, str]] = {}
        for layer in layers:
            if layer.bias is None or layer.bias_read is not layer.bias:
                continue
            path = str(layer.bias.target)
            bias = edit.get_tensor(graph_module, path).detach()
            if bias.numel() <= 2**self.bits:
                yield Skipped(path, f"its {bias.numel()} numbers are no more than the {2**self.bits} of a codebook")
                continue
            if not bool(bias.isfinite().all()):
                yield Skipped(path, "it is not finite everywhere")
                continue
            if path not in done:
                book = self._clustered(_numbers(bias), 2**self.bits, path, context)
                done[path] = _stored(graph_module, path, members(_numbers(bias), book), book, bias)
            with layer.node.graph.inserting_before(layer.node):
                layer.node.update_arg(2, _look_up(layer, *done[path]))


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """A weight, the layers that read it, and which of its elements no mask sets to zero."""

    name: str
    value: Tensor
    kept: Tensor
    layers: list[Layer]

    @property
    def path(self) -> str:
        """The path of the first layer that reads it."""
        return layer_path(self.name)


def _weights(layers: Sequence[Layer]) -> Iterator[_Weight]:
    """The weights of the layers, each once with all its layers."""
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        found.setdefault(id(layer.tensor), []).append(layer)
    for same in found.values():
        first = same[0]
        beneath = first.weight_beneath_mask
        value = value_of(first.graph_module, beneath if first.weight_quantizer is None else first.weight)
        masks = [_mask(layer) for layer in same]
        kept = torch.ones_like(value, dtype=torch.bool) if None in masks else torch.stack(masks).any(0)  # type: ignore[arg-type]  # no None is left
        yield _Weight(first.weight_path, value, kept, same)


def _mask(layer: Layer) -> Tensor | None:
    if layer.mask is None:
        return None
    return edit.get_tensor(layer.graph_module, str(edit.input_of(layer.mask, 1).target))


def _obstacle(weight: _Weight) -> str:
    """Why a weight is left alone, empty if it is not; raises :class:`PassError` for one that has nothing to share."""
    if any(layer.weight_quantizer is not None for layer in weight.layers):
        return "its weight is quantized already; share weights before they are quantized"
    if not bool(weight.value.isfinite().all()):
        raise PassError(
            f"share-weights: the weight {weight.name!r} is not finite everywhere; train the network again first."
        )
    if not bool(weight.kept.any()):
        what = "has no weights" if weight.value.numel() == 0 else "has no weight that is not masked"
        raise PassError(f"share-weights: layer {weight.path!r} {what}, so that nothing can be shared; add it to skip.")
    if not bool(weight.value[weight.kept].any()):
        raise PassError(
            f"share-weights: the weights of layer {weight.path!r} are all zero; train the network first, "
            f"or add it to skip."
        )
    return ""


def _codebooks(graph_module: GraphModule) -> set[str]:
    """The paths of all codebooks of floats."""
    read = graph_module.graph.find_nodes(op="call_function", target=ops.look_up)
    paths = {str(edit.input_of(node, 1).target) for node in read}
    return {path for path in paths if edit.get_tensor(graph_module, path).is_floating_point()}


def _numbers(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32)).numpy()


def _values(group: Sequence[_Weight]) -> NDArray[Any]:
    """The values of all weights of a group that are not masked."""
    return np.concatenate([_numbers(weight.value[weight.kept]) for weight in group])


def _choices(values: NDArray[Any]) -> dict[int, tuple[float, int]]:
    """By the number of bits the relative squared error of the best codebook, and the bits that it takes to store."""
    distinct, squares = Values.of(values), float(np.square(values, dtype=np.float64).sum())
    found = {}
    for bits in range(1, _MOST_BITS + 1):
        if 2**bits > len(values):
            break
        book = cluster(distinct, 2**bits, "optimal", np.random.default_rng(0))
        found[bits] = distinct.error(book) / squares, bits * len(values) + _FLOAT_BITS * len(book)
    return found


def _targets(
    groups: Sequence[Sequence[_Weight]], books: Sequence[NDArray[np.float64]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each weight would be if it were shared now, and which elements no mask sets to zero."""
    found = {}
    for group, book in zip(groups, books, strict=True):
        for weight in group:
            shared = torch.from_numpy(book[members(_numbers(weight.value), book)])
            found[weight.name] = shared.to(weight.value), weight.kept
    return found


def _put(graph_module: GraphModule, group: Sequence[_Weight], book: NDArray[np.float64]) -> None:
    """Let the layers of a group read their weights from one codebook, which lies beside the first weight."""
    codebook = ""
    for weight in group:
        places = members(_numbers(weight.value), book)
        places[~weight.kept.cpu().numpy()] = 0
        codes, own = _stored(graph_module, weight.name, places, book if not codebook else None, weight.value)
        codebook = codebook or own
        for layer in weight.layers:
            with layer.node.graph.inserting_before(layer.node):
                layer.read_weight(_look_up(layer, codes, codebook))


def _stored(
    graph_module: GraphModule,
    path: str,
    places: NDArray[np.uint8],
    book: NDArray[np.float64] | None,
    like: Tensor,
) -> tuple[str, str]:
    """Put codes and a codebook, if there is a new one, beside a tensor; their paths, empty for no codebook."""
    base = path.removesuffix("_codes")
    codes, codebook = f"{base}_codes", f"{base}_codebook"
    edit.set_tensor(graph_module, codes, torch.from_numpy(places).to(like.device), parameter=False)
    if book is None:
        return codes, ""
    edit.set_tensor(graph_module, codebook, torch.from_numpy(book).to(like), parameter=True)
    return codes, codebook


def _look_up(layer: Layer, codes: str, codebook: str) -> torch.fx.Node:
    graph = layer.node.graph
    return graph.call_function(ops.look_up, (graph.get_attr(codes), graph.get_attr(codebook)))
