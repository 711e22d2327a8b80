"""Low-rank factorisation: a layer becomes two or three thinner ones."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import Layer, edit, select, shape_of
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
from chainfx.passes.factoring import Factor, SpatialFactors, TuckerFactors, factors_of
from chainfx.passes.objectives import Pull

__all__ = ["LowRank"]

_STEPS = 60  # halvings of the interval of energies; float64 tells no more apart
_GROWTH = 4  # of the pull, from round to round
_WHOLE = "no rank of it is worth its error at this price"
_Choice = tuple[Factor, ...]


@final
@dataclass(frozen=True)
class LowRank(Pass):
    """Replace convolution and linear layers by factors of low rank, where that saves multiplications.

    What changes::

        linear(x, weight, bias)      ->  linear(linear(x, 0.weight, None), 1.weight, bias)
        conv2d(x, weight, bias, ...) ->  1x1 to s channels, k x k from s to r, 1x1 back     scheme="tucker"
        conv2d(x, weight, bias, ...) ->  k x 1 to r channels, 1 x k                         scheme="spatial"

    The new weights are parameters under the layer's old path (``conv1.weight`` becomes ``conv1.0.weight``,
    ``conv1.1.weight``, ...); the bias stays where it is. Linear layers and 1x1 convolutions are cut by a singular value
    decomposition under both schemes; see :mod:`chainfx.passes.factoring.factors` for the formulas.

    Exactly one of ``energy``, ``macs`` and ``price``. ``energy``: the share in (0, 1] of the squared singular values
    that every layer keeps (the least rank that does). ``macs``: the share in (0, 1) of the network's MACs that may
    remain: the largest energy, the same for all layers, that reaches it, found by bisection on the shapes. Of the ranks
    that keep the energy the cheapest are taken, and a layer that would not become cheaper stays whole.

    ``price`` lets each layer learn its rank, by the LC algorithm (Idelbayev and Carreira-Perpinan 2020, "Low-rank
    compression of neural nets: learning the rank of each layer"): a rank r costs ``price`` times its share of the
    network's MACs, in units of the loss, beside ``pull / 2`` times the squared error of the weight, and the rank of
    least sum is taken, or the whole layer; with Tucker factors the two ranks of least sum. Before each of the
    ``rounds`` but the last the weights are tuned while ``pull / 2 ||w - w_r||^2`` draws them to those of that round's
    ranks; the pull grows fourfold from round to round. That takes a trainer.

    With singular values s_i, the squared error of a weight is the sum of the dropped s_i^2 (SVD, spatial), or at most
    the sum over both unfoldings (Tucker); exact where nothing but zeros is dropped. Left alone, with the reason:
    grouped and transposed convolutions, quantized and masked layers (factors keep neither levels nor zeros), weights
    that something else reads too. A weight that several layers share stays shared. ``skip``: patterns (``fnmatch``) of
    layers.

    Factors that do not pay are taken back: if the bit operations (``strict``) of the whole network do not fall,
    :func:`chainfx.compile` leaves it as it was and says so. ``keep=True`` keeps them.

    Needs nothing; asks for tuning of all parameters. ``profile`` of the result has the ``energy``
    and the ``ranks``, by weight: the channels between one factor and the next. Raises :class:`PassError` for options
    out of range, weights that are not finite, and a share of MACs that rank 1 everywhere does not reach.

    >>> LowRank(macs=0.5, scheme="spatial").label
    "low-rank(macs=0.5, scheme='spatial')"
    """

    info: ClassVar[PassInfo] = PassInfo("low-rank", Kind.STATIC, Granularity.LAYER, family="factorization")

    energy: float | None = None
    macs: float | None = None
    price: float | None = None
    rounds: int = 1
    pull: float = 0.01
    scheme: Literal["tucker", "spatial"] = "tucker"
    skip: tuple[str, ...] = ()
    keep: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "macs", "price") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are" if given else "none is"
            raise PassError(f"low-rank: give exactly one of energy, macs and price; {said} given.")
        for option, most in (("energy", "up to 1"), ("macs", "below 1")):
            value = getattr(self, option)
            fits = value is None or (is_number(value, 0) and 0 < value <= 1 and (value < 1 or option == "energy"))
            self._check(fits, option, f"a share above 0 and {most}")
        self._check(self.scheme in ("tucker", "spatial"), "scheme", "'tucker' or 'spatial'")
        self._check(self.price is None or (is_number(self.price, 0) and self.price > 0), "price", "a number above 0")
        self._check(type(self.rounds) is int and self.rounds >= 1, "rounds", "an integer of at least 1")
        self._check(is_number(self.pull, 0) and self.pull > 0, "pull", "a number above 0")
        if self.price is None and self.rounds > 1:
            raise PassError(
                f"low-rank: rounds={self.rounds!r} is for ranks that are learnt; give price, or leave it out."
            )
        self._check(isinstance(self.skip, tuple), "skip", "a tuple of patterns")
        self._check(isinstance(self.keep, bool), "keep", "true or false")

    @property
    def must_pay(self) -> bool:
        """Yes, without ``keep``."""
        return not self.keep

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Find the ranks and replace the layers, in the last round; see the class."""
        if self.rounds > 1:
            self._tuned_by("rounds", context)
        layers, skipped = select(graph_module, self.info.name, skip=self.skip)
        report = count(graph_module, context.example_inputs)  # also puts the shapes into the nodes
        working = {row.node for row in report.rows if row.macs}
        weights = []
        for name, calls in _calls(layers).items():
            reason = _obstacle(graph_module, calls, working)
            skipped += [Skipped(call.name, reason) for call in calls if reason]
            weights += [] if reason else [_weight(name, calls, self.scheme)]
        total = report.macs * len(context.example_inputs[0])
        if self.price is not None:
            pull = self.pull * _GROWTH**context.round
            choices = [weight.learnt(self.price / total, pull) for weight in weights]
            if context.round + 1 < self.rounds:
                return _drawn(graph_module, weights, choices, pull, tuple(skipped))
            reasons = [_WHOLE] * len(weights)
            profile: dict[str, Any] = {}
        else:
            energy = self._energy(weights, total)
            choices = [weight.cheapest(energy) for weight in weights]
            reasons = [_too_dear(weight, energy) for weight in weights]
            profile = {"energy": energy}
        ranks = {}
        for weight, choice, reason in zip(weights, choices, reasons, strict=True):
            if choice is None:
                skipped += [Skipped(call.name, reason) for call in weight.calls]
            else:
                _replace(graph_module, weight, choice)
                ranks[weight.name] = [factor.shape[0] for factor in choice[:-1]]
        edit.tidy(graph_module)
        profile = {**profile, "ranks": ranks} if ranks else {}
        return PassResult(graph_module, bool(ranks), TuneRequest() if ranks else None, tuple(skipped), profile)

    def _energy(self, weights: Sequence["_Weight"], total: int) -> float:
        """The energy to keep: as said, or the largest whose MACs, of the ``total`` of the batch, reach the target."""
        if self.macs is None:
            return float(self.energy or 0)
        allowed = self.macs * total

        def left(energy: float) -> int:
            return total - sum(weight.saved(energy) for weight in weights)

        if left(0) > allowed:
            least = left(0) / total
            raise PassError(
                f"low-rank: macs={self.macs} cannot be reached: with rank 1 everywhere {least:.4f} of the network's "
                f"MACs are left; use at least {math.ceil(least * 1e4) / 1e4} or a shorter skip."
            )
        low, high = (1.0, 1.0) if left(1) <= allowed else (0.0, 1.0)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if left(middle) <= allowed else (low, middle)
        return low


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """A weight that can be cut: the layers that call it, and its factors for any energy."""

    name: str
    calls: list[Layer]
    factors: SpatialFactors | TuckerFactors

    def macs(self, choice: _Choice) -> int:
        """The MACs of all calls of the factors, for the whole batch of example inputs."""
        return sum(_macs(call, choice) for call in self.calls)

    def whole(self) -> int:
        """The MACs of all calls as they are."""
        shape = self.factors.shape
        return self.macs((Factor(shape, (True,) * (len(shape) - 2)),))

    def cheapest(self, energy: float) -> _Choice | None:
        """The factors that keep ``energy`` with the fewest MACs; ``None`` if the whole layer has no more."""
        best = min(self.factors.choices(energy), key=self.macs, default=None)
        return best if best is not None and self.macs(best) < self.whole() else None

    def learnt(self, price: float, pull: float) -> _Choice | None:
        """The factors whose MACs, at ``price`` each, and error cost least; ``None`` for the whole layer."""
        choice, cost = self.factors.cheapest(lambda factors: price * self.macs(factors), pull / 2)
        return choice if cost < price * self.whole() else None

    def saved(self, energy: float) -> int:
        """How many MACs go at ``energy``."""
        choice = self.cheapest(energy)
        return 0 if choice is None else self.whole() - self.macs(choice)


def _calls(layers: Iterable[Layer]) -> Mapping[str, list[Layer]]:
    """The layers by the weight they read, under the first of its names."""
    names: dict[int, str] = {}
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        first = names.setdefault(id(layer.tensor), layer.weight_path)
        found.setdefault(first, []).append(layer)
    return found


def _obstacle(graph_module: GraphModule, calls: Sequence[Layer], working: Set[str]) -> str:
    """Why a weight cannot be cut; empty if it can. ``working``: the nodes that multiply for every sample."""
    for call in calls:
        if call.weight_read is not call.weight:
            return f"its weight is computed by {call.weight_read.name!r} (quantized or masked)"
        if call.input_quantizer is not None:
            return "its input is quantized"
        if call.transposed:
            return "it is a transposed convolution"
        if call.groups > 1:
            return f"it is a convolution of {call.groups} groups"
        if call.name not in working:
            return "it is computed once, not for every sample"
    nodes = [call.node for call in calls]
    for other in _readers(graph_module, calls[0].tensor):
        if other not in nodes or other.target is not nodes[0].target:
            return f"its weight is also read by {other.name!r}"
    return ""


def _readers(graph_module: GraphModule, tensor: Tensor) -> Iterator[Node]:
    """The nodes that read a tensor, under whatever name, and the modules that hold it."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and getattr(*edit.parent_of(graph_module, str(node.target)), None) is tensor:
            yield from node.users
        elif node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if any(each is tensor for each in (*module.parameters(), *module.buffers())):
                yield node


def _weight(name: str, calls: list[Layer], scheme: str) -> _Weight:
    tensor = calls[0].tensor
    if not bool(tensor.isfinite().all()):
        raise PassError(
            f"low-rank: the weight {name!r} is not finite everywhere; train the network again before factorising."
        )
    return _Weight(name, calls, factors_of(tensor, scheme))


def _macs(call: Layer, choice: _Choice) -> int:
    """The MACs of factors in place of a layer, from the shapes of its input and output."""
    source, result = shape_of(call.source), shape_of(call.node)
    axes = len(choice[0].axes)
    lead, total = math.prod(result[: len(result) - axes - 1]), 0
    sizes = list(source[len(source) - axes :])
    for factor in choice:
        sizes = [result[axis - axes] if mine else sizes[axis] for axis, mine in enumerate(factor.axes)]
        total += lead * math.prod(sizes) * math.prod(factor.shape)
    return total


def _drawn(
    graph_module: GraphModule,
    weights: Sequence[_Weight],
    choices: Sequence[_Choice | None],
    pull: float,
    skipped: tuple[Skipped, ...],
) -> PassResult:
    """The network as it is, with a request to draw the weights to those of the ranks that were chosen."""
    targets = {}
    for weight, choice in zip(weights, choices, strict=True):
        if choice is not None:
            old = edit.get_tensor(graph_module, weight.name)
            targets[weight.name] = weight.factors.product(choice).to(old), torch.ones_like(old)
    penalties = (Pull(targets, pull),) if targets else ()
    return PassResult(graph_module, False, TuneRequest(penalties=penalties) if weights else None, skipped)


def _too_dear(weight: _Weight, energy: float) -> str:
    choice = min(weight.factors.choices(energy), key=weight.macs, default=None)
    if choice is None:
        return "it has full rank at this energy"
    ranks = ", ".join(str(factor.shape[0]) for factor in choice[:-1])
    return f"at rank {ranks} it would take {weight.macs(choice) / weight.whole():.2f} times its MACs"


def _replace(graph_module: GraphModule, weight: _Weight, choice: _Choice) -> None:
    """Put the factors' weights under the old path, and let every call use them."""
    old = edit.get_tensor(graph_module, weight.name)
    paths = _paths(graph_module, weight.name, len(choice))
    for path, value in zip(paths, weight.factors.weights(choice), strict=True):
        new = value.to(old.device, old.dtype).clone(memory_format=torch.contiguous_format)
        trains = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        edit.place_tensor(graph_module, path, trains)
    graph = graph_module.graph
    for call in weight.calls:
        source, options = call.source, call.options
        with graph.inserting_before(call.node):
            for place, (path, factor) in enumerate(zip(paths[:-1], choice[:-1], strict=True)):
                arguments = (source, graph.get_attr(path), None, *_options(options, factor))
                source = graph.create_node("call_function", call.node.target, arguments, name=f"{call.name}_{place}")
            last = graph.get_attr(paths[-1])
        call.node.args = (source, last, call.bias_read, *_options(options, choice[-1]))


def _paths(graph_module: GraphModule, name: str, number: int) -> list[str]:
    """``conv1.0.weight``, ... for ``conv1.weight``; ``w_factors.0.weight``, ... for a bare parameter ``w``."""
    own = name.rpartition(".")[2] == "weight"
    prefix = name.removesuffix("weight") if own else f"{name}_factors."
    taken = {path for path, _ in graph_module.named_modules()}
    while any(f"{prefix}{place}" in taken for place in range(number)):
        prefix += "factors."
    return [f"{prefix}{place}.weight" for place in range(number)]


def _options(options: Sequence[Any], factor: Factor) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of a factor: the layer's own along its axes, neutral along the others."""
    if not options:
        return ()
    stride, padding, dilation, groups = options
    return _along(stride, factor, 1), _along(padding, factor, 0), _along(dilation, factor, 1), groups


def _along(value: Any, factor: Factor, neutral: int) -> Any:
    if isinstance(value, str):
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    values *= len(factor.axes) if len(values) == 1 else 1
    return tuple(each if mine else neutral for each, mine in zip(values, factor.axes, strict=True))
