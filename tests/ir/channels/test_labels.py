"""Label tensors: what stays cheap for large activations says the same as looking at every element."""

import copy
import itertools

import pytest
import torch
from torch import nn

from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.labels import all_of, any_of, blank, compact, fitted, spread, varying
from chainfx.ir.channels.ledger import Ledger
from chainfx.ir.channels.surgery import prune
from chainfx.ir.graph import edit
from tests.ir.channels.masked import captured, masked_outputs


def components(size, pairs):
    """Which of the atoms 0 .. size - 1 hang together, by the first of each set."""
    first = list(range(size))
    for a, b in pairs:
        low, high = sorted((first[a], first[b]))
        first = [low if each == high else each for each in first]
    return first


def same_sets(left, right):
    return [left.index(each) for each in left] == [right.index(each) for each in right]


def token_labels(ledger, channels, tokens):
    """A class token beside other tokens: two sets of atoms, of which one repeats."""
    once, again = ledger.fresh(channels), ledger.fresh(channels)
    return torch.cat([once[None], again.expand(tokens - 1, channels)])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_couplings_that_repeat_are_those_of_every_element(turned, swapped):
    ledger = Ledger()
    labels = token_labels(ledger, 3, 40)
    other = ledger.fresh(3).expand(40, 3)
    if turned:
        labels, other = labels.t(), other.t()
    if swapped:
        labels, other = other, labels
    pairs = list(zip(labels.flatten().tolist(), other.flatten().tolist(), strict=True))
    ledger.couple(labels, other, "why")
    assert same_sets(ledger.components().tolist(), components(ledger.size, pairs))
    assert not ledger.frozen


def test_a_zero_among_repeated_couplings_freezes():
    ledger = Ledger()
    labels = token_labels(ledger, 3, 40)
    fixed = torch.zeros(40, 3, dtype=torch.int64)
    fixed[:, 1:] = labels[:1, 1:]
    ledger.couple(labels, fixed, "it must stay")
    found = ledger.components().tolist()
    assert found[1] == found[4] == found[0]
    assert found[2] == found[5] != 0
    assert ledger.reason(1) == "it must stay"


@pytest.mark.parametrize("seed", range(20))
def test_couplings_of_whole_lines_and_of_parts_in_any_order(seed):
    """Lines of channels that go together, in any order, some turned around, some only in part, some frozen."""
    torch.manual_seed(seed)
    ledger, pairs = Ledger(), []
    lines = [ledger.fresh(4) for _ in range(6)]
    for _ in range(4):
        one, other = (lines[i] for i in torch.randint(0, 6, (2,)).tolist())
        kind = int(torch.randint(0, 4, ()))
        other = other.flip(0) if kind == 0 else other
        one, other = (one[:2], other[1:3]) if kind == 1 else (one, other)
        pairs += zip(one.tolist(), other.tolist(), strict=True)
        ledger.couple(one.expand(3, -1).t(), other.expand(3, -1).t(), "why")
    stays = lines[0][:1]
    ledger.freeze(stays, "it must stay")
    pairs.append((0, int(stays)))
    assert same_sets(ledger.components().tolist(), components(ledger.size, pairs))
    for line in lines:
        assert same_sets(ledger.components()[ledger.eldest(line)].tolist(), ledger.components()[line].tolist())


def test_lines_that_are_joined_last_to_first():
    ledger = Ledger()
    a, b, c = (ledger.fresh(3) for _ in range(3))
    ledger.couple(b, c, "why")
    ledger.couple(a, b, "why")
    assert ledger.components().tolist() == [0, *[1, 2, 3] * 3]
    assert ledger.eldest(c) is a


