"""PruneWeights: which weights go, in rounds, twice and towards a pattern, what stays and why, and its errors."""

import copy

import pytest
import torch
from torch import nn

from chainfx.errors import PassError
from chainfx.ir.graph import edit, layers_of, ops, value_of
from chainfx.ir.graph.checks import verify
from chainfx.passes import EarlyExit, Granularity, Kind, PassContext, PruneChannels, Quantize
from chainfx.passes.base import TuneRequest
from chainfx.passes.prune_weights import PruneWeights
from chainfx.scheduler.planning import plan
from chainfx.testing import check_pass
from tests.nets import graph_of, images, small_resnet


def applied(one, model, x, *, graph_module=None, **options):
    """The graph after ``one``, verified, and its result."""
    graph_module = graph_of(model, x) if graph_module is None else copy.deepcopy(graph_module)
    result = one.apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)], **options))
    verify(result.graph_module, (x,))
    return result.graph_module, result


def masks(graph_module):
    """The mask and the pattern of every masked layer, by the name of its weight."""
    return {
        layer.weight_path: (edit.get_tensor(graph_module, layer.mask.args[1].target), layer.mask.args[2])
        for layer in layers_of(graph_module)
        if layer.mask
    }


def seen(layer):
    """The weight that a layer multiplies with."""
    return value_of(layer.graph_module, layer.weight_read)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_smallest_weights_of_each_layer_go_and_exactly_as_many_as_said(ratio):
    x = images()
    graph_module, result = applied(PruneWeights(ratio), small_resnet((1, 1)), x)
    found = masks(graph_module)
    assert len(found) == len(list(layers_of(graph_module)))
    for name, (mask, pattern) in found.items():
        weight = edit.get_tensor(graph_module, name).detach().abs()
        assert pattern == "unstructured" and mask.dtype is torch.bool
        assert int((~mask).sum()) == int(weight.numel() * ratio + 1e-9)
        assert weight[~mask].max() <= weight[mask].min()
    assert (result.tune, result.skipped) == (TuneRequest(), ())
    assert {f"{name}_mask" for name in found} <= {name for name, _ in graph_module.named_buffers()}


def test_a_global_ranking_prunes_the_network_as_one():
    x = images()
    graph_module, _ = applied(PruneWeights(0.6, scope="global"), small_resnet((1, 1)), x)
    found = {name: mask for name, (mask, _) in masks(graph_module).items()}
    kept = torch.cat([edit.get_tensor(graph_module, name).abs()[mask] for name, mask in found.items()])
    gone = torch.cat([edit.get_tensor(graph_module, name).abs()[~mask] for name, mask in found.items()])
    assert len(gone) == int(0.6 * (len(gone) + len(kept)))
    assert gone.max() <= kept.min()
    assert len({round(float(mask.float().mean()), 2) for mask in found.values()}) > 3


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (4, 8), (3, 4)])
def test_n_of_m_keeps_the_largest_of_every_group_of_input_channels(kept, size):
    x = images(channels=3)
    graph_module, result = applied(PruneWeights(pattern=f"{kept}:{size}"), small_resnet(width=8, in_channels=3), x)
    found = masks(graph_module)
    for name, (mask, pattern) in found.items():
        assert pattern == f"{kept}:{size}"
        weight = edit.get_tensor(graph_module, name).detach().abs()
        for start in range(0, weight.shape[1], size):
            part, stays = weight[:, start : start + size], mask[:, start : start + size]
            assert (stays.sum(1) == kept).all()
            assert (part.masked_fill(stays, 0).amax(1) <= part.masked_fill(~stays, torch.inf).amin(1)).all()
    reasons = {item.node: item.reason for item in result.skipped}
    assert reasons == {"conv1": f"{size} does not divide its 3 input channels a group"}


def test_n_of_m_leaves_transposed_and_grouped_layers_that_do_not_fit():
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1))
    graph_module, result = applied(PruneWeights(pattern="2:4"), model.eval(), images(channels=4))
    assert [(item.node, item.reason) for item in result.skipped] == [
        ("_0", "dimension 1 of a transposed convolution's weight is not its input channels"),
        ("_1", "4 does not divide its 2 input channels a group"),
    ]
    assert list(masks(graph_module)) == ["2.weight"]


