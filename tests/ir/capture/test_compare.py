"""The comparison of a model with a graph finds what differs, where, and leaves the model as it was."""

import copy

import pytest
import torch
from torch import nn

import chainfx
from chainfx.ir.capture.compare import Difference, find_difference, source_of
from tests.nets import small_resnet


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x).relu()) + x.mean()


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), Inner(), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.inner(self.first(x)) * 2)


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def captured(net, x=X):
    return chainfx.capture(net, (x,))


def edited(net, pattern, change, x=X):
    """The graph of a network with the node of that name changed."""
    graph_module = copy.deepcopy(captured(net, x))
    node = next(node for node in graph_module.graph.nodes if node.name == pattern)
    change(node)
    graph_module.recompile()
    return graph_module


@pytest.fixture
def outer():
    torch.manual_seed(0)
    return Outer().eval()


@pytest.mark.parametrize("make", [Outer, lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))])
def test_equal_is_equal(make):
    net = make().train()
    assert find_difference(net, captured(net), (X,), sizes_free=True) is None
    assert net.training


def test_a_network_for_images_is_compared_at_other_sizes_too():
    net, x = small_resnet(), torch.randn(2, 1, 8, 8)
    graph_module = captured(net, x)
    assert find_difference(net, graph_module, (x,), sizes_free=True) is None
    pool = next(node for node in graph_module.graph.nodes if node.name == "pool")
    with graph_module.graph.inserting_before(pool):
        cut = graph_module.graph.call_method("narrow", (pool.args[0], 2, 0, 4))
    pool.update_arg(0, cut)
    graph_module.recompile()
    found = find_difference(net, graph_module, (x,), sizes_free=True)
    assert found == Difference("pool", "called again, on inputs of shape (3, 1, 12, 12)")
    assert find_difference(net, graph_module, (x,), sizes_free=False) is None


class Picky(nn.Module):
    """A convolution that may take one size of image only."""

    def __init__(self, size=None):
        super().__init__()
        self.conv, self.size = nn.Conv2d(3, 4, 3), size

    def forward(self, x):
        assert self.size in (None, x.shape[-1])
        return self.conv(x)


@pytest.mark.parametrize(("size", "last"), [(None, (3, 3, 64, 64)), (128, (3, 3, 128, 128))])
def test_one_later_call_tells_of_batches_and_sizes(size, last):
    net, x = Picky(size).eval(), torch.randn(5, 3, 128, 128)
    graph_module = captured(net.conv, x)
    seen = []
    net.conv.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert find_difference(net, graph_module, (x,), sizes_free=True) is None
    assert seen == [(2, 4, 126, 126), (last[0], 4, last[2] - 2, last[3] - 2)]


def test_the_module_whose_inputs_agree_is_named(outer):
    graph_module = edited(outer, "mean", lambda node: node.replace_all_uses_with(node.args[0]))
    assert find_difference(outer, graph_module, (X,), sizes_free=True) == Difference("inner", "on the example inputs")


def test_code_between_modules_belongs_to_the_model(outer):
    graph_module = edited(outer, "mul", lambda node: node.update_arg(1, 3))
    assert find_difference(outer, graph_module, (X,), sizes_free=True) == Difference("", "on the example inputs")


def test_a_number_of_the_example_batch_is_found():
    class Scaled(nn.Module):
        def forward(self, x):
            return x / x.shape[0]

    net = Scaled().eval()
    graph_module = edited(net, "truediv", lambda node: node.update_arg(1, 2))
    found = find_difference(net, graph_module, (X,), sizes_free=True)
    assert found == Difference("", "called again, on inputs of shape (3, 5)")


def test_what_the_graph_raises_is_told(outer):
    graph_module = edited(outer, "mul", lambda node: node.update_arg(1, "text"))
    found = find_difference(outer, graph_module, (X,), sizes_free=True)
    assert (found.path, found.what) == ("", "on the example inputs")
    assert found.error.startswith("TypeError: ")


def test_state_from_call_to_call_is_found_and_put_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.seen = 0, []
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x):
            self.calls += 1
            self.seen.append(x)
            self.total.add_(1)
            return x * self.calls

    net = Counts()
    torch.manual_seed(0)
    identity = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    x = identity.graph.placeholder("x")
    identity.graph.output(identity.graph.call_function(torch.mul, (x, 1)))
    identity.recompile()
    found = find_difference(net, identity, (X,), sizes_free=True)
    assert found == Difference("", "called again, on inputs of shape (3, 5)")
    assert (net.calls, net.seen) == (0, [])
    assert torch.equal(net.total, torch.zeros(4))


def test_random_operations_agree_from_one_seed():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    net = Noisy()
    state = torch.random.get_rng_state()
    assert find_difference(net, captured(net), (X,), sizes_free=True) is None
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_compared_too(value):
    class Logs(nn.Module):
        def forward(self, x):
            return x * value

    net = Logs()
    assert find_difference(net, captured(net), (X,), sizes_free=True) is None
    other = edited(net, "mul", lambda node: node.update_arg(1, 1.0))
    assert find_difference(net, other, (X,), sizes_free=True) is not None


def test_outputs_by_name_and_missing_ones():
    class Named(nn.Module):
        def forward(self, x):
            return {"loss": None, "logits": x * 2}

    net = Named()
    assert find_difference(net, captured(net), (X,), sizes_free=True) is None


def test_a_model_that_takes_one_batch_size_only():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(5, 4) + 1

    net, x = Fixed(), torch.randn(5, 4)
    assert find_difference(net, captured(net, x), (x,), sizes_free=True) is None


def test_where_a_forward_stands():
    place = source_of(Inner())
    assert place.startswith("Inner.forward at ")
    assert place.partition(".py:")[2].isdecimal()
