"""Explain: the facts of three networks, worked out by hand."""

import json

import pytest
import torch
from torch import nn

from chainfx.linting import explain
from chainfx.passes import pass_names
from tests.linting.test_lint import WORDS, Reader
from tests.nets import graph_of, images, small_resnet


def of(model, x):
    return explain(graph_of(model.eval(), x), (x,))


def outlook(explained, name):
    (found,) = [each for each in explained.outlooks if each.name == name]
    return found


def test_a_multilayer_perceptron():
    explained = of(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.zeros(1, 8))
    assert (explained.kind, explained.costs.macs, explained.groups) == ("other", 384, 1)
    assert explained.prunable == (8 * 32 + 32 + 32 * 4) / (8 * 32 + 32 + 32 * 4 + 4)
    assert [(each.node, each.reason) for each in explained.frozen] == [("_2", "it is an output of the network")]
    assert explained.exit_places == ("_1",) and explained.heads == {} and explained.quantizable == 1
    pruned, quantized = outlook(explained, "prune-channels"), outlook(explained, "quantize")
    assert (pruned.label, pruned.macs, pruned.changed) == ("prune-channels(ratio=0.5)", 2.0, True)
    assert (quantized.label, quantized.macs, quantized.bitops) == ("quantize(8, 8)", 1.0, 16.0)
    heads = outlook(explained, "prune-heads")
    assert heads.macs is None and heads.obstacle.startswith("the network has no attention")
    assert [each.name for each in explained.outlooks] == list(pass_names())


def test_a_residual_network():
    explained = of(small_resnet((2, 2)), images(1))
    assert explained.kind == "convolutional" and len(explained.exit_places) == 5
    assert outlook(explained, "distill").label == "distill(depth=0.5)"
    assert outlook(explained, "early-exit").macs < 1
    assert not outlook(explained, "optimize-graph").changed


def test_attention():
    explained = of(Reader(), WORDS)
    assert explained.kind == "language model" and sum(explained.heads.values()) == 2
    layers, products = 4 * 8 * 8 - 8 * 8 + 8 * 20, 2 * 2 * 6 * 4
    assert explained.quantizable == pytest.approx(layers / (layers + products))
    assert "a product of two activations stays in float" in {
        s.reason for s in outlook(explained, "quantize").left_alone
    }
    plain = json.loads(json.dumps(explained.to_dict()))
    assert plain["costs"]["macs"] == explained.costs.macs and plain["kind"] == "language model"
