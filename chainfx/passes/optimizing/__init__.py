"""What graph optimization is made of: rewrites that leave what a network computes as it is, up to rounding.

Each rewrite is a function of a graph module with shapes in ``node.meta["val"]`` that changes it in place, says how many
places it changed, and leaves alone what passes made: quantizers, masks, codebooks and exits.
"""

from chainfx.passes.optimizing.affine import fold_norms, fold_scales
from chainfx.passes.optimizing.constants import fold_constants
from chainfx.passes.optimizing.duplicates import merge_duplicates
from chainfx.passes.optimizing.identities import remove_identities
from chainfx.passes.optimizing.pairs import merge_pairs, pairs_left_alone

__all__ = [
    "fold_constants",
    "fold_norms",
    "fold_scales",
    "merge_duplicates",
    "merge_pairs",
    "pairs_left_alone",
    "remove_identities",
]
