"""Fixed-point fake quantization of weights and activations."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

from torch.fx import GraphModule

from chainfx.ir.graph import Layer, ends_of, ops
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, TuneRequest
from chainfx.passes.quantizing import FLOAT, LayerWidths, quantize_network, scheme_of

__all__ = ["Quantize"]


@final
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights and inputs of convolution and linear layers, and embeddings, to 1..8 bits (32 leaves float).

    What changes, for each layer::

        conv2d(x, weight, ...)  ->  quantize_activation(x, clip, bits, signed)
                                    quantize_weight(weight, bits, scheme, axis)
                                    conv2d(<quantized x>, <quantized weight>, ...)

    Formula: DoReFa (Zhou et al. 2016, arXiv 1606.06160, eq. 5 and 9; one bit: sign times mean magnitude, sign(0) = +1),
    see :mod:`chainfx.ir.graph.ops`. Departures: the weight keeps its scale, per channel by default, and activations are
    clipped at a learnt value (Choi et al. 2018) that starts where the squared error on the calibration batches is
    least, not at 1. At 8 bits ``dorefa`` becomes ``tanh``, the same function on the 255 values of an int8, because its
    own 256 have no zero and fit into no kernel. ``scheme="uniform"`` is symmetric rounding without tanh; it is what
    ``None`` means when nothing will be tuned, because tanh moves trained weights. ``scheme="exponential"`` makes each
    weight 0 or a power of two with a sign (Zhou et al. 2017, INQ, arXiv 1702.03044, all weights at once), so that a
    product is a shift and costs ``activations`` bit operations, whatever the bits; up to 4 bits they fit into an int8.

    The addition at the end of a skip connection reads the quantized value that the layers beside it read, so that a
    block needs no float tensor; ``residuals=False`` leaves it the value itself, as most papers on few bits do.

    The table of an embedding is quantized as well, each row with a scale of its own, by ``scheme="uniform"`` and at the
    bits of the first layers, since words are what such a network reads first; what comes out of it is float. A table
    that a layer reads too is quantized as the weight of that layer.

    A second ``Quantize`` replaces the quantizers of the first; masks stay, above them. Exact only at 32 bits. Biases,
    BatchNorm and products of two activations (attention scores) stay in float. Bit operations fall by
    ``1024 / (weights * activations)`` per layer (``1024 / activations`` with powers of two); stored weights to
    ``weights / 32``.

    Options: ``first`` and ``last`` are the bits of the first and last layers (weights and inputs), ``None`` for the
    same as the rest; 8 is the usual choice (APoT, HAWQ). ``skip``: patterns (``fnmatch``) of layers to leave in
    float, like ``"fc"`` or ``"layer1.*"``; a pattern may also name the weights, like ``"fc.weight"``.
    """

    weights: int = 8
    activations: int = 8
    first: int | None = 8
    last: int | None = 8
    scheme: Literal["dorefa", "tanh", "uniform", "exponential"] | None = None
    granularity: Literal["tensor", "channel"] = "channel"
    skip: tuple[str, ...] = ()
    residuals: bool = True

    info: ClassVar[PassInfo] = PassInfo(
        "quantize",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        needs=frozenset({"calibration"}),
        establishes=frozenset({"bit-widths"}),
        revision=4,
        headline=("weights", "activations"),
        family="quantization",
    )

    def __post_init__(self) -> None:
        for option in ("weights", "activations", "first", "last"):
            value = getattr(self, option)
            allowed = value in (*ops.WIDTHS, FLOAT) or (value is None and option in ("first", "last"))
            self._check(allowed and not isinstance(value, bool), option, "1..8 bits, or 32 for float")
        self._check(self.scheme in (None, *ops.SCHEMES), "scheme", f"None or one of {', '.join(ops.SCHEMES)}")
        self._check(isinstance(self.residuals, bool), "residuals", "True or False")
        self._check(self.granularity in ("tensor", "channel"), "granularity", "'channel' or 'tensor'")

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, unless every activation stays in float."""
        widths = {self.activations, self.first or FLOAT, self.last or FLOAT}
        return frozenset() if widths == {FLOAT} else self.info.needs

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Insert the quantizers, with clips from the calibration batches."""
        first, last = ends_of(graph_module)

        def widths_of(layer: Layer) -> LayerWidths:
            at_end = self.first if layer in first else self.last if layer in last else None
            return self._widths(at_end, tuned=context.tunes)

        inserted, skipped = quantize_network(
            graph_module,
            context,
            self.info.name,
            widths_of,
            replace(self._widths(self.first, tuned=False), scheme="uniform"),
            skip=self.skip,
            residuals=self.residuals,
        )
        tune = TuneRequest() if context.tunes and inserted else None
        return PassResult(graph_module, modified=inserted, tune=tune, skipped=skipped)

    def _widths(self, at_end: int | None, *, tuned: bool) -> LayerWidths:
        weights, activations = (self.weights, self.activations) if at_end is None else (at_end, at_end)
        scheme = scheme_of(self.scheme, weights, tuned=tuned)
        return LayerWidths(weights, activations, scheme, self.granularity == "channel")
