"""LowRank: exact at full rank, errors as the dropped singular values say, MACs as predicted, and what stays whole."""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import edit, layers_of
from chainfx.ir.graph.checks import verify
from chainfx.passes import Fuse, Granularity, Kind, PassContext, PruneChannels, Quantize
from chainfx.passes.base import TuneRequest
from chainfx.passes.factoring.factors import SpatialFactors, TuckerFactors, dropped, factors_of, rank_for
from chainfx.passes.low_rank import LowRank
from chainfx.passes.prune_weights import PruneWeights
from chainfx.testing import check_pass
from chainfx.training import Trainer, digits
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer

X = (2, 6, 9, 8)
CONVOLUTIONS = {
    "plain": (nn.Conv2d(6, 8, 3), X),
    "everything": (nn.Conv2d(6, 8, (3, 5), stride=(2, 3), padding=(1, 4), dilation=(2, 1)), X),
    "same": (nn.Conv2d(6, 8, 3, padding="same", dilation=2, bias=False), X),
    "one row": (nn.Conv2d(6, 8, (1, 3), stride=2, padding=(0, 1)), X),
    "one column": (nn.Conv2d(6, 8, (3, 1), stride=2, padding=(1, 0)), X),
    "pointwise": (nn.Conv2d(6, 8, 1, stride=2, padding=1), X),
    "more outputs than the kernel sees": (nn.Conv2d(1, 16, 2), (2, 1, 9, 8)),
    "1d": (nn.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 9)),
    "3d": (nn.Conv3d(3, 8, 3, stride=(1, 2, 1), padding=(1, 0, 2)), (2, 3, 5, 6, 4)),
    "linear": (nn.Linear(6, 8), (2, 5, 6)),
}


def applied(one, model, x, *, graph_module=None):
    graph_module = graph_of(model, x) if graph_module is None else copy.deepcopy(graph_module)
    result = one.apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    verify(result.graph_module, (x,))
    return result.graph_module, result


def weights(graph_module):
    return {name: tuple(value.shape) for name, value in graph_module.named_parameters() if value.dim() > 1}


def low_rank_weight(layer, rank):
    """The layer in float64 with a weight of exactly that rank in every unfolding."""
    layer = layer.double()
    out, inputs, *kernel = layer.weight.shape
    parts = [torch.randn(rank, size, dtype=torch.float64) for size in (out, inputs, *kernel)]
    value = parts[0]
    for part in parts[1:]:
        value = value[..., None] * part.view(rank, *[1] * (value.dim() - 1), -1)
    layer.weight.data.copy_(value.sum(0))
    return layer


@pytest.mark.parametrize("scheme", ["tucker", "spatial"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_layer_of_low_rank_becomes_its_factors_exactly(name, scheme):
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[name]
    model = low_rank_weight(copy.deepcopy(layer), 1)
    x = torch.randn(shape, dtype=torch.float64)
    graph_module, result = applied(LowRank(energy=1.0, scheme=scheme), model, x)
    assert result.modified
    torch.testing.assert_close(graph_module(x), model(x), atol=1e-10, rtol=1e-10)
    assert count(graph_module, (x,)).macs < count(graph_of(model, x), (x,)).macs


@pytest.mark.parametrize("kind", [TuckerFactors, SpatialFactors])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_full_rank_is_exact(name, kind):
    torch.manual_seed(0)
    layer, _ = CONVOLUTIONS[name]
    weight = torch.randn_like(layer.weight, dtype=torch.float64)
    if kind is TuckerFactors and weight.dim() == 2:
        return
    factors = kind(weight)
    for choice in factors.choices(1.0):
        torch.testing.assert_close(_product(factors, choice), weight, atol=1e-10, rtol=1e-10)


def _product(factors, choice):
    """The weight that a chain of factors stands for: out of one layer, into the next."""
    whole, *rest = factors.weights(choice)
    for tensor in rest:
        whole = torch.einsum("or...,ri...->oi...", tensor, whole)
    return whole


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1, 1), (10, 6, 3, 3), (10, 6, 1, 5), (4, 3, 2, 3, 4)])
@pytest.mark.parametrize("energy", [0.3, 0.7, 0.95])
def test_the_error_is_the_root_of_the_dropped_squares(shape, energy):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = SpatialFactors(weight)
    (choice,) = factors.choices(energy)
    rank = choice[0].shape[0]
    error = float((_product(factors, choice) - weight).square().sum())
    assert error == pytest.approx(factors.dropped[rank], rel=1e-10)
    total = float(weight.square().sum())
    assert factors.dropped[0] == pytest.approx(total)
    assert error <= (1 - energy) * total < factors.dropped[rank - 1]


