"""Graph optimization: what goes, what stays and why, equal answers, and nothing left for a second time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.ir.graph import facts_of, verify
from chainfx.passes import EarlyExit, LowRank, OptimizeGraph, PassContext, PruneWeights, Quantize
from chainfx.testing import check_pass
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.does = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.does(self, x)


def net(forward, **layers):
    """A network whose parameters and norms all matter."""
    torch.manual_seed(0)
    model = Net(forward, **layers).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def optimized(model, x, first=()):
    """The result of the pass in float64, which is checked for equal answers, validity and idempotence."""
    model, x = model.double(), x.double() if x.is_floating_point() else x
    graph_module = graph_of(model, x)
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    for one in first:
        graph_module = one.apply(copy.deepcopy(graph_module), context).graph_module
    with torch.no_grad():
        before, facts = graph_module(x), facts_of(graph_module)
        result = OptimizeGraph().apply(copy.deepcopy(graph_module), context)
        verify(result.graph_module, (x,))
        torch.testing.assert_close(result.graph_module(x), before, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.graph_module(x), before, rtol=1e-9, atol=1e-9)  # it has no memory
    assert facts.difference(facts_of(result.graph_module)) == ()
    again = OptimizeGraph().apply(copy.deepcopy(result.graph_module), context)
    assert not again.modified and str(again.graph_module.graph) == str(result.graph_module.graph)
    return result


X, IMAGES = torch.randn(3, 4), torch.randn(2, 3, 8, 8)


def conv(*sizes, **options):
    return nn.Conv2d(*sizes, **options)


CHANGED = {
    "a constant": (
        {"constants": 1},
        lambda s, x: x + (torch.arange(4) * s.p).sin(),
        {"p": nn.Parameter(torch.ones(4))},
        X,
    ),
    "a computed weight": (
        {"constants": 2},
        lambda s, x: F.linear(x, s.p * 2) + s.p.sum(),  # read twice, so that capture does not fold the product
        {"p": nn.Parameter(torch.ones(5, 4))},
        X,
    ),
    "modules that do nothing": (
        {"identities": 2},
        lambda s, x: s.b(s.a(x).sin()),
        {"a": nn.Dropout(0.5), "b": nn.AlphaDropout(0.1)},
        X,
    ),
    "functional dropout": (
        {"identities": 2},
        lambda s, x: F.dropout(F.dropout(x, 0.5, s.training), 0.5, False).sin(),
        {},
        X,
    ),
    "neutral arithmetic": ({"identities": 5}, lambda s, x: ((((x + 0) - 0) * 1) / 1) ** 1 + 2, {}, X),
    "relu twice": ({"identities": 1}, lambda s, x: torch.relu(s.r(x)) + 1, {"r": nn.ReLU()}, X),
    "the same twice": ({"duplicates": 2}, lambda s, x: (x.sin() + 1) * (x.sin() + 1), {}, X),
    "the same slice twice": ({"duplicates": 1}, lambda s, x: x[:, 1:3].sin() + x[:, 1:3].cos(), {}, X),
    "a norm before two linear layers": (
        {"norms": 1},
        lambda s, x: _both(s, s.n(x)),
        {"n": nn.LayerNorm(4), "a": nn.Linear(4, 2), "b": nn.Linear(4, 2, bias=False)},
        X,
    ),
    "a norm without a shift": ({"norms": 1}, lambda s, x: s.a(s.n(x)), {"n": nn.RMSNorm(4), "a": nn.Linear(4, 2)}, X),
    "a number times a layer": ({"scales": 2}, lambda s, x: 3 * s.a(x) / 2, {"a": nn.Linear(4, 2)}, X),
    "a scale of each channel": (
        {"scales": 1},
        lambda s, x: s.a(x) * s.p,
        {"a": conv(3, 4, 3), "p": nn.Parameter(torch.ones(4, 1, 1))},
        IMAGES,
    ),
    "two linear layers": ({"pairs": 1}, lambda s, x: s.b(s.a(x)), {"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}, X),
    "k x k and 1x1": (
        {"pairs": 1},
        lambda s, x: s.b(s.a(x)),
        {"a": conv(3, 8, 3, padding=1, dilation=2), "b": conv(8, 2, 1, stride=2)},
        IMAGES,
    ),
    "1x1 without a bias and k x k with padding": (
        {"pairs": 1},
        lambda s, x: s.b(s.a(x)),
        {"a": conv(3, 8, 1, bias=False), "b": conv(8, 2, 3, padding=1, stride=2)},
        IMAGES,
    ),
    "1x1 with a bias and k x k without padding": (
        {"pairs": 1},
        lambda s, x: s.b(s.a(x)),
        {"a": conv(3, 8, 1), "b": conv(8, 2, 3, dilation=2)},
        IMAGES,
    ),
    "three layers": (
        {"pairs": 2},
        lambda s, x: s.c(s.b(s.a(x))),
        {"a": nn.Linear(4, 9), "b": nn.Linear(9, 9), "c": nn.Linear(9, 2)},
        X,
    ),
    "one rewrite after another": (
        {"identities": 2, "norms": 1, "scales": 1, "pairs": 1},
        lambda s, x: s.b(s.d(s.a(s.n(x)) * 2 + 0)),
        {"n": nn.LayerNorm(4), "a": nn.Linear(4, 8), "d": nn.Dropout(0.1), "b": nn.Linear(8, 2)},
        X,
    ),
}


def _both(s, x):
    return s.a(x) + s.b(x)


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_rewritten(name):
    profile, forward, layers, x = CHANGED[name]
    result = optimized(net(forward, **layers), x)
    assert result.profile == profile and result.modified
    assert result.skipped == ()


def _changes_a_copy(s, x):
    y = x * 1
    y.add_(2)
    return x + y


def _changes_between(s, x):
    y = x.sin()
    first = y.cos()
    y.add_(1)
    return first + y.cos()


def _changes_a_constant(s, x):
    y = torch.arange(4.0, device=x.device)[1:3]
    y.add_(1)
    return x[:, :2] + y


def _norm_read_twice(s, x):
    y = s.n(x)
    return s.a(y) + y[:, :2]


KEPT = {
    "a copy that is changed": (_changes_a_copy, {}, X),
    "a value that changes between": (_changes_between, {}, X),
    "a constant that is changed": (_changes_a_constant, {}, X),
    "random values": (lambda s, x: x + torch.randn(4).mul(0), {}, X),
    "a number that makes another type": (lambda s, x: x + 0.0, {}, torch.arange(4)),
    "a large constant of a small one": (
        lambda s, x: x.sum() + s.p.expand(9000, 4),
        {"p": nn.Parameter(torch.ones(4))},
        X,
    ),
    "a norm that something else reads": (_norm_read_twice, {"n": nn.LayerNorm(4), "a": nn.Linear(4, 2)}, X),
    "a norm called twice": (
        lambda s, x: s.a(s.n(x)) + s.b(s.n(x + 1)),
        {"n": nn.LayerNorm(4), "a": nn.Linear(4, 2), "b": nn.Linear(4, 2)},
        X,
    ),
    "a scale along another axis": (
        lambda s, x: s.a(x) * s.p,
        {"a": conv(3, 6, 3), "p": nn.Parameter(torch.ones(6))},
        IMAGES,
    ),
    "zero times a layer": (lambda s, x: s.a(x) * 0, {"a": nn.Linear(4, 2)}, X),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_left_alone(name):
    forward, layers, x = KEPT[name]
    result = optimized(net(forward, **layers), x)
    assert result.profile == {} and not result.modified


PAIRS = {
    "more would be multiplied": (
        {"a": nn.Linear(4, 2), "b": nn.Linear(2, 4)},
        X,
        "one layer in place of it and",
    ),
    "padding sees a bias": ({"a": conv(3, 8, 1), "b": conv(8, 2, 3, padding=1)}, IMAGES, "its padding sees zeros, not"),
    "padding of the 1x1": (
        {"a": conv(3, 8, 3), "b": conv(8, 2, 1, padding=1)},
        IMAGES,
        "a convolution of 1x1",
    ),
    "two kernels": (
        {"a": conv(3, 8, 3), "b": conv(8, 2, 3)},
        IMAGES,
        "neither of the two",
    ),
    "a stride before k x k": ({"a": conv(3, 8, 1, stride=2), "b": conv(8, 2, 3)}, IMAGES, "neither of the two"),
    "groups": (
        {"a": conv(3, 9, 1, groups=3), "b": conv(9, 2, 1)},
        IMAGES,
        "'a' is a layer of another kind",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_why_two_layers_stay_two(name):
    layers, x, reason = PAIRS[name]
    (skipped,) = optimized(net(lambda s, x: s.b(s.a(x)), **layers), x).skipped
    assert skipped.node == "b" and skipped.reason.startswith(f"not merged: {reason}")


@pytest.mark.parametrize("first", [Quantize(4, 4, scheme="uniform"), PruneWeights(0.5)], ids=["quantized", "masked"])
def test_facts_stay(first):
    def forward(s, x):
        return s.b(s.a(s.n(x)) * 2)

    layers = {"n": nn.LayerNorm(4), "a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}
    result = optimized(net(forward, **layers), X, [first])
    assert result.profile == {}


def test_a_shared_weight_and_an_output_read_twice_stay():
    def twice(s, x):
        y = s.a(x)
        return s.b(y) + s.c(y)

    layers = {"a": nn.Linear(4, 9), "b": nn.Linear(9, 2), "c": nn.Linear(9, 2)}
    assert [s.reason for s in optimized(net(twice, **layers), X).skipped] == [
        "not merged: the output of 'a' is also read elsewhere"
    ] * 2
    tied = optimized(net(lambda s, x: s.b(s.a(s.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 1)), X)
    assert {s.reason for s in tied.skipped} >= {"not merged: a tensor of 'a_1' is also read elsewhere, or computed"}


def test_it_does_not_undo_a_factorization_and_keeps_exits():
    x = images(4)
    graph_module = graph_of(small_resnet(), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=True)
    ranked = LowRank(macs=0.7).apply(copy.deepcopy(graph_module), context).graph_module
    assert OptimizeGraph().apply(ranked, context).profile == {}
    exits = EarlyExit(exits=1, threshold=0.5).apply(copy.deepcopy(graph_module), context).graph_module
    before = exits(x)
    result = OptimizeGraph().apply(exits, context)
    verify(result.graph_module, (x,))
    torch.testing.assert_close(result.graph_module(x), before)


def test_it_goes_after_training_in_a_chain():
    x = images(4)
    model = nn.Sequential(small_resnet(), nn.Dropout(0.1), nn.Linear(10, 16), nn.Linear(16, 4)).eval()
    passes = [OptimizeGraph(), Quantize(8, 8, skip=("2", "3"))]
    small = chainfx.compile(model, passes, example_inputs=x, trainer=FakeTrainer(x))
    assert [record.name for record in small.report.records] == ["original", "quantize", "optimize-graph"]
    assert small.report.records[-1].profile == {"identities": 1, "pairs": 1}
    assert check_pass(OptimizeGraph(), model, (x,)).modified


def test_an_optimized_network_is_saved_and_loaded(tmp_path):
    layers = {"n": nn.LayerNorm(4), "a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}
    model = net(lambda s, x: s.b(s.a(s.n(x + (torch.arange(4) * 2).sin()))), **layers)
    small = chainfx.compile(model, [OptimizeGraph()], example_inputs=X)
    assert small.report.records[-1].profile == {"constants": 1, "norms": 1, "pairs": 1}
    small.save(tmp_path)
    torch.testing.assert_close(chainfx.load(tmp_path)(X), model(X))


def test_what_nobody_reads_goes():
    graph_module = graph_of(nn.Linear(4, 2).eval(), X)
    (x,) = graph_module.graph.find_nodes(op="placeholder")
    with graph_module.graph.inserting_after(x):
        graph_module.graph.call_function(torch.sin, (x,))
    result = OptimizeGraph().apply(graph_module, PassContext(graph_module, (X,)))
    assert result.profile == {"dead nodes": 1} and result.modified


def test_a_tensor_that_two_nodes_read_is_one_tensor():
    model = net(lambda s, x: (x * s.p).sin() + (x * s.p).cos(), p=nn.Parameter(torch.ones(4)))
    graph_module = graph_of(model, X)
    second = [node for node in graph_module.graph.nodes if node.name.startswith("mul")][1]
    with graph_module.graph.inserting_before(second):
        second.update_arg(1, graph_module.graph.get_attr("p"))
    result = OptimizeGraph().apply(graph_module, PassContext(graph_module, (X,)))
    assert result.profile == {"duplicates": 1}
    torch.testing.assert_close(result.graph_module(X), model(X))
