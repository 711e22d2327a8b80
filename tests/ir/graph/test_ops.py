import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chainfx.ir.graph import ops
from tests.budget import examples
from tests.nets import as_read


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
        self.clip = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        x = ops.quantize_activation(x, self.clip, 3, True)
        return nn.functional.linear(x, ops.quantize_weight(self.weight, 2, "dorefa", 0))


@examples(3)
@given(st.integers(1, 8), st.sampled_from(ops.SCHEMES), st.sampled_from([None, 0]), st.integers(0, 999))
def test_a_b_bit_weight_has_at_most_2_to_the_b_values_and_decodes_from_its_codes(bits, scheme, axis, seed):
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(seed))
    quantized = ops.quantize_weight(weight, bits, scheme, axis)
    for row in quantized if axis == 0 else [quantized]:
        assert len(row.unique()) <= 2**bits
    codes, scale = ops.encode_weight(weight, bits, scheme, axis)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(ops.dequantize_weight(codes.to(torch.uint8), scale, bits, scheme), quantized)


@examples(3)
@given(st.integers(1, 8), st.booleans(), st.floats(0.05, 3))
def test_a_b_bit_activation_has_at_most_2_to_the_b_values_within_the_clip(bits, signed, clip):
    x = torch.linspace(-4, 4, 3001)
    quantized = ops.quantize_activation(x, torch.tensor(clip), bits, signed)
    assert len(quantized.unique()) <= 2**bits
    assert quantized.max() <= clip * (1 + 1e-6)
    assert quantized.min() >= (-clip * (1 + 1e-6) if signed else 0)


def test_one_bit_is_sign_times_mean_magnitude_and_the_sign_of_zero_is_plus():
    weight = torch.tensor([[0.0, -1.0, 3.0], [2.0, -2.0, 2.0]])
    expected = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, 1.0]])
    assert torch.equal(ops.quantize_weight(weight, 1, "dorefa", None), expected * weight.abs().mean())
    per_channel = expected * torch.tensor([[4 / 3], [2.0]])
    torch.testing.assert_close(ops.quantize_weight(weight, 1, "uniform", 0), per_channel)


def test_dorefa_follows_the_formula_of_the_paper_with_its_scale_kept():
    weight = torch.tensor([-2.0, -0.3, 0.1, 0.9], dtype=torch.float64)
    squashed = torch.tanh(weight)
    largest = squashed.abs().max()
    expected = (2 * torch.round((squashed / (2 * largest) + 0.5) * 7) / 7 - 1) * largest
    torch.testing.assert_close(ops.quantize_weight(weight, 3, "dorefa", None), expected, rtol=0, atol=1e-15)


