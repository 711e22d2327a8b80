"""The passes: what can be done to a network."""

from chainfx.passes.base import (
    NEEDS,
    Epoch,
    Granularity,
    Kind,
    Pass,
    PassContext,
    PassInfo,
    PassResult,
    Skipped,
    Trainer,
    all_found,
    is_number,
    metric_of,
    processes_of,
    task_of,
    trainer_on,
)
from chainfx.passes.bf16 import Bf16
from chainfx.passes.distill import Distill
from chainfx.passes.early_exit import EarlyExit
from chainfx.passes.encode import Encode
from chainfx.passes.execution import Answers, Execution, Measurement
from chainfx.passes.exiting import exit_places
from chainfx.passes.fuse import Fuse
from chainfx.passes.low_rank import LowRank
from chainfx.passes.objectives import Objective, Penalty, Schedule, TuneRequest, Tunings
from chainfx.passes.optimize_graph import OptimizeGraph
from chainfx.passes.post_training_quantize import PostTrainingQuantize
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.prune_heads import PruneHeads
from chainfx.passes.prune_weights import PruneWeights
from chainfx.passes.quantize import Quantize
from chainfx.passes.quantizing import scheme_of
from chainfx.passes.registry import PassSummary, get_pass, pass_from_spec, pass_names
from chainfx.passes.share_weights import ShareWeights
from chainfx.passes.tasks import Metric, Task, classification, soft_labels
from chainfx.passes.torchao_quantize import TorchaoQuantize

__all__ = [
    "NEEDS",
    "Answers",
    "Bf16",
    "Distill",
    "EarlyExit",
    "Encode",
    "Epoch",
    "Execution",
    "Fuse",
    "Granularity",
    "Kind",
    "LowRank",
    "Measurement",
    "Metric",
    "Objective",
    "OptimizeGraph",
    "Pass",
    "PassContext",
    "PassInfo",
    "PassResult",
    "PassSummary",
    "Penalty",
    "PostTrainingQuantize",
    "PruneChannels",
    "PruneHeads",
    "PruneWeights",
    "Quantize",
    "Schedule",
    "ShareWeights",
    "Skipped",
    "Task",
    "TorchaoQuantize",
    "Trainer",
    "TuneRequest",
    "Tunings",
    "all_found",
    "classification",
    "exit_places",
    "get_pass",
    "is_number",
    "metric_of",
    "pass_from_spec",
    "pass_names",
    "processes_of",
    "scheme_of",
    "soft_labels",
    "task_of",
    "trainer_on",
]
