"""MACs of every operator against nested loops, hand-made formulas, and torch's own counter."""

import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from chainfx.bitops import Call, count, register_formula
from chainfx.bitops.formulas import find_formula
from chainfx.errors import InputError
from chainfx.ir.capture.ways import capture
from tests.bitops.graphs import called, graph_of


def macs_of(module: nn.Module, *shapes: tuple[int, ...]) -> int:
    report = count(called(module, len(shapes)), tuple(torch.zeros(shape) for shape in shapes))
    assert not report.uncounted
    return report.macs


def looped(*ranges: int) -> int:
    """Count the turns of nested loops one by one."""
    return sum(1 for _ in itertools.product(*(range(size) for size in ranges)))


@pytest.mark.parametrize(
    ("module", "shape", "loops"),
    [
        (nn.Conv1d(4, 6, 3), (1, 4, 9), (6, 7, 4, 3)),
        (nn.Conv2d(3, 5, (3, 2), stride=2, padding=1), (1, 3, 7, 6), (5, 4, 4, 3, 3, 2)),
        (nn.Conv2d(4, 6, 3, dilation=2), (1, 4, 8, 8), (6, 4, 4, 4, 3, 3)),
        (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5), (6, 3, 3, 2, 3, 3)),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), (4, 3, 3, 3, 3)),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), (3, 2, 2, 2, 2, 2, 2, 2)),
        (nn.ConvTranspose1d(4, 6, 3), (1, 4, 5), (4, 5, 6, 3)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 3, 3), (4, 3, 3, 3, 3, 3)),
        (nn.ConvTranspose3d(2, 3, 2), (1, 2, 2, 2, 2), (2, 2, 2, 2, 3, 2, 2, 2)),
        (nn.Linear(7, 5), (1, 7), (5, 7)),
        (nn.Linear(7, 5, bias=False), (1, 3, 7), (3, 5, 7)),
    ],
    ids=str,
)
def test_layers_equal_nested_loops(module, shape, loops):
    assert macs_of(module, shape) == looped(*loops)


def gates(module: nn.Module, steps: int, size: int, hidden: int, number: int) -> int:
    layers = [size] + [hidden * (2 if module.bidirectional else 1)] * (module.num_layers - 1)
    return steps * sum(looped(number, hidden, below + hidden) for below in layers) * (2 if module.bidirectional else 1)


@pytest.mark.parametrize(
    ("module", "number"),
    [
        (nn.LSTM(5, 4, batch_first=True), 4),
        (nn.GRU(5, 4, num_layers=2, batch_first=True, bidirectional=True), 3),
        (nn.RNN(5, 4, batch_first=True, bias=False), 1),
    ],
    ids=str,
)
def test_recurrent_layers(module, number):
    assert macs_of(module, (1, 6, 5)) == gates(module, 6, 5, 4, number)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_an_lstm_with_projection():
    assert macs_of(nn.LSTM(5, 4, proj_size=2, batch_first=True), (1, 6, 5)) == 6 * (4 * 4 * (5 + 2) + 4 * 2)


RECURRENT = [
    (nn.LSTM(5, 4, batch_first=True), "lstm", 864),
    (nn.LSTM(5, 4, num_layers=2, batch_first=True, bidirectional=True), "lstm", 2 * 864 + 6 * 2 * 4 * 4 * (8 + 4)),
    (nn.GRU(5, 4, batch_first=True), "gru", 648),
    (nn.RNN(5, 4, batch_first=True, nonlinearity="relu"), "rnn_relu", 216),
]


@pytest.mark.parametrize(("module", "function", "expected"), RECURRENT, ids=str)
def test_functional_recurrent_layers_count_as_modules(module, function, expected):
    """Traced into, the module is a call of ``torch.lstm`` and the like, with its weights as a list."""
    example = (torch.zeros(1, 6, 5),)
    assert count(called(module), example).macs == expected
    report = count(capture(module, example), example)
    assert [row.operator for row in report.rows if row.macs] == [function]
    assert (report.macs, report.uncounted) == (expected, ())


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_functional_recurrent_cells_count_as_modules(cell, gates):
    report = count(capture(cell(5, 4), (torch.zeros(3, 5),)), (torch.zeros(3, 5),))
    assert (report.macs, report.uncounted) == (gates * 4 * (5 + 4), ())


@pytest.mark.parametrize(("module", "function", "gates"), [(nn.LSTM, "lstm", 4), (nn.GRU, "gru", 3)])
def test_of_packed_sequences_only_the_steps_that_are_there_count(module, function, gates):
    layer = module(5, 4)
    packed = pack_padded_sequence(torch.zeros(6, 2, 5), torch.tensor([6, 4]))
    steps = 10 * gates * 4 * (5 + 4)
    recurrent = find_formula(function).macs
    assert recurrent(Call((packed,), {}, None, layer)) == steps
    state = torch.zeros(1, 2, 4)
    state = [state, state] if function == "lstm" else state
    assert recurrent(Call((packed.data, packed.batch_sizes, state, [*layer.parameters()], True), {}, None)) == steps


def test_recurrent_cells():
    assert macs_of(nn.LSTMCell(5, 4), (3, 5)) == 4 * 4 * (5 + 4)
    assert macs_of(nn.GRUCell(5, 4), (3, 5)) == 3 * 4 * (5 + 4)


def test_bilinear_takes_the_first_product_first():
    assert macs_of(nn.Bilinear(3, 4, 5), (1, 3), (1, 4)) == 5 * (3 * 4 + 4)


