import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import edit, layers_of, ops
from chainfx.ir.graph.checks import verify
from chainfx.passes.base import PassContext, Skipped
from chainfx.passes.post_training_quantize import PostTrainingQuantize
from chainfx.passes.quantize import Quantize
from chainfx.passes.quantizing import LayerWidths, widths_in
from tests.nets import Scaled, graph_of, images, small_resnet


def quantized(model, x, one, *, tunes=False):
    graph_module = graph_of(model, x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=tunes)
    result = one.apply(copy.deepcopy(graph_module), context)
    verify(result.graph_module, (x,))
    return graph_module, result


def literals(graph_module, target):
    return [node.args[1:] for node in graph_module.graph.find_nodes(op="call_function", target=target)]


def test_every_layer_gets_literal_widths_and_the_ends_their_own():
    _, result = quantized(small_resnet((1, 1)), images(), Quantize(2, 4, first=8, last=7))
    weights = literals(result.graph_module, ops.quantize_weight)
    assert weights == [(8, "uniform", 0), *[(2, "uniform", 0)] * 5, (7, "uniform", 0)]
    activations = [args[1:] for args in literals(result.graph_module, ops.quantize_activation)]
    assert activations[0] == (8, True)
    assert activations[-1] == (7, False)
    assert set(activations[1:-1]) == {(4, False)}
    assert result.modified
    assert result.tune is None
    assert widths_in(layers_of(result.graph_module)) == LayerWidths(2, 4, "uniform", per_channel=True)


def test_layers_that_read_one_activation_share_its_quantizer():
    _, result = quantized(small_resnet((1, 1)), images(), Quantize(8, 8))
    layers = len(list(layers_of(result.graph_module)))
    assert len(literals(result.graph_module, ops.quantize_activation)) == layers - 1


def test_thirty_two_bits_is_exactly_the_identity():
    x = images()
    graph_module, result = quantized(small_resnet((1, 1)), x, Quantize(32, 32, first=32, last=32))
    assert not result.modified
    assert torch.equal(result.graph_module(x), graph_module(x))


@pytest.mark.parametrize("first", [PostTrainingQuantize(4, 32), PostTrainingQuantize(32, 4)], ids=lambda one: one.label)
def test_thirty_two_bits_take_other_widths_away(first):
    x = images()
    graph_module, result = quantized(small_resnet((1, 1)), x, first)
    again = Quantize(32, 32, first=32, last=32)
    result = again.apply(result.graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    assert result.modified and torch.equal(result.graph_module(x), graph_module(x))


@pytest.mark.parametrize("scheme", ["uniform", "dorefa"])
def test_every_quantized_weight_takes_at_most_2_to_the_b_values_a_channel(scheme):
    x = images()
    for bits in range(1, 9):
        _, result = quantized(small_resnet((1, 1)), x, Quantize(bits, 8, first=None, last=None, scheme=scheme))
        for node in result.graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight):
            weight = edit.get_tensor(result.graph_module, node.args[0].target)
            for channel in node.target(weight, *node.args[1:]):
                assert len(channel.unique()) <= 2**bits


def test_eight_bits_after_training_stay_close_and_the_error_falls_with_the_bits():
    x = images(64)
    errors = []
    for bits in (3, 4, 6, 8):
        graph_module, result = quantized(small_resnet((1, 1)), x, Quantize(bits, bits, first=None, last=None))
        with torch.no_grad():
            expected = graph_module(x)
            errors.append(float((result.graph_module(x) - expected).norm() / expected.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_a_second_quantize_replaces_the_first():
    x = images()
    _, once = quantized(small_resnet((1, 1)), x, Quantize(2, 3))
    context = PassContext(once.graph_module, (x,), calibration=[(x,)])
    twice = Quantize(4, 4).apply(copy.deepcopy(once.graph_module), context)
    verify(twice.graph_module, (x,))
    _, direct = quantized(small_resnet((1, 1)), x, Quantize(4, 4))
    assert torch.equal(twice.graph_module(x), direct.graph_module(x))
    assert len(list(twice.graph_module.parameters())) == len(list(direct.graph_module.parameters()))


@pytest.mark.parametrize(("ones", "clip"), [(10_000, 1.0), (1_000, 64.0)])
def test_the_clip_is_the_one_with_the_least_squared_error(ones, clip):
    """One bit gives 0 or the clip. Of n ones and one 64: at 1 the error is 63^2, at 64 it is n, in between more."""
    values = torch.cat([torch.ones(ones, 1), torch.full((1, 1), 64.0)])
    graph_module = graph_of(nn.Sequential(nn.Linear(1, 1)), values[:2])
    context = PassContext(graph_module, (values[:2],), calibration=[(values[:500],), (values[500:],)])
    result = Quantize(32, 1, first=None, last=None).apply(graph_module, context)
    (found,) = (p.item() for name, p in result.graph_module.named_parameters() if name.endswith(".clip"))
    assert found == clip


def test_each_output_channel_of_a_transposed_convolution_has_a_scale_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2))
    sizes = torch.tensor([1e-3, 1.0, 30.0, 1e3])[:, None, None]
    model[0].weight.data.mul_(sizes)
    one = Quantize(8, 32, first=None, last=None)
    graph_module, result = quantized(model, torch.randn(2, 3, 4, 4), one)
    (node,) = result.graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight)
    assert node.args[1:] == (8, "uniform", 1)
    weight = graph_module.get_parameter("0.weight")
    error = (node.target(weight, *node.args[1:]) - weight).abs() / sizes
    assert error.max() < 1 / 127