def test_uniform_weights_keep_zero_and_the_largest_magnitude():
    weight = torch.tensor([-0.5, 0.0, 0.25])
    assert ops.quantize_weight(weight, 4, "uniform", None).tolist()[:2] == [-0.5, 0.0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_exponential_weights_are_the_nearest_of_zero_and_the_powers_of_two(bits):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(500, dtype=torch.float64, generator=generator).abs().log2().mul(3).exp2()
    weight *= torch.randn(500, generator=generator).sign()
    greatest = min(range(-60, 60), key=lambda power: abs(2.0**power - float(weight.abs().max())))
    powers = [2.0 ** (greatest - step) for step in range(2 ** (bits - 1) - 1)]
    levels = torch.tensor([0.0, *powers, *(-power for power in powers)], dtype=torch.float64)
    nearest = levels[(weight[:, None] - levels).abs().argmin(1)]
    quantized = ops.quantize_weight(weight, bits, "exponential", None)
    assert torch.equal(quantized, nearest)
    assert torch.equal(ops.quantize_weight(quantized, bits, "exponential", None), nearest)


def test_exponential_weights_by_hand():
    weight = torch.tensor([3.1, 1.4, -0.8, 0.3, 0.24, -0.1, 0.0])  # 4 is nearest to 3.1; at 4 bits down to 4 / 64
    assert ops.quantize_weight(weight, 4, "exponential", None).tolist() == [4, 1, -1, 0.25, 0.25, -0.125, 0]
    assert ops.quantize_weight(weight, 3, "exponential", None).tolist() == [4, 1, -1, 0, 0, 0, 0]
    assert ops.encode_weight(weight, 3, "exponential", None)[0].tolist() == [6, 4, 2, 3, 3, 3, 3]
    weight.requires_grad_()
    ops.quantize_weight(weight, 4, "exponential", None).sum().backward()
    assert torch.equal(weight.grad, torch.ones(7))


def test_a_weight_half_way_to_zero_becomes_the_least_power():
    weight = torch.tensor([4.0, 0.5, -0.5, 0.49])  # at 3 bits the powers are 4, 2 and 1
    assert ops.quantize_weight(weight, 3, "exponential", None).tolist() == [4, 1, -1, 0]


def test_gradients_go_straight_through_the_rounding():
    weight = torch.randn(20, requires_grad=True)
    ops.quantize_weight(weight, 1, "dorefa", None).sum().backward()
    assert torch.equal(weight.grad, torch.ones(20))
    weight.grad = None
    ops.quantize_weight(weight, 3, "dorefa", None).sum().backward()
    torch.testing.assert_close(weight.grad, 1 - torch.tanh(weight.detach()) ** 2)


def test_activation_gradient_is_one_inside_the_clip_and_the_clip_learns_from_what_it_cuts():
    x = torch.tensor([-1.0, 0.2, 0.7, 5.0, 9.0], requires_grad=True)
    clip = torch.tensor(1.0, requires_grad=True)
    ops.quantize_activation(x, clip, 4, False).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert clip.grad == 2


def test_dialect_ops_survive_deepcopy_pickle_retracing_and_compile_with_their_gradients():
    model, x = Quantized(), torch.randn(3, 7)
    graph_module = torch.fx.symbolic_trace(model)
    expected = model(x)
    compiled = torch.compile(graph_module, fullgraph=True, backend="aot_eager")
    for other in (copy.deepcopy(graph_module), pickle.loads(pickle.dumps(graph_module)), compiled):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    retraced = torch.fx.symbolic_trace(graph_module)
    literals = [n.args[1:] for n in retraced.graph.find_nodes(op="call_function", target=ops.quantize_weight)]
    assert literals == [(2, "dorefa", 0)]
    compiled(x).sum().backward()
    assert graph_module.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_zeros_stay_zeros_and_nothing_is_divided_by_zero(bits, scheme, axis):
    quantized = ops.quantize_weight(torch.zeros(2, 3), bits, scheme, axis)
    assert quantized.abs().max() <= 1e-8
    assert ops.quantize_activation(torch.zeros(3), torch.tensor(0.0), bits, True).abs().max() <= 1e-8


def test_the_scale_of_an_axis_has_its_size_there_and_one_elsewhere():
    weight = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    shapes = {axis: tuple(ops.encode_weight(weight, 4, "uniform", axis)[1].shape) for axis in (None, 0, 1)}
    assert shapes == {None: (), 0: (3, 1, 1), 1: (1, 4, 1)}


def test_activations_are_rounded_to_even_steps_of_the_clip():
    x = torch.tensor([-9.0, -1.0, 0.3, 0.4, 0.8, 2.0, 9.0])
    clip = torch.tensor(1.5)
    assert ops.quantize_activation(x, clip, 2, False).tolist() == [0, 0, 0.5, 0.5, 1.0, 1.5, 1.5]
    assert ops.quantize_activation(x, clip, 2, True).tolist() == [-1.5, -1.5, 0, 0, 1.5, 1.5, 1.5]
    one_bit = ops.quantize_activation(torch.tensor([-0.1, 0.0, 0.1]), clip, 1, True)
    assert one_bit.tolist() == [-1.5, 1.5, 1.5]
    assert ops.quantize_activation(x, clip, 1, False).tolist() == [0, 0, 0, 0, 1.5, 1.5, 1.5]


def test_gradients_go_through_one_signed_bit_within_the_clip():
    x, clip = torch.tensor([-9.0, 0.5, 9.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    ops.quantize_activation(x, clip, 1, True).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert clip.grad == 0  # one is cut off at the clip and one at minus the clip


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_of_half_precision_are_computed_in_float32(dtype, bits, signed):
    """In bfloat16 itself half of the 255 steps of eight bits run together."""
    x, clip = torch.linspace(-2, 2, 4001).to(dtype), torch.tensor(1.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.quantize_activation(x, clip, bits, signed)
    assert torch.equal(found, ops.quantize_activation(x.float(), clip, bits, signed).to(dtype))
    assert found.dtype == dtype
    scaled = x.float()[:, None].repeat(1, 2).to(dtype)
    for scheme, axis in itertools.product(ops.SCHEMES, (None, 1)):
        codes, scale = ops.encode_weight(scaled, bits, scheme, axis)
        assert torch.equal(codes, ops.encode_weight(scaled.float(), bits, scheme, axis)[0])
        quantized = ops.quantize_weight(scaled, bits, scheme, axis)
        assert scale.dtype == quantized.dtype == dtype
        assert torch.equal(ops.dequantize_weight(codes.to(torch.uint8), scale, bits, scheme), quantized)


def test_float64_stays_exact_and_half_precision_gets_its_gradients():
    x = torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
    clip = torch.tensor(1.0, dtype=torch.float64)
    expected = torch.round(x.clamp(0, 1) * 255) / 255
    assert torch.equal(ops.quantize_activation(x, clip, 8, False), expected)
    assert (
        ops.quantize_weight(x, 8, "dorefa", None).dtype == ops.encode_weight(x, 8, "uniform", None)[1].dtype == x.dtype
    )
    half = x.bfloat16().requires_grad_()
    learnt = torch.tensor(1.0, requires_grad=True)
    ops.quantize_activation(half, learnt, 8, False).sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.tolist() == [1.0, 1.0, 0.0] and learnt.grad == 1
    assert ops.quantize_activation(half, torch.tensor(0.0, dtype=torch.float16), 4, True).isfinite().all()


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        *[(each, True) for each in ("unstructured", "2:4", "1:2", "10:16")],
        *[(each, False) for each in ("4:2", "4:4", "0:4", "2:", "a:b", "structured", "02:4", " 2:4", 2, None)],
    ],
)
def test_patterns(pattern, holds):
    assert ops.is_pattern(pattern) is holds


def test_a_shared_weight_sends_the_sum_of_gradients_to_its_entry():
    codebook = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    weight = ops.look_up(torch.tensor([[0, 2], [2, 0], [2, 1]], dtype=torch.uint8), codebook)
    assert weight.tolist() == [[0.5, 2.0], [2.0, 0.5], [2.0, -1.0]]
    (weight * torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).sum().backward()
    assert codebook.grad.tolist() == [5.0, 6.0, 10.0]


def test_confidence_by_hand():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.7, 0.3, 1e-30]])
    logits = probabilities.log()
    assert ops.confidence(logits, "max-softmax").tolist() == pytest.approx([0.5, 0.7])
    assert ops.confidence(logits, "margin").tolist() == pytest.approx([0.25, 0.4])
    entropies = [1.5 * math.log(2), -0.7 * math.log(0.7) - 0.3 * math.log(0.3)]
    assert ops.confidence(logits, "entropy").tolist() == pytest.approx([1 - e / math.log(3) for e in entropies])


