import copy
import pickle

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from chainfx.ir.graph.persistence import keeping_persistence


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("left_out", torch.ones(1), persistent=False)
        self.weight = nn.Parameter(torch.ones(1))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.register_buffer("left_out", torch.ones(1), persistent=False)


def test_copies_of_a_graph_module_have_the_state_of_the_first():
    graph = Graph()
    paths = ("left_out", "inner.kept", "inner.left_out", "inner.weight")
    graph.output(tuple(graph.get_attr(path) for path in paths))
    made = GraphModule(Outer(), graph)
    for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert sorted(each.state_dict()) == ["inner.kept", "inner.weight"]
        assert each() == (torch.ones(1),) * 4


def test_a_copier_that_forgets_is_mended():
    def forgetful(from_module, to_module, target):
        path, _, name = target.rpartition(".")
        if path and not hasattr(to_module, path):
            to_module.add_module(path, nn.Module())
        to_module.get_submodule(path).register_buffer(name, from_module.get_buffer(target))

    states = []
    for copier in (forgetful, keeping_persistence(forgetful)):
        made = nn.Module()
        for target in ("left_out", "inner.kept", "inner.left_out"):
            copier(Outer(), made, target)
        states.append(sorted(made.state_dict()))
    assert states == [["inner.kept", "inner.left_out", "left_out"], ["inner.kept"]]
