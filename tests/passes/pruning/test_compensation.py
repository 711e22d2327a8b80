"""The channels that stay take over what the removed ones gave: least squares, where weights may change."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import PassError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph.edit import place_tensor
from chainfx.passes import PruneWeights
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning.measurements import gather, shrunk_covariance
from tests.nets import images, warm


def prepared(model, *inputs):
    graph_module = copy.deepcopy(capture(warm(model), inputs))
    return graph_module, PassContext(graph_module, inputs, calibration=[inputs])


def pruned(graph_module, context, **options):
    return PruneChannels(0.5, "l1", **options).apply(copy.deepcopy(graph_module), context)


def error(model, other, x):
    with torch.no_grad():
        return float((model(x) - other(x)).square().mean())


class Kernels(nn.Module):
    """A convolution without and a linear layer with a bias read the same channels."""

    def __init__(self, bias=False):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.c, self.n, self.d = nn.Conv2d(8, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.n(self.c(x)).mean((2, 3)) + self.d(x.mean((2, 3)))


def test_the_answer_is_closer_and_its_mean_is_kept():
    torch.manual_seed(0)
    x, unseen = images(512, 6, 3, seed=0), images(64, 6, 3, seed=1)
    graph_module, context = prepared(Kernels(), x)
    plain = pruned(graph_module, context).graph_module
    fitted = pruned(graph_module, context, compensate=True).graph_module
    assert error(fitted, graph_module, unseen) < 0.5 * error(plain, graph_module, unseen)
    convolved = [each.get_parameter("c.weight") for each in (plain, fitted)]
    assert convolved[0].shape == convolved[1].shape
    assert not torch.equal(*convolved)
    linear = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph_module, context = prepared(linear, x)
    fitted = pruned(graph_module, context, compensate=True).graph_module
    torch.testing.assert_close(fitted(x).mean((0, 2, 3)), graph_module(x).mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_bias_are_the_least_squares_solution(bias):
    """Against the normal equations; without a bias there is no constant to fit."""
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))
    graph_module, context = prepared(model, x)
    result = pruned(graph_module, context, compensate=True)
    fitted = result.graph_module
    evidence = gather(graph_module, [(x,)], frozenset({"activity", "moment"}), torch.Generator())
    mean, moment = evidence.mean["2.weight"], evidence.moment["2.weight"]
    mean = mean if bias else torch.zeros_like(mean)
    second = shrunk_covariance(mean, moment, 200)
    first = graph_module.get_parameter("0.weight")
    kept = [int((first == row).all(1).nonzero()) for row in fitted.get_parameter("0.weight")]
    gone = [u for u in range(8) if u not in kept]
    old = graph_module.get_parameter("2.weight").detach().double()
    wanted = torch.linalg.solve(second[kept][:, kept], second[kept] @ old.t()).t()
    torch.testing.assert_close(fitted.get_parameter("2.weight").double(), wanted, rtol=1e-4, atol=1e-5)
    if bias:
        shift = old @ mean - wanted @ mean[kept]
        new = fitted.get_parameter("2.bias") - graph_module.get_parameter("2.bias")
        torch.testing.assert_close(new.double(), shift, rtol=1e-4, atol=1e-5)
    assert gone
    assert not any("constants that are lost" in each.reason for each in result.skipped)


def test_channels_that_depend_on_others_are_not_missed():
    """Every second channel is a sum of two others: nothing is lost but by the shrinkage, at any kernel position."""
    torch.manual_seed(0)
    x = images(512, 6, 3, seed=0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].weight[3:] = 0.1 * (model[0].weight[:3] + model[0].weight[[1, 2, 0]])
    graph_module, context = prepared(model, x)
    plain = pruned(graph_module, context).graph_module
    fitted = pruned(graph_module, context, compensate=True).graph_module
    assert error(fitted, graph_module, x) < 1e-2 * error(plain, graph_module, x)


class Grouped(nn.Module):
    """A grouped convolution reads every channel in the group it is in, a transposed one too."""

    def __init__(self, transposed):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 4, 3, padding=1, groups=2)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


def test_grouped_convolutions_are_fitted_group_by_group():
    torch.manual_seed(0)
    x = images(512, 6, 3, seed=0)
    graph_module, context = prepared(Grouped(False), x)
    plain, fitted = (pruned(graph_module, context, compensate=on).graph_module for on in (False, True))
    assert error(fitted, graph_module, x) < 0.9 * error(plain, graph_module, x)


def test_weights_that_may_not_change_stay():
    """A transposed convolution in groups, a weight that is also a table, a masked one: what is kept is as it was."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h, self.z = nn.Embedding(8, 6), nn.Linear(6, 6), nn.Linear(6, 8, bias=False)
            self.z.weight = self.e.weight

        def forward(self, index):
            return self.z(torch.tanh(self.h(self.e(index))))

    torch.manual_seed(0)
    x = images(64, 6, 3, seed=0)
    masked, context = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), x)
    masked = PruneWeights(0.5).apply(masked, context).graph_module
    why = (
        "it is not fitted to the channels that stay: "
        "its weight is tied, masked or quantized, or that of a transposed convolution in groups"
    )
    cases = [
        (*prepared(Grouped(True), x), "b.weight"),
        (*prepared(Tied(), torch.arange(8)), "e.weight"),
        (masked, PassContext(masked, (x,), calibration=[(x,)]), "2.weight"),
    ]
    for graph_module, context, path in cases:
        graph_module.delete_all_unused_submodules()
        results = [pruned(graph_module, context, compensate=on) for on in (False, True)]
        assert [each.reason for each in results[1].skipped].count(why) == 1
        assert why not in [each.reason for each in results[0].skipped]
        plain, fitted = (each.graph_module for each in results)
        old, new = (dict(each.named_parameters(remove_duplicate=False))[path] for each in (plain, fitted))
        assert old.shape != dict(graph_module.named_parameters(remove_duplicate=False))[path].shape
        assert torch.equal(old, new)


