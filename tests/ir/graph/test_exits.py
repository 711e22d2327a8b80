import pytest
import torch
from torch import nn

from chainfx.errors import GraphError, InputError
from chainfx.ir.graph import ops
from chainfx.ir.graph.checks import verify
from chainfx.ir.graph.exits import Answer, choose, exit_rates, exits_of, leaving, segments
from chainfx.ir.graph.shapes import propagate_shapes, shape_of
from tests.nets import as_read


class TwoExits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.h1, self.h2, self.h3 = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x):
        x = torch.relu(self.a(x))
        one = ops.exit_point(self.h1(x), "one", 0.5, "max-softmax")
        x = torch.relu(self.b(x))
        two = ops.exit_point(self.h2(x), "two", 0.25, "max-softmax")
        return one, two, self.h3(x)


@pytest.fixture
def graph_module():
    torch.manual_seed(0)
    return torch.fx.symbolic_trace(TwoExits())


def test_segments_hold_every_compute_node_once_in_graph_order(graph_module):
    parts = segments(graph_module)
    assert [[node.name for node in part] for part in parts] == [
        ["a", "relu", "h1", "exit_point"],
        ["b", "relu_1", "h2", "exit_point_1"],
        ["h3"],
    ]
    assert [(mark.name, mark.threshold) for mark in exits_of(graph_module)] == [("one", 0.5), ("two", 0.25)]


def test_what_changes_a_tensor_in_place_is_in_the_segment_of_that_tensor():
    class Changes(TwoExits):
        def forward(self, x):
            x = self.a(x)
            x[:, 0].mul_(2)  # what the exit reads, though nobody uses what this gives
            return ops.exit_point(self.h1(x), "one", 0.5, "max-softmax"), self.h3(x)

    parts = segments(torch.fx.symbolic_trace(Changes()))
    assert [[node.name for node in part] for part in parts] == [["a", "getitem", "mul_", "h1", "exit_point"], ["h3"]]


def test_each_sample_takes_the_first_exit_that_is_sure(graph_module):
    sure, unsure = [9.0, 0, 0, 0], [0.0, 0, 0, 0]
    logits = (torch.tensor([sure, unsure, unsure]), torch.tensor([sure, sure, unsure]) * -1, torch.zeros(3, 4))
    exits = exits_of(graph_module)
    assert choose(logits, exits).tolist() == [0, 1, 1]
    for mark in exits:
        mark.node.update_arg(2, 0.3)
    assert choose(logits, exits_of(graph_module)).tolist() == [0, 1, 2]


def test_rates_are_shares_of_all_samples_and_the_answer_follows_them(graph_module):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    outputs = graph_module(x)
    index = choose(outputs, exits_of(graph_module))
    rates = exit_rates(graph_module, [((x[:20],), None), ((x[20:],), None)])
    assert rates == {
        "one": pytest.approx((index == 0).float().mean()),
        "two": pytest.approx((index == 1).float().mean()),
    }
    answers = Answer(graph_module)(x)
    for row in range(50):
        assert torch.equal(answers[row], outputs[index[row]][row])


def test_a_confidence_that_is_no_number_never_leaves(graph_module):
    nan = float("nan")
    assert leaving(torch.tensor([0.2, 0.5, nan, 0.7]), 0.5).tolist() == [False, True, False, True]
    assert leaving(torch.tensor([nan]), 0.0).tolist() == [False]
    for mark in exits_of(graph_module):
        mark.node.update_arg(2, 0.0)
    bad, good = [nan] * 4, [1.0, 0, 0, 0]
    logits = (torch.tensor([bad, bad, good]), torch.tensor([bad, good, good]), torch.zeros(3, 4))
    for criterion in ops.CRITERIA:
        for mark in exits_of(graph_module):
            mark.node.update_arg(3, criterion)
        answers = tuple(as_read(each, criterion) for each in logits)
        assert choose(answers, exits_of(graph_module)).tolist() == [2, 1, 0]


def test_an_exit_answers_as_the_network_does_and_its_criterion_reads_that(graph_module):
    x = torch.zeros(2, 4)
    with pytest.raises(GraphError) as caught:
        verify(mend(graph_module, criterion="token-margin"), (x,))
    assert str(caught.value) == (
        "exit 'two' answers with shape (2, 4), but its criterion 'token-margin' reads 3 dimensions; mend the pass that "
        "made it."
    )
    node = exits_of(mend(graph_module, criterion="margin"))[0].node
    with graph_module.graph.inserting_before(node):
        node.update_arg(0, graph_module.graph.call_function(torch.narrow, (node.args[0], 1, 0, 3)))
    with pytest.raises(GraphError) as caught:
        verify(graph_module, (x,))
    assert str(caught.value) == (
        "exit 'one' answers with shape (2, 3), the network with (2, 4); mend the pass that made it."
    )


