import copy
import importlib.util
import json

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import ArtifactError, InputError, PassError
from chainfx.ir.artifact.documents import read_document, write_document
from chainfx.ir.graph import facts_of, layers_of, ops, read_torchao, torchao_weight, value_of
from chainfx.passes import EarlyExit, PassContext, PostTrainingQuantize, PruneChannels, PruneWeights, Quantize
from chainfx.passes.torchao_quantize import TorchaoQuantize
from chainfx.scheduler import plan
from chainfx.testing import check_pass
from tests.fresh import fresh
from tests.nets import TokenBlock, graph_of, images, small_resnet

installed = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not installed, reason="the extra 'torchao' is not installed")

INTX = "IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group_size=8))"
CONFIGS = {  # the bits of weights and of inputs, and the type of the tensor
    "Int8DynamicActivationInt8WeightConfig()": (8, 8, "Int8Tensor"),
    "Int8WeightOnlyConfig()": (8, 32, "Int8Tensor"),
    INTX: (4, 32, "IntxUnpackedToInt8Tensor"),
    "Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)": (4, 8, "IntxUnpackedToInt8Tensor"),
    "Float8WeightOnlyConfig()": (8, 32, "Float8Tensor"),
}


@pytest.fixture
def block():
    torch.manual_seed(0)
    return TokenBlock().eval()


TOKENS = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))


def calls_of(small):
    return small.graph_module.graph.find_nodes(op="call_function", target=torchao_weight)


def by_torchao(network, config):
    from torchao.quantization import quantize_

    direct = copy.deepcopy(network)
    quantize_(direct, read_torchao(config))
    return direct


@needs_torchao
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_what_torchao_gives_and_what_the_counter_sees(block, config, tmp_path):
    small = chainfx.compile(block, [TorchaoQuantize(config)], example_inputs=TOKENS)
    expected = by_torchao(block, config)(TOKENS)
    bits, reads, kind = CONFIGS[config]
    assert torch.equal(small(TOKENS), expected) and torch.equal(small.graph_module(TOKENS), expected)
    rows = [row.facts for row in small.report.records[-1].report.rows if row.facts and row.weight]
    assert {(each.weight.bits, each.activation.bits) for each in rows} == {(bits, reads)} and len(rows) == 5
    assert {each.scheme for each in facts_of(small.graph_module).bit_widths.values()} == {kind}
    assert {row.reason for row in small.lowering} == {f"torchao runs it, with {kind}"} and small.engine == "float"
    small.save(tmp_path)
    again = chainfx.load(tmp_path)
    assert torch.equal(again(TOKENS), expected)
    assert torch.equal(copy.deepcopy(again)(TOKENS), expected)
    held = (tmp_path / "model.safetensors").stat().st_size
    assert held < sum(4 * p.numel() for p in block.parameters()) * 0.6


@needs_torchao
def test_the_conformance_suite_takes_it(block):
    result = check_pass(TorchaoQuantize("Int8WeightOnlyConfig()", skip=("head",)), block, (TOKENS,))
    assert {item.node: item.reason for item in result.skipped} == {"head": "a pattern of skip matches it"}


@needs_torchao
def test_a_configuration_and_its_text_are_the_same_pass():
    import torchao.quantization as ao

    config = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(8))
    assert TorchaoQuantize(config) == TorchaoQuantize(INTX)
    assert TorchaoQuantize.from_spec(json.loads(json.dumps(TorchaoQuantize(config).spec()))) == TorchaoQuantize(INTX)
    assert TorchaoQuantize(ao.Int8WeightOnlyConfig()).label == "torchao-quantize('Int8WeightOnlyConfig()')"


@needs_torchao
def test_it_goes_where_quantization_goes_and_replaces_quantizers(block):
    one = TorchaoQuantize("Int8WeightOnlyConfig()")
    assert [each.info.name for each in plan([EarlyExit(), one, PruneChannels(0.5)]).passes] == [
        *("prune-channels", "torchao-quantize", "early-exit")
    ]
    small = chainfx.compile(
        block, [PostTrainingQuantize(4, 4), one], example_inputs=TOKENS, calibration=[TOKENS], order="given"
    )
    assert len(calls_of(small)) == 5
    widths = facts_of(small.graph_module).bit_widths
    assert {(each.weight, each.activation) for each in widths.values()} == {(8, 32)}
    assert not small.graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation)


