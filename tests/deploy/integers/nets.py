"""Networks on the int8 engine, for tests."""

import torch

from chainfx.deploy import CompressedModel, Machine
from chainfx.ir.graph.checks import verify
from chainfx.passes import PassContext, Quantize
from tests.nets import graph_of

NARROW = Machine("AVX2", kernels=True, saturates=True)
"""A processor whose kernels are exact for 8-bit inputs and 7-bit weights; what fits into it is exact on every other."""


def quantized(model, *inputs, one=None, tunes=False):
    """The train form of a network, quantized so that every layer can run in integers on any machine with kernels."""
    graph_module = graph_of(model, *inputs)
    one = one or Quantize(7, 8, first=7, last=7, scheme="uniform")
    one.apply(graph_module, PassContext(graph_module, inputs, calibration=[inputs], tunes=tunes))
    verify(graph_module, inputs)
    return graph_module.eval()


def on_integers(model, *inputs, one=None):
    """The same network on the int8 engine by the rule of a machine without VNNI, and its train form."""
    graph_module = quantized(model, *inputs, one=one)
    return CompressedModel(graph_module, inputs, None, engine="int8", machine=NARROW), graph_module


def rows_of(small):
    return {row.name: (row.engine, row.reason) for row in small.lowering}


def distance(given, expected):
    """The relative distance of two answers."""
    given, expected = given.detach(), expected.detach()
    return float((given.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs)
