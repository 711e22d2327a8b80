import copy
import math

import pytest
import torch
from torch import nn

import chainfx
from chainfx.deploy import torch_backend
from chainfx.errors import InputError
from chainfx.ir.graph import layers_of
from chainfx.passes import Bf16, Encode, Fuse, PassContext, PostTrainingQuantize, PruneWeights, Quantize, ShareWeights
from chainfx.scheduler import plan
from tests.nets import TokenBlock, graph_of, images, small_resnet, warm

CLOSE = 2**-6  # of the largest answer: some roundings to 8 significant bits


class Block(TokenBlock):
    """One whose attention is written out."""

    @staticmethod
    def attend(q, k, v):
        return (q @ k.mT / math.sqrt(32)).softmax(-1) @ v


class Ways(nn.Module):
    """A layer of each kind: convolutions over one to three axes, grouped, transposed, and linear ones."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv1d(8, 8, 3), nn.Conv2d(1, 8, 3), nn.Conv3d(1, 2, 1)
        self.grouped, self.depthwise = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.up, self.fc = nn.ConvTranspose2d(8, 4, 2), nn.Linear(24, 3)

    def forward(self, x):
        x = self.up(self.depthwise(self.grouped(self.two(x))))
        x = self.three(x.unsqueeze(1)).flatten(1, 2).mean(-1)
        return self.fc(self.one(x).flatten(1).relu())


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block().eval()


TOKENS = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))


def skipped(small):
    return {item.node: item.reason for item in small.report.records[-1].skipped}


def is_near(one, other):
    return float((one - other).detach().abs().max()) <= CLOSE * float(other.detach().abs().max())


def rounded(network):
    """The network with weights and biases of its layers rounded to bfloat16, in float32."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for layer in other.modules():
            if isinstance(layer, nn.Linear):
                for tensor in layer.parameters():
                    tensor.copy_(tensor.bfloat16())
    return other


def test_layers_compute_in_bfloat16_and_the_rest_in_float32(block):
    """As the layers of the network do under autocast, which casts for each call what is stored here."""
    small = chainfx.compile(block, [Bf16()], example_inputs=TOKENS)
    with torch.no_grad():
        found = small(TOKENS)
        expected = rounded(block)(TOKENS)
    assert found.dtype is torch.float32 and not torch.equal(found, expected) and is_near(found, expected)
    types = {name: tensor.dtype for name, tensor in small.graph_module.named_parameters()}
    assert {types[f"{name}.{kind}"] for name in ("qkv", "head") for kind in ("weight", "bias")} == {torch.bfloat16}
    assert types["norm.weight"] is torch.float32
    assert len(skipped(small)) == 0 and small.engine == "float"
    first = next(layers_of(small.graph_module)).node
    with torch.no_grad():
        normed = block.norm(TOKENS).bfloat16()
        qkv = nn.functional.linear(normed, block.qkv.weight.bfloat16(), block.qkv.bias.bfloat16()).float()
    assert torch.equal(part(small.graph_module, first)(TOKENS), qkv)


def part(graph_module, node):
    """The network up to the cast after a layer."""
    own = copy.deepcopy(graph_module)
    (cast,) = next(each for each in own.graph.nodes if each.name == node.name).users
    own.graph.output_node().args = (cast,)
    own.recompile()
    return own


def test_every_kind_of_layer():
    torch.manual_seed(0)
    network, x = Ways().eval(), images(2, 8, 1)
    small = chainfx.compile(network, [Bf16()], example_inputs=x)
    assert len(list(layers_of(small.graph_module))) == 7 and skipped(small) == {}
    with torch.no_grad():
        assert is_near(small(x), network(x))


def test_the_counter_sees_16_bits_and_half_is_stored(block, tmp_path):
    small = chainfx.compile(block, [Bf16(skip=("head",))], example_inputs=TOKENS)
    before, after = (record.report for record in small.report.records)
    layers = 32 * 96 + 32 * 32 + 2 * 32 * 64
    head, products = 32 * 10, 2 * 8 * 32
    tokens = 2 * 8 / 2  # of one sample
    assert before.macs == after.macs == tokens * (layers + head + products)
    assert after.reprice("strict").bitops == tokens * (256 * layers + 1024 * (head + products))
    assert before.storage_bits - after.storage_bits == 16 * (layers + 96 + 32 + 64 + 32)
    small.save(tmp_path)
    again = chainfx.load(tmp_path)
    assert again.graph_module.get_parameter("up.weight").dtype is torch.bfloat16
    assert torch.equal(again(TOKENS), small(TOKENS))


