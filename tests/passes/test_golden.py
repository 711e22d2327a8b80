"""What each pass makes of a small graph, as text: one module a case, those that must not change among them.

``pytest tests/passes/test_golden.py --accept`` rewrites the texts in ``tests/golden``; read the difference.
"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.graph import verify
from chainfx.passes import (
    Bf16,
    Distill,
    EarlyExit,
    Encode,
    Fuse,
    LowRank,
    OptimizeGraph,
    Pass,
    PassContext,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    ShareWeights,
    Task,
    TorchaoQuantize,
    classification,
    pass_names,
)
from chainfx.training import segmentation, token_classification
from tests.golden_text import FOLDER, compare, graph_text, result_text
from tests.nets import graph_of


class Plain(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Residual(nn.Module):
    """A stem, two blocks that add to it, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.fc(x.mean((2, 3)))


class Joined(nn.Module):
    """Two layers that read one tensor, their answers side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.out(torch.cat([self.a(x), self.b(x)], 1))


class Depthwise(nn.Module):
    """A convolution of each channel for itself between two of 1x1."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.a(x))))


class Normed(nn.Module):
    """A convolution without a bias and its BatchNorm."""

    def __init__(self, **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, **options)

    def forward(self, x):
        return self.norm(self.conv(x))


class Spread(Normed):
    """A BatchNorm that scales each channel by another factor."""

    def __init__(self):
        super().__init__()
        self.norm.running_var.copy_(torch.arange(1.0, 5.0))


class NormedLinear(nn.Module):
    """A linear layer and its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.fc(x))


class ReadTwice(Normed):
    """What the BatchNorm normalises is read beside it."""

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class Up(nn.Module):
    """A transposed convolution, whose output channels are the second axis of its weight."""

    def __init__(self):
        super().__init__()
        self.up, self.out = nn.ConvTranspose2d(3, 6, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.out(torch.relu(self.up(x)))


class Sentence(nn.Module):
    """Two embeddings, and a last layer that has the table of the first."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 7)
        self.out.weight = self.words.weight

    def forward(self, ids):
        return self.out(self.words(ids) + self.places(ids))


