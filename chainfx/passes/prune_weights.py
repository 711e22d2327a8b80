"""Unstructured and N:M pruning: single weights are masked, the shapes stay."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
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
from chainfx.passes.objectives import Penalty

__all__ = ["PruneWeights"]

_ROUNDING = 1e-9  # 10 * 0.7 is 6.999999999999999 in binary, but seven weights of ten
_UNSTRUCTURED = "unstructured"
_PRECISION = 0.05  # of the standard deviation of a layer's weights


@final
@dataclass(frozen=True)
class PruneWeights(Pass):
    """Mask the weights of least magnitude in convolution and linear layers; the shapes stay.

    What changes, for each layer::

        conv2d(x, weight, ...)  ->  conv2d(x, mask_weight(weight, mask, pattern), ...)

    Formula: of n weights ``int(n ratio)`` are masked, those with the smallest |w| (Han et al. 2015, arXiv 1506.02626),
    in each layer alone (``scope="layer"``) or ranked over all layers (``"global"``). ``quality`` in place of a ratio
    masks all below ``quality`` times the standard deviation of the layer's weights that are not masked (the same
    source). ``pattern="2:4"`` keeps the 2 largest of every 4 neighbours along dimension 1 of the weight, for a
    convolution the input channels at each kernel position (Mishra et al. 2021, arXiv 2104.08378); any N:M with N < M
    will do, and it says the ratio, 1 - N / M. A layer whose input channels M does not divide is left alone.

    ``rounds`` over 1: after each round but the last, tuning and another look. The ratio after round t of T (from 1) is
    ``ratio (1 - (1 - t / T)^3)`` (Zhu and Gupta 2017, arXiv 1710.01878, eq. 1, with s_i = 0), of N:M the share of the
    M - N weights a group loses (rounded). Thresholds grow in the same way.

    ``length`` over 0 makes all rounds but the last tune for few bits: ``length`` times the sum of ``log2(1 + w^2 / d^2)
    / 2`` is added to the loss, the bits that a weight takes to code at the precision d, a twentieth of the standard
    deviation of its layer as the network came. It pulls small weights to 0 and leaves large ones alone, as sparse
    variational dropout does, whose divergence has this form (Molchanov et al. 2017, arXiv 1701.05369, with the noise
    held at d). Of n training samples, ``0.69 / n`` weighs the code against the data as equals. It is worth more than
    any coder behind it, and takes a trainer.

    ``scale_dropout`` multiplies the rate of each ``nn.Dropout`` that a layer reads by the square root of the share of
    its weights that stay (Han et al. 2015, sec. 3.3): fewer weights need less of it.

    The mask is a boolean buffer beside the weight (``conv1.weight_mask``) and the last op before the layer: tuning
    gives no gradient to what is masked, quantizers go beneath it, so that zeros stay zeros at any bit width. A second
    ``PruneWeights`` only masks more: ``ratio`` counts what is masked already, and a 2:4 mask stays one.

    ``skip``: patterns (``fnmatch``) of layers to leave alone, like ``"fc"`` or ``"stages.0.*"``; the first and the last
    layer are the usual ones. Exact only for weights that were zero. Needs nothing; asks for tuning of all parameters.
    MACs stay; bit operations fall only under conventions that credit zeros. The artefact holds one
    bit more for each weight of a masked layer.

    Raises :class:`PassError` for options out of range, a pattern in ``skip`` that matches nothing, weights that are not
    finite, and a global ranking that would leave a layer no weight.

    >>> PruneWeights(0.9, scope="global").label, PruneWeights(pattern="2:4").label
    ("prune-weights(ratio=0.9, scope='global')", "prune-weights(pattern='2:4')")
    """

    info: ClassVar[PassInfo] = PassInfo(
        "prune-weights",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        establishes=frozenset({"masks"}),
        family="pruning",
    )

    ratio: float | None = None
    quality: float | None = None
    pattern: str = _UNSTRUCTURED
    scope: Literal["layer", "global"] = "layer"
    rounds: int = 1
    length: float = 0.0
    scale_dropout: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check(ops.is_pattern(self.pattern), "pattern", "'unstructured' or N:M with N < M, like '2:4'")
        self._check(
            self.ratio is None or (is_number(self.ratio, 0) and self.ratio < 1),
            "ratio",
            "a number from 0 up to but not including 1",
        )
        self._check(self.scope in ("layer", "global"), "scope", "'layer' or 'global'")
        self._check(type(self.rounds) is int and self.rounds >= 1, "rounds", "an integer of at least 1")
        self._check(self.quality is None or is_number(self.quality, 0), "quality", "a number of at least 0")
        self._check(is_number(self.length, 0), "length", "a number of at least 0")
        self._check(isinstance(self.scale_dropout, bool), "scale_dropout", "True or False")
        self._check(isinstance(self.skip, tuple), "skip", "a tuple of patterns")
        if self.quality is not None and (self.ratio is not None or self.pattern != _UNSTRUCTURED):
            raise PassError(
                f"prune-weights: quality={self.quality!r} says which weights go; leave ratio and pattern out."
            )
        if self.quality is not None and self.scope == "global":
            raise PassError("prune-weights: quality is a threshold of each layer alone; leave scope out.")
        if self.length and self.rounds == 1:
            raise PassError(
                f"prune-weights: length={self.length!r} is for the rounds before the last, and rounds=1; "
                f"use rounds=3 or more."
            )
        structured = self.pattern != _UNSTRUCTURED
        if structured and (self.ratio is not None or self.scope == "global"):
            raise PassError(
                f"prune-weights: pattern={self.pattern!r} says how many weights of every group stay; "
                f"leave ratio and scope out."
            )
        if not structured and self.ratio is None and self.quality is None:
            raise PassError(
                "prune-weights: neither ratio, quality nor an N:M pattern is given; give one, such as ratio=0.5."
            )

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Rank the weights and put the masks of this round in place; see the class."""
        if self.length:
            self._tuned_by("length", context)
        layers, skipped = select(graph_module, self.info.name, skip=self.skip)
        reached = 1 - (1 - (context.round + 1) / self.rounds) ** 3
        weights = []
        for weight in _weights(graph_module, layers):
            reason = self._obstacle(weight)
            skipped += [Skipped(layer.name, reason) for layer in weight.layers if reason]
            weights += [] if reason else [weight]
        modified = False
        for weight, zeros in zip(weights, self._zeros(weights, reached), strict=True):
            mask = weight.mask & ~zeros
            if self.scale_dropout:
                _scale_dropout(weight, mask)
            if _put(graph_module, weight, mask, self._pattern(weight, reached)):
                modified = True
            elif context.round + 1 == self.rounds:
                reason = f"its {int(mask.sum())} weights that are not masked stay"
                skipped += [Skipped(layer.name, reason) for layer in weight.layers]
        edit.tidy(graph_module)
        request = TuneRequest() if modified else None
        if self.length and context.round + 1 < self.rounds and weights:
            entry = graph_module if context.entry is None else context.entry
            request = TuneRequest(penalties=(_Length(_precisions(entry, weights), self.length),))
        return PassResult(graph_module, modified, request, tuple(skipped))

    def _obstacle(self, weight: "_Weight") -> str:
        """Why a weight cannot take the pattern; empty if it can."""
        if self.pattern == _UNSTRUCTURED:
            return ""
        if weight.layers[0].transposed:
            return "dimension 1 of a transposed convolution's weight is not its input channels"
        inputs, size = weight.mask.shape[1], self._group[1]
        return f"{size} does not divide its {inputs} input channels a group" if inputs % size else ""

    @property
    def _group(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, size = self.pattern.partition(":")
        return int(kept), int(size)

    def _pattern(self, weight: "_Weight", reached: float) -> str:
        """The pattern that a mask has after a round that goes the share ``reached`` of the way."""
        if self.pattern == _UNSTRUCTURED:
            return weight.pattern
        kept, size = self._group
        lost = _lost(kept, size, reached)
        return f"{size - lost}:{size}" if lost else weight.pattern

    def _zeros(self, weights: Sequence["_Weight"], reached: float) -> Iterable[Tensor]:
        """For each weight, which elements go (bool, its shape)."""
        if self.pattern != _UNSTRUCTURED:
            kept, size = self._group
            return (_smallest_of_groups(weight.magnitude(), _lost(kept, size, reached), size) for weight in weights)
        if self.quality is not None:
            quality = self.quality * reached
            return (_below(weight, quality) for weight in weights)
        share = float(self.ratio or 0) * reached
        if self.scope == "global":
            return _smallest_of_all(weights, share)
        return (_smallest(weight.magnitude(), share) for weight in weights)


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """A weight, the layers that read it, and how it is masked so far.

    ``value``: what a quantizer or the layer reads. ``path``: where the mask is, or will be.
    """

    name: str
    value: Tensor
    layers: list[Layer]
    path: str
    mask: Tensor
    pattern: str

    def magnitude(self) -> Tensor:
        """|w|, and -1 for what is masked already; the shape of the weight."""
        if not bool(self.value.isfinite().all()):
            raise PassError(
                f"prune-weights: the weight {self.name!r} is not finite everywhere; "
                f"train the network again before pruning."
            )
        return torch.where(self.mask, self.value.abs(), -1)


@dataclass(frozen=True, eq=False)
class _Length(Penalty):
    """The bits that the weights take to code at given precisions, times ``strength``; see :class:`PruneWeights`."""

    precisions: Mapping[str, float]
    strength: float

    def term(self, graph_module: GraphModule) -> Callable[[], Tensor]:
        """The penalty of a network whose weights are at these paths."""
        weights = [(edit.get_tensor(graph_module, path), each) for path, each in self.precisions.items()]

        def penalty() -> Tensor:
            bits = [(weight / precision).square().log1p().sum() for weight, precision in weights]
            return torch.stack(bits).sum() * (self.strength / (2 * math.log(2)))

        return penalty


def _precisions(entry: GraphModule, weights: Sequence[_Weight]) -> dict[str, float]:
    """By the path of each weight that is a parameter a share of its standard deviation, as the network came."""
    paths = dict(entry.named_parameters())
    found = {weight.name: float(paths[weight.name].detach().std()) for weight in weights if weight.name in paths}
    return {name: _PRECISION * deviation for name, deviation in found.items() if deviation > 0}


def _below(weight: _Weight, quality: float) -> Tensor:
    """Which elements are smaller than so many standard deviations of those that are not masked."""
    magnitude = weight.magnitude()
    kept = weight.value[weight.mask]
    return magnitude < quality * (float(kept.float().std(correction=0)) if kept.numel() else 0.0)


def _scale_dropout(weight: _Weight, mask: Tensor) -> None:
    before, after = int(weight.mask.sum()), int(mask.sum())
    for layer in weight.layers:
        dropout = edit.module_of(layer.graph_module, layer.source, nn.Dropout)
        if dropout is not None and before:
            dropout.p *= math.sqrt(after / before)


def _weights(graph_module: GraphModule, layers: Iterable[Layer]) -> list[_Weight]:
    """The weights of the layers, each once with all its layers."""
    found: dict[tuple[int, str], _Weight] = {}
    for layer in layers:
        name, masked = layer.weight_path, layer.mask
        path = str(edit.input_of(masked, 1).target) if masked else _fresh_path(graph_module, f"{name}_mask")
        key = id(layer.tensor), path if masked else ""
        if key not in found:
            value = _value(layer)
            mask = edit.get_tensor(graph_module, path) if masked else torch.ones_like(value, dtype=torch.bool)
            found[key] = _Weight(name, value, [], path, mask, str(masked.args[2]) if masked else _UNSTRUCTURED)
        found[key].layers.append(layer)
    return list(found.values())


def _fresh_path(graph_module: GraphModule, wanted: str) -> str:
    parent, name = edit.parent_of(graph_module, wanted)
    return wanted if not hasattr(parent, name) else _fresh_path(graph_module, f"{wanted}_")


def _value(layer: Layer) -> Tensor:
    """What a weight is beneath its mask and its quantizer, whose rounding says nothing of importance."""
    weight = layer.weight_read
    while weight.target in (ops.mask_weight, ops.quantize_weight):
        weight = edit.input_of(weight)
    return value_of(layer.graph_module, weight)


def _put(graph_module: GraphModule, weight: _Weight, mask: Tensor, pattern: str) -> bool:
    """Put a mask before the layers of a weight; returns whether that changes anything."""
    if torch.equal(mask, weight.mask) and (weight.pattern != _UNSTRUCTURED or pattern == _UNSTRUCTURED):
        return False
    edit.set_tensor(graph_module, weight.path, mask, parameter=False)
    for layer in weight.layers:
        if layer.mask is None:
            layer.put_mask(weight.path, pattern)
        else:
            layer.mask.update_arg(2, pattern)
    return True


def _smallest(score: Tensor, share: float) -> Tensor:
    """The ``int(n share)`` smallest of n elements (bool, shape of ``score``), of equal ones the first."""
    count = int(score.numel() * share + _ROUNDING)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.flatten()
    threshold = flat.kthvalue(count).values
    below, equal = flat < threshold, flat == threshold
    return (below | (equal & (equal.cumsum(0) <= count - below.sum()))).view_as(score)


def _smallest_of_all(weights: Sequence[_Weight], share: float) -> list[Tensor]:
    """The smallest of the elements of all weights together, split up again."""
    scores = [weight.magnitude() for weight in weights]
    if not scores:
        return []
    dtype = max((score.dtype for score in scores), key=lambda each: each.itemsize)
    chosen = _smallest(torch.cat([score.flatten().to("cpu", dtype) for score in scores]), share)
    parts = chosen.split([score.numel() for score in scores])
    for weight, part in zip(weights, parts, strict=True):
        if part.all():
            raise PassError(
                f"prune-weights: a global ranking at this ratio leaves none of the {len(part)} weights of "
                f"{weight.name!r}; use a smaller ratio, scope='layer', or add {layer_path(weight.name)!r} to skip."
            )
    return [part.view_as(score).to(score.device) for part, score in zip(parts, scores, strict=True)]


def _lost(kept: int, size: int, reached: float) -> int:
    """How many weights of every ``size`` are gone once the share ``reached`` of the way to ``kept`` is done."""
    return round((size - kept) * reached)


def _smallest_of_groups(score: Tensor, count: int, size: int) -> Tensor:
    """The ``count`` smallest of every ``size`` neighbours along dimension 1 (bool, shape of ``score``)."""
    groups = score.unflatten(1, (-1, size))
    order = groups.argsort(dim=2, stable=True).narrow(2, 0, count)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True).flatten(1, 2)
