"""What holds for every network: laws that the counter keeps, on random small ones."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import count
from chainfx.deploy.lower import to_codes
from chainfx.ir.artifact.files import load_graph, save_graph
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph import ops
from tests.bitops.graphs import graph_of, quantize_layers
from tests.budget import examples

SIZE = 5
WIDTHS = (*range(1, 9), 32)
CONVENTIONS = ("bayesian_bits", "fixops64", "hawq_v3", "mac_bw_ba", "strict", "uniq_bops", "uniq_bops_sparse")
PER_LAYER = ("strict", "uniq_bops", "uniq_bops_sparse")  # those without a rule for the whole network

quick, few = examples(1.25), examples(0.6)


def image(channels, batch=1):
    return (torch.zeros(batch, channels, SIZE, SIZE),)


@st.composite
def layers(draw, channels):
    """A layer that keeps the image size, and its number of output channels."""
    kind = draw(st.sampled_from(["conv", "pointwise", "depthwise", "grouped", "norm", "relu", "pool"]))
    wide = draw(st.integers(1, 3)) * 2
    made = {
        "conv": nn.Conv2d(channels, wide, 3, padding=1),
        "pointwise": nn.Conv2d(channels, wide, 1, bias=False),
        "depthwise": nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        "grouped": nn.Conv2d(channels, wide, 3, padding=1, groups=2),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(),
        "pool": nn.AvgPool2d(3, 1, 1),
    }
    return made[kind], wide if kind in ("conv", "pointwise", "grouped") else channels


@st.composite
def networks(draw, channels=4, head=False):
    """A sequence of layers that takes (N, channels, 5, 5) and its output channels; with a head it gives 3 logits."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        part, channels = draw(layers(channels))
        parts.append(part)
    if head:
        parts += [nn.Conv2d(channels, 4, 1), nn.Flatten(), nn.Linear(4 * SIZE * SIZE, 3)]
    return nn.Sequential(*parts).eval(), channels


def totals(report):
    return report.macs, report.elementwise, report.bitops, report.nonzero_macs


# additive, linear in the batch


@quick
@given(st.data(), st.sampled_from(PER_LAYER))
def test_the_cost_of_two_networks_in_a_row_is_the_sum(data, convention):
    first, between = data.draw(networks())
    second, _ = data.draw(networks(between))
    parts = [
        count(symbolic_trace(first), image(4), convention),
        count(symbolic_trace(second), image(between), convention),
    ]
    whole = count(symbolic_trace(nn.Sequential(first, second)), image(4), convention)
    for column in ("macs", "elementwise", "storage_bits", "parameters", "nonzero_macs"):
        assert getattr(whole, column) == sum(getattr(part, column) for part in parts)
    assert sum(row.bitops for row in whole.rows) == sum(row.bitops for part in parts for row in part.rows)
    assert whole.storage["nominal"] == sum(part.storage["nominal"] for part in parts)


@quick
@given(networks(head=True), st.integers(2, 7))
def test_the_cost_of_a_sample_does_not_depend_on_the_batch(network, batch):
    graph_module = symbolic_trace(network[0])
    one, more = count(graph_module, image(4)), count(graph_module, image(4, batch))
    assert totals(one) == totals(more)
    assert [row.facts for row in one.rows] == [row.facts for row in more.rows]


# monotone


@quick
@given(networks(head=True), st.sampled_from(CONVENTIONS), st.data())
def test_more_bits_never_cost_less(network, convention, data):
    report = count(symbolic_trace(network[0]), image(4), convention)
    weights, activations = (sorted(data.draw(st.tuples(*[st.sampled_from(WIDTHS)] * 2))) for _ in range(2))
    small, large = (report.reprice(widths={"*": pair}) for pair in zip(weights, activations, strict=True))
    assert small.bitops <= large.bitops <= report.bitops
    assert small.storage_bits <= large.storage_bits <= report.storage_bits


@quick
@given(networks(head=True), st.sampled_from(PER_LAYER), st.data())
def test_more_bits_in_one_layer_never_cost_less(network, convention, data):
    report = count(symbolic_trace(network[0]), image(4), convention)
    names = [row.node for row in report.rows if row.weight]
    pairs = {name: data.draw(st.tuples(st.sampled_from(WIDTHS), st.sampled_from(WIDTHS))) for name in names}
    chosen = data.draw(st.sampled_from(names))
    wider = {**pairs, chosen: tuple(data.draw(st.sampled_from([w for w in WIDTHS if w >= b])) for b in pairs[chosen])}
    assert report.reprice(widths=pairs).bitops <= report.reprice(widths=wider).bitops


