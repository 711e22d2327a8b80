"""The parameters of two or more dimensions, and by which names a pass may speak of each."""

import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.graph import Skipped, matrices_of, ops, select
from chainfx.ir.graph.edit import input_of, set_tensor
from tests.nets import graph_of


class Reader(nn.Module):
    """A table of positions, an embedding tied to the last layer, a GRU, and a layer whose weight is a product."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(9, 4), nn.Parameter(torch.randn(5, 4))
        self.cell = nn.Sequential(nn.GRU(4, 4, batch_first=True))
        self.left, self.right = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places[: ids.shape[1]]
        return self.out(F.linear(self.cell(x)[0], (self.left @ self.right).relu()))


def reader():
    return graph_of(Reader(), torch.zeros(2, 5, dtype=torch.int64))


def test_every_matrix_once_with_what_reads_it():
    found = {matrix.paths: matrix for matrix in matrices_of(reader())}
    gru = [(f"cell.0.weight_{kind}_l0",) for kind in ("ih", "hh")]
    assert sorted(found) == sorted([("places",), ("left",), ("right",), ("words.weight",), *gru])
    words = found["words.weight",]
    assert (words.path, words.shape) == ("words.weight", (9, 4))
    assert [[node.name for node in kind] for kind in (words.layers, words.modules, words.others)] == [
        ["words_1"],
        ["words"],
        [],
    ]
    (other,) = found["places",].others
    assert found["places",].layers == found["places",].modules == () and other.op == "call_function"
    for path in ("left", "right"):
        (layer,) = found[path,].layers
        assert layer.target is F.linear and found[path,].others == ()


def test_the_names_of_a_matrix():
    graph_module = reader()
    found = {matrix.path: matrix for matrix in matrices_of(graph_module)}
    assert found["words.weight"].names == {"words.weight", "words", "words_1"}
    assert found["cell.0.weight_hh_l0"].names == {"cell.0.weight_hh_l0", "cell.0", "cell", "cell_0"}
    assert found["cell.0.weight_hh_l0"].name == "cell_0" and found["words.weight"].name == "words_1"
    assert found["places"].name == "places"
    assert found["left"].name == found["left"].layers[0].name


def test_a_quantized_and_masked_weight_is_still_that_of_its_layer():
    graph_module = graph_of(nn.Sequential(nn.Linear(4, 3)), torch.zeros(1, 4))
    (layer,), _ = select(graph_module, "prune")
    set_tensor(graph_module, "mask", torch.rand(3, 4) < 0.5, parameter=False)
    layer.put_mask("mask", "unstructured")
    with graph_module.graph.inserting_before(layer.node):
        layer.read_weight(graph_module.graph.call_function(ops.quantize_weight, (layer.weight, 4, "uniform", 0)))
    (matrix,) = matrices_of(graph_module)
    assert matrix.layers == (layer.node,) and matrix.others == ()
    assert input_of(layer.mask) is layer.weight_quantizer


def test_what_select_leaves_alone_has_every_place_where_a_matrix_is_read():
    graph_module = reader()
    layers, skipped = select(graph_module, "prune")
    assert [layer.path for layer in layers] == ["words"]
    computed = next(
        node.name for node in graph_module.graph.nodes if node.target is F.linear and node.name != "words_1"
    )
    (places,) = next(matrix.others for matrix in matrices_of(graph_module) if matrix.path == "places")
    assert skipped == [
        Skipped("words", "module Embedding is no convolution or linear layer"),
        Skipped("cell_0", "the inside of module GRU is not visible"),
        Skipped(computed, "its weight is computed"),
        Skipped("places", f"{places.name!r} reads it, not as the weight of a convolution or linear layer"),
    ]


def test_a_matrix_that_a_layer_reads_as_its_input_is_read_there_as_a_plain_tensor():
    class Prompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt, self.fc = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.fc(self.prompt).t()

    found = {matrix.path: matrix for matrix in matrices_of(graph_of(Prompt(), torch.zeros(2, 4)))}
    assert [node.name for node in found["prompt"].others] == ["fc"] and found["prompt"].layers == ()
    assert [node.name for node in found["fc.weight"].layers] == ["fc"]
