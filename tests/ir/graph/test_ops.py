import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chainfx.ir.graph import ops
from tests.budget import examples


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


@pytest.mark.parametrize("criterion", ops.CRITERIA)
def test_confidence_is_highest_for_one_certain_class_and_lowest_for_equal_ones(criterion):
    logits = torch.tensor([[100.0, 0, 0, 0], [1.0, 0.5, 0, 0], [0.0, 0, 0, 0]])
    sure = ops.confidence(logits, criterion)
    assert sure[0] == pytest.approx(1)
    assert sure[0] > sure[1] > sure[2]
    assert sure[2] == pytest.approx(0.25 if criterion == "max-softmax" else 0, abs=1e-6)
