"""Every importance against its formula, on networks small enough to compute it by hand or by brute force."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule

from chainfx.errors import InputError, PassError
from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.passes import Quantize
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning import weights
from chainfx.passes.pruning.criteria import _slopes
from chainfx.passes.pruning.importance import (
    GroupSlices,
    get_importance,
    importance_names,
    register_importance,
    slices_of,
)
from chainfx.passes.pruning.measurements import SAMPLES, Evidence, gather, reading_dims, shrunk_covariance
from chainfx.passes.pruning.weights import Weights
from tests.nets import images, small_resnet, warm


class Block(nn.Module):
    """One group of 6 units: two layers make it, two read it, one with a kernel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.c, self.d = nn.Conv2d(6, 2, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)) + self.b(x))
        return self.c(x).mean((2, 3)) + self.d(x.mean((2, 3)))


def prepared(model=None, batches=2):
    torch.manual_seed(0)
    model = warm(model or Block())
    x = [(images(16, 6, 3, seed=i),) for i in range(batches)]
    return copy.deepcopy(capture(model, x[0], compare=False)), x


def scored(name, graph_module, batches):
    analysis = analyse_channels(graph_module, batches[0])
    criterion = get_importance(name)
    generator = torch.Generator().manual_seed(0)
    evidence = gather(graph_module, batches, criterion.needs, generator)
    slices = slices_of(Weights(graph_module), analysis.groups, evidence, generator)
    return [criterion.score(each) for each in slices], analysis


def weight(graph_module, path):
    return graph_module.get_parameter(f"{path}.weight").detach().double()


def activation_read(graph_module, x, name):
    """What the layer at node ``name`` reads."""
    seen = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, n):
            seen[n] = super().run_node(n)
            return seen[n]

    with torch.no_grad():
        Record(graph_module).run(x)
    (node,) = (n for n in graph_module.graph.nodes if n.name == name)
    return seen[node.args[0]].double()


@pytest.mark.parametrize(("name", "order"), [("l1", 1), ("l2", 2)])
def test_norms_are_over_the_whole_group(name, order):
    graph_module, batches = prepared()
    ((score,), _) = scored(name, graph_module, batches)
    parts = [weight(graph_module, "a"), weight(graph_module, "b")]
    parts += [weight(graph_module, "c").transpose(0, 1), weight(graph_module, "d").t()]
    rows = torch.cat([part.flatten(1) for part in parts], 1)
    torch.testing.assert_close(score, rows.norm(order, dim=1), rtol=1e-6, atol=1e-6)


def test_norms_of_channels_that_are_joined_and_turned():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x).flip(1)], 1))

    graph_module, batches = prepared(Joined())
    scores, _ = scored("l2", graph_module, batches)
    read = weight(graph_module, "c").transpose(0, 1)
    for score, path, part in zip(scores, "ab", (read[:4], read[4:].flip(0)), strict=True):
        rows = torch.cat([weight(graph_module, path).flatten(1), part.flatten(1)], 1)
        torch.testing.assert_close(score, rows.norm(dim=1), rtol=1e-6, atol=1e-6)


def test_a_criterion_may_change_what_it_gets():
    graph_module, batches = prepared()
    (group,) = analyse_channels(graph_module, batches[0]).groups
    (slices,) = slices_of(Weights(graph_module), [group], Evidence(), torch.Generator())
    for each in slices.slices:
        each.total(each.power_sum(2)).zero_()
        assert each.total(each.power_sum(2)).any()


def test_what_was_measured_is_of_what_is_read():
    graph_module, batches = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)))
    groups = analyse_channels(graph_module, batches[0]).groups
    evidence = gather(graph_module, batches, frozenset({"activity"}), torch.Generator())
    for slices in slices_of(Weights(graph_module), groups, evidence, torch.Generator()):
        assert {(each.role, each.mean is None) for each in slices.having("makes", "reads")} == {
            ("makes", True),
            ("reads", False),
        }