@needs_torchao
@pytest.mark.parametrize("later", [PruneChannels(0.5), Quantize(4, 8), PruneWeights(0.5)], ids=lambda one: one.label)
def test_later_passes_leave_the_weights_as_they_are(block, later):
    first = TorchaoQuantize("Int8WeightOnlyConfig()", skip=("up",))
    small = chainfx.compile(block, [first, later], example_inputs=TOKENS, calibration=[TOKENS], order="given")
    alone = chainfx.compile(block, [first], example_inputs=TOKENS)
    made, before = ([value_of(each.graph_module, node) for node in calls_of(each)] for each in (small, alone))
    assert len(made) == len(before) == 4
    for one, other in zip(made, before, strict=True):
        assert torch.equal(one.dequantize(), other.dequantize())
    assert small(TOKENS).isfinite().all()


@needs_torchao
def test_layers_that_are_masked_or_convolve_stay_and_are_named():
    graph_module = graph_of(small_resnet(), images())
    result = TorchaoQuantize("Int8WeightOnlyConfig()").apply(graph_module, PassContext(graph_module, (images(),)))
    reasons = {item.reason for item in result.skipped}
    assert reasons == {"torchao quantizes linear layers, and it is a convolution"} and result.modified
    masked = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    chain = [PruneWeights(0.5, skip=("1",)), TorchaoQuantize("Int8WeightOnlyConfig()")]
    small = chainfx.compile(masked, chain, example_inputs=torch.ones(1, 8))
    skipped = small.report.records[-1].skipped
    assert [item.reason for item in skipped] == ["its weight is masked, and kernels of torchao know no mask"]


@needs_torchao
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "Int8Config()",
            "torchao-quantize: config='Int8Config()' cannot be read: torchao has no 'Int8Config'; give a configuration "
            "of torchao.quantization, such as 'Int8WeightOnlyConfig()'.",
        ),
        (
            "PerRow()",
            "torchao-quantize: config='PerRow()' cannot be read: a PerRow is no configuration; give a configuration of "
            "torchao.quantization, such as 'Int8WeightOnlyConfig()'.",
        ),
        (
            "quantize_(model=1)",
            "torchao-quantize: config='quantize_(model=1)' cannot be read: 'quantize_' is neither a configuration nor "
            "a tensor of torchao; give a configuration of torchao.quantization, such as 'Int8WeightOnlyConfig()'.",
        ),
        (
            "__import__('os').system('true')",
            "torchao-quantize: config=\"__import__('os').system('true')\" cannot be read: \"__import__('os')"
            ".system('true')\" is nothing that a configuration has; give a configuration of torchao.quantization, such "
            "as 'Int8WeightOnlyConfig()'.",
        ),
    ],
)
def test_a_text_that_is_no_configuration_is_refused_when_the_pass_is_made(config, message):
    with pytest.raises(PassError) as caught:
        TorchaoQuantize(config)
    assert str(caught.value).splitlines()[0] == message


@needs_torchao
def test_a_dynamic_configuration_is_refused_for_a_convolutional_network():
    one = TorchaoQuantize("Int8DynamicActivationInt8WeightConfig()")
    with pytest.raises(PassError) as caught:
        chainfx.compile(small_resnet(), [one], example_inputs=images())
    assert str(caught.value).splitlines()[0] == (
        "torchao-quantize: Int8DynamicActivationInt8WeightConfig() is dynamic and works on linear layers alone, but "
        "99 % of the multiplications of this network are in convolutions, which would stay in float; use "
        "PostTrainingQuantize(), which quantizes convolutions too."
    )


