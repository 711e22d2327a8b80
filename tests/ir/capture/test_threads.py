"""Captures in some threads while others use torch: nobody may notice."""

import copy
import math
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from chainfx.ir.capture import capture
from chainfx.ir.graph import ops
from tests.budget import mostly_slow


class Zeros(nn.Module):
    """Pads the features of every sample with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        return self.inner(torch.cat([x, torch.zeros(n, 3)], dim=1))


class Positions(nn.Module):
    """Adds an embedding of the position to every element, and a token in front."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.embedding = nn.Embedding(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, length = x.size(0), x.size(1)
        tokens = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        return F.relu(tokens + self.embedding(torch.arange(length + 1)))


ZEROS = torch.zeros
CASES = (Zeros, torch.randn(2, 2)), (Positions, torch.randn(2, 3, 4))


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def run_all(*works: Callable[[], None]) -> list[BaseException]:
    """Run every function in a thread of its own; returns what they raise."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("rounds", mostly_slow([50, 250], [50]))
def test_captures_disturb_nobody(quick_switches: None, rounds: int) -> None:
    """Two threads capture, a third infers, compiles, copies and pickles: 200 rounds in all, or 1,000."""
    models = [(make().eval(), x) for make, x in CASES]
    alone = [str(capture(model, (x,)).graph) for model, x in models]
    bystander, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 3, 6, 6)
    expected = bystander(images)

    def capturing(index: int) -> Callable[[], None]:
        def work() -> None:
            model, x = models[index]
            for _ in range(rounds):
                assert str(capture(model, (x,)).graph) == alone[index]

        return work

    def others() -> None:
        for index in range(2 * rounds):
            assert torch.equal(bystander(images), expected)
            assert torch.equal(copy.deepcopy(bystander)(images), expected)
            assert torch.zeros is ZEROS
            assert pickle.loads(pickle.dumps(torch.zeros)) is ZEROS
            if index % 25 == 0:
                compiled = torch.compile(lambda x: bystander(x) + torch.zeros(1), backend="eager", fullgraph=True)
                assert torch.equal(compiled(images), expected)

    assert run_all(capturing(0), capturing(1), others) == []


class During(nn.Module):
    """Runs a function while it is traced."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        self.function()
        return self.inner(torch.cat([x, torch.zeros(x.size(0), 3)], dim=1))


def elsewhere(work: Callable[[], None]) -> Callable[[], None]:
    """A function that runs ``work`` in another thread, waits for it, and raises what it raises."""

    def function() -> None:
        for error in run_all(work):
            raise error

    return function


def test_other_threads_see_torch_as_ever_while_a_model_is_traced() -> None:
    seen: list[object] = []

    def look() -> None:
        seen.extend((torch.zeros, vars(torch)["zeros"], torch.backends.mha.get_fastpath_enabled(), math.sqrt))
        seen.append(Graph().call_function(ops.mask_weight).target)
        assert type(torch.zeros(2, 3)) is Tensor
        assert math.sqrt(4.0) == 2

    torch.backends.mha.set_fastpath_enabled(True)
    before = (torch.zeros, torch.zeros, True, math.sqrt, ops.mask_weight)
    graph_module = capture(During(elsewhere(look)), (torch.randn(2, 2),))
    assert "zeros" in [node.name for node in graph_module.graph.nodes]
    assert len(seen) >= 2 * len(before)
    assert set(seen) == set(before)


def test_other_threads_run_and_copy_the_very_model_that_is_traced() -> None:
    x = torch.randn(2, 2)

    def use() -> None:
        inner = model.inner
        wanted = F.linear(torch.ones(1, 5), weight, bias)
        assert inner.weight is weight
        for one in (inner, copy.deepcopy(inner), pickle.loads(pickle.dumps(inner))):
            assert torch.equal(one(torch.ones(1, 5)), wanted)
        for one in (copy.deepcopy(inner), pickle.loads(pickle.dumps(inner))):
            assert type(one._parameters) is dict
            assert vars(one).get("_compiled_call_impl") is None

    model = During(elsewhere(use)).eval()
    weight, bias = model.inner.weight, model.inner.bias
    attributes = {name: vars(module).copy() for name, module in model.named_modules()}
    capture(model, (x,))
    assert {name: vars(module) for name, module in model.named_modules()} == attributes


def test_functions_wrapped_for_fx_are_recorded_in_the_tracing_thread_only() -> None:
    def use() -> None:
        assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
        assert pickle.loads(pickle.dumps(doubled))(torch.ones(1)) == 2

    class Doubling(During):
        def forward(self, x: Tensor) -> Tensor:
            return doubled(super().forward(x))

    original = doubled
    graph = capture(Doubling(elsewhere(use)), (torch.randn(2, 2),)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"][-1] is original
    assert doubled is original


def doubled(x: Tensor) -> Tensor:
    """Twice ``x``, one node for torch.fx."""
    return 2 * x


torch.fx.wrap("doubled")


def test_an_error_leaves_no_hook_and_no_lock() -> None:
    def fail() -> None:
        raise ValueError("not today")

    model, (make, x) = During(fail), CASES[0]
    attributes = vars(model.inner).copy()
    with pytest.raises(Exception, match="not today"):
        capture(model, (torch.randn(2, 2),))
    assert vars(model.inner) == attributes
    assert torch.zeros is ZEROS
    assert type(torch) is ModuleType
    assert run_all(lambda: capture(make(), (x,)) and None) == []


def test_a_capture_within_a_capture() -> None:
    (make, x), graphs = CASES[1], []
    model = make()
    graph = capture(During(lambda: graphs.append(str(capture(model, (x,)).graph))), (torch.randn(2, 2),)).graph
    assert set(graphs) == {str(capture(model, (x,)).graph)}
    assert "zeros" in [node.name for node in graph.nodes]


def test_a_second_capture_waits_for_the_first() -> None:
    (make, x), finished, during = CASES[0], threading.Event(), []

    def second() -> None:
        capture(make(), (x,))
        finished.set()

    thread = threading.Thread(target=second)

    def first() -> None:
        if not thread.ident:
            thread.start()
        during.append(finished.wait(0.2))

    capture(During(first), (torch.randn(2, 2),))
    thread.join(10)
    assert during
    assert not any(during)
    assert finished.is_set()
