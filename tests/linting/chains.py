"""The exercise's chains."""

from torch import nn

from chainfx.passes import Distill, Fuse, PostTrainingQuantize, PruneWeights

STUDENT = Distill(student=nn.Linear(2, 2))
FAILED = (PostTrainingQuantize(4, 4), PruneWeights(0.5), STUDENT, Fuse())
"""4-bit post-training quantization, half the weights pruned, distillation into a network of its own, optimization."""

CORRECTED = (STUDENT, PruneWeights(0.5), PostTrainingQuantize(8, 8), Fuse())