def weights_of(tensor):
    """Those of a network that has one parameter, ``w``, and does nothing."""
    graph_module = GraphModule(nn.Module(), Graph())
    graph_module.register_parameter("w", tensor)
    return Weights(graph_module)


@pytest.mark.parametrize("piece", [1, 20, 1000])
def test_sums_found_in_pieces_are_those_of_the_whole(piece, monkeypatch):
    monkeypatch.setattr(weights, "_PIECE", piece)
    torch.manual_seed(0)
    tensor = nn.Conv2d(3, 7, 2).double().weight
    found = weights_of(tensor)
    for order in (1, 2, 3):
        powers = tensor.abs().pow(order)
        torch.testing.assert_close(found.power_sum("w", 0, order), powers.sum((1, 2, 3)))
        torch.testing.assert_close(found.power_sum("w", 1, order), powers.sum((0, 2, 3)))


def test_sums_of_half_precision_do_not_overflow():
    found = weights_of(nn.Parameter(torch.full((4, 512), 300.0).half()))
    assert found.row_sums("w").tolist() == [300.0 * 512] * 4
    assert found.power_sum("w", 1, 2).tolist() == [300.0**2 * 4] * 512


def test_bn_is_the_mean_scale():
    graph_module, batches = prepared()
    ((score,), _) = scored("bn", graph_module, batches)
    torch.testing.assert_close(score, weight(graph_module, "norm").abs())


def test_fpgm_is_the_distance_to_the_other_filters():
    graph_module, batches = prepared()
    graph_module.get_parameter("a.weight").data[1] = (
        graph_module.get_parameter("a.weight").data[[0, 2, 3, 4, 5]].mean(0)
    )
    ((score,), _) = scored("fpgm", graph_module, batches)
    wanted = torch.zeros(6, dtype=torch.float64)
    for path, dim in (("a", 0), ("b", 0), ("c", 1), ("d", 1)):
        filters = weight(graph_module, path).movedim(dim, 0).flatten(1)
        wanted += torch.tensor([sum((f - g).norm() for g in filters) for f in filters])
    torch.testing.assert_close(score, wanted, rtol=1e-5, atol=1e-5)


def test_activation_is_the_energy_of_the_units_part_of_what_its_readers_sum():
    """Exact for inputs without spatial correlation but their mean: here constants, one for each sample."""
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 3))
    torch.manual_seed(0)
    batches = [(torch.randn(64, 3, 2, 2),) for _ in range(2)]
    graph_module = copy.deepcopy(capture(warm(model), batches[0]))
    ((score,), _) = scored("activation", graph_module, batches)
    read = torch.cat([activation_read(graph_module, x, "_3") for (x,) in batches])
    parts = read.square().mean(0) * weight(graph_module, "3").square().sum(0)
    torch.testing.assert_close(score, parts.view(5, 4).sum(1), rtol=1e-5, atol=1e-7)