def test_ratio_zero_changes_nothing():
    x = images()
    model = small_resnet((1, 1))
    before = graph_of(model, x)
    graph_module, result = applied(PruneWeights(0.0), model, x)
    assert (result.modified, result.tune) == (False, None)
    assert str(graph_module.graph) == str(before.graph)
    assert result.skipped[-1].reason == "its 80 weights that are not masked stay"


def test_ties_go_in_order():
    model = nn.Linear(6, 1, bias=False)
    nn.init.ones_(model.weight)
    graph_module, _ = applied(PruneWeights(0.5), model, torch.ones(1, 6))
    assert masks(graph_module)["weight"][0].tolist() == [[False, False, False, True, True, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(dtype):
    model = small_resnet((1, 1)).to(dtype)
    for one in (PruneWeights(0.5), PruneWeights(0.5, scope="global"), PruneWeights(pattern="1:2")):
        graph_module, result = applied(one, model, images().to(dtype))
        assert result.modified
        assert seen(next(layers_of(graph_module))).dtype is dtype


def test_rounds_follow_the_cubic_schedule_and_only_tighten():
    x, one = images(), PruneWeights(0.8, rounds=4)
    graph_module, previous = graph_of(small_resnet((1, 1)), x), None
    for step, share in enumerate([0.4625, 0.7, 0.7875, 0.8]):
        graph_module, result = applied(one, None, x, graph_module=graph_module, round=step)
        mask = masks(graph_module)["stages.1.0.conv2.weight"][0]
        assert result.modified
        assert int((~mask).sum()) == int(mask.numel() * share + 1e-9)
        assert previous is None or not (mask & ~previous).any()
        previous = mask
    assert sum("weight_mask" in name for name, _ in graph_module.named_buffers()) == 7


def test_rounds_towards_n_of_m():
    x, one = images(), PruneWeights(pattern="1:4", rounds=3, skip=("conv1",))
    graph_module, seen_patterns = graph_of(small_resnet((1, 1)), x), []
    for step in range(3):
        graph_module, _ = applied(one, None, x, graph_module=graph_module, round=step)
        mask, pattern = masks(graph_module)["fc.weight"]
        seen_patterns.append((pattern, float(mask.float().mean())))
    assert seen_patterns == [("2:4", 0.5), ("1:4", 0.25), ("1:4", 0.25)]


def test_a_first_round_in_which_no_weight_of_a_group_goes_leaves_no_mask():
    graph_module, result = applied(PruneWeights(pattern="1:2", rounds=9), small_resnet((1, 1)), images())
    assert not result.modified and not masks(graph_module)
    assert not any("that are not masked stay" in item.reason for item in result.skipped)


def test_a_second_pass_counts_what_is_masked_and_never_gives_back():
    x = images()
    once, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    again, result = applied(PruneWeights(0.4), None, x, graph_module=once)
    assert not result.modified and str(again.graph) == str(once.graph)
    assert "40 weights that are not masked stay" in result.skipped[-1].reason
    with torch.no_grad():
        for parameter in once.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tighter, _ = applied(PruneWeights(0.7), None, x, graph_module=once)
    for name, (mask, _) in masks(tighter).items():
        assert not (mask & ~masks(once)[name][0]).any()
        assert int((~mask).sum()) == int(mask.numel() * 0.7 + 1e-9)


def test_a_2_4_mask_stays_one_under_unstructured_pruning():
    x = images()
    once, _ = applied(PruneWeights(pattern="2:4", skip=("conv1",)), small_resnet((1, 1)), x)
    tighter, _ = applied(PruneWeights(0.75), None, x, graph_module=once)
    found = masks(tighter)
    assert found.pop("conv1.weight")[1] == "unstructured"
    for mask, pattern in found.values():
        assert pattern == "2:4"
        assert int(mask.unflatten(1, (-1, 4)).sum(2).max()) <= 2
        assert int((~mask).sum()) == int(mask.numel() * 0.75 + 1e-9)


def test_codebook_weights_are_ranked_by_their_values():
    model = nn.Linear(4, 2, bias=False)
    graph_module = graph_of(model, torch.ones(1, 4))
    layer = next(layers_of(graph_module)).node
    edit.set_tensor(graph_module, "book.codes", torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]), parameter=False)
    edit.set_tensor(graph_module, "book.entries", torch.tensor([5.0, -0.1, 0.2, -4.0]), parameter=True)
    with graph_module.graph.inserting_before(layer):
        arguments = graph_module.graph.get_attr("book.codes"), graph_module.graph.get_attr("book.entries")
        layer.update_arg(1, graph_module.graph.call_function(ops.look_up, arguments))
    pruned, _ = applied(PruneWeights(0.5), None, torch.ones(1, 4), graph_module=graph_module)
    assert masks(pruned)["book.codes"][0].tolist() == [[True, False, False, True]] * 2
    assert torch.equal(pruned(torch.ones(1, 4)), torch.tensor([[1.0, 1.0]]))