class Attention(nn.Module):
    """One block of attention with the given number of heads of 2 channels."""

    def __init__(self, heads=4):
        super().__init__()
        self.heads, dim = heads, 2 * heads
        self.qkv, self.proj = nn.Linear(5, 3 * dim), nn.Linear(dim, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Vectors(nn.Module):
    """Three linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Sequence(nn.Module):
    """Two linear layers on every token, the mean of the tokens, a classifier."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean(1))


class EveryToken(Sequence):
    """Two linear layers and a classifier on every token."""

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class EveryPixel(Plain):
    """A convolution with a stride, one without, resized to the image."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1), None
        self.c = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        answer = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return F.interpolate(answer, size=x.shape[2:], mode="bilinear", align_corners=False)


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.a(torch.relu(self.a(x))))


class LowRanked(nn.Module):
    """A layer of rank 1, one of 3x3 that is of rank 1 in every way, one that is of full rank."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 8), nn.Linear(8, 8)
        self.conv.weight.data.fill_(0.1)
        self.fc.weight.data.fill_(0.1)
        self.out.weight.data.copy_(torch.eye(8))

    def forward(self, x):
        return self.out(self.fc(torch.relu(self.conv(x)).mean((2, 3))))


class Roundabout(nn.Module):
    """Two layers that are one, a constant that is computed, dropout, one value that is computed twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 9), nn.Linear(9, 3), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.b(self.a(x)) + torch.arange(3) * 2)
        return x.sin() * x.sin()


class Narrowed(nn.Module):
    """A convolution of 3x3 and one of 1x1 to fewer channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.b(self.a(x))


class NormedTokens(nn.Module):
    """A layer normalization and a linear layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.norm(x))


IMAGES, WIDE, VECTORS, TOKENS = (2, 1, 8, 8), (2, 2, 4, 4), (2, 6), (2, 5, 5)
CLASSES = classification()


@dataclass(frozen=True)
class Case:
    """A pass on a module; ``first`` are passes that went before, ``unchanged`` says that it must leave the graph.

    ``words``: how many there are, for a network that reads integers. ``task``: what the network is for.
    """

    name: str
    one: Pass
    make: type
    shape: tuple = IMAGES
    first: tuple = ()
    trainer: bool = False
    unchanged: bool = False
    words: int = 0
    task: Task = CLASSES


FLOAT = Quantize(32, 32, first=None, last=None)
CASES = [
    Case("weights-and-activations", Quantize(3, 4, first=8, last=7), Plain),
    Case("a-trainer-gets-dorefa", Quantize(3, 4), Vectors, VECTORS, trainer=True),
    Case("weights-alone", Quantize(4, 32, first=None, last=None), Vectors, VECTORS),
    Case("activations-alone-one-scale", Quantize(32, 8, first=None, last=None, granularity="tensor"), Vectors, VECTORS),
    Case("one-scale-a-tensor", Quantize(4, 32, first=None, last=None, granularity="tensor"), Vectors, VECTORS),
    Case("powers-of-two", Quantize(4, 8, first=None, last=None, scheme="exponential"), Vectors, VECTORS),
    Case("two-layers-read-one-quantizer", Quantize(8, 8), Joined, WIDE),
    Case("the-second-replaces-the-first", Quantize(8, 8), Vectors, VECTORS, (Quantize(2, 3, scheme="dorefa"),)),
    Case("float-takes-the-quantizers-away", FLOAT, Vectors, VECTORS, (Quantize(2, 3),)),
    Case("output-channels-of-a-transposed-layer", Quantize(4, 32, first=None, last=None), Up, (2, 3, 4, 4)),
    Case("beneath-the-mask", Quantize(4, 4, first=None, last=None), Vectors, VECTORS, (PruneWeights(0.5),)),
    Case("a-layer-left-out", Quantize(4, 4, skip=("b.*",)), Vectors, VECTORS),
    Case("products-of-activations-stay", Quantize(8, 8), Attention, TOKENS),
    Case("an-embedding-and-the-layer-that-shares-its-table", Quantize(4, 32), Sentence, (2, 3), words=5),
    Case("thirty-two-bits", FLOAT, Plain, unchanged=True),
    Case("skip-connections", Quantize(8, 4), Residual),
    Case("skip-connections-in-float", Quantize(8, 4, residuals=False), Residual),
    Case("all-layers-alike", PostTrainingQuantize(7, 8, clips="min-max"), Plain),
    Case("in-a-row", PruneChannels(0.5), Plain),
    Case("coupled-by-additions", PruneChannels(0.5), Residual),
    Case("side-by-side", PruneChannels(0.5), Joined, WIDE),
    Case("depthwise", PruneChannels(0.5), Depthwise, WIDE),
    Case("transposed", PruneChannels(0.5), Up, (2, 3, 4, 4)),
    Case("rounded-to-four", PruneChannels(0.3, round_to=4), Vectors, VECTORS),
    Case("masks-and-quantizers-go-with-it", PruneChannels(0.5), Vectors, VECTORS, (PruneWeights(0.5), Quantize(4, 4))),
    Case("a-layer-left-out", PruneChannels(0.5, skip=("b",)), Plain),
    Case("ratio-zero", PruneChannels(0.0), Plain, unchanged=True),
    Case("half-the-heads", PruneHeads(0.5), Attention, TOKENS),
    Case("narrower-heads", PruneHeads(0.0, width_ratio=0.5), Attention, TOKENS),
    Case("heads-of-a-quantized-layer", PruneHeads(0.5), Attention, TOKENS, (Quantize(8, 8),)),
    Case("no-head-goes", PruneHeads(0.0), Attention, TOKENS, unchanged=True),
    Case("unstructured", PruneWeights(0.5), Plain),
    Case("two-of-four", PruneWeights(pattern="2:4"), Plain),
    Case("a-second-masks-more", PruneWeights(0.75), Vectors, VECTORS, (PruneWeights(0.5),)),
    Case("above-the-quantizers", PruneWeights(0.5), Vectors, VECTORS, (Quantize(4, 4),)),
    Case("a-layer-left-out", PruneWeights(0.5, skip=("c",)), Vectors, VECTORS),
    Case("a-shared-weight-has-one-mask", PruneWeights(0.5), Tied, VECTORS),
    Case("ratio-zero", PruneWeights(0.0), Plain, unchanged=True),
    Case("a-codebook-a-layer", ShareWeights(2, skip=("c",)), Vectors, VECTORS),
    Case("one-codebook-for-several-layers", ShareWeights(2, groups=("?",)), Vectors, VECTORS),
    Case("biases-too", ShareWeights(1, biases=True), Plain),
    Case("beneath-the-mask", ShareWeights(1), Vectors, VECTORS, (PruneWeights(0.5),)),
    Case("a-shared-weight-has-one-codebook", ShareWeights(2), Tied, VECTORS),
    Case("quantized-layers-stay", ShareWeights(2), Vectors, VECTORS, (Quantize(4, 4),), unchanged=True),
    Case("a-round-before-the-last", ShareWeights(2, rounds=2), Vectors, VECTORS, trainer=True, unchanged=True),
    Case("between-codebook-and-mask", Quantize(8, 32), Vectors, VECTORS, (PruneWeights(0.5), ShareWeights(2))),
    Case("shared-and-masked", Encode(), Vectors, VECTORS, (PruneWeights(0.5), ShareWeights(2))),
    Case("quantized", Encode(coder="adaptive"), Vectors, VECTORS, (Quantize(4, 4),)),
    Case("coded-already", Encode(), Vectors, VECTORS, (Encode(),), unchanged=True),
    Case("tucker", LowRank(energy=0.99), LowRanked, (2, 4, 8, 8)),
    Case("spatial", LowRank(energy=0.99, scheme="spatial"), LowRanked, (2, 4, 8, 8)),
    Case("a-shared-weight-stays-shared", LowRank(energy=0.3), Tied, VECTORS),
    Case(
        "quantized-and-masked-layers-stay",
        LowRank(energy=0.3),
        Tied,
        VECTORS,
        (PruneWeights(0.5), Quantize(4, 4)),
        unchanged=True,
    ),
    Case("ranks-that-are-learnt", LowRank(price=0.1, pull=1.0, scheme="spatial"), LowRanked, (2, 4, 8, 8)),
    Case("what-does-not-pay", LowRank(energy=1.0), Vectors, VECTORS, unchanged=True),
    Case("convolution", Fuse(), Normed, WIDE),
    Case("linear", Fuse(), NormedLinear, (2, 5)),
    Case("beneath-the-mask", Fuse(), Normed, WIDE, (PruneWeights(0.5),)),
    Case(
        "a-quantized-weight",
        Fuse(),
        Spread,
        WIDE,
        (Quantize(4, 4, first=None, last=None, scheme="dorefa"),),
        unchanged=True,
    ),
    Case("levels-that-scale-with-the-weight", Fuse(), Spread, WIDE, (Quantize(4, 4, first=None, last=None),)),
    Case(
        "a-codebook-stays",
        Fuse(),
        Spread,
        WIDE,
        (ShareWeights(2), Quantize(4, 4, first=None, last=None)),
        unchanged=True,
    ),
    Case("an-output-read-twice", Fuse(), ReadTwice, WIDE, unchanged=True),
    Case("no-running-statistics", Fuse(), lambda: Normed(track_running_stats=False), WIDE, unchanged=True),
    Case("no-batch-norm", Fuse(), Plain, unchanged=True),
    Case("a-constant-an-identity-and-a-pair", OptimizeGraph(), Roundabout, VECTORS),
    Case("a-convolution-and-one-of-1x1", OptimizeGraph(), Narrowed, WIDE),
    Case("a-norm-before-a-layer", OptimizeGraph(), NormedTokens, VECTORS),
    Case("a-masked-pair-stays", OptimizeGraph(), Narrowed, WIDE, (PruneWeights(0.5),), unchanged=True),
    Case("nothing-to-do", OptimizeGraph(), Plain, unchanged=True),
    Case("a-layer-left-out", Bf16(skip=("b",)), Plain),
    Case("two-layers-that-read-one-cast", Bf16(), Joined, WIDE),
    Case("quantized-layers-stay", Bf16(), Vectors, VECTORS, (Quantize(4, 4),), unchanged=True),
    Case("codes-and-scales-of-torchao", TorchaoQuantize("Int8WeightOnlyConfig()", skip=("b",)), Vectors, VECTORS),
    Case("in-the-place-of-quantizers", TorchaoQuantize("Int8WeightOnlyConfig()"), Vectors, VECTORS, (Quantize(4, 4),)),
    Case("blocks-of-a-residual-network", Distill(depth=(1,)), Residual, trainer=True),
    Case("layers-of-a-plain-network", Distill(depth=(1,)), Plain, trainer=True),
    Case("width", Distill(width=0.5), Plain, trainer=True),
    Case("a-student-of-ones-own", Distill(student=nn.Linear(6, 3)), Vectors, VECTORS, trainer=True),
    Case("on-images", EarlyExit(exits=1, threshold=0.9), Plain, trainer=True),
    Case("on-large-images", EarlyExit(exits=1, threshold=0.9), Plain, (1, 1, 65, 33), trainer=True),
    Case("on-tokens", EarlyExit(exits=("relu",), criterion="entropy"), Sequence, TOKENS, trainer=True),
    Case("on-vectors-two-exits", EarlyExit(exits=2, criterion="margin"), Vectors, VECTORS, trainer=True),
    Case(
        "on-every-token",
        EarlyExit(exits=1, criterion="token-margin"),
        EveryToken,
        TOKENS,
        trainer=True,
        task=token_classification(3),
    ),
    Case(
        "on-every-pixel",
        EarlyExit(exits=1, criterion="pixel-max-softmax"),
        EveryPixel,
        trainer=True,
        task=segmentation(3),
    ),
    Case("a-quantized-body", EarlyExit(exits=1, threshold=0.9), Vectors, VECTORS, (Quantize(2, 4),), trainer=True),
]


def applied(case):
    """The text of the graph before a case's pass and the result of the pass."""
    torch.manual_seed(0)
    model = case.make().eval()
    inputs = (torch.randint(case.words, case.shape) if case.words else torch.randn(case.shape),)
    graph_module = graph_of(model, *inputs)
    context = PassContext(graph_module, inputs, calibration=[inputs], tunes=case.trainer, task=case.task)
    graph_module = copy.deepcopy(graph_module)
    for one in (*case.first, case.one):
        verify(graph_module, inputs)
        before = graph_text(graph_module)
        result = one.apply(graph_module, context)
        graph_module = result.graph_module
        verify(graph_module, inputs)
    return before, result


def file_of(case):
    return f"{case.one.info.name}/{case.name}"


@pytest.mark.parametrize("case", CASES, ids=file_of)
def test_the_graph_is_the_golden_one(case, request):
    if case.one.info.name == "torchao-quantize":
        pytest.importorskip("torchao", reason="the extra 'torchao' is not installed")
    before, result = applied(case)
    compare(file_of(case), result_text(before, result), accept=request.config.getoption("accept"))
    same = before == graph_text(result.graph_module)
    assert case.unchanged == (same and not result.modified)


def test_every_pass_has_cases_and_every_text_has_one():
    assert {case.one.info.name for case in CASES} == set(pass_names())
    names = [file_of(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.txt"))


@pytest.mark.parametrize(
    "change",
    [
        {"one": Quantize(2, 4, first=8, last=7)},
        {"one": Quantize(3, 4, first=8, last=7, skip=("b.*",))},
        {"make": Residual},
    ],
    ids=["another-width", "a-layer-left-out", "another-network"],
)
def test_the_checker_can_fail(change):
    case = CASES[0]
    compare(file_of(case), result_text(*applied(case)), accept=False)
    with pytest.raises(AssertionError, match=r"holds another text; if the new one is right, run pytest --accept"):
        compare(file_of(case), result_text(*applied(replace(case, **change))), accept=False)


def test_a_missing_text_is_a_failure_and_accepting_writes_it(tmp_path):
    with pytest.raises(AssertionError, match=r"quantize/new.txt does not exist; run pytest --accept once"):
        compare("quantize/new", "text\n", accept=False, folder=tmp_path)
    compare("quantize/new", "text\n", accept=True, folder=tmp_path)
    compare("quantize/new", "text\n", accept=False, folder=tmp_path)