def test_activation_lets_the_mean_add_up_over_a_kernel():
    """A channel that is constant in the middle of the image: its energy there is the square of the summed kernel."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3))
    torch.manual_seed(0)
    batches = [(torch.ones(4, 3, 5, 5),)]
    graph_module = copy.deepcopy(capture(warm(model), batches[0]))
    ((score,), _) = scored("activation", graph_module, batches)
    whole = graph_module(*batches[0])
    for unit in range(4):
        other = copy.deepcopy(graph_module)
        other.get_parameter("1.weight").data[:, unit] = 0
        lost = (whole - other(*batches[0])).double().square().sum(1).mean()
        torch.testing.assert_close(score[unit], lost, rtol=1e-4, atol=1e-7)


def test_reconstruction_removes_in_the_order_that_loses_least():
    """Brute force on a linear reader: what is lost is exact, and channels that cancel go together."""
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    x[:, 3] = 2 + 0.01 * torch.randn(256)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Identity(), nn.Linear(6, 4, bias=False))
    model[0].weight.data.copy_(torch.eye(6))
    model[0].weight.data[4] = model[0].weight.data[3]
    model[2].weight.data[:, 4] = -model[2].weight.data[:, 3] * 1.001
    graph_module = copy.deepcopy(capture(model, (x,)))
    ((score,), _) = scored("reconstruction", graph_module, [(x,)])
    weight = model[2].weight.detach().double()
    parts = (model[0](x).detach().double()[:, None, :] * weight).permute(2, 0, 1).flatten(1)
    order, lost, left = [], torch.zeros_like(parts[0]), set(range(6))
    while left:
        unit = min(left, key=lambda u: float((lost + parts[u]).square().sum()))
        order.append(unit)
        lost = lost + parts[unit]
        left.remove(unit)
    assert score.argsort().tolist() == order
    pair = [order.index(3), order.index(4)]
    assert abs(pair[0] - pair[1]) == 1
    torch.testing.assert_close(score[3], score[4], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(score.sum(), parts.sum(0).square().sum() / 256, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["reconstruction", "obs"])
def test_without_moments_the_parts_are_independent(name, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(32, 3)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Tanh(), nn.Linear(6, 4))
    balanced = [(torch.cat([x, -x]),)]
    graph_module = copy.deepcopy(capture(model.eval(), balanced[0]))
    ((activation,), _) = scored("activation", graph_module, balanced)
    ((together,), _) = scored(name, graph_module, balanced)
    monkeypatch.setattr("chainfx.passes.pruning.measurements._MOMENTS", 0)
    ((independent,), _) = scored(name, graph_module, balanced)
    torch.testing.assert_close(independent, activation, rtol=1e-5, atol=1e-7)
    assert (together - activation).abs().max() > 0.01


def lost_without(gone, readers):
    """The energy that readers (covariance, weights) lose without channels ``gone``, the others' weights refitted."""
    total, stays = 0.0, [u for u in range(len(readers[0][0])) if u not in gone]
    for covariance, rows in readers:
        left = covariance[gone][:, gone]
        if stays:
            cross = covariance[gone][:, stays]
            left = left - cross @ torch.linalg.solve(covariance[stays][:, stays], cross.t())
        total += float((rows[gone].t() @ left @ rows[gone]).trace())
    return total