def test_pinning_twice_couples_once():
    ledger = Ledger()
    labels = ledger.fresh(6).view(2, 3)
    first = ledger.pin(labels, (0,), "why")
    assert ledger.pin(labels, (0,), "why") is first
    assert torch.equal(first, labels[:1].expand(2, 3))
    assert same_sets(ledger.components().tolist(), [0, 1, 2, 3, 1, 2, 3])
    assert torch.equal(ledger.pin(labels, (1,), "why"), labels[:, :1].expand(2, 3))
    assert same_sets(ledger.components().tolist(), [0, 1, 1, 1, 1, 1, 1])


def test_components_found_in_two_steps():
    ledger = Ledger()
    labels = ledger.fresh(4)
    ledger.couple(labels[:1], labels[3:], "why")
    before = ledger._connected().tolist()
    ledger.couple(labels[1:2], labels[3:], "why")
    assert before == [0, 1, 2, 3, 1]
    assert ledger._connected().tolist() == [0, 1, 1, 2, 1]


def test_zeros_are_counted_without_the_repeats():
    labels = torch.tensor([0, 1, 2]).view(3, 1).expand(2, 3, 5)
    assert compact(labels).shape == (1, 3, 1)
    assert (any_of(labels), all_of(labels)) == (True, False)
    assert (any_of(blank((2, 3))), all_of(blank((2, 3)))) == (False, False)
    assert all_of(labels[:, 1:])
    assert varying(spread(torch.ones(2, 3, 5, dtype=torch.int64))) == ()


LABELS = torch.arange(1, 4).view(3, 1).expand(2, 3, 5)


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (1, 3, 1), (2, 3, 5)])
def test_a_parameter_takes_the_labels_that_it_meets(shape):
    taken = fitted(LABELS, torch.Size(shape))
    assert taken.shape == shape
    for index in itertools.product(*(range(size) for size in shape)):
        assert taken[index] == index[-2] + 1


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 1, 1), (4, 2, 3, 5), (3, 4)])
def test_a_parameter_that_meets_several_labels_or_is_repeated_takes_none(shape):
    assert fitted(LABELS, torch.Size(shape)) is None


class Tokens(nn.Module):
    """A class token, and positions read ``once``, or by a layer too, ``before`` or ``after`` they are added."""

    def __init__(self, read):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 9, 6))
        self.norm = nn.LayerNorm(6)
        self.mix, self.direct = nn.Linear(6, 6), nn.Linear(6, 4)
        self.head = nn.Linear(6, 4)
        self.read = read

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        before = self.direct(self.positions) if self.read == "before" else 0
        x = self.positions + x
        after = self.direct(self.positions) if self.read == "after" else 0
        x = x + self.mix(self.norm(x))
        return (self.head(x) + before + after)[:, 0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("read", ["once", "before", "after"])
def test_positions_are_one_dimension_of_the_group_of_their_tokens(read, tied):
    graph_module, inputs = captured(Tokens(read), torch.randn(2, 8, 3, dtype=torch.float64))
    (node,) = graph_module.graph.find_nodes(op="get_attr", target="positions")
    if tied:
        edit.place_tensor(graph_module, "tied.positions", graph_module.get_parameter("positions"))
        for user in list(node.users)[1:]:
            with graph_module.graph.inserting_before(user):
                user.replace_input_with(node, graph_module.graph.get_attr("tied.positions"))
        graph_module.recompile()
    analysis = analyse_channels(graph_module, inputs)
    (group,) = analysis.groups
    assert group.size == 6
    assert ("positions", 2) in {(member.path, member.dim) for member in group.members}
    assert (("direct.weight", 1) in {(member.path, member.dim) for member in group.members}) == (read != "once")
    pruned = copy.deepcopy(graph_module)
    prune(pruned, analysis, {group.name: [0, 2, 5]})
    masked, _ = masked_outputs(graph_module, analysis, {group.name: [0, 2, 5]}, inputs)
    assert torch.allclose(pruned(*inputs), masked, atol=1e-10)
    if tied:
        assert pruned.get_parameter("tied.positions") is pruned.get_parameter("positions")
