import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import PassError
from chainfx.ir.graph import layers_of, ops, verify
from chainfx.passes import PassContext, PostTrainingQuantize, Quantize
from chainfx.passes.quantizing import LayerWidths, widths_in
from tests.nets import graph_of, images, small_resnet


def quantized(model, batches, one, *, tunes=False):
    graph_module = graph_of(model, batches[0])
    context = PassContext(graph_module, (batches[0],), calibration=[(x,) for x in batches], tunes=tunes)
    result = one.apply(graph_module, context)
    verify(graph_module, (batches[0],))
    return result


def test_every_layer_gets_the_same_widths_and_nothing_is_tuned():
    result = quantized(small_resnet((1, 1)), [images()], PostTrainingQuantize(), tunes=True)
    layers = list(layers_of(result.graph_module))
    assert {layer.weight_quantizer.args[1:] for layer in layers} == {(8, "uniform", 0)}
    assert {layer.input_quantizer.args[2] for layer in layers} == {8}
    assert result.modified and result.tune is None
    assert widths_in(layers) == LayerWidths(8, 8, "uniform", per_channel=True)


def test_weights_alone_ask_for_no_calibration():
    x, one = images(), PostTrainingQuantize(4, activations=32)
    assert one.needs == frozenset() and PostTrainingQuantize().needs == {"calibration"}
    small = chainfx.compile(small_resnet((1, 1)), [one], example_inputs=x)
    assert not small.graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation)
    assert small.engine == "float"


@pytest.mark.parametrize(("clips", "expected"), [("min-max", 64.0), ("least-squares", 3.0)])
def test_clips_are_the_largest_value_or_those_of_least_error(clips, expected):
    """Two bits give 0, 1/3, 2/3 and 3/3 of the clip: ten thousand ones are met at 1 and at 3, which is nearer to 64."""
    values = torch.cat([torch.ones(10_000, 1), torch.full((1, 1), 64.0)])
    one = PostTrainingQuantize(8, 2, clips=clips)
    result = quantized(nn.Sequential(nn.Linear(1, 1)), [values[:5000], values[5000:]], one)
    (found,) = (p.item() for name, p in result.graph_module.named_parameters() if name.endswith(".clip"))
    assert found == expected


def test_it_replaces_the_quantizers_of_an_earlier_pass():
    x = images()
    graph_module = quantized(small_resnet((1, 1)), [x], Quantize(2, 3)).graph_module
    PostTrainingQuantize(7, 7).apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    verify(graph_module, (x,))
    direct = quantized(small_resnet((1, 1)), [x], PostTrainingQuantize(7, 7)).graph_module
    assert torch.equal(graph_module(x), direct(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": 1},
            "post-training-quantize: weights=1 is out of range; use 2..8 bits, or 32 for float; one bit "
            "needs training, which Quantize asks for.",
        ),
        (
            {"activations": 9},
            "post-training-quantize: activations=9 is out of range; use 2..8 bits, or 32 for float; one bit "
            "needs training, which Quantize asks for.",
        ),
        (
            {"clips": "mean"},
            "post-training-quantize: clips='mean' is out of range; use one of 'least-squares', 'min-max'.",
        ),
    ],
)
def test_options_out_of_range_are_one_sentence(options, message):
    with pytest.raises(PassError) as caught:
        PostTrainingQuantize(**options)
    assert str(caught.value) == message


def test_no_calibration_and_values_that_are_not_finite_are_one_sentence_in_its_name():
    x = images()
    graph_module = graph_of(small_resnet((1, 1)), x)
    with pytest.raises(PassError) as caught:
        PostTrainingQuantize().apply(graph_module, PassContext(graph_module, (x,), calibration=None))
    assert str(caught.value) == (
        "post-training-quantize: activations need calibration data and there is none; give calibration=[batches of "
        "inputs], a trainer, or activations=32."
    )
    graph_module = graph_of(small_resnet((1, 1)), x)
    with torch.no_grad():
        graph_module.get_parameter("conv1.weight").fill_(float("nan"))
    with pytest.raises(PassError) as caught:
        PostTrainingQuantize().apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    assert str(caught.value) == (
        "post-training-quantize: weight 'conv1.weight' has values that are not finite; mend the network first."
    )