@pytest.mark.parametrize("shape", [(10, 6, 3, 3), (40, 3, 3, 3), (8, 12, 3), (4, 5, 2, 3, 2)])
@pytest.mark.parametrize("energy", [0.3, 0.7, 0.95])
def test_the_error_of_tucker_lies_between_the_larger_and_the_sum_of_what_both_sides_drop(shape, energy):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = TuckerFactors(weight)
    total = float(weight.square().sum())
    for choice in factors.choices(energy):
        out, inside = next(factor.shape[:2] for factor in choice if all(factor.axes))
        parts = [
            factors.dropped[0][out] if out < shape[0] else 0.0,
            factors.dropped[1][inside] if inside < shape[1] else 0.0,
        ]
        error = float((_product(factors, choice) - weight).square().sum())
        assert max(parts) * (1 - 1e-10) <= error <= sum(parts) * (1 + 1e-10)
        assert max(parts) <= (1 - energy) * total


def test_the_rank_for_an_energy():
    left_out = dropped(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert left_out.tolist() == [14, 5, 1, 0, 0]
    assert [rank_for(left_out, energy) for energy in (0, 0.5, 0.64, 0.65, 0.92, 0.93, 1)] == [1, 1, 1, 2, 2, 3, 3]
    assert rank_for(dropped(torch.tensor([2.0, 2.0])), 0.5) == 1
    assert rank_for(dropped(torch.zeros(4)), 0.5) == 4


@pytest.mark.parametrize(
    ("kernel", "first", "second", "strides"),
    [
        ((3, 5), (3, 1), (1, 5), ((2, 1), (1, 3))),
        ((1, 5), (1, 5), (1, 1), ((2, 3), (1, 1))),
        ((1, 1), (1, 1), (1, 1), ((2, 3), (1, 1))),
    ],
)
def test_where_a_kernel_is_cut_and_who_strides(kernel, first, second, strides):
    torch.manual_seed(0)
    model = low_rank_weight(nn.Conv2d(6, 8, kernel, stride=(2, 3)), 1)
    graph_module, _ = applied(LowRank(energy=1.0, scheme="spatial"), model, torch.randn(X, dtype=torch.float64))
    assert list(weights(graph_module).values()) == [(1, 6, *first), (8, 1, *second)]
    assert tuple(layer.options[0] for layer in layers_of(graph_module)) == strides


def separable():
    """Depthwise layers that stay whole, pointwise ones with strides, a kernel wider than high."""
    return nn.Sequential(
        nn.Conv2d(3, 12, (1, 3), stride=2, padding=(0, 1)),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 24, 1, stride=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


NETS = {
    "resnet": lambda: (small_resnet((1, 1), width=8), images()),
    "separable": lambda: (separable().eval(), images(2, 10, 3)),
}


@pytest.mark.parametrize("scheme", ["tucker", "spatial"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_share_of_macs_is_reached_and_not_by_more_than_a_step(net, share, scheme):
    torch.manual_seed(0)
    model, x = NETS[net]()
    whole = graph_of(model, x)
    before = count(whole, (x,)).macs
    graph_module, result = applied(LowRank(macs=share, scheme=scheme), None, x, graph_module=whole)
    after, energy = count(graph_module, (x,)).macs, result.profile["energy"]
    assert Fraction(after, before) <= Fraction(share)
    more, _ = applied(LowRank(energy=min(1.0, energy + 1e-9), scheme=scheme), None, x, graph_module=whole)
    assert count(more, (x,)).macs > share * before
    again, _ = applied(LowRank(energy=energy, scheme=scheme), None, x, graph_module=whole)
    assert count(again, (x,)).macs == after


def test_a_linear_layer_on_windows_counts_every_position():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.last(torch.relu(self.first(x.reshape(-1, 5, 16))).reshape(x.shape).mean((1, 2)))

    x = torch.randn(3, 4, 5, 16)
    graph_module, _ = applied(LowRank(macs=0.6), Windows(), x)
    assert count(graph_module, (x,)).macs <= 0.6 * (20 * 256 + 64)


def test_new_weights_lie_under_the_old_path_and_the_rest_keeps_its_names():
    model = small_resnet()
    graph_module, result = applied(LowRank(energy=0.5), model, images())
    found = weights(graph_module)
    assert result.profile["ranks"]["stages.1.1.conv2.weight"] == [3, 4]
    assert {k: v for k, v in found.items() if k.startswith("stages.1.1.conv2")} == {
        "stages.1.1.conv2.0.weight": (3, 8, 1, 1),
        "stages.1.1.conv2.1.weight": (4, 3, 3, 3),
        "stages.1.1.conv2.2.weight": (8, 4, 1, 1),
    }
    assert found["fc.0.weight"][0] == found["fc.1.weight"][1]
    assert "fc.weight" not in found and "fc.bias" in graph_module.state_dict()
    assert [layer.name for layer in layers_of(graph_module)][-2:] == ["fc_0", "fc"]
    assert result.tune == TuneRequest()


def test_bare_parameters_and_taken_names():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(6, 6))
            self.inner = nn.Linear(6, 6)
            self.inner.add_module("0", nn.BatchNorm1d(6))

        def forward(self, x):
            return self.inner(getattr(self.inner, "0")(F.linear(x, self.matrix)))

    model = Bare().eval()
    nn.init.ones_(model.inner.weight)
    graph_module, _ = applied(LowRank(energy=0.9), model, torch.randn(2, 6))
    assert sorted(weights(graph_module)) == [
        "inner.factors.0.weight",
        "inner.factors.1.weight",
        "matrix_factors.0.weight",
        "matrix_factors.1.weight",
    ]
    root, _ = applied(LowRank(energy=0.9), nn.Linear(6, 6), torch.randn(2, 6))
    assert root(torch.randn(2, 6)).shape == (2, 6)


def test_a_second_pass_cuts_the_factors():
    x = images()
    once, _ = applied(LowRank(energy=0.9), small_resnet((1, 1)), x)
    twice, result = applied(LowRank(energy=0.5), None, x, graph_module=once)
    assert result.modified
    assert count(twice, (x,)).macs < count(once, (x,)).macs


class Tied(nn.Module):
    """A layer called twice, one that shares its weight with an embedding, one whose weight is added up as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 10)
        self.inner, self.summed = nn.Linear(10, 10), nn.Linear(10, 10)
        self.last = nn.Linear(10, 12, bias=False)

    def forward(self, x):
        x = self.embedding(x)
        x = self.summed(self.inner(torch.relu(self.inner(x))))
        return self.last(x) + self.summed.weight.sum()


def test_a_shared_weight_stays_shared_and_one_that_others_read_stays_whole():
    torch.manual_seed(0)
    model = Tied().double()
    for layer in (model.inner, model.summed, model.last):
        low_rank_weight(layer, 2)
    model.embedding.weight = model.last.weight
    x = torch.randint(0, 12, (2, 3))
    graph_module, result = applied(LowRank(energy=1.0), model, x)
    torch.testing.assert_close(graph_module(x), model(x), atol=1e-10, rtol=1e-10)
    assert {name for name in weights(graph_module) if "inner" in name} == {"inner.0.weight", "inner.1.weight"}
    assert {item.node: item.reason for item in result.skipped} == {
        "embedding": "module Embedding is no convolution or linear layer",
        "embedding_1": "its weight is also read by 'embedding'",
        "summed.weight": "'add' reads it, not as the weight of a convolution or linear layer",
        "summed": "its weight is also read by 'sum_1'",
    }


def test_what_is_left_alone_and_why():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(20, 3)
    )
    x = torch.randn(1, 4, 4, 4)
    _, result = applied(LowRank(energy=0.999999, skip=("4",)), model.eval(), x)
    reasons = {item.node: item.reason for item in result.skipped}
    assert reasons == {
        "_4": "a pattern of skip matches it",
        "_0": "it is a convolution of 2 groups",
        "_1": "it is a transposed convolution",
        "_2": "it has full rank at this energy",
    }
    assert (result.modified, result.tune, result.profile) == (False, None, {})
    _, result = applied(LowRank(energy=0.9, skip=("4",)), model.eval(), x)
    assert result.skipped[-1].reason.startswith("at rank ") and result.skipped[-1].reason.endswith(" times its MACs")


def test_quantized_and_masked_layers_stay_whole():
    x = images()
    quantized, _ = applied(Quantize(4, 4, first=None, last=None), small_resnet((1, 1)), x)
    graph_module, result = applied(LowRank(energy=0.3), None, x, graph_module=quantized)
    assert str(graph_module.graph) == str(quantized.graph)
    assert result.skipped[0].reason == "its weight is computed by 'quantize_weight' (quantized or masked)"
    only_inputs, _ = applied(Quantize(32, 4, first=None, last=None), small_resnet((1, 1)), x)
    _, result = applied(LowRank(energy=0.3), None, x, graph_module=only_inputs)
    assert {item.reason for item in result.skipped} == {"its input is quantized"}
    masked, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    _, result = applied(LowRank(energy=0.3), None, x, graph_module=masked)
    assert result.skipped[0].reason == "its weight is computed by 'mask_weight' (quantized or masked)"


def test_what_is_computed_once_stays_whole():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(9, 9))
            self.inner, self.last = nn.Linear(9, 9), nn.Linear(9, 9)

        def forward(self, x):
            return self.last(x + self.inner(self.table).mean(0))

    _, result = applied(LowRank(macs=0.5), Constant(), torch.randn(2, 9))
    assert {item.node: item.reason for item in result.skipped}["inner"] == "it is computed once, not for every sample"
    assert list(result.profile["ranks"]) == ["last.weight"]


def test_frozen_parameters_stay_frozen():
    graph_module, _ = applied(LowRank(energy=0.5), small_resnet((1, 1)).requires_grad_(False), images())
    assert not any(parameter.requires_grad for parameter in graph_module.parameters())


def test_it_trains():
    x = images(8)
    graph_module, _ = applied(LowRank(energy=0.5), small_resnet((1, 1)), x)
    graph_module.train()
    F.cross_entropy(graph_module(x), torch.arange(8) % 10).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in graph_module.parameters())


def test_later_passes_and_saving(tmp_path):
    x = images(4)
    passes = [LowRank(macs=0.7), PruneChannels(0.3), Quantize(4, 8), PruneWeights(0.5), Fuse()]
    small = chainfx.compile(small_resnet(width=8), passes, example_inputs=x, trainer=FakeTrainer(x), order="given")
    macs = [record.after.macs for record in small.report.records]
    assert macs[1] <= 0.7 * macs[0] and macs[2] < macs[1]
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x), small(x))


@pytest.mark.parametrize("one", [LowRank(energy=0.6), LowRank(macs=0.5, scheme="spatial")], ids=str)
def test_the_contract(one):
    assert check_pass(one, small_resnet((1, 1)), (images(),), targets=10).modified


def test_info():
    info = LowRank.info
    assert (info.name, info.kind, info.granularity) == ("low-rank", Kind.STATIC, Granularity.LAYER)
    assert info.establishes == frozenset() and info.needs == frozenset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of energy, macs and price; none is given."),
        ({"energy": 0.5, "macs": 0.5}, "give exactly one of energy, macs and price; energy and macs are given."),
        ({"price": 0, "scheme": "spatial"}, "price=0 is out of range; use a number above 0."),
        ({"price": 1, "scheme": "spatial", "pull": 0}, "pull=0 is out of range; use a number above 0."),
        ({"price": 1, "scheme": "spatial", "rounds": 0}, "rounds=0 is out of range; use an integer of at least 1."),
        ({"macs": 0.5, "rounds": 2}, "rounds=2 is for ranks that are learnt; give price, or leave it out."),
        ({"energy": 0.0}, "energy=0.0 is out of range; use a share above 0 and up to 1."),
        ({"energy": 1.5}, "energy=1.5 is out of range; use a share above 0 and up to 1."),
        ({"macs": 1.0}, "macs=1.0 is out of range; use a share above 0 and below 1."),
        ({"macs": 0.5, "scheme": "cp"}, "scheme='cp' is out of range; use 'tucker' or 'spatial'."),
        ({"macs": 0.5, "skip": "fc"}, "skip='fc' is out of range; use a tuple of patterns."),
        ({"macs": 0.5, "keep": None}, "keep=None is out of range; use true or false."),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(PassError) as caught:
        LowRank(**options)
    assert str(caught.value) == f"low-rank: {message}"


def test_a_share_that_cannot_be_reached_names_the_least():
    with pytest.raises(PassError) as caught:
        applied(LowRank(macs=0.02), small_resnet((1, 1)), images())
    text = str(caught.value)
    assert text.startswith("low-rank: macs=0.02 cannot be reached: with rank 1 everywhere 0.")
    least = float(text.partition("use at least ")[2].partition(" ")[0])
    applied(LowRank(macs=least), small_resnet((1, 1)), images())


def test_weights_that_are_not_finite():
    model = small_resnet((1, 1))
    model.conv1.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(PassError) as caught:
        applied(LowRank(energy=0.5), model, images())
    assert str(caught.value) == (
        "low-rank: the weight 'conv1.weight' is not finite everywhere; train the network again before factorising."
    )


@pytest.fixture
def spectra():
    """Two linear layers with singular values 8, 4, 2, 1, ...; together they take 2 x 16 x 16 MACs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False)).double()
    for layer, largest in ((model[0], 8.0), (model[2], 80.0)):
        left, right = (torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q for _ in range(2))
        values = largest * 0.5 ** torch.arange(16, dtype=torch.float64)
        layer.weight.data.copy_(left * values @ right)
    return model, torch.randn(3, 16, dtype=torch.float64)


def learnt(pull, price, largest):
    """The rank of least cost: rank r takes 32 r of all 512 MACs, and drops the squares of all values behind."""
    squares = [(largest * 0.5**place) ** 2 for place in range(16)]
    costs = {rank: price * 32 * rank / 512 + pull / 2 * sum(squares[rank:]) for rank in range(1, 17)}
    best = min(costs, key=costs.get)
    return best if costs[best] < price * 256 / 512 else None


@pytest.mark.parametrize(("price", "pull"), [(0.1, 0.01), (1.0, 0.01), (10.0, 0.01), (1.0, 1.0)])
def test_learnt_ranks_are_those_of_least_price_and_error(spectra, price, pull):
    _, result = applied(LowRank(price=price, pull=pull, scheme="spatial", keep=True), *spectra)
    expected = {"0.weight": learnt(pull, price, 8.0), "2.weight": learnt(pull, price, 80.0)}
    assert expected["0.weight"] is None or expected["0.weight"] < (expected["2.weight"] or 16)
    assert result.profile["ranks"] == {name: [rank] for name, rank in expected.items() if rank}
    whole = [name for name, rank in expected.items() if not rank]
    assert [item.reason for item in result.skipped] == ["no rank of it is worth its error at this price"] * len(whole)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (20, 2, 3, 1), (1, 4, 3, 3), (4, 1, 3, 3), (5, 6)])
