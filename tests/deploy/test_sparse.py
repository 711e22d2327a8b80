"""Sparse products of linear layers that are mostly zeros."""

import copy
import pickle

import pytest
import torch
from torch import nn

import chainfx
from chainfx.deploy import CompressedModel, Machine
from chainfx.deploy.sparse import SparseLinear, largest_batch
from chainfx.errors import InputError
from chainfx.passes import PassContext, PruneWeights, Quantize, ShareWeights
from chainfx.scheduler import ChainReport
from tests.deploy.integers.nets import NARROW, rows_of, run

MKL = Machine("AVX2", kernels=True, saturates=True, sparse=True)
NO_MKL = Machine("NEON", kernels=False, saturates=True, sparse=False)
pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")


def applied(net, x, *passes):
    graph_module = chainfx.capture(net.eval(), (x,))
    for one in passes:
        one.apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    return graph_module


@pytest.fixture(scope="module")
def x():
    return torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(x):
    """Two linear layers, of which the first is large enough, with 95 % zeros."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return applied(net, x, PruneWeights(0.95), ShareWeights(4))


@pytest.fixture(scope="module")
def small(network, x):
    return CompressedModel(network, (x,), None, machine=MKL)


@pytest.mark.parametrize(
    ("weights", "zeros", "most"),
    [
        (2**20, 2**20, 256),
        (2**20 - 1, 2**20 - 1, 0),
        (2_000_000, 1_800_000, 256),
        (2_000_000, 1_799_999, 0),
        (10_000_000, 8_000_000, 16),
        (10_000_000, 7_999_999, 0),
    ],
)
def test_the_rule(weights, zeros, most):
    assert largest_batch(weights, zeros) == most


def test_each_layer_says_what_it_runs_on(small):
    assert small.engine == "sparse"
    assert rows_of(small) == {
        "0": ("sparse", "95.0% of its weights are zero; dense for more than 256 samples at once"),
        "2": ("float", "its weight is not quantized"),
    }


@pytest.mark.parametrize("count", [0, 1, 2, 256])
def test_sparse_products_are_the_dense_ones_up_to_rounding(small, x, count):
    exact = run(copy.deepcopy(small).double().lower("float"), x[:count].double())
    answer = run(small, x[:count])
    assert answer.is_contiguous()
    torch.testing.assert_close(answer.double(), exact, atol=1e-6, rtol=1e-5)


def test_large_batches_are_dense(small, x):
    assert torch.equal(run(small, x[:257]), run(small.lower("float"), x[:257]))
    assert not torch.equal(run(small, x[:64]), run(small.lower("float"), x[:64]))


@pytest.mark.parametrize("shape", [(512,), (2, 3, 512), (1, 1, 512), (2, 0, 512)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_takes_what_a_linear_layer_takes(shape, biased):
    torch.manual_seed(0)
    weight = torch.randn(256, 512) * (torch.rand(256, 512) > 0.95)
    bias, x = torch.randn(256) if biased else None, torch.randn(shape)
    answer = SparseLinear(weight, 256)(x, weight, bias)
    torch.testing.assert_close(answer, nn.functional.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_a_weight_that_is_read_twice_has_one_sparse_form(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.square = nn.Linear(1024, 1024)

        def forward(self, x):
            return self.square(self.square(x).relu())

    small = CompressedModel(applied(Twice(), x[:2], PruneWeights(0.95)), (x[:2],), None, machine=MKL)
    torch.testing.assert_close(run(small, x), run(small.lower("float"), x), atol=1e-5, rtol=1e-5)
    assert sum(isinstance(module, SparseLinear) for module in small.modules()) == 1


def test_gradients_and_autocast_are_those_of_the_dense_layer(small, x):
    inputs = x[:4].clone().requires_grad_()
    small(inputs).sum().backward()
    expected = x[:4].clone().requires_grad_()
    small.lower("float")(expected).sum().backward()
    assert torch.equal(inputs.grad, expected.grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small(x[:4]), small.lower("float")(x[:4]))


def test_copies_pickles_and_files_are_the_same_network(network, x, tmp_path):
    small = CompressedModel(copy.deepcopy(network), (x,), ChainReport("", ()))
    small.save(tmp_path)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), chainfx.load(tmp_path), small.lower("auto")):
        assert other.engine == "sparse"
        assert torch.equal(run(other, x[:5]), run(small, x[:5]))
    assert chainfx.load(tmp_path, engine="float").engine == "float"
    assert copy.deepcopy(small).double().engine == "float"


def test_sparse_where_nothing_pays_is_one_sentence(network, x):
    with pytest.raises(InputError) as caught:
        CompressedModel(applied(nn.Linear(1024, 10), x), (x,), None, engine="sparse", machine=MKL)
    assert str(caught.value) == (
        "engine='sparse' was asked for, but no layer pays as a sparse product here: that takes a linear layer in "
        "float32 on a CPU with MKL, of at least 1,048,576 weights of which 90 % are zero; use engine='auto' or "
        "'float'."
    )
    assert CompressedModel(network, (x,), None, machine=NO_MKL).engine == "float"


@pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")
def test_sparse_layers_stand_beside_integer_ones(x):
    net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
    passes = PruneWeights(0.95), Quantize(7, 7, first=32, last=7)
    graph_module = applied(net, x, *passes)
    mixed = CompressedModel(graph_module, (x,), None, machine=NARROW)
    assert mixed.engine == "int8"
    assert [row.engine for row in mixed.lowering if row.operator == "linear"] == ["sparse", "int8", "int8"]
    alone = CompressedModel(graph_module, (x,), None, engine="sparse", machine=NARROW)
    assert rows_of(alone)["2"] == ("float", "engine='sparse' was asked for")
    for each in (mixed, alone):
        torch.testing.assert_close(run(each, x[:8]), run(each.lower("float"), x[:8]), atol=1e-2, rtol=1e-2)


def test_a_segment_is_one_graph_for_torch_compile_at_all_batches(small, x):
    compiled = torch.compile(copy.deepcopy(small.segments[0]), fullgraph=True, backend="eager", dynamic=True)
    for count in (8, 1, 300):
        assert torch.equal(run(compiled, x[:count]), run(small, x[:count]))


@pytest.mark.slow
def test_inductor_gives_the_same_answers(small, x):
    compiled = copy.deepcopy(small)
    compiled.compile()
    for count in (1, 8, 300):
        torch.testing.assert_close(run(compiled, x[:count]), run(small, x[:count]), atol=1e-5, rtol=1e-5)
