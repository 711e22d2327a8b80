"""Networks whose batch is not the first dimension."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.artifact import read_document, write_document
from chainfx.passes import Fuse, Granularity, Kind, Pass, PassInfo, PassResult, PruneWeights
from chainfx.training import Trainer, from_loaders


class Recurrent(nn.Module):
    """(length, batch, 5) to the answers of all steps, those of the last one, and the state."""

    def __init__(self, parts):
        super().__init__()
        self.words, self.out = nn.Linear(5, 6), nn.Linear(8, 3)
        self.body, self.parts = nn.LSTM(6, 8), parts

    def forward(self, x, state=None):
        steps, state = self.body(self.words(x), None if state is None else (state, state))
        return self.parts(self.out(steps), state)


def last(steps, state):
    return steps[-1]


def everything(steps, state):
    return {"steps": steps, "last": [steps[-1], state[0]]}


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def compiled(parts, *passes, **options):
    torch.manual_seed(0)
    net = Recurrent(parts).eval()
    x = torch.randn(3, 2, 5)
    return net, chainfx.compile(net, list(passes) or [Fuse()], example_inputs=x, batch_dim=1, **options)


@pytest.mark.parametrize("parts", [last, everything])
def test_the_result_is_called_as_the_original(parts, tmp_path):
    net, small = compiled(parts)
    small.save(tmp_path)
    for model in (small, chainfx.load(tmp_path)):
        for shape in ((3, 2, 5), (4, 4, 5), (2, 1, 5)):
            x = torch.randn(shape)
            pairs = list(zip(leaves(model(x)), leaves(net(x)), strict=True))
            assert len(pairs) == (1 if parts is last else 3)
            assert all(torch.allclose(found, wanted, atol=1e-6) for found, wanted in pairs)
    assert small.signature.inputs[0].shape == (3, 2, 5) and small.example_inputs[0].shape == (3, 2, 5)


@pytest.mark.parametrize("answers", [[1], [1, 1, 3], [1, 1, 1, 1]])
def test_a_file_that_moves_what_is_not_there_is_refused(answers, tmp_path):
    _, small = compiled(everything)
    assert small.signature.answers == (1, 0, 1)
    small.save(tmp_path)
    body = read_document(tmp_path / "manifest.json")
    body["extra"]["signature"]["answers"] = answers
    write_document(tmp_path / "manifest.json", body)
    with pytest.raises(ArtifactError, match="it does not return what its signature says; save the model again"):
        chainfx.load(tmp_path)


def test_a_second_input_has_its_batch_there_too():
    torch.manual_seed(0)
    net, x, state = Recurrent(everything).eval(), torch.randn(3, 2, 5), torch.randn(1, 2, 8)
    small = chainfx.compile(net, [Fuse()], example_inputs={"x": x, "state": state}, batch_dim=1)
    x, state = torch.randn(4, 3, 5), torch.randn(1, 3, 8)
    for found, wanted in zip(leaves(small(x, state=state)), leaves(net(x, state)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_costs_are_those_of_one_sample():
    net, small = compiled(last)
    steps = 3 * (5 * 6 + 4 * 8 * (6 + 8) + 8 * 3)
    assert chainfx.count(net, torch.randn(3, 1, 5), batch_dim=1).macs == steps
    assert chainfx.count(net, torch.randn(3, 4, 5), batch_dim=1).macs == steps
    assert chainfx.count(small, torch.randn(3, 4, 5)).macs == steps
    assert small.report.records[0].after.macs == steps


@dataclass(frozen=True)
class Look(Pass):
    """Changes nothing and notes the shapes of what it is given for calibration."""

    info: ClassVar[PassInfo] = PassInfo(
        "look", Kind.STATIC, Granularity.LAYER, needs=frozenset({"calibration"}), domain="network"
    )
    seen: ClassVar[list[tuple[int, ...]]] = []

    def apply(self, graph_module, context, /):
        self.seen[:] = [tuple(batch[0].shape) for batch in context.calibration]
        return PassResult(graph_module, modified=False)


def test_calibration_has_the_batch_where_the_network_has_it():
    compiled(last, Look(), calibration=[torch.randn(6, 8, 5), torch.randn(4, 3, 5)])
    assert Look.seen == [(8, 6, 5), (3, 4, 5)]


def test_a_trainer_has_the_batch_first():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(12, 3, 5), torch.arange(12) % 3)
    loader = torch.utils.data.DataLoader(data, 6)
    trainer = Trainer(from_loaders(loader, loader, num_classes=3, validation=loader), epochs=1)
    _, small = compiled(last, PruneWeights(0.5), trainer=trainer)
    assert small(torch.randn(3, 2, 5)).shape == (2, 3)


@pytest.mark.parametrize("wrong", [3, -1, True, None, "1"])
def test_a_dimension_that_is_none(wrong):
    with pytest.raises(InputError) as caught:
        chainfx.compile(Recurrent(last).eval(), [Fuse()], example_inputs=torch.randn(3, 2, 5), batch_dim=wrong)
    assert str(caught.value) == (
        f"batch_dim={wrong!r} is no dimension of the first input, which has shape (3, 2, 5); give a number from 0 to 2."
    )


def test_a_dimension_that_is_not_the_batch_in_the_answer():
    with pytest.raises(InputError) as caught:
        chainfx.compile(
            Recurrent(lambda steps, state: steps.sum(1)).eval(),
            [Fuse()],
            example_inputs=torch.randn(3, 2, 5),
            batch_dim=1,
        )
    assert str(caught.value) == (
        "batch_dim=1: the network answers with shape (3, 3), and (3, 3) for one sample more, so no dimension of it is "
        "the batch; give the dimension of the first input that is."
    )


@pytest.mark.parametrize("do", [chainfx.count, lambda net, x: chainfx.compile(net, [Fuse()], example_inputs=x)])
def test_time_first_is_one_sentence(do):
    with pytest.raises(InputError) as caught:
        do(Recurrent(last).eval(), torch.randn(3, 2, 5))
    assert str(caught.value) == (
        "module 'body' takes dimension 0 of the inputs as time, so the batch is in another; give batch_dim=1, or build "
        "the layer with batch_first=True."
    )


def test_layers_that_swap_the_dimensions_themselves_are_taken():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = nn.GRU(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.body(x.transpose(0, 1))[0][-1])

    net, x = Swapped().eval(), torch.randn(2, 3, 5)
    small = chainfx.compile(net, [Fuse()], example_inputs=x)
    assert torch.allclose(small(x), net(x), atol=1e-6)
