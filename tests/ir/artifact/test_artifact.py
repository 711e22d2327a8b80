import json
import operator
import re

import pytest
import safetensors.torch
import torch
from torch import nn

import chainfx
from chainfx.deploy import CompressedModel
from chainfx.errors import ArtifactError
from chainfx.ir.artifact import make_folder
from chainfx.ir.artifact.files import fingerprint, load_graph, save_graph
from chainfx.ir.graph import edit, layers_of, ops
from chainfx.passes import PassContext, Quantize
from tests.fresh import fresh
from tests.nets import graph_of, images, small_resnet


def test_a_graph_comes_back_the_same_with_what_was_saved_beside_it(tmp_path):
    x = images()
    graph_module = graph_of(small_resnet((1, 1)), x)
    save_graph(graph_module, tmp_path, {"note": [1, 2]})
    loaded, extra = load_graph(tmp_path)
    assert extra == {"note": [1, 2]}
    assert str(loaded.graph) == str(graph_module.graph)
    assert torch.equal(loaded(x), graph_module(x))
    assert list(loaded.state_dict()) == list(graph_module.state_dict())
    assert fingerprint(loaded) == fingerprint(graph_module)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    x = images()
    graph_module = graph_of(small_resnet((1, 1)), x)
    save_graph(graph_module, tmp_path)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, pathlib, torch; from chainfx.ir.artifact import load_graph; p = pathlib.Path(sys.argv[1]);"
        "g, _ = load_graph(p); y = g(torch.load(p / 'x.pt', weights_only=True));"
        "torch.save(y.detach(), p / 'y.pt')"
    )
    fresh(code, tmp_path)
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), graph_module(x))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return self.cell(x)[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "cell",
    [
        nn.LSTM(5, 4, num_layers=2, dropout=0.1, bidirectional=True, proj_size=3, batch_first=True),
        nn.GRU(5, 4, bias=False, batch_first=True),
        nn.RNN(5, 4, nonlinearity="relu"),
    ],
    ids=lambda cell: type(cell).__name__,
)
def test_recurrent_layers_come_back(cell, tmp_path):
    """Their constructors hide the names of their arguments."""
    x = torch.randn(2, 6, 5)
    graph_module = graph_of(Recurrent(cell).eval(), x)
    save_graph(graph_module, tmp_path)
    loaded, _ = load_graph(tmp_path)
    assert repr(loaded.cell) == repr(cell)
    assert torch.equal(loaded(x), Recurrent(cell)(x))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_attention_comes_back(tmp_path):
    x = torch.randn(2, 5, 8)
    graph_module = graph_of(Attends().eval(), x)
    save_graph(graph_module, tmp_path)
    assert torch.equal(load_graph(tmp_path)[0](x), graph_module(x))