@pytest.mark.parametrize("width", [6, 70])
def test_obs_removes_what_the_others_can_give(width):
    """Brute force over all units at every step; 70 are more than one block of changes."""
    torch.manual_seed(0)
    model = Block()
    if width > 6:
        model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    x = [(torch.randn(64, 3),)] if width > 6 else None
    graph_module, batches = (copy.deepcopy(capture(model.eval(), x[0])), x) if x else prepared()
    ((score,), _) = scored("obs", graph_module, batches)
    evidence = gather(graph_module, batches, frozenset({"activity", "moment"}), torch.Generator())
    readers = []
    for path, mean in evidence.mean.items():
        if len(mean) == width:
            covariance = shrunk_covariance(mean, evidence.moment[path], evidence.samples)
            readers.append((covariance, graph_module.get_parameter(path).detach().double().movedim(1, 0).flatten(1)))
    assert len(readers) == (1 if width > 6 else 2)
    order, added, lost = [], [], 0.0
    while len(order) < width:
        after = {u: lost_without([*order, u], readers) for u in range(width) if u not in order}
        order.append(min(after, key=after.get))
        added.append(after[order[-1]] - lost)
        lost = after[order[-1]]
    wanted = _slopes(torch.tensor(order), torch.tensor(added, dtype=torch.float64))
    torch.testing.assert_close(score, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("side", [2, 4, 9])
def test_obs_of_units_with_several_positions_adds_up_to_all_energy(side):
    """One block of changes, several, and blocks of a single unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * side**2, 3))
    batches = [(torch.randn(64, 3, side, side),)]
    graph_module = copy.deepcopy(capture(warm(model), batches[0]))
    ((score,), _) = scored("obs", graph_module, batches)
    evidence = gather(graph_module, batches, frozenset({"activity", "moment"}), torch.Generator())
    covariance = shrunk_covariance(evidence.mean["3.weight"], evidence.moment["3.weight"], 64)
    whole = lost_without(list(range(5 * side**2)), [(covariance, weight(graph_module, "3").t())])
    torch.testing.assert_close(score.sum(), torch.tensor(whole, dtype=torch.float64), rtol=1e-6, atol=0)


def test_obs_of_a_part_of_what_a_layer_reads():
    """The first group of a concatenation has other channels beside it; the second one is not read from the start."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.z = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

        def forward(self, x):
            return self.z(torch.cat([torch.tanh(self.a(x)), torch.relu(self.b(x))], 1))

    torch.manual_seed(0)
    batches = [(torch.randn(64, 3),)]
    graph_module = copy.deepcopy(capture(Beside().eval(), batches[0]))
    scores, _ = scored("obs", graph_module, batches)
    evidence = gather(graph_module, batches, frozenset({"activity", "moment"}), torch.Generator())
    covariance = shrunk_covariance(evidence.mean["z.weight"], evidence.moment["z.weight"], 64)
    rows = weight(graph_module, "z").t()
    for score, part in zip(scores, (slice(4), slice(4, 9)), strict=True):
        readers = [(covariance[part, part], rows[part])]
        first = min(range(len(score)), key=lambda u, r=readers: lost_without([u], r))
        assert int(score.argmin()) == first
        torch.testing.assert_close(
            score.sum().item(), lost_without(list(range(len(score))), readers), rtol=1e-6, atol=0
        )


def test_obs_finds_the_copy_that_norms_do_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = model[0].weight[1], model[0].bias[1]
        model[2].weight[:, 0] *= 0.3
    batches = [(torch.randn(512, 3),)]
    graph_module = copy.deepcopy(capture(model.eval(), batches[0]))
    ((score,), _) = scored("obs", graph_module, batches)
    assert int(score.argmin()) in (1, 2)
    ((plain,), _) = scored("activation", graph_module, batches)
    assert int(plain.argmin()) == 0


@pytest.mark.parametrize(("name", "moments"), [("activation", 9), ("reconstruction", 9), ("obs", 9), ("obs", 0)])
def test_a_layer_that_is_called_twice_counts_twice(name, moments, monkeypatch):
    class Twice(nn.Module):
        def __init__(self, calls):
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(3, 4), nn.Linear(4, 2), calls

        def forward(self, x):
            x = torch.tanh(self.a(x))
            return sum(self.b(x) for _ in range(self.calls))

    monkeypatch.setattr("chainfx.passes.pruning.measurements._MOMENTS", moments)
    torch.manual_seed(0)
    twice = Twice(2)
    once = Twice(1)
    once.load_state_dict(twice.state_dict())
    batches = [(torch.randn(64, 3),)]
    (double, single) = (
        scored(name, copy.deepcopy(capture(model.eval(), batches[0])), batches)[0][0] for model in (twice, once)
    )
    torch.testing.assert_close(double, 2 * single)


def test_the_shrunk_covariance_is_that_of_oas():
    """The closed form of the paper, and its purpose: nearer to the truth than what was measured."""
    torch.manual_seed(0)
    truth = torch.diag(torch.linspace(0.1, 3, 30, dtype=torch.float64))
    x = torch.randn(20, 30, dtype=torch.float64) @ truth.sqrt()
    mean, moment = x.mean(0), x.t() @ x / 20
    shrunk = shrunk_covariance(mean, moment, 20)
    measured = moment - mean.outer(mean)
    s2, t2 = (measured @ measured).trace(), measured.trace() ** 2
    rho = ((1 - 2 / 30) * s2 + t2) / ((20 + 1 - 2 / 30) * (s2 - t2 / 30))
    wanted = (1 - rho) * measured + rho * measured.trace() / 30 * torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(shrunk, wanted)
    assert (shrunk - truth).norm() < 0.8 * (measured - truth).norm()
    assert torch.linalg.inv(shrunk).isfinite().all()
    nothing = shrunk_covariance(torch.zeros(3), torch.zeros(3, 3), 20)
    assert torch.linalg.inv(nothing).isfinite().all()


def test_taylor_is_the_square_of_the_derivative_by_a_gate_on_the_unit():
    """Brute force: a gate on what every reader reads of the unit, the same labels, one derivative for 8 samples."""
    graph_module, batches = prepared(batches=1)
    ((score,), _) = scored("taylor", graph_module, batches)
    (x,) = batches[0]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(6)
    for piece in x.split(8):
        gate = torch.ones(6, requires_grad=True)
        own = dict(graph_module.named_parameters())
        gated = {
            "c.weight": own["c.weight"].detach() * gate[None, :, None, None],
            "d.weight": own["d.weight"].detach() * gate,
        }
        output = torch.func.functional_call(graph_module, gated, (piece,))
        labels = torch.multinomial(output.detach().softmax(1), 1, generator=generator)[:, 0]
        (slope,) = torch.autograd.grad(F.cross_entropy(output, labels, reduction="sum"), gate)
        total += slope.square()
    torch.testing.assert_close(score.float(), total / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["activation", "obs", "reconstruction", "taylor"])
@pytest.mark.parametrize("frozen", [False, True])
def test_measuring_leaves_the_network_alone_and_repeats_itself(name, frozen):
    graph_module, batches = prepared(small_resnet(in_channels=3))
    graph_module.requires_grad_(not frozen).train()
    before = {key: value.clone() for key, value in graph_module.state_dict().items()}
    text = str(graph_module.graph)
    first, _ = scored(name, graph_module, batches)
    second, _ = scored(name, graph_module, batches)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(bool(score.std() > 0) for score in first)
    assert all(torch.equal(value, before[key]) for key, value in graph_module.state_dict().items())
    assert all(p.requires_grad is not frozen and p.grad is None for p in graph_module.parameters())
    assert graph_module.training and str(graph_module.graph) == text


@pytest.mark.parametrize("name", importance_names())
def test_every_importance_works_on_quantized_weights_and_odd_layers(name):
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6)),
        *(nn.Flatten(), nn.Linear(6 * 9, 3)),
    )
    graph_module, batches = prepared(model)
    context = PassContext(graph_module, batches[0], calibration=batches)
    graph_module = Quantize(4, 32).apply(graph_module, context).graph_module
    scores, analysis = scored(name, graph_module, batches)
    for score, group in zip(scores, analysis.groups, strict=True):
        assert score.shape == (group.size,) and score.dtype == torch.float64
        assert bool((score > 0).any() and score.isfinite().all())


