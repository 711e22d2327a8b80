"""Evidence says on what it was measured, and a plan when that is not where it is used."""

import dataclasses

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import chainfx
from chainfx.cli import app
from chainfx.errors import ScheduleError
from chainfx.passes import PruneWeights, Quantize
from chainfx.scheduler import Evidence, Ground, load_evidence, plan
from chainfx.training import digits
from tests.trainers import FakeTrainer

HERE = Ground("10 parameters #1", "(1, 8, 8) #2", "x86_64 cpu")
ROW = Evidence("quantize", "prune-weights", "measured", "run 7", "so", **dataclasses.asdict(HERE))
CHAIN = [PruneWeights(0.5), Quantize(4, 4)]


def net(width=4):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def test_the_ground_is_that_of_structure_test_data_and_device():
    assert Ground.of(net()) == Ground.of(net()) != Ground.of(net(5))
    assert Ground.of(net()).network.startswith("51 parameters #") and Ground.of(net()).data == ""
    few, many = (Ground.of(net(), digits(validation=share)) for share in (0.1, 0.4))
    assert few == many and few.data.startswith("(1, 8, 8) #")
    assert few.data != Ground.of(net(), digits(seed=1)).data
    assert few.device.endswith(" cpu")


def test_only_what_is_known_of_both_differs():
    assert HERE.differs(HERE) == () == HERE.differs(Ground())
    assert HERE.differs(Ground("11 parameters #3", "", "aarch64 cpu")) == ("network", "device")


def test_the_plan_says_where_measured_evidence_is_from_when_that_is_elsewhere():
    assert "elsewhere" not in str(plan(CHAIN, evidence=[ROW]))
    assert "elsewhere" not in str(plan(CHAIN, evidence=[ROW], ground=HERE))
    for order in ("auto", "given"):
        made = plan(CHAIN, order, evidence=[ROW], ground=Ground("a", "b", HERE.device))
        line = next(line for line in str(made).splitlines() if "run 7" in line)
        assert line == (
            "  quantize before prune-weights: so [measured: run 7]; "
            "measured elsewhere: another network and another data set than yours"
        )


def test_compile_compares_with_the_network_that_it_is_given():
    model = net().eval()
    own = Ground.of(model)
    for ground, said in ((own, False), (dataclasses.replace(own, network="another"), True)):
        row = dataclasses.replace(ROW, **dataclasses.asdict(ground))
        chain = plan([PruneWeights(0.5), Quantize(8, 8)], evidence=[row], tunes=False)
        x = torch.randn(4, 8)
        small = chainfx.compile(model, chain, example_inputs=x, calibration=[x])
        assert ("another network than yours" in small.report.plan) == said


def test_compile_compares_with_the_data_of_its_trainer():
    model, data = net().eval(), digits()
    trainer = FakeTrainer(torch.randn(4, 8))
    trainer.data = data
    row = dataclasses.replace(ROW, network="", device="", data="(3, 32, 32) #0")
    small = chainfx.compile(
        model, plan(CHAIN, evidence=[row]), example_inputs=torch.randn(4, 8), trainer=trainer, warn_drop=None
    )
    assert "measured elsewhere: another data set than yours" in small.report.plan


def test_the_ground_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[edge]]\nbefore = "quantize"\nafter = "prune-weights"\nconfidence = "measured"\nsource = "run 7"\n'
        'reason = "so"\nnetwork = "10 parameters #1"\ndata = "(1, 8, 8) #2"\ndevice = "x86_64 cpu"\n'
    )
    assert load_evidence(path) == (ROW,) and load_evidence(path)[0].ground == HERE


def test_the_command_takes_a_file_in_place_of_the_shipped_evidence(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[edge]]\nbefore = "quantize"\nafter = "prune-channels"\nconfidence = "measured"\n'
        'source = "run 7"\nreason = "so"\n'
    )
    names = ["prune-channels", "quantize"]
    assert CliRunner().invoke(app, ["plan", *names]).output.startswith("order: prune-channels -> quantize\n")
    done = CliRunner().invoke(app, ["plan", *names, "--evidence", str(path)])
    assert done.output.startswith("order: quantize -> prune-channels\n") and "[measured: run 7]" in done.output


def test_a_ground_that_is_no_text():
    with pytest.raises(ScheduleError) as caught:
        dataclasses.replace(ROW, data=3)
    assert str(caught.value) == "the evidence has data=3; it is a text, or left out."