def test_a_network_without_layers_has_nothing_to_quantize():
    x = images()
    graph_module = graph_of(nn.ReLU(), x)
    with pytest.raises(PassError) as caught:
        Quantize().apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    assert str(caught.value) == (
        "quantize: the network has no convolution, linear layer or embedding to quantize; remove the pass."
    )


def test_thirty_two_bits_take_quantizers_away_and_say_so():
    x = images()
    graph_module, once = quantized(small_resnet((1, 1)), x, Quantize(4, 4))
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    again = Quantize(32, 32, first=None, last=None).apply(copy.deepcopy(once.graph_module), context)
    assert again.modified
    assert torch.equal(again.graph_module(x), graph_module(x))


def test_tuning_gets_dorefa_and_everything_to_train():
    _, result = quantized(small_resnet((1, 1)), images(), Quantize(3, 3), tunes=True)
    assert {args[:2] for args in literals(result.graph_module, ops.quantize_weight)} == {(3, "dorefa"), (8, "tanh")}
    assert result.tune.parameters is None
    result.graph_module(images()).sum().backward()
    clips = [p for name, p in result.graph_module.named_parameters() if name.endswith(".clip")]
    assert clips
    assert any(clip.grad.abs() > 0 for clip in clips)


@pytest.mark.parametrize("pattern", ["fc", "fc.weight", "fc.*"])
def test_skipped_layers_stay_in_float_and_are_named_by_their_path_or_that_of_their_weight(pattern):
    _, result = quantized(small_resnet((1, 1)), images(), Quantize(4, 4, skip=(pattern,)))
    assert result.skipped == (Skipped("fc", "a pattern of skip matches it"),)
    assert widths_in(layers_of(result.graph_module)).weights == 4
    assert len(literals(result.graph_module, ops.quantize_weight)) == 6


