"""Coding of what is stored: weights, codes and masks become as few bytes as their statistics allow."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch.fx import GraphModule

from chainfx.coding import CODERS, Coder
from chainfx.ir.graph import edit, layers_of, ops
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult

__all__ = ["Encode"]


@final
@dataclass(frozen=True)
class Encode(Pass):
    """Store the weights of all convolution and linear layers coded, without loss; the network computes the same.

    What changes, for each layer::

        conv2d(x, weight, ...)  ->  conv2d(x, coded_weight(weight, coder), ...)

    The mark says how ``small.save`` writes what the weight is made of: its codes or values, and its mask. Where the
    weights that are not masked lie (a bitmap, rows and columns, distances with fillers, runs) and what they are (a
    fixed width, Huffman's code) is written in every form that there is, for each tensor, and the smallest is taken
    (:mod:`chainfx.coding`; Han et al. 2016, arXiv 1510.00149, sec. 2 and 4). The file holds the manifest deflated, and
    ``report.json`` beside it is not needed to load. ``chainfx.load`` decodes into the same network, bit for bit.

    ``coder="adaptive"`` tries arithmetic coding with probabilities that are learnt on the way, too: some percent
    smaller, but slower to read, and saving and loading then need the package constriction (``chainfx[coding]``).

    Goes last: a later pass that changes a weight would lose its mark, which the runner refuses. Needs nothing, asks for
    no tuning; MACs and bit operations stay. Stored bytes fall to about the entropy of the codes: nothing for floats
    that were not compressed, a fifth to a third for shared weights, and for masked ones their zeros as well.

    >>> Encode().label, Encode(coder="adaptive").label
    ('encode()', "encode(coder='adaptive')")
    """

    info: ClassVar[PassInfo] = PassInfo(
        "encode",
        Kind.STATIC,
        Granularity.BIT,
        establishes=frozenset({"codings"}),
        domain="network",
        family="coding",
        exact=True,
        tunes=False,
        revision=2,
    )

    coder: Coder = "static"

    def __post_init__(self) -> None:
        self._check(self.coder in CODERS, "coder", f"one of {', '.join(map(repr, CODERS))}")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Put the marks in place; one that is there already gets this coder."""
        modified = False
        for layer in layers_of(graph_module):
            if layer.coded is None:
                with graph_module.graph.inserting_before(layer.node):
                    arguments = (layer.weight_read, self.coder)
                    layer.node.update_arg(1, graph_module.graph.call_function(ops.coded_weight, arguments))
                modified = True
            elif layer.coded.args[1] != self.coder:
                layer.coded.update_arg(1, self.coder)
                modified = True
        edit.tidy(graph_module)
        return PassResult(graph_module, modified)
