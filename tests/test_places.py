"""Every tensor is made where the network, or the tensor that it meets, is: nothing follows torch's default device."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.passes import (
    Bf16,
    Distill,
    EarlyExit,
    Encode,
    Fuse,
    LowRank,
    OptimizeGraph,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    ShareWeights,
    pass_names,
)
from chainfx.passes.pruning import importance_names
from chainfx.training import Augment, Trainer
from tests.budget import mostly_slow
from tests.nets import images, small_resnet
from tests.trainers import few_digits

ROOT = Path(chainfx.__file__).parent
FACTORIES = frozenset(
    {
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
    }
    | {"rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices"}
    | {"zeros", "Generator"}
)
LAYERS = ("Linear", "Conv", "BatchNorm", "LayerNorm", "GroupNorm", "Embedding", "LSTM", "MultiheadAttention")
# The networks of the zoo are the user's own once they are made: like all of torch's models they go where torch says.
ALLOWED = ("zoo/",)


def factories_without_device(source: str) -> list[str]:
    """The calls in a module that make a tensor or layer and do not say where, as ``line: call``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = []
    for node in calls:
        owner, _, name = ast.unparse(node.func).rpartition(".")
        makes = (owner == "torch" and name in FACTORIES) or (owner == "nn" and name.startswith(LAYERS))
        makes = makes or (owner, name) == ("", "Generator")
        if makes and "device" not in {keyword.arg for keyword in node.keywords}:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_factory_says_where():
    modules = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
    missing = {name: factories_without_device(path.read_text()) for name, path in modules.items()}
    assert {name: calls for name, calls in missing.items() if calls and not name.startswith(ALLOWED)} == {}


def test_the_search_for_factories_finds_them():
    source = "torch.zeros(3)\ntorch.zeros(3, device=x.device)\nnn.Linear(2, 3)\nnn.ReLU()\ntorch.zeros_like(x)"
    assert factories_without_device(source) == ["1: torch.zeros(3)", "3: nn.Linear(2, 3)"]


class Attention(nn.Module):
    """One layer of self-attention of four heads over (N, tokens, 16), and a classifier."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (4, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(y).mean(1))


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device on this machine")
    return request.param


def astray(device):
    """For a network on the CPU a default device that holds no data: what is made there by mistake fails at once."""
    return torch.device("meta") if device == "cpu" else contextlib.nullcontext()


def check(small, x, device):
    """The compressed network is on the device, answers there, and comes back from a folder with the same answer."""
    assert {tensor.device.type for tensor in (*small.parameters(), *small.buffers())} == {device}
    answer = small(x)
    assert answer.device.type == device and answer.shape == (len(x), 10) and bool(answer.isfinite().all())
    return answer


CHAINS = {
    "sparse": [PruneWeights(0.5, scope="global"), Quantize(4, 4), Fuse()],
    "codes": [PruneWeights(pattern="1:2", skip=("conv1",)), Quantize(2, 4, scheme="dorefa")],
    "factors": [LowRank(energy=0.7), Quantize(8, 8)],
    "spatial": [LowRank(macs=0.8, scheme="spatial"), PruneChannels(0.3, round_to=2)],
    "coded": [PruneWeights(0.5), ShareWeights(3), Encode()],
    "before quantizing": [OptimizeGraph(), PostTrainingQuantize()],
    "half": [Fuse(), Bf16()],
    "folded": [Fuse(), PruneChannels(macs=0.6, scope="global", importance="activation", compensate=True)],
}


@pytest.mark.parametrize("name", mostly_slow(CHAINS, [*CHAINS][::2]))
def test_chains_without_a_trainer(name, device, tmp_path):
    chain = CHAINS[name]
    model, x = small_resnet((1, 1)).to(device), images(8).to(device)
    model.bn1.weight.data[1] = 0  # a channel that is constant
    with astray(device):
        small = chainfx.compile(model, chain, example_inputs=x, calibration=[x], order="given")
        answer = check(small, x, device)
        small.save(tmp_path / "saved")
        again = chainfx.load(tmp_path / "saved").to(device)
        assert torch.equal(again(x), answer)


@pytest.mark.parametrize("importance", mostly_slow(importance_names(), ("activation", "l1", "taylor")))
def test_every_importance(importance, device):
    model, x = small_resnet((1, 1)).to(device), images(8).to(device)
    one = PruneChannels(0.5, importance=importance, compensate=True)
    with astray(device):
        check(chainfx.compile(model, [one], example_inputs=x, calibration=[x]), x, device)


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_heads(importance, device):
    torch.manual_seed(0)
    model, x = Attention().eval().to(device), torch.randn(8, 5, 16, device=device)
    one = PruneHeads(0.5, width_ratio=0.5, importance=importance, compensate=True)
    with astray(device):
        check(chainfx.compile(model, [one], example_inputs=x, calibration=[x]), x, device)


TUNED = {
    "distilled": [Distill(depth=0.5, init="random"), PruneWeights(0.5, rounds=2), Quantize(4, 4)],
    "narrowed": [Distill(width=0.5), PruneChannels(0.25, importance="taylor", rounds=2)],
    "exits": [Quantize(4, 4), EarlyExit(exits=2, max_drop=0.5, keep=True)],
    "exits at a threshold": [EarlyExit(exits=2, threshold=0.2, keep=True)],
}


def test_every_pass_is_in_a_chain():
    names = {one.info.name for chain in (*CHAINS.values(), *TUNED.values()) for one in chain}
    # torchao's own factories choose their device
    assert {*names, "prune-heads", "torchao-quantize"} == set(pass_names())


@pytest.mark.parametrize("name", mostly_slow(TUNED, ("exits",)))
def test_chains_with_the_default_trainer(name, device, tmp_path):
    chain = TUNED[name]
    model, x = small_resnet((1, 1)).to(device), images(32).to(device)
    with astray(device):
        trainer = Trainer(few_digits(), epochs=1, batch_size=64, augment=Augment(padding=1))
        small = chainfx.compile(
            model, chain, example_inputs=x[:4], trainer=trainer, workdir=tmp_path / "work", order="given"
        )
        answer = check(small, x, device)
        small.save(tmp_path / "saved")
        assert torch.equal(chainfx.load(tmp_path / "saved").to(device)(x), answer)
        resumed = chainfx.compile(
            model, chain, example_inputs=x[:4], trainer=trainer, workdir=tmp_path / "work", order="given"
        )
        assert torch.equal(check(resumed, x, device), answer)


def test_training_from_scratch_and_counting(device):
    model = small_resnet((1, 1)).to(device)
    with astray(device):
        data = few_digits()
        Trainer(data, epochs=1, batch_size=64).fit(model)
        report = chainfx.count(model, data.example_inputs(2)[0].to(device), encodings=("entropy",))
    assert report.macs > 0 and {each.device.type for each in model.parameters()} == {device}
