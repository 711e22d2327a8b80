"""The passes: what can be done to a network."""

from chainfx.passes.base import (
    NEEDS,
    Epoch,
    Granularity,
    Kind,
    Metric,
    Pass,
    PassContext,
    PassInfo,
    PassResult,
    Skipped,
    Trainer,
    TuneRequest,
    is_number,
    metric_of,
)
from chainfx.passes.distill import Distill
from chainfx.passes.early_exit import EarlyExit
from chainfx.passes.encode import Encode
from chainfx.passes.exiting import exit_places
from chainfx.passes.fuse import Fuse
from chainfx.passes.low_rank import LowRank
from chainfx.passes.optimize_graph import OptimizeGraph
from chainfx.passes.post_training_quantize import PostTrainingQuantize
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.prune_heads import PruneHeads
from chainfx.passes.prune_weights import PruneWeights
from chainfx.passes.quantize import Quantize
from chainfx.passes.registry import PassSummary, get_pass, pass_from_spec, pass_names
from chainfx.passes.share_weights import ShareWeights

__all__ = [
    "NEEDS",
    "Distill",
    "EarlyExit",
    "Encode",
    "Epoch",
    "Fuse",
    "Granularity",
    "Kind",
    "LowRank",
    "Metric",
    "OptimizeGraph",
    "Pass",
    "PassContext",
    "PassInfo",
    "PassResult",
    "PassSummary",
    "PostTrainingQuantize",
    "PruneChannels",
    "PruneHeads",
    "PruneWeights",
    "Quantize",
    "ShareWeights",
    "Skipped",
    "Trainer",
    "TuneRequest",
    "exit_places",
    "get_pass",
    "is_number",
    "metric_of",
    "pass_from_spec",
    "pass_names",
]
