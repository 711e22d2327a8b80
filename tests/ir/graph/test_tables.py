"""Embeddings: which tables there are, who reads them, and how one becomes a call."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.graph import open_embedding, propagate_shapes, tables_of
from chainfx.ir.graph.tables import embeddings_of
from tests.nets import graph_of

IDS = torch.arange(6).view(2, 3)


class Net(nn.Module):
    """An embedding as a module, called twice; one as a function; a table that is read as it is too; no table."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4, padding_idx=1, scale_grad_by_freq=True)
        self.kinds, self.added = (nn.Parameter(torch.randn(9, 4)) for _ in range(2))
        self.bounded, self.out = nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 9)
        self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + F.embedding(ids, self.kinds, padding_idx=2) + self.words(ids + 1)
        return self.out(x + F.embedding(weight=self.added, input=ids) + self.added[:3] + self.bounded(ids))


def test_every_table_with_the_embeddings_that_read_it_and_what_forbids_a_quantizer():
    found = {
        table.path: ([call.name for call in table.calls], table.obstacle) for table in tables_of(graph_of(Net(), IDS))
    }
    assert found == {
        "words": (["words", "words_1"], ""),
        "kinds": (["embedding"], ""),
        "added": (["embedding_1"], "'add_4' reads its table too, in float"),
        "bounded": (["bounded"], "max_norm changes its table at every call"),
    }


def test_an_opened_embedding_computes_the_same_and_keeps_its_name_and_its_gradient():
    torch.manual_seed(0)
    graph_module = graph_of(Net().eval(), IDS)
    opened = copy.deepcopy(graph_module)
    found = {table.path: table for table in tables_of(opened)}
    words, kinds = found["words"], found["kinds"]
    for call in (*words.calls, *kinds.calls):
        embedding = open_embedding(opened, call)
        assert embedding.node is call and embedding.path in ("words", "kinds")
    opened.graph.lint()
    opened.recompile()
    propagate_shapes(opened, (IDS,))
    assert [each.name for each in embeddings_of(opened)] == ["words", "embedding", "words_1"]
    assert words.calls[0].args[2:] == (1, None, 2.0, True, False)
    assert kinds.calls[0].args[2:] == (2, None, 2.0, False, False)
    for each in (graph_module, opened):
        each(IDS).square().sum().backward()
    for path in ("words.weight", "kinds"):
        assert torch.equal(opened.get_parameter(path).grad, graph_module.get_parameter(path).grad)
    assert torch.equal(opened(IDS), graph_module(IDS))