def test_a_module_that_its_arguments_do_not_make_is_one_clear_error(tmp_path):
    graph_module = graph_of(Recurrent(nn.LSTM(5, 4)), torch.randn(2, 6, 5))
    graph_module.cell.proj_size = 9
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_module, tmp_path)
    assert str(caught.value) == (
        "module 'cell' (LSTM(5, 4, proj_size=9)) cannot be rebuilt from its constructor's arguments, which give "
        "ValueError: proj_size has to be smaller than hidden_size; "
        "replace it by torch.nn modules that keep their arguments."
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_stored_at_their_width(bits, tmp_path):
    """The weights have 200 * 300 codes and 200 scales of 4 bytes, the bias 200 numbers, all else is a header."""
    torch.manual_seed(0)
    x = torch.randn(2, 300)
    graph_module = graph_of(nn.Sequential(nn.Linear(300, 200)), x)
    one = Quantize(bits, 32, first=None, last=None)
    one.apply(graph_module, PassContext(graph_module, (x,)))
    small = CompressedModel(graph_module.eval(), (x,), None)
    save_graph(small.graph_module, tmp_path)
    expected = 200 * 300 * bits / 8 + 200 * 4 + 200 * 4
    assert expected <= (tmp_path / "model.safetensors").stat().st_size <= 1.03 * expected + 300
    loaded, _ = load_graph(tmp_path)
    assert torch.equal(loaded(x), small.graph_module(x))


@pytest.mark.parametrize(("entries", "bits"), [(1, 1), (2, 1), (3, 2), (16, 4), (17, 5), (256, 8)])
def test_places_in_a_codebook_are_stored_at_the_width_that_tells_its_entries_apart(entries, bits, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 100)
    graph_module = graph_of(nn.Sequential(nn.Linear(100, 40, bias=False)), x)
    edit.set_tensor(graph_module, "0.codes", torch.randint(entries, (40, 100), dtype=torch.uint8), parameter=False)
    edit.set_tensor(graph_module, "0.codebook", torch.randn(entries), parameter=True)
    (layer,) = layers_of(graph_module)
    with graph_module.graph.inserting_before(layer.node):
        read = [graph_module.graph.get_attr(path) for path in ("0.codes", "0.codebook")]
        layer.node.update_arg(1, graph_module.graph.call_function(ops.look_up, tuple(read)))
    edit.tidy(graph_module)
    save_graph(graph_module, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["0.codes"].numel() == 40 * 100 * bits / 8
    loaded, _ = load_graph(tmp_path)
    assert torch.equal(loaded(x), graph_module(x))
    assert torch.equal(loaded.get_buffer("0.codes"), graph_module.get_buffer("0.codes"))


def test_a_shared_tensor_is_stored_once_and_stays_shared(tmp_path):
    root = nn.Module()
    root.a = nn.Linear(6, 6, bias=False)
    root.b = nn.Module()
    root.b.weight = root.a.weight
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(nn.functional.linear, (x, graph.get_attr("a.weight"), None))
    y = graph.call_function(nn.functional.linear, (y, graph.get_attr("b.weight"), None))
    graph.output(
        graph.call_method(
            "mean", (graph.call_function(operator.getitem, (y, (..., slice(1, None)))),), {"dim": -1, "keepdim": True}
        )
    )
    graph_module = torch.fx.GraphModule(root, graph)
    save_graph(graph_module, tmp_path)
    loaded, _ = load_graph(tmp_path)
    assert loaded.a.weight is loaded.b.weight
    assert list(loaded.state_dict()) == ["a.weight", "b.weight"]
    assert (tmp_path / "model.safetensors").stat().st_size < 300
    x = torch.randn(2, 6)
    assert torch.equal(loaded(x), graph_module(x))


def test_the_fingerprint_sees_weights_and_graph():
    graph_module = graph_of(small_resnet((1, 1)), images())
    before = fingerprint(graph_module)
    assert fingerprint(graph_of(small_resnet((1, 1)), images())) == before
    with torch.no_grad():
        next(graph_module.parameters()).view(-1)[0] += 1
    assert fingerprint(graph_module) != before
    assert fingerprint(graph_of(small_resnet((1, 2)), images())) != before


@pytest.fixture
def saved(tmp_path):
    save_graph(graph_of(small_resnet((1, 1)), images()), tmp_path)
    return tmp_path


def test_a_truncated_tensor_file_is_one_clear_error(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert str(caught.value) == (
        f"{path} was changed or cut short after it was saved (its SHA-256 differs); save it again."
    )


def test_an_edited_manifest_is_one_clear_error(saved):
    path = saved / "manifest.json"
    path.write_text(path.read_text().replace('"training":false', '"training":true'))
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert str(caught.value) == f"{path} was changed after it was saved (its SHA-256 differs); save the model again."


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_broken_manifest_is_one_clear_error(saved, text):
    path = saved / "manifest.json"
    path.write_text(text)
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert str(caught.value) == f"{path} is not a chainfx manifest or is cut short; save the model again."


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path / "nothing")
    path = tmp_path / "nothing" / "manifest.json"
    assert str(caught.value) == f"{path} does not exist; give the folder that save() wrote."


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    file = tmp_path / "net.pt"
    file.write_text("")
    with pytest.raises(ArtifactError) as caught:
        chainfx.load(file)
    assert str(caught.value) == f"{file} is a file; give the folder that save() wrote."
    graph_module = chainfx.capture(nn.Linear(2, 2), torch.zeros(1, 2))
    for folder in (file, file / "below"):
        with pytest.raises(ArtifactError) as caught:
            save_graph(graph_module, folder)
        assert str(caught.value) == f"{folder} is or lies in a file; give a folder to save in."
    with pytest.raises(ArtifactError) as caught:
        make_folder(tmp_path / ("a" * 300))
    assert str(caught.value) == f"{tmp_path / ('a' * 300)} cannot be made a folder: File name too long; give another."


def _forged(folder, change):
    """A manifest somebody wrote on purpose, with a right checksum."""
    from chainfx.ir.artifact.documents import digest_of

    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    path.write_text(json.dumps({"sha256": digest_of(body), **body}))


@pytest.mark.parametrize(
    "name", ["os:system", "torch:load", "builtins:eval", "torch:from_file", "torch.hub:load", "subprocess:run"]
)
def test_a_forged_manifest_cannot_name_a_function_outside_the_lists(saved, name):
    def change(body):
        call = next(node for node in body["nodes"] if node["op"] == "call_function")
        call["target"] = name

    _forged(saved, change)
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert (
        str(caught.value) == f"the saved graph calls {name!r}, which chainfx does not load; save it with this version."
    )


def test_a_forged_manifest_cannot_name_a_foreign_module_or_method(saved):
    def foreign(body):
        next(iter(body["modules"].values()))["class"] = "subprocess:Popen"

    _forged(saved, foreign)
    with pytest.raises(ArtifactError, match="has a module 'subprocess:Popen', which chainfx does not load"):
        load_graph(saved)


# what a tensor knows of itself, and the parts of what torch.max, torch.linalg and the like return
READABLE = {
    "D",
    "H",
    "L",
    "LU",
    "Q",
    "R",
    "S",
    "T",
    "U",
    "V",
    "Vh",
    "bin_edges",
    "data",
    "device",
    "dtype",
    "eigenvalues",
    "eigenvectors",
    "exponent",
    "hist",
    "imag",
    "indices",
    "is_cpu",
    "is_cuda",
    "is_meta",
    "itemsize",
    "layout",
    "logabsdet",
    "mH",
    "mT",
    "mantissa",
    "nbytes",
    "ndim",
    "pivots",
    "real",
    "requires_grad",
    "shape",
    "sign",
    "solution",
    "values",
}


def test_a_forged_manifest_reads_the_attributes_of_the_list_and_no_other(tmp_path):
    graph = torch.fx.Graph()
    graph.output(graph.call_function(getattr, (graph.placeholder("x"), "shape")))
    save_graph(torch.fx.GraphModule(nn.Module(), graph), tmp_path)
    accepted = set()
    for name in {*dir(torch.Tensor), *dir(nn.Module), *dir(torch.return_types.max), "__globals__", *READABLE}:

        def change(body, name=name):
            body["nodes"][1]["args"][1] = name

        _forged(tmp_path, change)
        try:
            load_graph(tmp_path)
            accepted.add(name)
        except ArtifactError as error:
            assert str(error) == f"the saved graph reads the attribute {name!r}, which chainfx does not load."
    assert accepted == READABLE


@pytest.mark.parametrize("name", ["set_", "backward", "register_hook", "share_memory_", "numpy", "tolist", "apply_"])
def test_a_forged_manifest_calls_no_method_that_does_more_than_compute(tmp_path, name):
    graph = torch.fx.Graph()
    graph.output(graph.call_method("relu", (graph.placeholder("x"),)))
    save_graph(torch.fx.GraphModule(nn.Module(), graph), tmp_path)

    def change(body):
        body["nodes"][1]["target"] = name

    _forged(tmp_path, change)
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    assert str(caught.value) == f"the saved graph calls the method {name!r}, which chainfx does not load."


def test_what_trains_and_what_does_not_comes_back(tmp_path):
    graph_module = graph_of(small_resnet((1, 1)), images())
    for name, parameter in graph_module.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    save_graph(graph_module, tmp_path)
    loaded, _ = load_graph(tmp_path)
    trains = {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
    assert trains == {name: name.startswith("fc.") for name, _ in graph_module.named_parameters()}
    assert {name for name, _ in loaded.named_buffers()} == {name for name, _ in graph_module.named_buffers()}


class Foreign(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_module_of_the_users_own_cannot_be_saved_and_the_error_says_so(tmp_path):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("odd", (x,)))
    root = nn.Module()
    root.odd = Foreign()
    with pytest.raises(ArtifactError) as caught:
        save_graph(torch.fx.GraphModule(root, graph), tmp_path)
    assert str(caught.value) == (
        "module 'odd' is of class tests.ir.artifact.test_artifact.Foreign, whose code a safe file cannot hold; "
        "replace it by torch.nn modules to save."
    )


def test_tensors_that_safetensors_cannot_hold_are_one_clear_error(tmp_path):
    root = nn.Module()
    root.register_buffer("a", torch.zeros(6))
    root.register_buffer("b", root.a.view(2, 3))
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("a"), graph.get_attr("b")))
    with pytest.raises(ArtifactError) as caught:
        save_graph(torch.fx.GraphModule(root, graph), tmp_path)
    text = re.sub(r"\[\{.*?\}\]", "[...]", str(caught.value))  # a set of names, in any order
    assert text == (
        "safetensors cannot hold the tensors of this network (RuntimeError: Some tensors share memory, this will lead "
        "to duplicate memory on disk and potential differences when loading them again: [...]); give each parameter "
        "and buffer a memory of its own, dense and of a usual type."
    )


def test_the_fingerprint_sees_types_and_shapes():
    def of(tensor):
        root = nn.Module()
        root.register_buffer("a", tensor)
        graph = torch.fx.Graph()
        graph.output(graph.get_attr("a"))
        return fingerprint(torch.fx.GraphModule(root, graph))

    zeros = torch.zeros(2, 3)
    assert len({of(zeros), of(zeros.int()), of(zeros.view(3, 2)), of(zeros + 1)}) == 4
