import gc
import itertools
import threading

import pytest
import torch

from chainfx.deploy import Machine
from chainfx.deploy.integers import kernels
from chainfx.deploy.integers.grids import Grid
from chainfx.deploy.integers.kernels import Geometry, LayerCall, run_layer
from chainfx.deploy.integers.layers import IntegerLayer
from tests.budget import mostly_slow
from tests.deploy.integers.reference import exact_layer

needs_kernels = pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")
READ, WRITTEN = Grid(0.02, 0, 127), Grid(0.5, 0, 15)
SLIDING = Geometry((1, 1), (1, 1), (1, 1), 1)


def layer(call, shape=(6, 4, 3, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-63, 64, shape, generator=generator, dtype=torch.int8)
    scale, bias = torch.rand(shape[0], generator=generator) * 0.1, torch.randn(shape[0], generator=generator)
    return IntegerLayer(call, weight, scale, bias)


def codes(*shape):
    return torch.randint(0, 128, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_a_call_as_text_is_the_same_call():
    for call in (
        LayerCall(READ, 8, "uniform", SLIDING, WRITTEN, Grid(0.1, 127, 254), "relu"),
        LayerCall(READ, 1, "dorefa", None, None, None, "hardtanh", (-1.0, 0.25)),
    ):
        assert LayerCall.of_text(call.to_text()) == call


@needs_kernels
def test_codes_below_8_bits_are_clamped_to_their_greatest():
    one = layer(LayerCall(READ, 8, "uniform", SLIDING, WRITTEN))
    given = one(codes(2, 4, 5, 5))
    assert int(given.max()) == 15
    assert torch.equal(given.double(), (exact_layer(one, codes(2, 4, 5, 5)) / 0.5).round().clamp(0, 15))


@needs_kernels
def test_a_second_input_is_left_alone_unless_it_may_be_written_over():
    one = layer(LayerCall(READ, 8, "uniform", SLIDING, Grid(0.5, 0, 255), Grid(0.1, 0, 255)))
    x, added = codes(2, 4, 5, 5), codes(2, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    kept = added.clone()
    expected = one(x, added)
    assert torch.equal(added, kept)
    one.overwrites = True
    assert torch.equal(one(x, added), expected)
    assert not torch.equal(added, kept)


@needs_kernels
@pytest.mark.parametrize("call", [LayerCall(READ, 8, "uniform", None, WRITTEN), LayerCall(READ, 8, "uniform", None)])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear_layers_take_any_leading_dimensions(call, shape):
    one = layer(call, (6, 5))
    expected = exact_layer(one, codes(*shape))
    expected = expected if call.written is None else (expected / 0.5).round().clamp(0, 15)
    torch.testing.assert_close(one(codes(*shape)).double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_an_empty_batch_gives_an_empty_answer():
    one = layer(LayerCall(READ, 8, "uniform", SLIDING, WRITTEN))
    assert one(codes(0, 4, 5, 5)).shape == (0, 6, 5, 5)
    assert one(codes(3, 4, 7, 7)).shape == (3, 6, 7, 7)


@needs_kernels
def test_weights_are_packed_once_and_again_when_their_codes_change(monkeypatch):
    packed, pack = [], kernels._pack
    monkeypatch.setattr(kernels, "_pack", lambda *args: packed.append(1) or pack(*args))
    one = layer(LayerCall(READ, 8, "uniform", SLIDING))
    for size in (5, 9):
        one(codes(2, 4, size, size))
    assert len(packed) == 1
    one.weight.neg_()
    torch.testing.assert_close(one(codes(2, 4, 5, 5)).double(), exact_layer(one, codes(2, 4, 5, 5)))
    assert len(packed) == 2


@needs_kernels
def test_a_layer_computes_with_the_tensors_that_it_has_now():
    one, x = layer(LayerCall(READ, 8, "uniform", SLIDING)), codes(2, 4, 5, 5)
    one(x)
    for name, changed in (
        ("scale", one.scale * 3),
        ("bias", one.bias - 1),
        ("weight", one.weight.flip(0)),
        ("bias", None),
    ):
        one.register_buffer(name, changed)
        torch.testing.assert_close(one(x).double(), exact_layer(one, x), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_the_operator_for_torch_compile_follows_changed_tensors_too():
    x = codes(2, 4, 5, 5)
    one = layer(LayerCall(READ, 8, "uniform", SLIDING))

    def answered():
        return torch.ops.chainfx.integer_layer(x, one.weight, one.scale, one.bias, None, one.call.to_text())

    assert torch.equal(answered(), one(x)) and torch.equal(answered(), one(x))
    for name, changed in (("scale", one.scale * 3), ("bias", one.bias - 1), ("bias", None)):
        one.register_buffer(name, changed)
        assert torch.equal(answered(), one(x))
    one.weight.copy_(one.weight.flip(0))
    torch.testing.assert_close(answered().double(), exact_layer(one, x), rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("size", [(5, 8), (6, 7), (1, 2)])
def test_a_single_pixel_is_read_in_every_row_and_column_of_so_many(size):
    one = layer(LayerCall(READ, 8, "uniform", Geometry((2, 3), (0, 0), (1, 1), 1)), (6, 4, 1, 1))
    for x in (codes(2, 4, *size), codes(3, 5, *size)[1:, 1:], codes(2, *size, 4).permute(0, 3, 1, 2)):
        torch.testing.assert_close(one(x).double(), exact_layer(one, x), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_packed_weights_go_with_the_codes_they_were_made_of():
    gc.collect()  # what earlier tests have left in circles
    before = len(kernels._PACKED)
    one = layer(LayerCall(READ, 8, "uniform", SLIDING))
    one(codes(2, 4, 5, 5))
    run_layer(one.call.to_text(), codes(2, 4, 5, 5), one.weight, one.scale, one.bias)
    assert len(kernels._PACKED) == before + 1
    del one
    gc.collect()
    assert len(kernels._PACKED) == before


@needs_kernels
def test_many_threads_pack_a_weight_once_and_get_the_same_answers(monkeypatch):
    packed, pack = [], kernels._pack
    monkeypatch.setattr(kernels, "_pack", lambda *args: packed.append(1) or pack(*args))
    one, answers = layer(LayerCall(READ, 8, "uniform", SLIDING)), []
    threads = [threading.Thread(target=lambda: answers.append(one(codes(2, 4, 5, 5)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packed) == 1 and len(answers) == 8
    assert all(torch.equal(answers[0], other) for other in answers)


@needs_kernels
def test_the_operator_for_torch_compile_says_the_shape_and_layout_that_it_gives():
    for shape, size in (((6, 4, 3, 3), (2, 4, 5, 7)), ((1, 4, 3, 3), (1, 4, 3, 3)), ((6, 5), (2, 3, 5))):
        call = LayerCall(READ, 8, "uniform", SLIDING if len(shape) == 4 else None, WRITTEN)
        one = layer(call, shape)
        arguments = (codes(*size), one.weight, one.scale, one.bias, None, call.to_text())
        torch.library.opcheck(torch.ops.chainfx.integer_layer, arguments)
        assert torch.equal(torch.ops.chainfx.integer_layer(*arguments), one(codes(*size)))
        assert torch.equal(run_layer(call.to_text(), *arguments[:4]), one(codes(*size)))


SPECIAL = list(itertools.product((1, 3), (1, 2, 3), (0, 1), (1, 4)))


# oneDNN has kernels of its own for strides of 1x1 and for groups
@needs_kernels
@pytest.mark.parametrize("case", mostly_slow(SPECIAL, [(1, 2, 0, 1), (1, 3, 0, 4), (3, 2, 1, 1)]), ids=str)
def test_several_threads_give_the_answer_of_one(case):
    kernel, stride, padding, groups = case
    threads = torch.get_num_threads()
    call = LayerCall(READ, 8, "uniform", Geometry((stride, stride), (padding, padding), (1, 1), groups))
    one, x = layer(call, shape=(16, 8 // groups, kernel, kernel)), codes(64, 8, 16, 16)
    try:
        torch.set_num_threads(1)
        expected = one(x)
        torch.set_num_threads(2)
        assert all(torch.equal(one(x), expected) for _ in range(20))
    finally:
        torch.set_num_threads(threads)