@quick
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 3), st.sampled_from(CONVENTIONS))
def test_more_channels_cost_more(widths, wider, convention):
    def cost(channels):
        pairs = itertools.pairwise([4, *channels])
        return count(symbolic_trace(nn.Sequential(*(nn.Conv2d(*pair, 1) for pair in pairs))), image(4), convention)

    index = wider % len(widths)
    more = [*widths[:index], widths[index] + 1, *widths[index + 1 :]]
    small, large = cost(widths), cost(more)
    assert small.macs < large.macs
    assert small.bitops < large.bitops
    assert small.storage_bits < large.storage_bits


def with_exits(x, b1, h1, b2, h2, b3):
    x = F.linear(x, b1, None)
    first = ops.exit_point(F.linear(x, h1, None), "early", 0.9, "max-softmax")
    x = F.linear(x, b2, None)
    return first, ops.exit_point(F.linear(x, h2, None), "late", 0.8, "margin"), F.linear(x, b3, None)


@quick
@given(
    st.lists(st.integers(1, 6), min_size=5, max_size=5),
    st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)).filter(lambda r: sum(r) <= 20),
    st.sampled_from(CONVENTIONS),
)
def test_more_samples_that_leave_never_cost_more(widths, rates, convention):
    body1, head1, body2, head2, body3 = widths
    shapes = {"b1": (body1, 4), "h1": (head1, body1), "b2": (body2, body1), "h2": (head2, body2), "b3": (body3, body2)}
    graph_module = graph_of(with_exits, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    report = count(graph_module, (torch.zeros(1, 4),), convention)

    def expected(early, late):
        return report.reprice(exit_rates={"early": early / 20, "late": late / 20}).expected_bitops

    early, late, more = rates[0], rates[1], min(rates[2], 20 - rates[0] - rates[1])
    assert expected(early + more, late) <= expected(early, late) <= report.bitops
    assert expected(early, late + more) <= expected(early, late)
    assert expected(early + late, 0) <= expected(early, late)  # to leave earlier never costs more
    assert expected(early, late) >= report.cumulative[0].bitops - 1e-6
    assert expected(20, 0) == report.cumulative[0].bitops


@quick
@given(st.lists(st.booleans(), min_size=24, max_size=24), st.integers(0, 23), st.sampled_from(CONVENTIONS))
def test_a_mask_that_leaves_more_never_costs_less(kept, place, convention):
    def report(flags):
        mask = torch.tensor(flags).view(6, 4)
        graph_module = graph_of(
            lambda x, weight, mask: F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None),
            weight=torch.zeros(6, 4),
            mask=mask,
        )
        return count(graph_module, (torch.zeros(1, 4),), convention)

    fewer = report([flag and at != place for at, flag in enumerate(kept)])
    more = report([flag or at == place for at, flag in enumerate(kept)])
    assert fewer.bitops <= more.bitops
    assert fewer.nonzero_macs == more.nonzero_macs - 1


# against loops


def looped_convolution(x, weight, stride, padding, dilation, groups):
    """The output of a convolution by six loops, and how often they multiply; zeros of the padding multiply too."""
    x = F.pad(x, (padding,) * 4)
    outputs, inside, height, width = weight.shape
    rows, columns = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel in ((x.shape[2], height), (x.shape[3], width))
    )
    result, macs = torch.zeros(1, outputs, rows, columns), 0
    for o, r, c in itertools.product(range(outputs), range(rows), range(columns)):
        for i, u, v in itertools.product(range(inside), range(height), range(width)):
            channel = o // (outputs // groups) * inside + i
            result[0, o, r, c] += (
                weight[o, i, u, v] * x[0, channel, r * stride + u * dilation, c * stride + v * dilation]
            )
            macs += 1
    return result, macs