def test_a_shared_weight_has_one_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(torch.relu(self.inner(x)))

    graph_module, _ = applied(PruneWeights(0.5), Tied(), torch.ones(1, 6))
    assert [name for name, _ in graph_module.named_buffers()] == ["inner.weight_mask"]
    assert all(layer.mask for layer in layers_of(graph_module))


def test_a_name_that_is_taken_is_left_to_its_owner():
    model = nn.Linear(6, 2)
    model.register_buffer("weight_mask", torch.zeros(2))
    wrapped = type("Own", (nn.Module,), {"forward": lambda self, x: self.inner(x) + self.inner.weight_mask})()
    wrapped.inner = model
    graph_module, _ = applied(PruneWeights(0.5), wrapped, torch.ones(1, 6))
    assert sorted(name for name, _ in graph_module.named_buffers()) == ["inner.weight_mask", "inner.weight_mask_"]


def test_modules_that_hide_their_weights_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    wrapped = type("Recurrent", (nn.Module,), {"forward": lambda self, x: self.body[1](self.body[0](x))[0]})()
    wrapped.body = model
    _, result = applied(PruneWeights(0.5), wrapped, torch.ones(1, 2, 4))
    assert [item.reason for item in result.skipped] == ["the inside of module LSTM is not visible"]


@pytest.mark.parametrize(
    "one", [PruneWeights(0.3), PruneWeights(0.7, scope="global", rounds=2), PruneWeights(pattern="2:4")], ids=str
)
def test_the_contract(one):
    assert check_pass(one, small_resnet((1, 1)), (images(),), targets=10).modified


def test_info():
    info = PruneWeights.info
    assert (info.name, info.kind, info.granularity) == ("prune-weights", Kind.STATIC, Granularity.SUB_NEURON)
    assert info.establishes == {"masks"} and info.needs == frozenset() and info.repeatable
    assert PruneWeights(0.5).rounds == 1 and PruneWeights(0.5, rounds=5).rounds == 5


