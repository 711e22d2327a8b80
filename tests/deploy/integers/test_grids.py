import pytest
import torch
from torch.fx import symbolic_trace

from chainfx.deploy.integers.grids import Grid, decode_weights, grid_of, weight_unit
from chainfx.ir.graph import edit, ops


def quantizer(clip, bits, signed):
    graph_module = symbolic_trace(torch.nn.Identity())
    edit.set_tensor(graph_module, "q.clip", torch.tensor(clip), parameter=True)
    (x,) = graph_module.graph.find_nodes(op="placeholder")
    with graph_module.graph.inserting_after(x):
        read = graph_module.graph.get_attr("q.clip")
    with graph_module.graph.inserting_after(read):
        return graph_module, graph_module.graph.call_function(ops.quantize_activation, (x, read, bits, signed))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_stand_for_what_the_quantizer_gives(bits, signed):
    """The values lie between the ties, where float32 decides in one way or the other."""
    grid = grid_of(*quantizer(1.5, bits, signed))
    values = torch.linspace(-2, 2, 4001) + 1e-4
    codes = grid.encode(values)
    expected = ops.quantize_activation(values, torch.tensor(1.5), bits, signed)
    assert codes.dtype is torch.uint8 and int(codes.max()) == grid.greatest and len(codes.unique()) <= 2**bits
    torch.testing.assert_close(grid.decode(codes), expected, rtol=1e-6, atol=1e-6)


def test_a_grid_that_ran_into_zero_is_that_of_the_smallest_clip():
    assert grid_of(*quantizer(-1.0, 8, False)).scale == pytest.approx(1e-8 / 255)


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (4, False), (3, True)])
def test_ties_fall_to_the_side_that_the_quantizer_takes(bits, signed):
    clip = 0.7
    levels = 2 ** (bits - signed) - 1
    ties = (torch.arange(-levels, levels) + 0.5) / levels * clip
    expected = torch.round(ops.quantize_activation(ties, torch.tensor(clip), bits, signed) / clip * levels)
    grid = grid_of(*quantizer(clip, bits, signed))
    assert torch.equal(grid.encode(ties).float() - grid.zero_point, expected)


@pytest.mark.parametrize("zero_point", [0, 100])
def test_a_tensor_that_may_be_written_over_has_the_same_codes(zero_point):
    values, grid = torch.linspace(-20, 20, 4001), Grid(0.1, zero_point, 200)
    codes = grid.encode(values)
    kept = values.clone()
    assert torch.equal(grid.encode(values, overwrite=True), codes) and not torch.equal(values, kept)


def test_images_are_encoded_channels_last():
    codes = Grid(0.1, 0, 255).encode(torch.rand(2, 3, 4, 4))
    assert codes.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_as_integers_times_their_scale_are_the_decoded_weights(bits, scheme, axis):
    if (bits, scheme) == (8, "dorefa") or (scheme == "exponential" and bits > 4):
        return  # its integers are no int8, and such layers stay in float
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codes, scale = ops.encode_weight(weight, bits, scheme, axis)
    integers, unit = decode_weights(codes.to(torch.uint8), bits, scheme), weight_unit(scale, bits, scheme)
    assert integers.dtype is torch.int8 and int(integers.abs().max()) == ops.weight_range(bits, scheme) <= 127
    torch.testing.assert_close(integers * unit, ops.decode_weight(codes, scale, bits, scheme), rtol=1e-12, atol=0)
