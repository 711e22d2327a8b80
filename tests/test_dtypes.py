"""Networks in half precision, bfloat16 and float64 go through every pass, and keep their dtype."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.passes import Distill, EarlyExit, Fuse, LowRank, PruneChannels, PruneHeads, PruneWeights, Quantize
from chainfx.passes.pruning import importance_names
from tests.budget import mostly_slow
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

DTYPES = (torch.float16, torch.bfloat16, torch.float64)
PASSES = [
    Distill(depth=0.5),
    Distill(width=0.5),
    EarlyExit(exits=1, threshold=0.5, keep=True),
    Fuse(),
    LowRank(energy=0.6, keep=True),
    LowRank(macs=0.8, scheme="spatial", keep=True),
    PruneHeads(0.5),
    PruneWeights(0.5),
    PruneWeights(pattern="2:4"),
    Quantize(8, 8),
    Quantize(4, 4, granularity="tensor"),
    Quantize(1, 2, scheme="dorefa"),
    PruneChannels(0.5, compensate=True),
]
ALL = [
    *((one, torch.float16) for one in PASSES[::3]),
    *(pytest.param(one, torch.float16, marks=pytest.mark.slow) for one in PASSES if one not in PASSES[::3]),
    *(pytest.param(one, dtype, marks=pytest.mark.slow) for one in PASSES for dtype in (torch.bfloat16, torch.float64)),
    *(
        pytest.param(PruneChannels(0.5, importance=each, compensate=True), dtype, marks=pytest.mark.slow)
        for each in importance_names()
        for dtype in DTYPES
    ),
]


class Heads(nn.Module):
    """Self-attention of four heads over (N, tokens, 16), and a classifier."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (4, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(y).mean(1))


def network_for(one):
    torch.manual_seed(0)
    if isinstance(one, PruneHeads):
        return Heads().eval(), torch.randn(4, 6, 16)
    return small_resnet((2, 2) if isinstance(one, Distill) else (1, 1)), images(4)


def floats_of(model):
    return {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}


@pytest.mark.parametrize(("one", "dtype"), ALL, ids=lambda value: getattr(value, "label", str(value)))
def test_every_pass_keeps_the_dtype_of_the_network(one, dtype, tmp_path):
    net, x = network_for(one)
    net, x = net.to(dtype), x.to(dtype)
    small = chainfx.compile(net, [one], example_inputs=x, trainer=FakeTrainer(x))
    answer = small(x)
    assert answer.dtype == dtype and bool(answer.isfinite().all())
    assert floats_of(small) == {dtype}
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x), answer)
    assert small.report.records[-1].modified


@pytest.mark.parametrize("dtype", mostly_slow(DTYPES, DTYPES[:1]), ids=str)
def test_a_compressed_network_changes_its_dtype_and_is_saved(dtype, tmp_path):
    net, x = small_resnet((1, 1)), images(4)
    small = chainfx.compile(
        net, [PruneChannels(0.5), PruneWeights(0.5), Quantize(4, 8)], example_inputs=x, calibration=[x]
    )
    wanted = small(x)
    small.to(dtype)
    answer = small(x.to(dtype))
    assert answer.dtype == dtype and torch.allclose(answer.to(wanted.dtype), wanted, atol=0.2)
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x.to(dtype)), answer)


WAYS = {"copy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


def exits():
    x = images(4)
    small = chainfx.compile(
        small_resnet((1, 1)), [EarlyExit(exits=1, threshold=0.5, keep=True)], example_inputs=x, trainer=FakeTrainer(x)
    )
    return small, x, small(x)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore")
def test_copies_and_pickles_answer_as_before_also_once_compiled(way):
    small, x, answer = exits()
    assert torch.equal(way(small)(x), answer)
    small.compile(backend="eager")
    small(x)
    copied = way(small)
    assert not any(each._compiled_call_impl for each in copied.segments) and torch.equal(copied(x), answer)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_compiles_is_copied_and_pickled(way):
    small, x, answer = exits()
    whole = torch.compile(small, backend="eager")
    whole(x)
    assert torch.equal(way(whole)(x), answer)