def test_the_answer_and_the_rates_send_a_sample_that_is_no_number_to_the_end(graph_module):
    for mark in exits_of(graph_module):
        mark.node.update_arg(2, 0.0)
    graph_module.recompile()
    x = torch.ones(4, 4)
    x[1] = float("nan")
    outputs = graph_module(x)
    answers = Answer(graph_module)(x)
    assert torch.equal(answers[[0, 2, 3]], outputs[0][[0, 2, 3]]) and torch.isnan(answers[1]).all()
    assert exit_rates(graph_module, [((x,), None)]) == {"one": 0.75, "two": 0.0}


def mend(graph_module, **literals):
    node = exits_of(graph_module)[1].node
    for place, name in enumerate(("name", "threshold", "criterion"), start=1):
        if name in literals:
            node.update_arg(place, literals[name])
    return graph_module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "one"}, "exit names must differ, but they are one, one; mend the pass that made them."),
        (
            {"criterion": "luck"},
            "node 'exit_point_1': criterion must be one of entropy, margin, max-sigmoid, max-softmax, "
            "pixel-entropy, pixel-margin, pixel-max-softmax, token-entropy, token-margin, token-max-softmax, "
            "but its arguments are ('two', 0.25, 'luck'); mend the pass.",
        ),
        (
            {"threshold": "high"},
            "node 'exit_point_1': threshold must be a literal number, "
            "but its arguments are ('two', 'high', 'max-softmax'); mend the pass.",
        ),
    ],
)
def test_a_graph_that_breaks_a_rule_of_exits_is_refused(graph_module, change, message):
    x = torch.randn(2, 4)
    verify(graph_module, (x,))
    with pytest.raises(GraphError) as caught:
        verify(mend(graph_module, **change), (x,))
    assert str(caught.value) == message


def test_a_network_must_return_its_exits_in_order(graph_module):
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    one, two, last = output.args[0]
    output.args = ((two, one, last),)
    with pytest.raises(GraphError, match=r"^a network with exits returns them in order and then its final output, "):
        verify(graph_module, (torch.randn(2, 4),))


def test_dialect_ops_with_missing_or_wrong_literals_are_refused():
    class Wrong(nn.Module):
        def __init__(self, bits):
            super().__init__()
            self.weight, self.bits = nn.Parameter(torch.randn(3, 4)), bits

        def forward(self, x):
            return nn.functional.linear(x, ops.quantize_weight(self.weight, self.bits, "uniform", 0))

    with pytest.raises(GraphError) as caught:
        verify(torch.fx.symbolic_trace(Wrong(9)), (torch.randn(2, 4),))
    assert str(caught.value) == (
        "node 'quantize_weight': bits must be a literal 1..8, but its arguments are (9, 'uniform', 0); mend the pass."
    )
    graph_module = torch.fx.symbolic_trace(Wrong(4))
    node = graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight)[0]
    node.args = node.args[:2]
    with pytest.raises(GraphError) as caught:
        verify(graph_module, (torch.randn(2, 4),))
    assert str(caught.value) == (
        "node 'quantize_weight' must give all 4 arguments by position; mend the pass that made it."
    )


def test_shapes_are_known_without_data_and_without_running_anything():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(2, 3, 9, 9))
    before = model[1].running_mean.clone()
    graph_module = torch.fx.symbolic_trace(model.to("cpu").train())
    propagate_shapes(graph_module, (torch.empty(2, 3, 9, 9, device="meta"),))
    assert [shape_of(node) for node in graph_module.graph.nodes if node.op == "call_module"] == [
        (2, 8, 4, 4),
        (2, 8, 4, 4),
        (2, 8, 4, 4),
        (2, 128),
        (2, 5),
    ]
    assert torch.equal(model[1].running_mean, before)


def test_a_device_written_in_the_graph_is_no_obstacle():
    class Positions(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.size(1), device=torch.device("cpu"))

    graph_module = torch.fx.symbolic_trace(Positions())
    propagate_shapes(graph_module, (torch.randn(2, 7),))
    assert shape_of(graph_module.graph.find_nodes(op="output")[0].args[0]) == (2, 7)


def test_a_wrong_number_or_shape_of_inputs_is_one_clear_error():
    graph_module = torch.fx.symbolic_trace(nn.Linear(4, 2))
    with pytest.raises(InputError) as caught:
        propagate_shapes(graph_module, ())
    assert str(caught.value) == (
        "the network takes 1 inputs, but example_inputs has 0; give a tuple with one tensor for each of input_1."
    )
    with pytest.raises(InputError, match=r"^the network does not accept example_inputs of shape \(2, 5\): "):
        propagate_shapes(graph_module, (torch.randn(2, 5),))
    with pytest.raises(InputError) as caught:
        shape_of(next(iter(torch.fx.symbolic_trace(nn.Linear(4, 2)).graph.nodes)))
    assert str(caught.value) == "node 'input_1' has no known tensor shape; call propagate_shapes first."