def test_the_scheduler_masks_before_it_quantizes_and_says_who_found_that():
    made = plan([EarlyExit(exits=1), Quantize(4, 8), PruneWeights(0.5), PruneChannels(0.5)])
    assert made.order == ("prune-channels", "prune-weights", "quantize", "early-exit")
    edges = [edge for edge in made.edges if (edge.before, edge.after) == ("prune-weights", "quantize")]
    assert ("cited", "arXiv 2405.20935 (Harma et al., ICLR 2025)") in [(edge.kind, edge.source) for edge in edges]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither ratio, quality nor an N:M pattern is given; give one, such as ratio=0.5."),
        ({"quality": -1.0}, "quality=-1.0 is out of range; use a number of at least 0."),
        ({"quality": 1.0, "ratio": 0.5}, "quality=1.0 says which weights go; leave ratio and pattern out."),
        ({"quality": 1.0, "scope": "global"}, "quality is a threshold of each layer alone; leave scope out."),
        ({"ratio": 0.5, "length": -1}, "length=-1 is out of range; use a number of at least 0."),
        (
            {"ratio": 0.5, "length": 0.1},
            "length=0.1 is for the rounds before the last, and rounds=1; use rounds=3 or more.",
        ),
        ({"ratio": 0.5, "scale_dropout": 1}, "scale_dropout=1 is out of range; use True or False."),
        ({"ratio": 1.0}, "ratio=1.0 is out of range; use a number from 0 up to but not including 1."),
        ({"ratio": True}, "ratio=True is out of range; use a number from 0 up to but not including 1."),
        ({"pattern": "4:2"}, "pattern='4:2' is out of range; use 'unstructured' or N:M with N < M, like '2:4'."),
        ({"ratio": 0.5, "scope": "net"}, "scope='net' is out of range; use 'layer' or 'global'."),
        ({"ratio": 0.5, "rounds": 0}, "rounds=0 is out of range; use an integer of at least 1."),
        ({"ratio": 0.5, "skip": "fc"}, "skip='fc' is out of range; use a tuple of patterns."),
        (
            {"ratio": 0.9, "pattern": "2:4"},
            "pattern='2:4' says how many weights of every group stay; leave ratio and scope out.",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(PassError) as caught:
        PruneWeights(**options)
    assert str(caught.value) == f"prune-weights: {message}"


def test_skip_leaves_layers_alone_and_a_pattern_without_match_is_an_error():
    x = images()
    graph_module, result = applied(PruneWeights(0.5, skip=("conv1", "stages.*")), small_resnet((1, 1)), x)
    assert list(masks(graph_module)) == ["fc.weight"]
    assert {item.reason for item in result.skipped} == {"a pattern of skip matches it"}
    with pytest.raises(PassError) as caught:
        applied(PruneWeights(0.5, skip=("head",)), small_resnet((1, 1)), x)
    assert str(caught.value) == (
        "prune-weights: the pattern 'head' in skip matches no layer; layers are conv1, stages.0.0.conv1, "
        "stages.0.0.conv2, stages.1.0.conv1, stages.1.0.conv2, stages.1.0.shortcut.0, fc."
    )


def test_weights_that_are_not_finite():
    model = small_resnet((1, 1))
    model.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(PassError) as caught:
        applied(PruneWeights(0.5), model, images())
    assert str(caught.value) == (
        "prune-weights: the weight 'conv1.weight' is not finite everywhere; train the network again before pruning."
    )


def test_a_layer_that_a_global_ranking_would_empty():
    model = small_resnet((1, 1))
    model.conv1.weight.data.mul_(1e-6)
    with pytest.raises(PassError) as caught:
        applied(PruneWeights(0.5, scope="global"), model, images())
    assert str(caught.value) == (
        "prune-weights: a global ranking at this ratio leaves none of the 36 weights of 'conv1.weight'; "
        "use a smaller ratio, scope='layer', or add 'conv1' to skip."
    )


def test_a_quality_masks_what_is_below_so_many_standard_deviations():
    x, one = images(), PruneWeights(quality=1.5, rounds=2)
    graph_module, _ = applied(one, small_resnet((1, 1)), x)
    first = {name: mask for name, (mask, _) in masks(graph_module).items()}
    for name, mask in first.items():
        weight = edit.get_tensor(graph_module, name).detach()
        assert torch.equal(mask, weight.abs() >= 1.5 * 0.875 * weight.std(correction=0))
    graph_module, _ = applied(one, None, x, graph_module=graph_module, round=1)
    for name, (mask, _) in masks(graph_module).items():
        weight = edit.get_tensor(graph_module, name).detach()
        kept = weight[first[name]]
        assert torch.equal(mask, first[name] & (weight.abs() >= 1.5 * kept.std(correction=0)))


def test_rounds_before_the_last_are_tuned_for_few_bits():
    """Of a weight at the precision itself the length is half a bit."""
    x = images()
    graph_module = graph_of(small_resnet((1, 1)), x)
    one = PruneWeights(0.5, rounds=3, length=2.0, skip=("[!f]*",))
    precision = 0.05 * float(edit.get_tensor(graph_module, "fc.weight").detach().std())
    entry = copy.deepcopy(graph_module)
    applied_to, result = applied(one, None, x, graph_module=graph_module, entry=entry, tunes=True)
    weight = edit.get_tensor(applied_to, "fc.weight")
    with torch.no_grad():
        weight.fill_(precision)
    assert float(result.tune.penalties[0].term(applied_to)().detach()) == pytest.approx(
        2.0 * weight.numel() / 2, rel=1e-4
    )
    _, last = applied(one, None, x, graph_module=applied_to, entry=entry, round=2, tunes=True)
    assert last.tune.penalties == ()
    with pytest.raises(PassError) as caught:
        applied(one, None, x, graph_module=graph_module, entry=entry)
    assert str(caught.value) == (
        "prune-weights: length=2.0 works while the network is tuned, and there is no trainer; give trainer=..., or "
        "leave length out."
    )


def test_dropout_goes_down_with_the_root_of_the_weights_that_stay():
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.4), nn.Linear(16, 4))
    graph_module, _ = applied(PruneWeights(0.75, scale_dropout=True), model.eval(), torch.randn(2, 8))
    assert graph_module.get_submodule("1").p == pytest.approx(0.2)