@few
@given(
    groups=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
def test_convolutions_by_loops(groups, sizes, stride, padding, dilation):
    outputs, inputs, height, width = sizes
    x, weight = torch.randn(1, groups * inputs, 5, 4), torch.randn(groups * outputs, inputs, height, width)
    options = (None, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    looped, macs = looped_convolution(x, weight, stride, padding, dilation, groups)
    torch.testing.assert_close(looped, F.conv2d(x, weight, *options), rtol=1e-4, atol=1e-4)
    assert count(graph_of(lambda x, weight: F.conv2d(x, weight, *options), weight=weight), (x,)).macs == macs


def looped_transposed(x, weight, stride, groups):
    """The output of a transposed convolution by loops over inputs, and how often they multiply."""
    inputs, outputs, kernel = weight.shape
    result, macs = torch.zeros(1, outputs * groups, (x.shape[2] - 1) * stride + kernel), 0
    for i, place, o, u in itertools.product(range(inputs), range(x.shape[2]), range(outputs), range(kernel)):
        channel = i // (inputs // groups) * outputs + o
        result[0, channel, place * stride + u] += x[0, i, place] * weight[i, o, u]
        macs += 1
    return result, macs


@few
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_transposed_convolutions_by_loops(groups, inputs, outputs, kernel, stride):
    x, weight = torch.randn(1, groups * inputs, 4), torch.randn(groups * inputs, outputs, kernel)
    options = (None, (stride,), (0,), (0,), groups, (1,))
    looped, macs = looped_transposed(x, weight, stride, groups)
    torch.testing.assert_close(looped, F.conv_transpose1d(x, weight, *options), rtol=1e-4, atol=1e-4)
    assert count(graph_of(lambda x, weight: F.conv_transpose1d(x, weight, *options), weight=weight), (x,)).macs == macs


def looped_product(a, b):
    """``a @ b`` by loops over broadcast batch axes, rows, columns and the summed axis, and how often they multiply."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    wide_a, wide_b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    result, macs = torch.zeros(*batch, a.shape[-2], b.shape[-1]), 0
    for at in itertools.product(*map(range, result.shape)):
        for k in range(a.shape[-1]):
            result[at] += wide_a[(*at[:-1], k)] * wide_b[(*at[:-2], k, at[-1])]
            macs += 1
    return result, macs


@few
@given(st.tuples(*[st.integers(1, 3)] * 3), st.sampled_from([((), ()), ((2,), (2,)), ((2, 3), (3,)), ((2, 3), (1, 3))]))
def test_matrix_products_by_loops(sizes, batches):
    rows, summed, columns = sizes
    a, b = torch.randn(*batches[0], rows, summed), torch.randn(*batches[1], summed, columns)
    looped, macs = looped_product(a, b)
    torch.testing.assert_close(looped, a @ b)
    report = count(graph_of(lambda a, b: a @ b), (a[None], b[None] if b.dim() == a.dim() else b))
    assert report.macs == macs
    (row,) = report.rows
    assert row.facts.fan_in == summed


@few
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_linear_layers_by_loops(tokens, inputs, outputs):
    x, weight = torch.randn(1, tokens, inputs), torch.randn(outputs, inputs)
    looped, macs = looped_product(x, weight.T[None])
    torch.testing.assert_close(looped, F.linear(x, weight))
    assert count(graph_of(lambda x, weight: F.linear(x, weight, None), weight=weight), (x,)).macs == macs


# every form of one network


def costs(report):
    rows = [(row.node, row.macs, row.bitops, row.facts, row.pattern) for row in report.rows]
    return rows, dict(report.storage), report.parameters, report.uncounted


@few
@given(networks(head=True), st.data())
def test_train_form_deploy_form_and_reloaded_artefact_cost_the_same(network, data):
    graph_module = capture(network[0], image(4))
    widths = st.one_of(st.none(), st.tuples(st.integers(1, 8), st.integers(1, 8)))
    quantize_layers(graph_module, lambda *_: data.draw(widths))
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight):
        node.args = (*node.args, data.draw(st.sampled_from(ops.SCHEMES)), data.draw(st.sampled_from([None, 0])))
    for name in [name for name, _ in graph_module.named_parameters() if "clip" in name]:
        setattr(graph_module, name, nn.Parameter(torch.ones(())))
    graph_module.recompile()
    encodings = ("bitmap", "entropy")
    convention = data.draw(st.sampled_from(CONVENTIONS))
    train = costs(count(graph_module, image(4), convention, encodings=encodings))
    lowered = to_codes(graph_module)
    assert costs(count(lowered, image(4), convention, encodings=encodings)) == train
    with tempfile.TemporaryDirectory() as folder:
        save_graph(lowered, Path(folder) / "saved", {})
        loaded, _ = load_graph(Path(folder) / "saved")
    assert costs(count(loaded, image(4), convention, encodings=encodings)) == train


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_masked_network_costs_the_same_in_every_form(pattern, tmp_path):
    mask = torch.tensor([[True, False] * 2, [False, True] * 2] * 3)

    def network(x, weight, mask):
        return F.linear(x, ops.mask_weight(ops.quantize_weight(weight, 3, "uniform", 0), mask, pattern), None)

    graph_module = graph_of(network, weight=torch.randn(6, 4), mask=mask)
    del graph_module.mask
    graph_module.register_buffer("mask", mask)
    encodings = ("bitmap", "relative_index", "entropy")
    inputs = (torch.zeros(1, 4),)
    train = costs(count(graph_module, inputs, "uniq_bops_sparse", encodings=encodings))
    lowered = to_codes(graph_module)
    assert costs(count(lowered, inputs, "uniq_bops_sparse", encodings=encodings)) == train
    save_graph(lowered, tmp_path / "saved", {})
    loaded, _ = load_graph(tmp_path / "saved")
    assert costs(count(loaded, inputs, "uniq_bops_sparse", encodings=encodings)) == train