def test_confidence_of_answers_by_yes_and_no_is_how_sure_each_is():
    logits = torch.tensor([[100.0, -100.0], [math.log(3), -math.log(3)], [0.0, math.log(9)], [0.0, 0.0]])
    assert ops.confidence(logits, "max-sigmoid").tolist() == pytest.approx([1.0, 0.75, 0.7, 0.5])


@pytest.mark.parametrize("criterion", sorted({*ops.CRITERIA} - {"max-sigmoid"}))
def test_confidence_is_highest_for_one_certain_class_and_lowest_for_equal_ones(criterion):
    logits = torch.tensor([[100.0, 0, 0, 0], [1.0, 0.5, 0, 0], [0.0, 0, 0, 0]])
    sure = ops.confidence(as_read(logits, criterion), criterion)
    assert sure[0] == pytest.approx(1)
    assert sure[0] > sure[1] > sure[2]
    assert sure[2] == pytest.approx(0.25 if criterion.endswith("max-softmax") else 0, abs=1e-6)


@pytest.mark.parametrize("measure", ["entropy", "margin", "max-softmax"])
def test_confidence_of_many_places_is_the_mean_of_that_of_each(measure):
    sure, unsure = [100.0, 0, 0], [1.0, 0.5, 0]
    each = ops.confidence(torch.tensor([sure, unsure]), measure)
    tokens = torch.tensor([[sure, sure, unsure, unsure], [unsure] * 4])
    expected = [float(each.mean()), float(each[1])]
    assert ops.confidence(tokens, f"token-{measure}").tolist() == pytest.approx(expected)
    pixels = tokens.transpose(1, 2).reshape(2, 3, 2, 2)
    assert ops.confidence(pixels, f"pixel-{measure}").tolist() == pytest.approx(expected)


def test_tanh_is_uniform_rounding_of_tanh_and_dorefa_on_the_values_of_an_int8():
    weight = torch.tensor([-2.0, -0.3, 0.0, 0.1, 2.0], dtype=torch.float64)
    codes, scale = ops.encode_weight(weight, 8, "tanh", None)
    assert codes.tolist() == [0, 127 + round(-127 * math.tanh(0.3) / math.tanh(2)), 127, 140, 254]
    uniform, _ = ops.encode_weight(torch.tanh(weight), 8, "uniform", None)
    assert torch.equal(codes, uniform) and float(scale) == math.tanh(2)
    near = ops.quantize_weight(weight, 8, "dorefa", None) - ops.quantize_weight(weight, 8, "tanh", None)
    assert near.abs().max() <= (1 / 254 + 1 / 255) * math.tanh(2)
    weight.requires_grad_()
    ops.quantize_weight(weight, 8, "tanh", None).sum().backward()
    torch.testing.assert_close(weight.grad, 1 - torch.tanh(weight.detach()) ** 2)


def test_rounding_without_a_gradient_gives_the_same_values():
    values, clip = torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.tensor(1.3)
    for bits, signed in itertools.product(range(1, 9), (False, True)):
        expected = ops.quantize_activation(values, clip, bits, signed)
        assert torch.equal(ops.round_activation(values, clip, bits, signed), expected)