def test_depthwise_layers_read_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1), nn.ConvTranspose2d(2, 4, 1)
    )
    graph_module, _ = prepared(model)
    assert reading_dims(graph_module) == {"0.weight": 1, "2.weight": 1, "3.weight": 0}


def test_a_weight_of_two_layers_has_one_slope():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x).relu()).relu())

    torch.manual_seed(0)
    x = (torch.randn(16, 5),)
    graph_module = copy.deepcopy(capture(Tied().eval(), x))
    evidence = gather(graph_module, [x], frozenset({"slope"}), torch.Generator().manual_seed(0))
    assert sorted(evidence.slope) == ["a.weight", "c.weight"]


def test_only_the_first_samples_are_run():
    graph_module, _ = prepared()
    some = [(images(SAMPLES // 2, 6, 3, seed=i),) for i in range(4)]
    few, all_ = (gather(graph_module, each, frozenset({"activity"}), torch.Generator()) for each in (some[:2], some))
    assert all(torch.equal(few.power[path], all_.power[path]) for path in few.power)


def test_a_loss_for_every_kind_of_output():
    """Several outputs, maps of classes, a number a sample: all have slopes."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.map, self.one = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Linear(5, 1)

        def forward(self, x):
            x = self.a(x)
            return {"map": self.map(x), "one": self.one(x.mean((2, 3))).squeeze(1)}

    graph_module, batches = prepared(Many())
    evidence = gather(graph_module, batches, frozenset({"slope"}), torch.Generator().manual_seed(0))
    assert {path: tuple(slope.shape) for path, slope in evidence.slope.items()} == {
        "a.weight": (4, 3),
        "map.weight": (4, 5),
        "one.weight": (4, 5),
    }
    assert all(bool(slope.abs().sum() > 0) for slope in evidence.slope.values())


def test_the_best_units_stay():
    """A unit whose readers ignore it goes first by activation and taylor, however large its filters are."""
    for name in ("activation", "reconstruction", "taylor"):
        graph_module, batches = prepared()
        for path in ("a", "b"):
            graph_module.get_parameter(f"{path}.weight").data[2] *= 50
        for path in ("c", "d"):
            graph_module.get_parameter(f"{path}.weight").data[:, 2] = 0
        context = PassContext(graph_module, batches[0], calibration=batches)
        kept = PruneChannels(0.1, name).apply(copy.deepcopy(graph_module), context).graph_module
        assert torch.equal(kept.get_parameter("a.weight"), graph_module.get_parameter("a.weight")[[0, 1, 3, 4, 5]])


def test_ones_own_importance_by_name():
    @register_importance("test-last")
    def last(group: GroupSlices):
        assert group.name == "a" and {each.role for each in group.slices} == {"makes", "reads", "scales", "other"}
        return -torch.arange(group.size, dtype=torch.float64)

    graph_module, batches = prepared()
    step = PruneChannels(0.5, "test-last")
    assert PruneChannels.from_spec(step.spec()) == step
    kept = step.apply(copy.deepcopy(graph_module), PassContext(graph_module, batches[0])).graph_module
    assert torch.equal(kept.get_parameter("a.weight"), graph_module.get_parameter("a.weight")[:3])
    with pytest.raises(InputError) as caught:
        register_importance("test-last")
    assert str(caught.value) == "the importance 'test-last' is registered already; give yours another name."
    with pytest.raises(InputError) as caught:
        register_importance("test-other", frozenset({"labels"}))
    assert str(caught.value) == "the importance 'test-other' needs 'labels'; it can have activity, moment and slope."


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (lambda group: group.zeros()[:-1], "gives shape (5,) for group 'a' of 6 units; give one number for each."),
        (lambda group: group.zeros() / 0, "is not finite for group 'a'; give finite numbers."),
    ],
)
def test_a_wrong_importance(score, problem):
    name = f"test-wrong {problem[:7]}"
    if name not in importance_names():
        register_importance(name)(score)
    graph_module, batches = prepared()
    with pytest.raises(PassError) as caught:
        PruneChannels(0.5, name).apply(graph_module, PassContext(graph_module, batches[0]))
    assert str(caught.value) == f"prune-channels: the importance {name!r} {problem}"


@pytest.mark.parametrize("calibration", [None, [], [(images(0, 6, 3),)]])
def test_no_calibration_data(calibration):
    graph_module, batches = prepared()
    with pytest.raises(PassError) as caught:
        PruneChannels(0.5, "taylor").apply(graph_module, PassContext(graph_module, batches[0], calibration=calibration))
    assert str(caught.value) == (
        "prune-channels: its options need calibration data and there is none; "
        "give calibration=[batches of inputs], a trainer, or importance='l1' without compensate."
    )


@pytest.mark.parametrize("name", ["activation", "reconstruction", "taylor"])
def test_calibration_data_of_a_wrong_shape(name):
    graph_module, batches = prepared()
    context = PassContext(graph_module, batches[0], calibration=[(images(4, 6, 2),)])
    with pytest.raises(PassError) as caught:
        PruneChannels(0.5, name).apply(graph_module, context)
    assert str(caught.value).startswith(
        "prune-channels: the network does not accept a calibration batch of shape (4, 2, 6, 6): "
    )


def test_nothing_is_measured_if_nothing_is_needed():
    graph_module, _ = prepared()
    assert gather(graph_module, None, frozenset(), torch.Generator()) == Evidence()
