"""What a network returns comes back in the classes of the original, and as classes alike from a file."""

import collections
import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import ArtifactError, CaptureError
from chainfx.ir.artifact import read_document, write_document
from chainfx.ir.capture import capture, capture_with_report
from chainfx.ir.capture.outputs import OutputForm, class_named, taken_apart
from chainfx.passes import Fuse


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Found:
    scores: Any
    extra: Any = None
    pair: Any = None


class Bag(dict):
    """A dictionary of somebody's own."""


class Cache:
    """An object that no graph can hold."""


class DynamicCache(Cache):
    pass


class Net(nn.Module):
    def __init__(self, put):
        super().__init__()
        self.out, self.put = nn.Linear(4, 3), put

    def forward(self, x):
        return self.put(self.out(x))


def ordered(y):
    return collections.OrderedDict(a=y, b=[y + 1, None])


def counted(y):
    return collections.defaultdict(list, a=y)


# what is returned, and the classes of its parts: of the original, and of what was loaded
FORMS = {
    "named tuple": lambda y: Pair(y, y + 1),
    "dataclass": lambda y: Found(y, pair=Pair(y, [y.relu(), y])),
    "within a tuple": lambda y: (y, Found(y), {"pair": Pair(y, y)}),
    "ordered": ordered,
    "dictionary of its own": lambda y: Bag(a=y, b=y + 1),
    "default dictionary": counted,
    "keys of several kinds": lambda y: {"a": y, 3: Pair(y, y)},
    "torch's own": lambda y: y.max(1),
    "values beside tensors": lambda y: {"a": y, "size": 3, "none": None, "name": "x"},
    "plain": lambda y: [y, (y, y)],
}


