"""Families of networks that people have: pruned by half they equal the masked original, get small, and are saved."""

import importlib

import pytest
import torch

import chainfx
from chainfx.ir.channels import analyse_channels
from tests.budget import mostly_slow
from tests.ir.channels.families import LITTLE, LOST, TIMM, TORCHVISION, TRANSFORMERS, Family, measured
from tests.ir.channels.masked import TOLERANCE, assert_equals_masked
from tests.ir.channels.prune_models import give_values

QUICK = (
    Family("timm", "lcnet_050", 32),
    Family("timm", "test_resnet", 32),
    Family("timm", "test_nfnet", 32),
    Family("timm", "test_byobnet", 32),
    Family(
        "timm",
        "swin_tiny_patch4_window7_224",
        32,
        {"img_size": 32, "depths": (2, 1), "embed_dim": 12, "num_heads": (2, 3), "window_size": 4},
    ),
    *TRANSFORMERS,
)


def check(family):
    pytest.importorskip(family.package)
    row = measured(family)
    assert row["difference"] <= TOLERANCE and row["loaded"] == 0
    assert (row["lost"] >= LOST) is (family.name not in LITTLE), row
    return row


LONG = ("BertForSequenceClassification", "lcnet_050", "swin_tiny_patch4_window7_224", "test_nfnet")


@pytest.mark.parametrize(
    "family", mostly_slow(QUICK, [each for each in QUICK if each.name not in LONG]), ids=lambda family: family.name
)
def test_a_small_network_of_every_kind(family):
    assert check(family)["opaque"] == []


NORMED = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4, "qk_norm": True}


@pytest.mark.parametrize(
    "family", [*TRANSFORMERS, Family("timm", "vit_tiny_patch16_224", 32, NORMED)], ids=lambda family: family.name
)
def test_attention_loses_whole_heads(family):
    pytest.importorskip(family.package)
    torch.manual_seed(0)
    model, inputs = family.built().double().eval(), family.inputs()
    give_values(model)
    graph_module = chainfx.capture(model, inputs)
    analysis = analyse_channels(graph_module, inputs, fold="heads")
    heads = [group for group in analysis.groups if group.name in analysis.attention]
    assert [group.size for group in heads] == [4, 4]
    assert_equals_masked(graph_module, analysis, {group.name: [0, 3] for group in heads}, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("family", TIMM, ids=lambda family: family.name)
def test_forty_families_of_timm(family):
    row = check(family)
    table = importlib.import_module("tools.models_table")
    assert table.line(row) in table.PAGE.read_text().splitlines(), "run tools/models_table.py"


def test_nearly_all_of_them_get_small():
    assert len({family.name for family in TIMM}) == len(TIMM) == 40
    assert len(LITTLE) <= 0.05 * len(TIMM) and LITTLE.keys() <= {family.name for family in TIMM}


def test_the_page_has_a_row_for_every_network_as_its_generator_writes_it():
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    table = importlib.import_module("tools.models_table")
    lines = table.PAGE.read_text().splitlines()
    assert f"| {' | '.join(table.COLUMNS)} |" in lines
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [f"{family.package} {family.name}" for family in table.FAMILIES]
    assert all(len(row) == len(table.COLUMNS) for row in rows)
    seen = {
        **{"package": "timm", "name": "one", "input": [2, 3, 64, 32], "method": "sizes", "fixed": [1, 2, 3]},
        **{"opaque": ["LSTM"], "folded": 2, "parameters": 12345, "lost": 0.4567, "stays": {"why": 0.25, "so": 0.0001}},
    }
    assert table.line(seen) == (
        "| timm one | 3 x 64 x 32 | sizes, 2 folded | height, width | 12,345 | 45.7% | opaque: LSTM; 25.0%: why |"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", (*TORCHVISION, *TRANSFORMERS), ids=lambda family: family.name)
def test_the_row_on_the_page_is_what_is_measured(family):
    table = importlib.import_module("tools.models_table")
    assert table.line(check(family)) in table.PAGE.read_text().splitlines()