@needs_torchao
def test_what_torchao_cannot_do_here_and_what_has_no_text():
    import torchao.quantization as ao

    with pytest.raises(PassError) as caught:
        TorchaoQuantize(ao.Int8StaticActivationInt8WeightConfig(act_quant_scale=torch.ones(1)))
    assert "so that a recipe could not hold the configuration; give one of torchao.quantization" in str(caught.value)
    with pytest.raises(PassError) as caught:
        config = ao.Float8DynamicActivationFloat8WeightConfig()
        chainfx.compile(nn.Sequential(nn.Linear(4, 4)), [TorchaoQuantize(config)], example_inputs=torch.ones(1, 4))
    assert str(caught.value).startswith("torchao-quantize: torchao does not quantize '0' by Float8Dynamic")
    assert str(caught.value).splitlines()[0].endswith("use another configuration, or add '0' to skip.")
    with pytest.raises(PassError, match="there is no linear layer to quantize; use PostTrainingQuantize"):
        one = TorchaoQuantize("Int8WeightOnlyConfig()")
        chainfx.compile(nn.Sequential(nn.Conv2d(1, 1, 1)), [one], example_inputs=torch.ones(1, 1, 4, 4))


@needs_torchao
def test_a_file_says_nothing_that_is_executed(block, tmp_path):
    chainfx.compile(block, [TorchaoQuantize("Int8WeightOnlyConfig()")], example_inputs=TOKENS).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    body = read_document(manifest)
    nodes = [node for node in body["nodes"] if node["target"] == "chainfx:torchao_weight"]
    assert len(nodes) == 5 and nodes[0]["args"][1].startswith("Int8Tensor(parts=['qdata', 'scale'")
    body.pop("sha256", None)
    nodes[0]["args"][1] = "quantize_(parts=['qdata', 'scale', 'zero_point'])"
    write_document(manifest, body)
    with pytest.raises(ArtifactError, match="neither a configuration nor a tensor of torchao"):
        chainfx.load(tmp_path)


@needs_torchao
def test_it_compiles_and_is_not_exported(block, tmp_path):
    small = chainfx.compile(block, [TorchaoQuantize("Int8WeightOnlyConfig()")], example_inputs=TOKENS)
    expected = small(TOKENS)
    with pytest.raises(InputError) as caught:
        small.export(tmp_path, format="pt2")
    assert str(caught.value) == (
        "the weight of 'qkv' is a tensor of torchao, which has no form in pt2; quantize with PostTrainingQuantize to "
        "export."
    )
    small.compile(backend="eager")
    assert torch.equal(small(TOKENS), expected)


@needs_torchao
def test_exits_can_be_tuned_on_top(block):
    """The gradient of what comes before a weight of torchao goes through it."""
    small = chainfx.compile(block, [TorchaoQuantize("Int8WeightOnlyConfig()", skip=("qkv",))], example_inputs=TOKENS)
    (first,) = layers_of(small.graph_module)
    small.graph_module(TOKENS).sum().backward()
    assert first.tensor.grad is not None and first.tensor.grad.abs().sum() > 0


def test_without_torchao_an_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PassError) as caught:
        chainfx.compile(
            nn.Sequential(nn.Linear(4, 4)), [TorchaoQuantize("Int8WeightOnlyConfig()")], example_inputs=torch.ones(1, 4)
        )
    assert str(caught.value).splitlines()[0] == (
        "torchao-quantize: this pass needs the package torchao, which is not installed; run pip install "
        "'chainfx[torchao]'."
    )


@needs_torchao
@pytest.mark.slow
def test_a_fresh_process_loads_it(block, tmp_path):
    small = chainfx.compile(block, [TorchaoQuantize("Int8WeightOnlyConfig()")], example_inputs=TOKENS)
    small.save(tmp_path / "art")
    torch.save((TOKENS, small(TOKENS)), tmp_path / "pair.pt")
    fresh(
        f"import torch, chainfx; x, y = torch.load({str(tmp_path / 'pair.pt')!r}); "
        f"assert torch.equal(chainfx.load({str(tmp_path / 'art')!r})(x), y)"
    )