@pytest.mark.parametrize("scheme", ["tucker", "spatial"])
@pytest.mark.parametrize("weight", [0.5, 30.0])
def test_learnt_factors_are_the_best_of_all_ranks(shape, scheme, weight):
    """Against each choice built and compared with the weight; a factor costs two or three times its size."""
    kernel = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = factors_of(kernel, scheme)

    def cost(choice):
        return sum(math.prod(factor.shape) * (2 if all(factor.axes) else 3) for factor in choice)

    if isinstance(factors, TuckerFactors):
        ranks = [range(1, basis.shape[1] + 1) for basis in factors._bases]
        pairs = [pair for pair in itertools.product(*ranks) if pair != shape[:2]]
        choices = [factors._factors(*pair) for pair in pairs]
    else:
        choices = [factors.of_rank(rank) for rank in range(1, len(factors.dropped))]
    sums = [cost(each) + weight * float((factors.product(each) - kernel).square().sum()) for each in choices]
    best, least = factors.cheapest(cost, weight)
    assert least == pytest.approx(min(sums)) and least == pytest.approx(sums[choices.index(best)])


@pytest.mark.parametrize("scheme", ["tucker", "spatial"])
def test_convolutions_learn_their_ranks_and_are_drawn_to_the_product_of_their_factors(scheme):
    graph_module, x = graph_of(small_resnet((1, 1)), images()), images()
    one = LowRank(price=2.0, rounds=2, pull=0.05, scheme=scheme, keep=True)
    drawn = one.apply(graph_module, PassContext(graph_module, (x,), tunes=True))
    (penalty,) = drawn.tune.penalties
    for path, (target, _) in penalty.targets.items():
        edit.set_tensor(graph_module, path, target)
    last = one.apply(graph_module, PassContext(graph_module, (x,), tunes=True, round=1))
    verify(last.graph_module, (x,))
    ranks = last.profile["ranks"]
    assert {len(each) for name, each in ranks.items() if "conv2" in name} == ({2} if scheme == "tucker" else {1})