def test_embedding_costs_nothing():
    report = count(symbolic_trace(nn.Embedding(10, 4)), (torch.zeros(1, 3, dtype=torch.long),))
    assert (report.macs, report.elementwise, report.uncounted) == (0, 0, ())


PRODUCTS = [
    (torch.matmul, (2, 3, 4), (2, 4, 5), 2 * 3 * 5 * 4),
    (lambda a, b: a @ b, (2, 1, 3, 4), (6, 4, 5), 2 * 6 * 3 * 5 * 4),
    (operator.matmul, (3, 4), (4,), 3 * 4),
    (torch.matmul, (4,), (4, 5), 5 * 4),
    (torch.matmul, (4,), (4,), 4),
    (torch.mm, (3, 4), (4, 5), 60),
    (torch.bmm, (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: a.bmm(b), (2, 3, 4), (2, 4, 5), 120),
    (torch.mv, (3, 4), (4,), 12),
    (torch.dot, (4,), (4,), 4),
    (torch.inner, (3, 4), (5, 4), 60),
    (lambda a, b: torch.addmm(torch.zeros(5), a, b), (3, 4), (4, 5), 60),
    (lambda a, b: torch.addmv(torch.zeros(3), a, b), (3, 4), (4,), 12),
    (lambda a, b: torch.baddbmm(torch.zeros(3, 5), a, b), (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: torch.addbmm(torch.zeros(3, 5), a, b), (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: torch.addmm(input=torch.zeros(5), mat1=a, mat2=b), (3, 4), (4, 5), 60),
    (lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), (2, 3, 4), (3, 4, 5), 2 * 12 * 5),
    (F.linear, (2, 3, 4), (5, 4), 2 * 3 * 4 * 5),
    (lambda a, b: F.conv2d(a, b, padding="same"), (1, 2, 4, 4), (3, 2, 3, 3), 16 * 3 * 2 * 9),
    (torch.conv_transpose2d, (1, 2, 4, 4), (2, 3, 3, 3), 32 * 3 * 9),
    (torch.ops.aten.mm.default, (3, 4), (4, 5), 60),
    (torch.ops.aten.conv2d.default, (1, 2, 4, 4), (3, 2, 3, 3), 4 * 3 * 2 * 9),
    (
        lambda a, b: torch.ops.aten.convolution.default(a, b, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
        (1, 2, 4, 4),
        (2, 3, 3, 3),
        32 * 3 * 9,
    ),
    (
        lambda a, b: torch.ops.aten.convolution.default(a, b, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        (1, 2, 4, 4),
        (3, 2, 3, 3),
        4 * 3 * 2 * 9,
    ),
    (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: torch.einsum("bij,bjk->bik", [a, b]), (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: torch.einsum("b i j, b j k", a, b), (2, 3, 4), (2, 4, 5), 120),
    (lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), (2, 7, 3, 4), (7, 4, 5), 2 * 7 * 60),
    (lambda a, b: torch.einsum("bi,bi->bi", a, b), (2, 3), (2, 3), 0),
    (lambda a, b: torch.einsum("i,j->ij", a, b), (3,), (4,), 0),
    (lambda a, b: torch.einsum("ij,jk->k", a, b), (3, 4), (4, 5), 4 * 5),  # i is summed before
    (lambda a, b: torch.einsum("ij,jk,kl->il", a, b, torch.zeros(5, 6)), (3, 4), (4, 5), 3 * 4 * 5 + 3 * 5 * 6),
]


@pytest.mark.parametrize(("function", "first", "second", "expected"), PRODUCTS)
def test_products_equal_the_formula(function, first, second, expected):
    class Product(nn.Module):
        def forward(self, a, b):
            return function(a, b)

    graph_module = symbolic_trace(Product())
    examples = (torch.zeros(first), torch.zeros(second))
    report = _whole(graph_module, examples)
    assert report.macs == expected
    assert not report.uncounted


def _whole(graph_module, examples):
    """Count with a first input of batch one, so that nothing is divided."""
    graph = graph_module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("unit")
    graph_module.recompile()
    return count(graph_module, (torch.zeros(1), *examples))


@pytest.mark.parametrize(("function", "first", "second", "expected"), PRODUCTS)
def test_products_agree_with_torch(function, first, second, expected):
    with FlopCounterMode(display=False) as counter:
        function(torch.zeros(first), torch.zeros(second))
    # torch's counter knows no vectors, and counts outer products by einsum as it finds them
    if counter.get_total_flops():
        assert counter.get_total_flops() == 2 * expected


def test_attention_is_two_products():
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    report = count(graph_of(attend), tuple(torch.zeros(1, 2, *rest) for rest in ((5, 4), (7, 4), (7, 6))))
    assert report.macs == 2 * 5 * 7 * 4 + 2 * 5 * 7 * 6


def test_a_causal_mask_is_not_credited():
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    assert count(graph_of(attend), (torch.zeros(1, 2, 5, 4),) * 3).macs == 2 * 2 * 5 * 5 * 4


def test_einsum_with_sublists_counts_as_the_products_it_is_made_of():
    def multiply(a, b):
        return torch.einsum(a, [0, 1], b, [1, 2], [0, 2])

    report = count(graph_of(multiply), (torch.zeros(3, 4), torch.zeros(4, 5)))
    assert (report.macs, report.uncounted) == (4 * 5, ())


def test_a_formula_registered_twice_is_an_error():
    with pytest.raises(InputError) as caught:
        register_formula("Conv3d")(lambda call: 0)
    assert str(caught.value) == "the operator 'conv' has a formula already; each operator has exactly one."
