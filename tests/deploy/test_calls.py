"""A compressed network is called like the original, and says in one sentence what it does not take."""

import collections
from pathlib import Path

import pytest
import torch
from torch import nn

import chainfx
from chainfx.deploy.model import CompressedModel
from chainfx.errors import ArtifactError, InputError, TuningError
from chainfx.passes import EarlyExit, Fuse, PruneChannels, Quantize
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.body, self.out = nn.Embedding(12, 6), nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, tokens, lengths=None, keep=None, *, scale: float = 1.0):
        x = self.body(self.words(tokens)).relu()
        if lengths is not None:
            x = x / lengths[:, None, None]
        if keep is not None:
            x = torch.where(keep.unsqueeze(-1), x, torch.zeros_like(x))
        return {"tags": self.out(x) * scale}


class Query(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(5, 12), nn.Linear(7, 12), nn.Linear(12, 2)

    def forward(self, query, *, key):
        return self.out((self.query(query) * self.key(key)).relu())


class Rows(nn.Module):
    """A loop over rows, which symbolic tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, picture):
        x = self.a(picture)
        return self.out(torch.stack([row.relu() for row in x.unbind(2)], 2))


class Doubled(nn.Module):
    """Fails on an odd number of features, whatever the graph has fixed."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.a(x.reshape(x.shape[0], -1, 2)).relu())


@pytest.fixture(scope="module")
def tokens():
    return torch.arange(8).reshape(2, 4)


@pytest.fixture(scope="module")
def keep():
    return torch.tensor([[True, True, False, True], [True, False, False, True]])


@pytest.fixture(params=["as made", "loaded"])
def again(request, tmp_path):
    """A compressed network as it is, and as it is after it was saved and loaded."""

    def as_asked(small):
        if request.param == "as made":
            return small
        small.save(tmp_path)
        return chainfx.load(tmp_path)

    return as_asked


def message_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("mapping", [dict, collections.UserDict])
def test_inputs_by_the_names_of_the_original(tokens, keep, again, mapping):
    net = Tagger().eval()
    small = chainfx.compile(net, [Fuse()], example_inputs=mapping({"keep": keep, "tokens": tokens}))
    wanted = net(tokens, keep=keep)["tags"]
    small = again(small)
    for answer in (
        small(tokens, keep=keep),
        small(keep=keep, tokens=tokens),
        small(tokens, None, keep),
        small(tokens=tokens, lengths=None, keep=keep, scale=1.0),
    ):
        assert torch.allclose(answer["tags"], wanted, atol=1e-6)
    assert message_of(small, tokens, keep) == (
        "the network was captured without an example of 'lengths', which keeps its default None; leave it out, or "
        "compile with an example of it."
    )
    assert message_of(small, tokens) == (
        "the network takes tokens, keep, but 'keep' is missing; call it as the original."
    )
    assert message_of(small, tokens, keep=keep, labels=tokens) == (
        "the network takes tokens, keep, but 'labels' is not among them; call it as the original."
    )


@pytest.mark.parametrize("by_name", [True, False])
def test_parameters_that_have_to_be_given_by_name(again, by_name):
    net, query, key = Query().eval(), torch.randn(3, 5), torch.randn(3, 7)
    examples = {"query": query, "key": key} if by_name else (query, key)
    small = again(chainfx.compile(net, [PruneChannels(0.5)], example_inputs=examples))
    assert torch.equal(small(query, key=key), small(key=key, query=query))
    assert small(query[:2], key=key[:2]).shape == (2, 2)
    assert message_of(small, query, key) == (
        "the network takes query, key (by name), but 2 inputs are given by position; call it as the original."
    )


def test_a_size_that_was_written_down_is_said_at_the_call(again):
    net, picture = Rows().eval(), torch.randn(2, 2, 6, 5)
    small = again(chainfx.compile(net, [Fuse()], example_inputs=picture))
    more = torch.randn(3, 2, 6, 5)
    assert torch.allclose(small(picture=more), net(more), atol=1e-6)
    why = small.signature.why
    assert "`return self.out(torch.stack([row.relu() for row in x.unbind(2)], 2))` at test_calls.py:" in why
    for shape, dim, size in (((2, 2, 4, 5), 2, 6), ((2, 2, 6, 4), 3, 5), ((2, 3, 6, 5), 1, 2)):
        assert message_of(small, torch.randn(shape)) == (
            f"input 'picture' has shape {shape}, but its dimension {dim} is fixed at {size}, as {why}; give that size, "
            "or compile with an example of the other."
        )
    assert message_of(small, torch.randn(2, 6, 5)) == (
        "input 'picture' has shape (2, 6, 5) of 3 dimensions, but the network was captured with 4, (2, 2, 6, 5); give "
        "as many."
    )
    assert message_of(small, picture.long()) == (
        "input 'picture' has dtype torch.int64, but the network was captured with torch.float32; give floating-point "
        "values."
    )


def test_what_torch_says_of_other_shapes_is_one_sentence(again):
    small = again(chainfx.compile(Doubled().eval(), [Fuse()], example_inputs=torch.randn(2, 6)))
    assert small(torch.randn(5, 8)).shape == (5, 4, 2)
    assert message_of(small, torch.randn(1, 7)) == (
        "the network was captured with inputs of shape (2, 6) and fails on (1, 7): shape '[1, -1, 2]' is invalid for "
        "input of size 7."
    )


@pytest.mark.parametrize(("shape", "error"), [((2, 6), RuntimeError), ((5, 6), torch.OutOfMemoryError)])
def test_what_has_other_causes_passes_as_it_is(shape, error):
    def fail(module, args):
        raise error("so it is")

    small = chainfx.compile(Doubled().eval(), [Fuse()], example_inputs=torch.randn(2, 6))
    small.segments[0].register_forward_pre_hook(fail)
    with pytest.raises(error, match=r"^so it is$"):
        small(torch.randn(shape))


def test_a_graph_without_signature_takes_inputs_by_position():
    net, given = Query().eval(), (torch.randn(3, 5), torch.randn(3, 7))
    small = CompressedModel(graph_of(net, *given), given, None)
    assert torch.allclose(small(*given), net(given[0], key=given[1]), atol=1e-6)
    assert [each.fixed for each in small.signature.inputs] == [(), ()]
    assert message_of(small, given[0], key=given[1]) == (
        "the network takes query, key, but 'key' is given by name; call it as the original."
    )


def test_an_artefact_of_chainfx_0_1_takes_its_input_by_position(tmp_path):
    model = chainfx.load(Path(__file__).parents[1] / "fixtures/chainfx_0_1/small")
    (known,) = model.signature.inputs
    assert (known.name, known.given, known.fixed) == ("input", "position", ())
    x = torch.randn(3, 4)
    model.save(tmp_path)
    again = chainfx.load(tmp_path)
    assert torch.equal(again(x), model(x)) and again.signature == model.signature
    assert message_of(again, input=x) == (
        "the network takes input, but 'input' is given by name; call it as the original."
    )


def test_exits_take_inputs_by_name():
    x = images(16)
    small = chainfx.compile(
        small_resnet((1, 1)), [EarlyExit(exits=1, threshold=0.2, keep=True)], example_inputs=x, trainer=FakeTrainer(x)
    )
    assert torch.equal(small(x=x), small(x))


def test_finished_stages_keep_the_signature():
    x = images(20)
    trainer = FakeTrainer(x, fail_at=2)
    with pytest.raises(TuningError) as caught:
        chainfx.compile(
            small_resnet((1, 1)), [PruneChannels(0.5), Quantize(4, 4)], example_inputs={"x": x}, trainer=trainer
        )
    assert torch.equal(caught.value.partial(x=x), caught.value.partial(x))


def test_calibration_by_name():
    query, key = torch.randn(8, 5), torch.randn(8, 7)
    example, batch = {"query": query, "key": key}, {"key": key, "query": query}
    net = Query().eval()
    small, same = (
        chainfx.compile(net, [Quantize(8, 8)], example_inputs=example, calibration=calibration)
        for calibration in ([batch], [(query, key)])
    )
    assert torch.equal(small(**batch), same(**batch))
    assert message_of(
        chainfx.compile, Query(), [Quantize(8, 8)], example_inputs=example, calibration=[{"query": query}]
    ) == ("the network takes query, key (by name), but 'key' is missing; call it as the original.")


def test_count_takes_inputs_by_name():
    net, named = Query().eval(), {"key": torch.randn(1, 7), "query": torch.randn(1, 5)}
    macs = 5 * 12 + 7 * 12 + 12 * 2
    assert chainfx.count(net, named).macs == macs
    small = chainfx.compile(net, [Fuse()], example_inputs=named)
    assert chainfx.count(small, named).macs == macs
    assert chainfx.count(small.graph_module, named).macs == macs


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_follows_the_binding(tokens, keep):
    net = Tagger().eval()
    small = chainfx.compile(net, [Fuse()], example_inputs={"tokens": tokens, "keep": keep})
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    for count in (2, 1):
        answer = compiled(tokens[:count], keep=keep[:count])["tags"]
        assert torch.allclose(answer, net(tokens[:count], keep=keep[:count])["tags"], atol=1e-6)
    small.compile(backend="eager")
    assert torch.allclose(small(keep=keep, tokens=tokens)["tags"], net(tokens, keep=keep)["tags"], atol=1e-6)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder_to_save_in(tmp_path, name):
    small = chainfx.compile(Query().eval(), [Fuse()], example_inputs=(torch.randn(3, 5), torch.randn(3, 7)))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        small.save(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} is or lies in a file; give a folder to save in."
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_no_saved_network(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, message in (
        (tmp_path / "file", f"{tmp_path / 'file'} is a file; give the folder that save() wrote."),
        (tmp_path, f"{tmp_path / 'manifest.json'} does not exist; give the folder that save() wrote."),
    ):
        with pytest.raises(ArtifactError) as caught:
            chainfx.load(path)
        assert str(caught.value) == message
