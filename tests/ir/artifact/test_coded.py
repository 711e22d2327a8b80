"""The coded file: any tensors come back, and what is not as it was written is one clear error, with bounded memory."""

import hashlib
import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from chainfx.coding import Reader, varint
from chainfx.errors import ArtifactError
from chainfx.ir.artifact.coded import CODED, DICTIONARY
from chainfx.ir.artifact.files import fingerprint, load_graph, manifest_bytes, save_graph
from chainfx.ir.graph import edit, layers_of, ops
from chainfx.passes import Encode, PassContext, PruneWeights, ShareWeights
from tests.nets import graph_of, images, small_resnet


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A graph with coded weights, and its file."""
    x, folder = images(), tmp_path_factory.mktemp("written")
    graph_module = graph_of(small_resnet((1, 1)), x)
    for one in (PruneWeights(0.7), ShareWeights(2), Encode()):
        one.apply(graph_module, PassContext(graph_module, (x,)))
    save_graph(graph_module, folder, {"note": 1}, coded=True)
    return graph_module, folder / CODED


@pytest.fixture
def coded(written, tmp_path):
    """The graph, and a copy of its file to change."""
    graph_module, path = written
    return graph_module, Path(shutil.copy(path, tmp_path))


def forged(path, change=lambda body: None, tensors=lambda data: data, size=None):
    """The file with another manifest, changed as it is stored, or other tensors, and a right checksum."""
    data = path.read_bytes()[21:]
    reader = Reader(data)
    reader.varint()
    body = json.loads(zlib.decompressobj(-15, zdict=DICTIONARY).decompress(reader.take(reader.varint())))
    change(body)
    text = json.dumps(body).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    deflated = deflate.compress(text) + deflate.flush()
    rest = tensors(reader.take(reader.left))
    content = varint(size or len(text)) + varint(len(deflated)) + deflated + rest
    path.write_bytes(b"chFX\x03" + hashlib.sha256(content).digest()[:16] + content)


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        load_graph(path.parent)
    return str(caught.value)


def test_a_graph_comes_back_with_what_its_masks_hide_as_zeros(coded):
    graph_module, path = coded
    loaded, extra = load_graph(path.parent)
    x = images()
    assert extra == {"note": 1} and fingerprint(loaded) == fingerprint(graph_module)
    assert torch.equal(loaded(x), graph_module(x))
    trains = {name: each.requires_grad for name, each in loaded.named_parameters()}
    assert trains == {name: each.requires_grad for name, each in graph_module.named_parameters()}


def test_what_is_no_tensor_is_counted_to_a_few_bytes(coded, tmp_path):
    graph_module, _ = coded
    save_graph(graph_module, tmp_path, coded=True)  # with nothing saved beside it
    size, tensors = (tmp_path / CODED).stat().st_size, []
    forged(tmp_path / CODED, tensors=lambda data: tensors.append(len(data)) or data)
    assert 0 <= size - tensors[0] - manifest_bytes(graph_module) < 4  # the word "extra", deflated


def test_the_manifest_is_deflated_to_a_twentieth(coded, tmp_path):
    graph_module, _ = coded
    save_graph(graph_module, tmp_path / "plain")
    assert manifest_bytes(graph_module) < (tmp_path / "plain" / "manifest.json").stat().st_size / 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_comes_back(dtype, tmp_path):
    x = images().to(dtype)
    graph_module = graph_of(small_resnet((1, 1)).to(dtype), x)
    for one in (PruneWeights(0.7), Encode()):
        one.apply(graph_module, PassContext(graph_module, (x,)))
    save_graph(graph_module, tmp_path, coded=True)
    loaded, _ = load_graph(tmp_path)
    for old, new in zip(layers_of(graph_module), layers_of(loaded), strict=True):
        mask = edit.get_tensor(graph_module, f"{old.path}.weight_mask")
        assert new.tensor.dtype == dtype and torch.equal(old.tensor * mask, new.tensor * mask)


def test_a_shared_tensor_and_a_mask_of_two_weights_are_stored_once(tmp_path):
    root = nn.Module()
    root.a, root.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    root.c = nn.Module()
    root.c.weight = root.a.weight
    root.register_buffer("mask", torch.rand(6, 6) < 0.5)
    graph = torch.fx.Graph()
    y = graph.placeholder("x")
    for name in ("a", "b", "c"):
        masked = graph.call_function(
            ops.mask_weight, (graph.get_attr(f"{name}.weight"), graph.get_attr("mask"), "unstructured")
        )
        y = graph.call_function(
            nn.functional.linear, (y, graph.call_function(ops.coded_weight, (masked, "static")), None)
        )
    graph.output(y)
    graph_module = torch.fx.GraphModule(root, graph)
    save_graph(graph_module, tmp_path, coded=True)
    loaded, _ = load_graph(tmp_path)
    assert loaded.a.weight is loaded.c.weight
    assert torch.equal(loaded(torch.eye(6)), graph_module(torch.eye(6)))
    assert torch.equal(loaded.b.weight, root.b.weight)


def test_what_is_damaged_or_unknown_is_one_clear_error(coded):
    _, path = coded
    data = path.read_bytes()
    changed = f"{path} was changed or cut short after it was saved (its SHA-256 differs); save it again."
    for wrong in (data[:-1], data + b"\0", data[:50] + bytes([data[50] ^ 1]) + data[51:]):
        path.write_bytes(wrong)
        assert refusal(path) == changed
    for wrong in (b"", data[:10], b"PK" + data[2:]):
        path.write_bytes(wrong)
        assert refusal(path) == f"{path} is not a coded chainfx model or is cut short; save the model again."
    path.write_bytes(data[:4] + b"\x02" + data[5:])
    assert refusal(path) == f"{path} has version 2 of the coded format, this chainfx reads 3; save it again."


def test_forged_sizes_ask_for_no_memory(coded):
    _, path = coded
    data = path.read_bytes()

    def large(body):
        entry = next(entry for entry in body["tensors"] if len(entry) > 3)
        entry[2] = [1 << 20, 1 << 20]
        mask = next(other for other in body["tensors"] if other[0] == entry[3])
        mask[2] = entry[2]

    forged(path, large)
    assert refusal(path).endswith("elements, which is too many for its size; save the model again.")
    path.write_bytes(data)
    forged(path, size=1 << 40)
    assert refusal(path) == (f"{path}: its manifest of {1 << 40} bytes is too long for its size; save the model again.")
    path.write_bytes(data)
    forged(path, size=7)
    assert refusal(path) == f"{path}: its manifest is damaged; save the model again."


def test_forged_tensors_are_one_clear_error(coded):
    _, path = coded
    data = path.read_bytes()
    for change, text in (
        (lambda rest: rest[:-1], "a coded tensor ends 1 bytes too early; save the model again."),
        (lambda rest: rest + b"!", "it goes on for 1 bytes after its last tensor; save the model again."),
        (
            lambda rest: b"\x07" + rest[1:],
            "a tensor is stored in form 7, which this chainfx does not know; load it with a newer one.",
        ),
    ):
        path.write_bytes(data)
        forged(path, tensors=change)
        assert refusal(path) == f"{path}: {text}"


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("tensors"),
        lambda body: body["tensors"].append(["more"]),
        lambda body: body.pop("kinds"),
        lambda body: body["kinds"][0].__setitem__(2, "float99"),
        lambda body: body["tensors"][0].__setitem__(0, 999),
        lambda body: body["tensors"][0].__setitem__(1, 99),
        lambda body: body["tensors"][0].__setitem__(2, [-1]),
        lambda body: body["nodes"][1].extend([[], {"dict": []}, "name", 1]),
        lambda body: body["nodes"][1].__setitem__(0, 9),
        lambda body: next(node for node in body["nodes"] if node[0] == 2).__setitem__(1, "os:system"),
        lambda body: body["nodes"][-1].__setitem__(2, [{"node": 0}]),
        lambda body: body.__setitem__("class_name", "x; import os"),
    ],
)
def test_a_forged_manifest_runs_nothing(coded, change):
    _, path = coded
    forged(path, change)
    assert refusal(path)


def test_what_codes_to_nothing_is_refused_when_it_is_written(tmp_path):
    graph_module = graph_of(nn.Linear(4000, 4000, bias=False), torch.zeros(1, 4000))
    (layer,) = layers_of(graph_module)
    with torch.no_grad():
        layer.tensor.zero_()
    Encode().apply(graph_module, PassContext(graph_module, (torch.zeros(1, 4000),)))
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_module, tmp_path, coded=True)
    assert str(caught.value) == (
        "the network has more than 4096 elements for each byte that it codes to, which no reader accepts; "
        "leave Encode out, or prune channels in place of weights."
    )