class Melody(nn.Module):
    """An embedding tied to the last layer, a table, a GRU, and a convolution whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.notes, self.beats = nn.Embedding(12, 8), nn.Parameter(torch.randn(8, 5))
        self.near = Scaled(nn.Conv1d(8, 8, 3, padding=1))
        self.gru, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 12)
        self.out.weight = self.notes.weight

    def forward(self, x):
        x = self.near(self.notes(x).mT + self.beats)
        return self.out(self.gru(x.mT)[0])


def test_every_weight_that_stays_in_float_is_named():
    _, result = quantized(Melody(), torch.arange(10).view(2, 5), Quantize(4, 8))
    assert [(item.node, item.reason) for item in result.skipped] == [
        ("near_layer", "its weight is computed"),
        ("gru", "the inside of module GRU is not visible"),
        ("beats", "'add' reads it, not as the weight of a convolution or linear layer"),
        ("notes", ROWS),
    ]
    assert [layer.path for layer in layers_of(result.graph_module) if layer.weight_quantizer] == ["notes"]  # tied
    _, result = quantized(small_resnet((1, 1)), images(), Quantize(32, 4, first=8, last=None))
    layers = list(layers_of(result.graph_module))
    stays = [Skipped(layer.name, "its weight stays in float, at 32 bits") for layer in layers]
    assert list(result.skipped) == stays[1:]


class Words(nn.Module):
    """Two embeddings, one of them called twice and in the spelling of a function, and a layer that reads their sum."""

    def __init__(self, max_norm=None):
        super().__init__()
        self.words, self.kinds = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(3, 8, max_norm=max_norm)
        self.out = nn.Linear(8, 4)

    def forward(self, ids):
        kinds = self.kinds(ids % 3) + F.embedding(ids % 2, weight=self.kinds.weight)
        return self.out(self.words(ids) + kinds)


IDS = torch.arange(10).view(2, 5)
ROWS = "its table alone is quantized: the rows that it gives are in float"


def test_a_table_alone_changes_the_network():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 8)

        def forward(self, ids):
            return self.words(ids).mean(1)

    _, result = quantized(Mean(), IDS, PostTrainingQuantize(4, 32))
    assert result.modified and literals(result.graph_module, ops.quantize_weight) == [(4, "uniform", 0)]
    _, result = quantized(Mean(), IDS, PostTrainingQuantize(32, 32))
    assert not result.modified


def test_each_row_of_a_table_gets_codes_and_a_scale_of_its_own():
    model = Words().eval()
    model.words.weight.data.mul_(torch.logspace(-3, 3, 20)[:, None])
    graph_module, result = quantized(model, IDS, Quantize(4, 32, first=6, last=None, scheme="dorefa"))
    assert sorted(result.skipped, key=str) == [Skipped(name, ROWS) for name in ("embedding", "kinds", "words")]
    embeddings = result.graph_module.graph.find_nodes(op="call_function", target=F.embedding)
    assert [node.args[1].args[1:] for node in embeddings] == [(6, "uniform", 0)] * 3
    assert [node.name for node in embeddings] == ["kinds", "embedding", "words"]
    read = embeddings[2].args[1]
    weight = graph_module.get_parameter("words.weight")
    largest = weight.abs().amax(1, keepdim=True)
    error = (read.target(weight, *read.args[1:]) - weight).abs()
    assert (error <= largest / (2 * 31) * 1.0001).all()  # half a step of 2**5 - 1 from 0 to the largest of the row
    assert error.max() > 0


@pytest.mark.parametrize(
    "one", [Quantize(4, 8), Quantize(1, 32), PostTrainingQuantize(4, 8), PostTrainingQuantize(3, 32)]
)
def test_tables_are_saved_as_codes_and_loaded_bit_for_bit(one, tmp_path):
    torch.manual_seed(0)
    model = Words().eval()
    small = chainfx.compile(model, [one], example_inputs=IDS, calibration=[IDS])
    small.save(tmp_path)
    loaded = chainfx.load(tmp_path)
    assert torch.equal(loaded(IDS), small(IDS))
    bits = 8 if isinstance(one, Quantize) else one.weights  # of the first layers, and this network has but one
    codes = {name: tensor.shape for name, tensor in small.graph_module.named_buffers() if name.endswith("codes")}
    assert codes == {"words.codes": (20, 8), "kinds.codes": (3, 8), "out.codes": (4, 8)}
    parameters = dict(small.graph_module.named_parameters())
    assert not {"words.weight", "kinds.weight"} & parameters.keys()
    in_float = 20 + 3 + 4 + sum(parameter.numel() for parameter in parameters.values())  # scales, bias, clip
    assert count(small.graph_module, (IDS,)).storage_bits == (20 + 3 + 4) * 8 * bits + 32 * in_float


def test_a_table_trains_through_its_quantizer():
    _, result = quantized(Words().eval(), IDS, Quantize(2, 32, first=2), tunes=True)
    result.graph_module(IDS).square().sum().backward()
    gradient = result.graph_module.get_parameter("words.weight").grad
    assert gradient[1:10].abs().sum(1).min() > 0
    assert not gradient[0].any() and not gradient[10:].any()  # padding, and words that were not there


def test_a_second_pass_replaces_the_quantizer_of_a_table_and_float_takes_it_away():
    graph_module, once = quantized(Words().eval(), IDS, Quantize(2, 32, first=2))
    context = PassContext(graph_module, (IDS,), calibration=[(IDS,)])
    twice = PostTrainingQuantize(5, 32).apply(copy.deepcopy(once.graph_module), context)
    _, direct = quantized(Words().eval(), IDS, Quantize(5, 32, first=5, last=5))
    verify(twice.graph_module, (IDS,))
    literal = literals(twice.graph_module, ops.quantize_weight)
    assert literal == literals(direct.graph_module, ops.quantize_weight) == [(5, "uniform", 0)] * 4
    again = Quantize(32, 32, first=None, last=None).apply(copy.deepcopy(once.graph_module), context)
    assert again.modified and torch.equal(again.graph_module(IDS), graph_module(IDS))
    assert ("words", "its table stays in float, at 32 bits") in [(item.node, item.reason) for item in again.skipped]


class AlsoAdded(Words):
    def forward(self, ids):
        return super().forward(ids) + self.words.weight.mean()


@pytest.mark.parametrize(
    ("model", "one", "left"),
    [
        (Words(max_norm=1.0), Quantize(4, 8), {"kinds": "max_norm changes its table at every call"}),
        (AlsoAdded(), Quantize(4, 8), {"words": "'add_2' reads its table too, in float"}),
        (
            Words(),
            Quantize(4, 8, skip=("words", "out")),
            dict.fromkeys(("out", "words"), "a pattern of skip matches it"),
        ),
        (Words(), Quantize(4, 8, skip=("kinds.weight",)), {"kinds": "a pattern of skip matches it"}),
        (Words(), PostTrainingQuantize(skip=("kin*",)), {"kinds": "a pattern of skip matches it"}),
        (
            Melody(),
            Quantize(32, 8, first=None, last=None),
            {"notes_1": "its weight stays in float, at 32 bits", "notes": "its table stays in float, at 32 bits"},
        ),
    ],
    ids=["max-norm", "read-otherwise", "words-and-out", "by-weight", "by-pattern", "tied-to-a-float-layer"],
)
def test_a_table_that_stays_in_float_is_named_with_the_reason(model, one, left):
    graph_module, result = quantized(model.eval(), IDS, one)
    found = {item.node: item.reason for item in result.skipped if item.reason != ROWS}
    assert left.items() <= found.items()
    embeddings = {"kinds", "words", "notes"} & {node.name for node in graph_module.graph.nodes}
    assert found.keys() & embeddings == left.keys() & embeddings


class TwoHeads(nn.Module):
    """An embedding whose table is the weight of two layers, the first of which is the first of the network."""

    def __init__(self):
        super().__init__()
        self.words, self.near, self.out = nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.near.weight = self.out.weight = self.words.weight

    def forward(self, ids):
        return self.out(self.near(self.words(ids)).relu())


def test_a_table_takes_the_bits_of_the_layers_that_share_it_if_they_agree():
    ids = IDS % 8
    _, result = quantized(TwoHeads().eval(), ids, Quantize(4, 32, first=8, last=8))
    assert literals(result.graph_module, ops.quantize_weight) == [(8, "uniform", 0)] * 3
    assert result.skipped == (Skipped("words", ROWS),)
    _, result = quantized(TwoHeads().eval(), ids, Quantize(4, 32, first=8, last=6))
    reason = "it shares its table with 'words_1', which is quantized otherwise or not"
    assert result.skipped == (Skipped("words", reason),)
    assert literals(result.graph_module, ops.quantize_weight) == [(8, "uniform", 0), (6, "uniform", 0)]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


def test_products_of_activations_are_named_as_left_in_float():
    _, result = quantized(Attention(), torch.randn(2, 5, 8), Quantize(8, 8))
    assert [item.reason for item in result.skipped] == ["a product of two activations stays in float"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": 0}, "quantize: weights=0 is out of range; use 1..8 bits, or 32 for float."),
        ({"activations": 9}, "quantize: activations=9 is out of range; use 1..8 bits, or 32 for float."),
        ({"weights": True}, "quantize: weights=True is out of range; use 1..8 bits, or 32 for float."),
        (
            {"scheme": "lsq"},
            "quantize: scheme='lsq' is out of range; use None or one of dorefa, tanh, uniform, exponential.",
        ),
        ({"granularity": "group"}, "quantize: granularity='group' is out of range; use 'channel' or 'tensor'."),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(PassError) as caught:
        Quantize(**options)
    assert str(caught.value) == message


def test_missing_calibration_data():
    x = images()
    graph_module = graph_of(small_resnet((1, 1)), x)
    with pytest.raises(PassError) as caught:
        Quantize(8, 8).apply(graph_module, PassContext(graph_module, (x,)))
    assert str(caught.value) == (
        "quantize: activations need calibration data and there is none; give calibration=[batches of inputs], "
        "a trainer, or activations=32."
    )


def test_a_skip_pattern_that_matches_nothing_and_a_weight_that_is_not_finite():
    x = images()
    with pytest.raises(PassError) as caught:
        quantized(small_resnet((1, 1)), x, Quantize(skip=("nothing*",)))
    assert str(caught.value) == (
        "quantize: the pattern 'nothing*' in skip matches no layer; "
        "layers are conv1, stages.0.0.conv1, stages.0.0.conv2, stages.1.0.conv1, stages.1.0.conv2, "
        "stages.1.0.shortcut.0, fc."
    )
    broken = small_resnet((1, 1))
    broken.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(PassError) as caught:
        quantized(broken, x, Quantize())
    assert str(caught.value) == (
        "quantize: weight 'conv1.weight' has values that are not finite; mend the network first."
    )