def test_tensors_of_two_names_stay_one():
    torch.manual_seed(0)
    x = images(64, 6, 3, seed=0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1))
    graph_module, context = prepared(nn.Sequential(model, nn.Conv2d(6, 2, 1)), x)
    place_tensor(graph_module, "0.4.weight", graph_module.get_parameter("0.2.weight"))
    fitted = pruned(graph_module, context, compensate=True).graph_module
    assert fitted.get_parameter("0.4.weight") is fitted.get_parameter("0.2.weight")
    assert fitted.get_parameter("0.2.weight").shape[1] == 3
    assert not torch.equal(
        fitted.get_parameter("1.weight"), pruned(graph_module, context).graph_module.get_parameter("1.weight")
    )


def test_the_network_before_the_pass_is_left_alone():
    torch.manual_seed(0)
    x = images(64, 6, 3, seed=0)
    model = warm(Kernels()).requires_grad_(False)
    tensors = list(model.parameters())
    before = [each.clone() for each in tensors]
    names = list(model.state_dict())
    graph_module = capture(model, (x,))
    result = PruneChannels(0.5, "l1", compensate=True).apply(
        graph_module, PassContext(graph_module, (x,), calibration=[(x,)])
    )
    assert all(map(torch.equal, tensors, before))
    assert not any(each.requires_grad for each in result.graph_module.parameters())
    assert list(result.graph_module.state_dict()) == names


def test_layers_of_many_channels_get_the_mean_only(monkeypatch):
    torch.manual_seed(0)
    x = images(64, 6, 3, seed=0)
    graph_module, context = prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)), x)
    monkeypatch.setattr("chainfx.passes.pruning.measurements._MOMENTS", 0)
    results = [pruned(graph_module, context, compensate=on) for on in (False, True)]
    unfitted = [each.node for each in results[1].skipped if each.reason.endswith("it reads too many channels")]
    assert unfitted == ["_2"]
    plain, shifted = (each.graph_module for each in results)
    assert torch.equal(plain.get_parameter("2.weight"), shifted.get_parameter("2.weight"))
    torch.testing.assert_close(shifted(x).mean((0, 2, 3)), graph_module(x).mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert (plain(x).mean((0, 2, 3)) - graph_module(x).mean((0, 2, 3))).abs().max() > 1e-2


@pytest.mark.parametrize("options", [{"importance": "l1", "compensate": True}, {"importance": "obs"}])
def test_calibration_data_that_are_not_finite_are_one_clear_error(options):
    x = torch.full((4, 8), float("nan"))
    graph_module, context = prepared(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), x)
    with pytest.raises(PassError) as caught:
        PruneChannels(0.5, **options).apply(graph_module, context)
    assert str(caught.value) == (
        "prune-channels: on the calibration data the layer of '0.weight' reads values that are not finite; "
        "look for them in the data and in the layers before."
    )
