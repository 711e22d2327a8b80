"""Fixed-point quantization of a trained network without any training."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch.fx import GraphModule

from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.passes.quantizing import CLIP_RULES, FLOAT, ClipRule, LayerWidths, quantize_network

__all__ = ["PostTrainingQuantize"]


@final
@dataclass(frozen=True)
class PostTrainingQuantize(Pass):
    """Quantize weights (per output channel), inputs of layers and tables of embeddings, and train nothing.

    What changes is what :class:`~chainfx.passes.Quantize` with ``scheme="uniform"`` changes, all layers and tables
    alike::

        conv2d(x, weight, ...)  ->  quantize_activation(x, clip, bits, signed)
                                    quantize_weight(weight, bits, "uniform", axis)
                                    conv2d(<quantized x>, <quantized weight>, ...)

    Formula (Jacob et al. 2018, arXiv 1712.05877, sec. 3; symmetric): ``round(w / m * n) m / n`` with ``m = max|w|`` of
    an output channel and ``n = 2**(bits-1) - 1``. Activations are clipped where the squared error on the calibration
    batches is least, or (``clips="min-max"``) at the largest of all their values. The batches are read once, as a
    stream. Exact only at 32 bits; at 8 bits the accuracy of usual networks falls by some tenths of a point, below 6 the
    network should be tuned, by :class:`~chainfx.passes.Quantize`.

    ``activations=32`` quantizes weights alone, and asks for no calibration. Processors without VNNI instructions run
    8-bit activations with 7-bit weights in integers, but not with 8-bit weights. Bit operations fall by
    ``1024 / (weights * activations)``, stored weights to ``weights / 32``. A later pass that quantizes replaces the
    quantizers. ``skip``: patterns (``fnmatch``) of layers to leave in float.
    """

    weights: int = 8
    activations: int = 8
    clips: ClipRule = "least-squares"
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        "post-training-quantize",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        needs=frozenset({"calibration"}),
        establishes=frozenset({"bit-widths"}),
        revision=2,
        family="quantization",
        tunes=False,
        headline=("weights", "activations"),
    )

    def __post_init__(self) -> None:
        for option in ("weights", "activations"):
            value = getattr(self, option)
            allowed = value in (*range(2, 9), FLOAT) and not isinstance(value, bool)
            self._check(allowed, option, "2..8 bits, or 32 for float; one bit needs training, which Quantize asks for")
        self._check(self.clips in CLIP_RULES, "clips", f"one of {', '.join(map(repr, CLIP_RULES))}")

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, unless activations stay in float."""
        return frozenset() if self.activations == FLOAT else self.info.needs

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Insert the quantizers, with clips from the calibration batches."""
        widths = LayerWidths(self.weights, self.activations, "uniform", per_channel=True)
        inserted, skipped = quantize_network(
            graph_module, context, self.info.name, lambda layer: widths, widths, skip=self.skip, clips=self.clips
        )
        return PassResult(graph_module, modified=inserted, skipped=skipped)
