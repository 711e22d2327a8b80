"""Zeros that masks say: what they leave, and which conventions credit them."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from chainfx.bitops import count
from chainfx.errors import CostError
from chainfx.ir.graph import ops
from tests.bitops.graphs import graph_of

X = (torch.zeros(2, 4),)
IMAGE = (torch.zeros(1, 4, 6, 6),)
CHECKERED = torch.tensor([[True, False] * 2, [False, True] * 2] * 4)  # (8, 4), half of it left, no row or column empty


def masked_linear(mask, pattern="unstructured", **tensors):
    def network(x, weight, mask):
        return F.linear(x, ops.mask_weight(weight, mask, pattern), None)

    return graph_of(network, weight=torch.randn(8, 4), mask=mask, **tensors)


def layer(graph_module, inputs=X, convention="strict"):
    (row,) = (row for row in count(graph_module, inputs, convention).rows if row.macs)
    return row


def test_the_share_of_weights_a_mask_leaves():
    row = layer(masked_linear(CHECKERED))
    assert (row.macs, row.nonzero_macs, row.pattern) == (32, 16, "unstructured")
    assert row.facts.nonzero == Fraction(1, 2)
    assert (row.facts.kept_outputs, row.facts.kept_inputs) == (1, 1)
    assert row.weight_bits == 32


def test_without_a_mask_everything_is_left():
    row = layer(graph_of(lambda x, weight: F.linear(x, weight, None), weight=torch.zeros(8, 4)))
    assert (row.pattern, row.nonzero_macs, row.facts.nonzero) == ("", 32, 1)


def test_whole_rows_and_columns_are_outputs_and_inputs():
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:2] = False
    mask[:, 3] = False
    facts = layer(masked_linear(mask)).facts
    assert (facts.kept_outputs, facts.kept_inputs) == (Fraction(3, 4), Fraction(3, 4))
    assert facts.nonzero == Fraction(6 * 3, 32)


def conv_network(x, weight, mask):
    return F.conv2d(x, ops.mask_weight(weight, mask, "unstructured"), None, (1, 1), (0, 0), (1, 1), 2)


def transposed_network(x, weight, mask):
    return F.conv_transpose2d(x, ops.mask_weight(weight, mask, "unstructured"), None, (1, 1), (0, 0), (0, 0), 2, (1, 1))


@pytest.mark.parametrize(
    ("network", "shape", "kept_outputs", "kept_inputs"),
    [
        (conv_network, (8, 2, 3, 3), Fraction(7, 8), Fraction(3, 4)),
        (transposed_network, (4, 4, 3, 3), Fraction(7, 8), Fraction(3, 4)),
    ],
)
def test_channels_of_a_grouped_convolution(network, shape, kept_outputs, kept_inputs):
    """Output 0 of eight, and input 3 of four (the second of the second group), are masked."""
    mask = torch.ones(shape, dtype=torch.bool)
    if network is conv_network:
        mask[0], mask[4:, 1] = False, False
    else:
        mask[3], mask[:2, 0] = False, False
    graph_module = graph_of(network, weight=torch.zeros(shape), mask=mask)
    facts = layer(graph_module, IMAGE).facts
    assert (facts.kept_outputs, facts.kept_inputs) == (kept_outputs, kept_inputs)


def quantized_and_masked(*, mask_last):
    def above(x, weight, mask):
        return F.linear(x, ops.mask_weight(ops.quantize_weight(weight, 4, "uniform", 0), mask, "2:4"), None)

    def beneath(x, weight, mask):
        return F.linear(x, ops.quantize_weight(ops.mask_weight(weight, mask, "2:4"), 4, "uniform", 0), None)

    return graph_of(above if mask_last else beneath, weight=torch.randn(8, 4), mask=CHECKERED)


@pytest.mark.parametrize("mask_last", [True, False])
def test_a_mask_above_or_beneath_a_quantizer(mask_last):
    row = layer(quantized_and_masked(mask_last=mask_last))
    assert (row.weight_bits, row.nonzero_macs, row.pattern) == (4, 16, "2:4")


def test_of_two_masks_what_both_leave():
    def network(x, weight, mask, other):
        inner = ops.mask_weight(weight, mask, "2:4")
        return F.linear(x, ops.mask_weight(inner, other, "unstructured"), None)

    other = torch.ones(8, 4, dtype=torch.bool)
    other[:4] = False
    row = layer(graph_of(network, weight=torch.zeros(8, 4), mask=CHECKERED, other=other))
    assert (row.facts.nonzero, row.facts.kept_outputs, row.pattern) == (Fraction(1, 4), Fraction(1, 2), "2:4")


def test_a_mask_of_a_matrix_product():
    def network(x, weight, mask):
        return x @ ops.mask_weight(weight, mask, "unstructured")

    graph_module = graph_of(network, weight=torch.zeros(4, 8), mask=CHECKERED.T.contiguous())
    assert (layer(graph_module).macs, layer(graph_module).nonzero_macs) == (32, 16)


@pytest.mark.parametrize(
    ("convention", "share"),
    [("mac_bw_ba", 1), ("strict", 1), ("hawq_v3", 1), ("fixops64", 1), ("uniq_bops", 1), ("bayesian_bits", 1)],
)
def test_scattered_zeros_earn_nothing_under_most_conventions(convention, share):
    full = masked_linear(torch.ones(8, 4, dtype=torch.bool))
    assert layer(masked_linear(CHECKERED), convention=convention).bitops == share * layer(full, X, convention).bitops


def test_scattered_zeros_save_products_under_uniq_bops_sparse():
    assert layer(masked_linear(CHECKERED), convention="uniq_bops_sparse").bitops == 32 * (1024 // 2 + 32 + 32 + 2)


def test_masked_channels_earn_what_they_are_under_bayesian_bits():
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:4], mask[:, :2] = False, False
    assert layer(masked_linear(mask), convention="bayesian_bits").bitops == 32 * 1024 // 4


def test_the_total_of_nonzero_macs():
    report = count(masked_linear(CHECKERED), X)
    assert (report.macs, report.nonzero_macs) == (32, 16)
    assert report.to_dict()["totals"]["nonzero_macs"] == 16


def test_a_mask_without_data():
    graph_module = masked_linear(CHECKERED).to("meta")
    with pytest.raises(CostError) as caught:
        count(graph_module, X)
    assert str(caught.value) == (
        "the mask 'mask' is on the meta device, so nobody can tell what it keeps; count the network with its data."
    )


def shared_weight(x, codes, codebook, clip):
    x = ops.quantize_activation(x, clip, 8, False)
    return F.linear(x, ops.look_up(codes, codebook), None)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.float16, 16)])
def test_a_codebook_multiplies_at_its_float_width(dtype, bits):
    codes = torch.zeros(8, 4, dtype=torch.uint8)
    graph_module = graph_of(shared_weight, codes=codes, codebook=torch.zeros(5, dtype=dtype), clip=torch.ones(()))
    inputs = (torch.zeros(2, 4, dtype=dtype),)
    row = layer(graph_module, inputs)
    assert (row.weight_bits, row.activation_bits) == (bits, 8)
    assert count(graph_module, inputs).uncounted == ()


def test_a_mask_that_is_computed():
    def network(x, weight):
        return F.linear(x, ops.mask_weight(weight, weight > 0, "unstructured"), None)

    with pytest.raises(CostError) as caught:
        count(graph_of(network, weight=torch.zeros(8, 4)), X)
    assert str(caught.value) == (
        "node 'mask_weight' takes gt, which is no tensor of the network; store it as a buffer."
    )
