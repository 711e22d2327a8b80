"""Whole networks: pruned equals masked, costs what the analysis says, trains, is captured, exported and compiled again.

The last results of the slow test stand in docs/pruning_models.md, which tools/pruning_table.py writes.
"""

import pytest

from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from tests.budget import mostly_slow
from tests.ir.channels.masked import random_keep
from tests.ir.channels.prune_checks import check_compiles
from tests.ir.channels.prune_models import NAMES, SMALL, measure, network, problems

FAMILIES = (*SMALL, "shufflenet_v2_x0_5", "squeezenet1_1", "zoo.resnet20")
LONG = {"small swin", "small swin v2", "small maxvit", "small regnet", "shufflenet_v2_x0_5", "zoo.resnet20"}


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, set(FAMILIES) - LONG))
def test_one_network_of_every_family(name):
    assert problems(measure(name, 0.5, lowers=False)) == []


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_every_network(name, ratio):
    assert problems(measure(name, ratio)) == []


@pytest.mark.slow
def test_inductor_gives_what_eager_mode_gives(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    graph_module, inputs = network("zoo.resnet20")
    analysis = analyse_channels(graph_module, inputs)
    prune(graph_module, analysis, random_keep(analysis, 0.5))
    check_compiles(graph_module, inputs, backend="inductor")
