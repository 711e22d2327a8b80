"""Masks hold through tuning, quantizing, later passes, lowering and saving."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.deploy.lower import fold_codes, to_codes
from chainfx.ir.artifact.files import load_graph, save_graph
from chainfx.ir.graph import edit, layers_of, ops
from chainfx.passes import Distill, Fuse, PruneChannels, Quantize
from chainfx.passes.base import TuneRequest
from chainfx.passes.prune_weights import PruneWeights
from tests.budget import mostly_slow
from tests.fresh import fresh
from tests.nets import graph_of, images, small_resnet
from tests.passes.test_prune_weights import applied, masks, seen
from tests.trainers import FakeTrainer


def test_masks_hold_through_training_with_momentum_and_weight_decay():
    x = images(8)
    graph_module, _ = applied(PruneWeights(0.7), small_resnet((1, 1)), x)
    optimizer = torch.optim.SGD(graph_module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    graph_module.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(graph_module(x), torch.arange(8) % 10).backward()
        optimizer.step()
    for name, (mask, _) in masks(graph_module).items():
        assert not graph_module.get_parameter(name).grad[~mask].any()
        assert graph_module.get_parameter(name).grad[mask].any()
    for layer in layers_of(graph_module):
        mask = edit.get_tensor(graph_module, layer.mask.args[1].target)
        assert torch.equal(seen(layer) != 0, mask)


@pytest.mark.parametrize("scheme", ["dorefa", "uniform"])
@pytest.mark.parametrize("bits", mostly_slow([1, 3], [3]))
def test_quantizers_go_beneath_masks_and_zeros_stay_zeros(bits, scheme):
    x = images()
    pruned, _ = applied(PruneWeights(0.6), small_resnet((1, 1)), x)
    one = Quantize(bits, 4, first=None, last=None, scheme=scheme)
    graph_module, _ = applied(one, None, x, graph_module=pruned)
    for layer in layers_of(graph_module):
        assert layer.mask.args[0] is layer.weight_quantizer
        assert not seen(layer)[~edit.get_tensor(graph_module, layer.mask.args[1].target)].any()
        assert (seen(layer) != 0).any()
    twice, _ = applied(Quantize(8, 8), None, x, graph_module=graph_module)
    direct, _ = applied(Quantize(8, 8), None, x, graph_module=pruned)
    assert torch.equal(twice(x), direct(x))
    assert len(list(twice.graph.nodes)) == len(list(direct.graph.nodes))
    float_again, _ = applied(Quantize(32, 32, first=None, last=None), None, x, graph_module=graph_module)
    assert torch.equal(float_again(x), pruned(x))


def test_pruning_after_quantizing_ranks_the_float_weights_and_masks_above_the_codes():
    x = images()
    quantized, _ = applied(Quantize(1, 4, first=None, last=None), small_resnet((1, 1)), x)
    graph_module, _ = applied(PruneWeights(0.5), None, x, graph_module=quantized)
    plain, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    assert all(torch.equal(mask, masks(plain)[name][0]) for name, (mask, _) in masks(graph_module).items())
    assert all(layer.mask.args[0] is layer.weight_quantizer is not None for layer in layers_of(graph_module))


def test_fuse_folds_through_masks():
    x = images()
    pruned, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    fused, result = applied(Fuse(), None, x, graph_module=pruned)
    assert result.modified and not result.skipped
    torch.testing.assert_close(fused(x), pruned(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(mask, masks(pruned)[name][0]) for name, (mask, _) in masks(fused).items())


@pytest.fixture(scope="module")
def compressed():
    x = images()
    passes = [PruneWeights(0.75), Quantize(2, 4)]
    return chainfx.compile(small_resnet((1, 1)), passes, example_inputs=x, trainer=FakeTrainer(x)), x


def test_the_deploy_form_decodes_and_masks_once(compressed):
    small, x = compressed
    lowered = small.graph_module
    assert all(node.args[0].target is ops.dequantize_weight for node in _calls(lowered, ops.mask_weight))
    folded = fold_codes(lowered)
    assert not [node for node in folded.graph.nodes if edit.is_dialect(node) and "weight" in node.name]
    assert torch.equal(folded(x), lowered(x))
    for layer in layers_of(folded):
        assert layer.weight_read is layer.weight and seen(layer).is_floating_point()
        assert int((seen(layer) == 0).sum()) >= int(seen(layer).numel() * 0.75)


def _calls(graph_module, target):
    return graph_module.graph.find_nodes(op="call_function", target=target)


def test_to_codes_keeps_masks_bit_for_bit():
    x = images()
    pruned, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    graph_module, _ = applied(Quantize(3, 8), None, x, graph_module=pruned)
    assert torch.equal(to_codes(graph_module)(x), graph_module(x))


def test_a_mask_takes_one_bit_an_element_on_disk_and_comes_back(tmp_path):
    x = images()
    graph_module, _ = applied(PruneWeights(0.5), small_resnet((1, 1)), x)
    save_graph(graph_of(small_resnet((1, 1)), x), tmp_path / "plain")
    save_graph(graph_module, tmp_path / "masked")
    sizes = [_bytes(tmp_path / name) for name in ("plain", "masked")]
    bits = sum(mask.numel() for mask, _ in masks(graph_module).values())
    assert bits / 8 <= sizes[1] - sizes[0] <= bits / 8 + 11
    loaded, _ = load_graph(tmp_path / "masked")
    assert {mask.dtype for mask, _ in masks(loaded).values()} == {torch.bool}
    assert all(torch.equal(mask, masks(graph_module)[name][0]) for name, (mask, _) in masks(loaded).items())
    assert torch.equal(loaded(x), graph_module(x))


def _bytes(folder):
    data = (folder / "model.safetensors").read_bytes()
    return len(data) - int.from_bytes(data[:8], "little") - 8


def test_a_fresh_process_gives_the_same_bits(compressed, tmp_path):
    small, x = compressed
    small.save(tmp_path / "small")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, pathlib, torch, chainfx; p = pathlib.Path(sys.argv[1]); m = chainfx.load(p / 'small');"
        "torch.save(m(torch.load(p / 'x.pt', weights_only=True)).detach(), p / 'y.pt')"
    )
    fresh(code, tmp_path)
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), small(x))


def test_a_2_4_mask_loses_input_channels_by_whole_groups_and_stays_one():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    masked, _ = applied(PruneWeights(pattern="2:4"), model.eval(), x)
    graph_module, _ = applied(PruneChannels(0.25), None, x, graph_module=masked)
    assert [(tuple(mask.shape), pattern) for mask, pattern in masks(graph_module).values()] == [
        ((12, 8), "2:4"),
        ((4, 12), "2:4"),
    ]
    assert all((mask.unflatten(1, (-1, 4)).sum(2) == 2).all() for mask, _ in masks(graph_module).values())


def test_rounds_are_tuned_one_by_one():
    x = images()
    trainer, stages = FakeTrainer(x), []
    one = PruneWeights(0.8, rounds=3)
    chainfx.compile(small_resnet((1, 1)), [one], example_inputs=x, trainer=trainer, on_stage=stages.append)
    assert [dataclasses.replace(request, teacher=None) for request in trainer.requests] == [TuneRequest()] * 3
    for mask, _ in masks(stages[-1].graph_module).values():
        assert int((~mask).sum()) == int(mask.numel() * 0.8 + 1e-9)


@pytest.mark.parametrize("later", [PruneChannels(0.4), Distill(depth=0.5)], ids=lambda one: one.info.name)
def test_later_passes_keep_the_masks(later):
    x = images()
    small = chainfx.compile(
        small_resnet(), [PruneWeights(0.5), later], example_inputs=x, trainer=FakeTrainer(x), order="given"
    )
    layers = list(layers_of(small.graph_module))
    assert all(layer.mask for layer in layers)
    for layer in layers:
        mask = edit.get_tensor(small.graph_module, layer.mask.args[1].target)
        assert mask.shape == seen(layer).shape and not mask.all()
        assert not seen(layer)[~mask].any()