def described(value, names=True):
    """The classes of a value and its parts by name, with the tensors as lists."""
    kind = type(value).__name__ if names else None
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        return kind, [(f.name, described(getattr(value, f.name), names)) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return kind, [(key, described(item, names)) for key, item in value.items()]
    if isinstance(value, tuple | list):
        return kind, getattr(value, "_fields", None), [described(item, names) for item in value]
    return value


def compiled(put, x):
    torch.manual_seed(0)
    net = Net(put).eval()
    return net, chainfx.compile(net, [Fuse()], example_inputs=x)


@pytest.mark.parametrize("put", FORMS.values(), ids=FORMS)
def test_results_are_as_those_of_the_original_and_after_load(put, tmp_path):
    x = torch.randn(2, 4)
    net, small = compiled(put, x)
    wanted = described(net(x)) if put is not counted else ("dict", described(net(x))[1])
    assert described(small(x)) == wanted
    if isinstance(net(x), Pair | Found):
        assert type(small(x)) is type(net(x))
    small.save(tmp_path)
    loaded = chainfx.load(tmp_path)
    again = described(loaded(x))
    assert again == (wanted if type(net(x)) is not Bag else ("dict", wanted[1]))
    for model in (small, loaded):
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert described(copied(x)) == described(model(x))
    assert loaded.signature == small.signature


def test_classes_that_nobody_can_import_are_pickled_by_their_fields():
    class Local(NamedTuple):
        a: Any

    x = torch.randn(2, 4)
    _, small = compiled(Local, x)
    copied = pickle.loads(pickle.dumps(small))
    assert type(copy.deepcopy(small)(x)) is Local
    assert type(copied(x)) is not Local and torch.equal(copied(x).a, small(x).a)


def test_a_graph_itself_returns_plain_parts():
    x = torch.randn(2, 4)
    graph_module, report = capture_with_report(Net(FORMS["dataclass"]).eval(), (x,))
    assert list(graph_module(x)) == ["scores", "extra", "pair"]
    assert report.signature.output.fits(graph_module.graph.output_node().args[0])
    assert capture_with_report(Net(FORMS["plain"]).eval(), (x,))[1].signature.output is None


def test_an_exported_graph_has_the_form_too():
    class Rows(nn.Module):
        def forward(self, x):
            total = x.sum(0, keepdim=True)
            return Pair(torch.cond(x.shape[1] > 3, lambda y: y + 1, lambda y: y - 1, (x,)), total)

    x = torch.randn(2, 4)
    small = chainfx.compile(nn.Sequential(nn.Linear(4, 4), Rows()).eval(), [Fuse()], example_inputs=x)
    assert type(small(x)) is Pair


@pytest.mark.parametrize(
    ("made", "kind", "advice"),
    [
        (Cache, "Cache", " (without a cache of keys and values: use_cache=False)"),
        (DynamicCache, "DynamicCache", " (without a cache of keys and values: use_cache=False)"),
        (object, "object", ""),
    ],
)
def test_what_no_graph_can_return_is_one_sentence(made, kind, advice):
    with pytest.raises(CaptureError) as caught:
        capture(Net(lambda y: {"logits": y, "state": made()}).eval(), (torch.randn(2, 4),))
    assert str(caught.value) == (
        f"Net returns a {kind}, which no graph can hold; have it return tensors, alone or in tuples, lists, "
        f"dictionaries, named tuples and dataclasses{advice}."
    )


def test_an_exact_list_of_classes_is_looked_up_and_no_other():
    assert class_named("collections.OrderedDict", "mapping", ("a",)) is collections.OrderedDict
    popen = class_named("subprocess.Popen", "dataclass", ("args",))
    assert popen.__name__ == "Popen" and popen.__module__ != "subprocess"
    assert popen(args=["rm"]) == popen(args=["rm"])
    assert class_named("collections.Counter", "mapping", ("a",)) is dict
    assert class_named("os.terminal_size", "named tuple", ("a", "b"))(1, 2)._fields == ("a", "b")


PLAIN = {"kind": "dataclass", "keys": ["a"], "parts": [None], "name": "x.Found"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "class"},
        {"kind": "list"},
        {"keys": ["a", "a"], "parts": [None, None]},
        {"keys": [], "parts": [None]},
        {"keys": ["__class__"]},
        {"keys": ["a b"]},
        {"keys": [None]},
        {"name": "x.not a name"},
        {"name": 5},
        {"parts": [{**PLAIN, "kind": "?"}]},
    ],
)
def test_a_form_that_nobody_wrote_is_refused(change):
    with pytest.raises((ValueError, TypeError, KeyError)):
        OutputForm.from_dict({**PLAIN, **change})


def test_forms_nest_so_deep_and_no_deeper():
    data = PLAIN
    for _ in range(20):
        data = {**PLAIN, "parts": [data]}
    assert OutputForm.from_dict(data).to_dict() == data
    with pytest.raises(ValueError, match="an output is not a 'dataclass'"):
        OutputForm.from_dict({**PLAIN, "parts": [data]})


def test_a_form_fits_its_plain_output_alone():
    plain, form = taken_apart(Pair(torch.zeros(1), Found(torch.zeros(2))), "Net")
    assert form.fits(plain)
    for other in (plain[0], [*plain], plain[:1], (plain[0], plain[0]), (plain[0], {"scores": plain[0]})):
        assert not form.fits(other)


def test_a_file_whose_form_does_not_fit_is_refused(tmp_path):
    _, small = compiled(FORMS["named tuple"], torch.randn(2, 4))
    small.save(tmp_path)
    body = read_document(tmp_path / "manifest.json")
    body["extra"]["signature"]["output"] = PLAIN
    write_document(tmp_path / "manifest.json", body)
    with pytest.raises(ArtifactError) as caught:
        chainfx.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds a graph that cannot run: it does not return what its signature says; save the model again."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_follows_the_classes():
    x = torch.randn(2, 4)
    for put in (FORMS["named tuple"], FORMS["ordered"], FORMS["dataclass"]):
        net, small = compiled(put, x)
        answer = torch.compile(small, backend="eager", fullgraph=True)(x)
        assert type(answer) is type(net(x))
