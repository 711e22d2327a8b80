"""How long tuning will take, by a training step that is timed."""

import time

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from chainfx.linting.timing import seconds_of_sample
from chainfx.passes import TuneRequest
from tests.nets import graph_of


class Slow(nn.Module):
    """A layer whose forward pass takes 20 milliseconds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        time.sleep(0.02)
        return self.layer(x)


def test_the_time_estimate_is_a_step_that_is_timed():
    """4 samples a batch take 20 ms: 1,000 samples take 5 s, and with a teacher that is as slow twice as much."""
    net, x = Slow(), torch.zeros(4, 4)
    graph_module = GraphModule({"slow": net}, graph_calling("slow"))
    each = seconds_of_sample(graph_module, (x,), TuneRequest())
    assert 5 <= 1000 * each < 8
    with_teacher = seconds_of_sample(graph_module, (x,), TuneRequest(loss="kd", teacher=graph_module))
    assert 10 <= 1000 * with_teacher < 14
    assert net.layer.weight.grad is None


def graph_calling(module):
    graph = Graph()
    graph.output(graph.call_module(module, (graph.placeholder("x"),)))
    return graph


def test_a_backward_pass_is_part_of_the_step_and_only_what_is_trained_gets_gradients():
    graph_module = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(2, 4))
    seen = []
    graph_module.get_parameter("0.weight").register_hook(lambda gradient: seen.append("first"))
    seconds_of_sample(graph_module, (torch.zeros(2, 4),), TuneRequest(parameters=("1.weight",)))
    assert seen == []
    seconds_of_sample(graph_module, (torch.zeros(2, 4),), TuneRequest())
    assert seen and all(parameter.grad is None for parameter in graph_module.parameters())
