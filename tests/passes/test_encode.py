"""Encode: what the marks do to the file, the table and later passes, and in what order it goes."""

import copy

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import PassError
from chainfx.ir.graph import layers_of
from chainfx.passes import EarlyExit, Encode, Fuse, PassContext, PruneWeights, Quantize, ShareWeights
from chainfx.scheduler import plan
from tests.budget import mostly_slow
from tests.nets import graph_of, images, small_resnet

CHAINS = {
    "float": [Encode()],
    "pruned": [PruneWeights(0.9), Encode()],
    "shared": [PruneWeights(0.9), ShareWeights(3, skip=("conv1",)), Encode(coder="adaptive")],
    "quantized": [Quantize(4, 8), Encode()],
    "all": [PruneWeights(0.8), ShareWeights(3, biases=True), Quantize(8, 8, first=None, last=None), Encode()],
}


def saved(small, folder):
    small.save(folder)
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "report.json")


@pytest.mark.parametrize("name", mostly_slow(CHAINS, ("all",)))
def test_the_file_is_as_small_as_the_table_says_and_decodes_into_the_same_network(name, tmp_path):
    x = images()
    small = chainfx.compile(small_resnet(width=16), CHAINS[name], example_inputs=x, calibration=[x])
    size = saved(small, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.chainfx", "report.json"}
    assert size == pytest.approx(small.report.records[-1].after.storage_bits / 8, rel=0.03)
    again = chainfx.load(tmp_path)
    assert torch.equal(again(x), small(x))
    assert str(again.graph_module.graph) == str(small.graph_module.graph)
    assert list(again.state_dict()) == list(small.state_dict())
    assert again.report.records == small.report.records


def test_without_its_report_the_file_loads_all_the_same(tmp_path):
    x = images()
    small = chainfx.compile(small_resnet((1, 1)), [Encode()], example_inputs=x)
    small.save(tmp_path)
    (tmp_path / "report.json").unlink()
    again = chainfx.load(tmp_path)
    assert torch.equal(again(x), small(x)) and again.report.records == ()
    assert chainfx.count(again, x).macs == chainfx.count(small, x).macs


def test_it_saves_what_pruning_and_sharing_earned(tmp_path):
    x, net = images(), small_resnet(width=16)
    dense = saved(chainfx.compile(net, [Fuse()], example_inputs=x), tmp_path / "dense")
    small = chainfx.compile(net, CHAINS["shared"], example_inputs=x)
    assert saved(small, tmp_path / "coded") < dense / 12


def test_everything_goes_before_it_exits_too():
    chain = (Encode(), EarlyExit(), Quantize(), ShareWeights(), PruneWeights(0.5), Fuse())
    names = plan(chain).order
    assert names[-1] == "encode" and plan(chain[:2]).order == ("early-exit", "encode")
    assert names.index("prune-weights") < names.index("share-weights") < names.index("quantize")


def test_a_later_pass_that_would_lose_the_codes_is_refused():
    x = images()
    with pytest.raises(PassError) as caught:
        chainfx.compile(small_resnet((1, 1)), [Encode(), PruneWeights(0.5)], example_inputs=x, order="given")
    assert str(caught.value) == (
        "prune-weights: it changed the coding of 'conv1' from static to none, and does not declare that; "
        "keep it, or name 'codings' in what its PassInfo establishes or invalidates."
    )
    found = chainfx.lint([Encode(), PruneWeights(0.5)]).findings
    assert any(finding.rule == "order" and finding.severity == "error" for finding in found)


def test_saving_again_leaves_no_file_of_the_other_format(tmp_path):
    x = images()
    coded = chainfx.compile(small_resnet((1, 1)), [Encode()], example_inputs=x)
    plain = chainfx.compile(small_resnet((1, 1)), [Fuse()], example_inputs=x)
    for small, names in (
        (plain, {"manifest.json", "model.safetensors", "report.json"}),
        (coded, {"model.chainfx", "report.json"}),
        (plain, {"manifest.json", "model.safetensors", "report.json"}),
    ):
        small.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == names
        assert torch.equal(chainfx.load(tmp_path)(x), small(x))


def test_a_stage_is_kept_and_found_again(tmp_path):
    x, chain = images(), [PruneWeights(0.5), Encode()]
    first, second = (chainfx.compile(small_resnet((1, 1)), chain, example_inputs=x, workdir=tmp_path) for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert [layer.coded is not None for layer in layers_of(second.graph_module)] == [True] * 7


def test_another_coder_takes_the_place_of_the_first():
    x = torch.randn(2, 4)
    graph_module = graph_of(nn.Linear(4, 3), x)
    for coder, modified in (("static", True), ("adaptive", True), ("adaptive", False)):
        assert Encode(coder=coder).apply(graph_module, PassContext(graph_module, (x,))).modified == modified
    assert [layer.coded.args[1] for layer in layers_of(graph_module)] == ["adaptive"]
    assert torch.equal(copy.deepcopy(graph_module)(x), graph_module(x))


def test_an_unknown_coder():
    with pytest.raises(PassError) as caught:
        Encode(coder="zip")
    assert str(caught.value) == "encode: coder='zip' is out of range; use one of 'static', 'adaptive'."