def test_rounds_draw_the_weights_to_the_nearest_of_their_rank_before_they_are_cut(spectra):
    model, x = spectra
    graph_module, one = graph_of(model, x), LowRank(price=1.0, rounds=2, pull=0.01, scheme="spatial")
    context = PassContext(graph_module, (x,), tunes=True)
    before = str(graph_module.graph)
    result = one.apply(graph_module, context)
    assert not result.modified and str(result.graph_module.graph) == before
    (penalty,) = result.tune.penalties
    dropped = 0.0
    for largest in (8.0, 80.0):
        rank = learnt(0.01, 1.0, largest) or 16
        dropped += sum((largest * 0.5**place) ** 2 for place in range(rank, 16))
    assert float(penalty.term(graph_module)().detach()) == pytest.approx(0.01 / 2 * dropped)
    last = one.apply(graph_module, PassContext(graph_module, (x,), tunes=True, round=1))
    expected = {"0.weight": learnt(0.04, 1.0, 8.0), "2.weight": learnt(0.04, 1.0, 80.0)}
    assert last.profile["ranks"] == {name: [rank] for name, rank in expected.items() if rank}
    assert last.modified and last.tune.penalties == ()
    with pytest.raises(PassError) as caught:
        applied(one, model, x)
    assert str(caught.value) == (
        "low-rank: rounds=2 works while the network is tuned, and there is no trainer; give trainer=..., or leave "
        "rounds out."
    )


@pytest.mark.slow
def test_a_rank_is_learnt_where_none_would_pay_at_once():
    data = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    trainer, stages = Trainer(data, epochs=3, fine_tune_scale=1.0), []
    before = trainer.fit(net)
    for rounds, pull in ((1, 0.64), (4, 0.01)):  # the last round has the same pull
        chain = [LowRank(price=1.0, rounds=rounds, pull=pull, scheme="spatial")]
        inputs = data.example_inputs(2)
        chainfx.compile(net, chain, example_inputs=inputs, trainer=trainer, on_stage=stages.append, warn_drop=None)
    at_once, learnt = (each.record for each in stages[1::2])
    assert "ranks" not in at_once.profile
    assert learnt.profile["rounds"][3]["ranks"]["1.weight"][0] < 20
    assert learnt.metric > before - 0.02
