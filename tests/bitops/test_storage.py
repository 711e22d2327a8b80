"""Storage under every encoding, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import count
from chainfx.errors import CostError
from chainfx.ir.graph import ops
from tests.bitops.graphs import graph_of, quantize_layers

X = (torch.zeros(2, 8),)
ALL = ("dense", "nominal", "bitmap", "relative_index", "entropy")
N = 4 * 8


def storage(graph_module, inputs=X, encodings=ALL):
    return count(graph_module, inputs, encodings=encodings).storage


def mask_of(kept):
    mask = torch.zeros(N, dtype=torch.bool)
    mask[kept] = True
    return mask.view(4, 8)


def masked(mask, bits=None, weight=None):
    def plain(x, weight, mask):
        return F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None)

    def quantized(x, weight, mask):
        weight = ops.quantize_weight(weight, bits, "uniform", None)
        return F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None)

    weight = torch.randn(4, 8) if weight is None else weight
    return graph_of(plain if bits is None else quantized, weight=weight, mask=mask)


def entropy(*counts):
    """Bits of all symbols at the entropy of their distribution."""
    total = sum(counts)
    return sum(c * math.log2(total / c) for c in counts)


def test_only_what_was_asked_for_is_computed():
    graph_module = masked(mask_of([0, 5]))
    assert set(count(graph_module, X).storage) == {"dense", "nominal"}
    assert set(storage(graph_module, encodings=("bitmap",))) == {"dense", "nominal", "bitmap"}
    assert set(storage(graph_module, encodings=())) == {"dense", "nominal"}


def test_a_float_weight_with_a_mask():
    found = storage(masked(mask_of([0, 5, 6])))
    assert found["dense"] == N * 32 + N  # the values and the mask
    assert found["nominal"] == N * 32
    assert found["bitmap"] == 3 * 32 + N
    assert found["relative_index"] == 3 * (32 + 4)
    assert found["entropy"] == math.ceil(entropy(3, N - 3) + 3 * 32)


def test_a_quantized_weight_with_a_mask():
    weight = torch.zeros(4, 8)
    weight.view(-1)[:6] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    found = storage(masked(mask_of(range(6)), 4, weight))
    scale = 32
    assert found["dense"] == N * 4 + scale + N
    assert found["nominal"] == N * 4
    assert found["bitmap"] == 6 * 4 + scale + N
    assert found["relative_index"] == 6 * (4 + 4) + scale
    assert found["entropy"] == math.ceil(entropy(6, N - 6) + entropy(3, 2, 1)) + scale


def test_entropy_is_that_of_codes_and_zero_as_one_more_symbol():
    weight = torch.zeros(4, 8)
    weight.view(-1)[:6] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    found = storage(masked(mask_of(range(6)), 4, weight))["entropy"]
    assert found == math.ceil(entropy(N - 6, 3, 2, 1)) + 32


@pytest.mark.parametrize(
    ("kept", "entries"),
    [
        ([0, 1, 2], 3),
        ([15], 1),  # 15 zeros before it: the most that 4 bits say
        ([16], 2),  # a filler at 15
        ([0, 16], 2),
        ([0, 17], 3),
        ([31], 2),  # a filler at 15, and 15 zeros
        ([], 0),
    ],
)
def test_filler_zeros_of_the_relative_index(kept, entries):
    assert storage(masked(mask_of(kept)))["relative_index"] == entries * 36


def test_another_width_of_the_relative_index():
    name = "relative_index:2"
    assert storage(masked(mask_of([0, 5])), encodings=(name,))[name] == (2 + 1) * 34
    assert storage(masked(mask_of([0, 4])), encodings=(name,))[name] == 2 * 34


def test_fillers_against_a_plain_walk():
    for seed in range(20):
        mask = torch.rand(4, 8, generator=torch.Generator().manual_seed(seed)) < 0.15
        entries, zeros = 0, 0
        for kept in mask.flatten().tolist():
            if kept or zeros == 3:
                entries, zeros = entries + 1, 0
            else:
                zeros += 1
        trailing = mask.flatten().tolist()
        last = max((place for place, kept in enumerate(trailing) if kept), default=-1)
        entries -= (N - 1 - last) // 4  # nothing needs a filler behind the last value
        assert storage(masked(mask), encodings=("relative_index:2",))["relative_index:2"] == entries * 34


def test_without_a_mask_only_codes_compress():
    weight = torch.tensor([1.0, 1.0, -1.0, 0.0] * 8).view(4, 8)
    graph_module = graph_of(
        lambda x, weight: F.linear(x, ops.quantize_weight(weight, 4, "uniform", None), None), weight=weight
    )
    found = storage(graph_module)
    assert found["dense"] == found["bitmap"] == found["relative_index"] == N * 4 + 32
    assert found["entropy"] == math.ceil(entropy(16, 8, 8)) + 32


def test_a_mask_beneath_the_quantizer_is_there_when_it_codes():
    def network(x, weight, mask):
        return F.linear(x, ops.quantize_weight(ops.mask_weight(weight, mask, "2:4"), 4, "uniform", None), None)

    weight = torch.ones(4, 8)
    weight[0, 0] = 100.0  # masked: it must not set the scale, which would make all other codes equal to zero
    weight[0, 1] = -1.0
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[0, 0] = False
    found = storage(graph_of(network, weight=weight, mask=mask))
    assert found["entropy"] == math.ceil(entropy(1, N - 1) + entropy(N - 2, 1)) + 32


def codebook_network(x, codes, codebook, mask):
    return F.linear(x, ops.mask_weight(ops.look_up(codes, codebook), mask, "unstructured"), None)


@pytest.mark.parametrize(("entries", "bits"), [(1, 0), (2, 1), (5, 3), (8, 3), (9, 4)])
def test_a_codebook(entries, bits):
    codes = torch.arange(N, dtype=torch.uint8).remainder(entries).view(4, 8)
    graph_module = graph_of(codebook_network, codes=codes, codebook=torch.zeros(entries), mask=mask_of([0, 1, 2, 3]))
    found = storage(graph_module)
    assert found["dense"] == N * bits + entries * 32 + N
    assert found["bitmap"] == 4 * bits + entries * 32 + N
    assert found["relative_index"] == 4 * (bits + 4) + entries * 32
    kept = torch.bincount(codes.flatten()[:4].long()).tolist()
    assert found["entropy"] == math.ceil(entropy(4, N - 4) + entropy(*(c for c in kept if c))) + entries * 32
    assert found["nominal"] == N * 32  # the codebook itself is none of the weights, and it multiplies in float


def test_deep_compressions_example_of_weight_sharing():
    """16 weights, 4 shared values: 16 * 32 / (4 * 32 + 2 * 16) = 3.2 (Han et al. 2016, sec. 3)."""
    codes = torch.zeros(4, 4, dtype=torch.uint8)
    graph_module = graph_of(
        lambda x, codes, codebook: F.linear(x, ops.look_up(codes, codebook), None), codes=codes, codebook=torch.zeros(4)
    )
    assert 16 * 32 / count(graph_module, (torch.zeros(1, 4),)).storage_bits == 3.2


def test_the_nominal_width_is_that_of_all_parameters():
    network = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    image = (torch.zeros(1, 3, 8, 8),)
    parameters = 3 * 4 * 9 + 4 + 8
    assert count(network, image).storage["nominal"] == parameters * 32  # without running mean and variance


def test_nominal_counts_no_clips_and_no_scales():
    from chainfx.ir.capture.ways import capture

    network = capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), X)
    parameters = 8 * 4 + 4 + 4 * 2 + 2
    assert count(network, X).storage["nominal"] == parameters * 32
    quantized = quantize_layers(network, lambda index, _: (2, 8) if index == 0 else (8, 8))
    report = count(quantized, X)
    assert report.storage["nominal"] == parameters * 2  # most MACs are at two bits, and biases count so too
    assert report.parameters == parameters + 2  # two clips
    assert report.storage_bits == 32 * 2 + 8 * 8 + 32 * (4 + 2 + 2 + 2)  # weights, biases, scales, clips


def test_a_mask_that_two_weights_share_is_stored_once():
    def network(x, weight, other, mask):
        first = F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None)
        return first + F.linear(x, ops.mask_weight(other, mask, "unstructured"), None)

    graph_module = graph_of(network, weight=torch.zeros(4, 8), other=torch.zeros(4, 8), mask=mask_of([1]))
    assert storage(graph_module)["dense"] == 2 * N * 32 + N
    assert storage(graph_module)["bitmap"] == 2 * 32 + N


def test_a_weight_that_is_also_read_without_its_mask_keeps_its_zeros():
    def network(x, weight, mask):
        return F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None), F.linear(x, weight, None)

    graph_module = graph_of(network, weight=torch.zeros(4, 8), mask=mask_of([1]))
    assert storage(graph_module)["bitmap"] == N * 32 + N
    assert storage(graph_module)["relative_index"] == N * 32


def test_no_encoding_is_better_than_its_bound():
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(4, 8, generator=generator) < 0.4
        found = storage(masked(mask, 3, torch.randn(4, 8, generator=generator)))
        assert found["entropy"] <= min(found[name] for name in ("dense", "bitmap"))


def test_an_unknown_encoding():
    with pytest.raises(CostError) as caught:
        count(masked(mask_of([0])), X, encodings=("huffman",))
    assert str(caught.value) == (
        "there is no encoding named 'huffman'; use dense, nominal, bitmap, relative_index, entropy, coded, "
        "or relative_index:5 for another number of index bits."
    )


def test_entropy_needs_the_values():
    graph_module = graph_of(
        lambda x, weight: F.linear(x, ops.quantize_weight(weight, 4, "uniform", None), None), weight=torch.zeros(4, 8)
    ).to("meta")
    assert count(graph_module, X).storage_bits == N * 4 + 32
    with pytest.raises(CostError) as caught:
        count(graph_module, X, encodings=("entropy",))
    assert str(caught.value) == (
        "the entropy of 'weight' depends on its values, which it does not have on the meta device; "
        "count the network with its data, or leave out encoding 'entropy'."
    )
