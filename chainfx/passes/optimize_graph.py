"""Graph optimization: the same answers from fewer nodes."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch.fx import GraphModule

from chainfx.ir.graph import edit, propagate_shapes
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.passes.optimizing import (
    fold_constants,
    fold_norms,
    fold_scales,
    merge_duplicates,
    merge_pairs,
    pairs_left_alone,
    remove_identities,
)

__all__ = ["OptimizeGraph"]

_REWRITES = {
    "constants": fold_constants,
    "identities": remove_identities,
    "duplicates": merge_duplicates,
    "norms": fold_norms,
    "scales": fold_scales,
    "pairs": merge_pairs,
}


@final
@dataclass(frozen=True)
class OptimizeGraph(Pass):
    """Remove and merge nodes without changing what the network computes in eval mode.

    What changes::

        a = p * 2; y = x + a                   ->   y = x + a'             constants: what depends on no input
        y = dropout(x); z = y * 1              ->   x                      identities
        a = sin(x); b = sin(x)                 ->   a = sin(x)             duplicates
        y = linear(layer_norm(x, g, h), w, b)  ->   linear(layer_norm(x), w', b')         norms
        y = linear(x, w, b) * s                ->   linear(x, w', b')                     scales
        y = conv2d(conv2d(x, v, a), w, b)      ->   conv2d(x, w', b')      pairs: k x k and 1x1, in either order

    and nodes that nobody reads go. The rewrites are repeated until none finds anything; their formulas stand in
    :mod:`chainfx.passes.optimizing`. Exact up to rounding (1e-5 in float32, they compute in float64), in eval mode:
    dropout is gone, so optimize when no more training needs it. A second time changes nothing. Layers become one only
    where that costs fewer multiplications, so that it never undoes a low-rank factorization.

    Needs nothing, and asks for no tuning. MACs fall where layers are merged, element-wise work with every node that
    goes. Quantizers, masks, codebooks and exits stay as they are, and so do the layers they belong to. :class:`Fuse`,
    which folds BatchNorm, goes before it: a BatchNorm between two convolutions hides that they can be merged.
    ``profile`` of the result has how often each rewrite applied.
    """

    info: ClassVar[PassInfo] = PassInfo(
        "optimize-graph",
        Kind.STATIC,
        Granularity.LAYER,
        domain="network",
        family="graph-optimization",
        exact=True,
        tunes=False,
    )

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Rewrite until nothing is found; ``skipped`` names the layers right after another one that stay."""
        before = len(graph_module.graph.nodes)
        edit.tidy(graph_module)
        applied = dict.fromkeys(("dead nodes", *_REWRITES), 0)
        applied["dead nodes"] = before - len(graph_module.graph.nodes)
        found = True
        while found:
            found = False
            for name, rewrite in _REWRITES.items():
                propagate_shapes(graph_module, context.example_inputs)
                count = rewrite(graph_module)
                if count:
                    edit.tidy(graph_module)
                    applied[name] += count
                    found = True
        propagate_shapes(graph_module, context.example_inputs)
        skipped = tuple(pairs_left_alone(graph_module))
        profile = {name: count for name, count in applied.items() if count}
        return PassResult(graph_module, modified=bool(profile), skipped=skipped, profile=profile)