def test_what_is_quantized_coded_or_shared_stays_and_is_named():
    torch.manual_seed(0)
    x = images(2)
    net = small_resnet((1, 1))
    half = PostTrainingQuantize(8, 32, skip=("stages.1*", "fc"))
    mixed = chainfx.compile(net, [half, Bf16()], example_inputs=x)
    reasons = set(skipped(mixed).values())
    assert reasons == {"its weight is quantized, or looked up in a codebook"}
    assert mixed.graph_module.get_parameter("fc.weight").dtype is torch.bfloat16
    read = chainfx.compile(net, [PostTrainingQuantize(32, 8), Bf16()], example_inputs=x, calibration=[x])
    assert set(skipped(read).values()) == {"its input is quantized"} and not read.report.records[-1].modified
    book = chainfx.compile(net, [ShareWeights(2), Bf16()], example_inputs=x)
    assert set(skipped(book).values()) == reasons
    coded = chainfx.compile(net, [Encode(), Bf16()], example_inputs=x, order="given")
    assert set(skipped(coded).values()) == {"its weight is marked as coded"}
    twice = chainfx.compile(net, [Bf16(), Bf16()], example_inputs=x)
    assert set(skipped(twice).values()) == {"its weight is in torch.bfloat16 already"}


class Tied(nn.Module):
    """An embedding whose table is the weight of the last layer, and a bias that is added a second time."""

    def __init__(self):
        super().__init__()
        self.words, self.a, self.b, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.out.weight, self.b.weight = self.words.weight, self.a.weight

    def forward(self, ids):
        return self.out(self.b(self.a(self.words(ids)).relu()) + self.b.bias)


def test_a_weight_that_is_read_elsewhere_stays_and_one_that_layers_share_stays_shared():
    torch.manual_seed(0)
    ids = torch.arange(6).reshape(2, 3)
    network = Tied().eval()
    graph_module = graph_of(network, ids)
    result = Bf16().apply(graph_module, PassContext(graph_module, (ids,)))
    reasons = [item.reason for item in result.skipped]
    assert reasons.count("its weight or bias is also read elsewhere") == 3  # b for its bias, and so a for its weight
    assert not result.modified
    network.b.bias = None
    network.forward = lambda ids: network.b(network.a(network.words(ids)).relu())
    shared = graph_of(network, ids)
    Bf16().apply(shared, PassContext(shared, (ids,)))
    first, second = (layer.tensor for layer in layers_of(shared))
    assert first is second and first.dtype is torch.bfloat16


def test_a_mask_stays_a_mask(block):
    small = chainfx.compile(block, [PruneWeights(0.5), Bf16()], example_inputs=TOKENS)
    layer = next(layers_of(small.graph_module))
    assert layer.mask is not None and layer.tensor.dtype is torch.bfloat16 and skipped(small) == {}
    assert torch.equal(small(TOKENS), small.graph_module(TOKENS))


@pytest.mark.parametrize("passes", [[Bf16(), Fuse()], [Fuse(), Bf16()]])
def test_it_goes_after_folding_and_before_coding(passes):
    assert [one.info.name for one in plan([Encode(), *passes, Quantize()]).passes] == [
        *("quantize", "fuse", "bf16", "encode")
    ]
    net, x = warm(small_resnet((1, 1))), images(4)
    small = chainfx.compile(net, passes, example_inputs=x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.graph_module.modules())
    given = chainfx.compile(net, [Bf16(), Fuse()], example_inputs=x, order="given")
    assert not given.report.records[-1].modified  # nothing is folded behind a cast


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # how torch 2.9 reads the file
def test_other_types_and_exports(block, tmp_path):
    small = chainfx.compile(block, [Bf16()], example_inputs=TOKENS)
    before = small(TOKENS)
    small.export(tmp_path / "pt2", format="pt2")
    program = torch.export.load(tmp_path / "pt2" / "segment0.pt2").module()
    assert is_near(program(TOKENS), before)
    with pytest.raises(InputError) as caught:
        small.export(tmp_path / "onnx")
    assert str(caught.value) == (
        "format='onnx' is for float32, but the network has tensors of torch.bfloat16; call .float() first."
    )
    with torch.no_grad():
        torch.testing.assert_close(small.float()(TOKENS), rounded(block)(TOKENS))
        assert small.double()(TOKENS.double()).dtype is torch.float64
        assert small.bfloat16()(TOKENS.bfloat16()).dtype is torch.bfloat16


def test_inside_torch_compile(block):
    compiled = torch.compile(block, backend=torch_backend, options={"passes": ["bf16"], "inner": "eager"})
    expected = chainfx.compile(block, [Bf16()], example_inputs=TOKENS)
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS), expected(TOKENS)) and not torch.equal(compiled(TOKENS), block(TOKENS))
    assert {each.dtype for each in block.parameters()} == {torch.float32}
