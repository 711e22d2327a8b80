import collections
import copy
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import chainfx
from chainfx.deploy import CompressedModel
from chainfx.deploy.exporting.forms import PLAIN
from chainfx.deploy.exporting.rewriting import rewrite_for_export
from chainfx.deploy.exporting.terms import ranges_of_terms
from chainfx.deploy.lower import to_codes
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.graph import exits_of, operator_of, ops, propagate_shapes
from chainfx.passes import Fuse, PassContext, PruneWeights, Quantize
from tests.deploy.integers.nets import distance, quantized, run
from tests.deploy.test_model import exiting
from tests.fresh import fresh
from tests.nets import graph_of, images, small_resnet

EXAMPLES = Path(__file__).parents[3] / "examples"
ANY_MACHINE = Quantize(7, 8, first=7, last=7, scheme="uniform")

TORCH_ALONE = """
import json, sys, torch
folder = sys.argv[1]
segments = json.load(open(folder + "/manifest.json"))["segments"]
values, answers = [torch.load(folder + "/x.pt")], []
rows = torch.arange(len(values[0]))
for segment in segments:
    outputs = torch.export.load(folder + "/" + segment["file"]).module()(*values)
    if segment["exit"] is None:
        logits, values = outputs, []
    else:
        logits, sure, *values = outputs
    answers.append((rows, logits))
    if segment["exit"] is not None:
        stay = ~(sure >= segment["exit"]["threshold"])
        rows, values = rows[stay], [value[stay] for value in values]
result = torch.empty(len(answers[0][0]), answers[0][1].shape[1])
for rows, logits in answers:
    result[rows] = logits
assert not any(name.split(".")[0] == "chainfx" for name in sys.modules)
torch.save(result, folder + "/y.pt")
"""


def in_fresh_process(folder, *arguments):
    """Run Python from a folder without a word of chainfx on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-W", "ignore", *map(str, arguments)], cwd=folder, env=environment, check=True)


def flipped(model):
    """The model with factors of both signs in its BatchNorms, and one that is 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::2] *= -1
            module.weight.data[0] = 0
    return model


@pytest.fixture(scope="module")
def x():
    return images(64)


@pytest.fixture(scope="module")
def small(x):
    """With one exit, where about half of the samples leave."""
    model = flipped(small_resnet((1, 1)))
    return CompressedModel(exiting(x, exits=1, share=0.5, quantize=ANY_MACHINE, model=model), (x[:1],), None)


@pytest.fixture(scope="module")
def onnx_folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "made" / "small"
    small.export(folder)
    return folder


@pytest.fixture(scope="module")
def pt2_folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pt2")
    small.export(folder, format="pt2")
    return folder


def agreement(given, expected):
    return float((given.argmax(1) == expected.argmax(1)).float().mean())


def test_onnx_has_int8_weights_and_quantized_nodes_alone(onnx_folder):
    onnx = pytest.importorskip("onnx")
    nodes, weights, floats = collections.Counter(), [], 0
    for file in ("segment0.onnx", "segment1.onnx"):
        graph = onnx.load(onnx_folder / file).graph
        assert [each.type.tensor_type.shape.dim[0].dim_param for each in (*graph.input, *graph.output)] == [
            "batch" for _ in (*graph.input, *graph.output)
        ]
        nodes.update(node.op_type for node in graph.node)
        tensors = {each.name: each for each in graph.initializer}
        weights += [tensors[node.input[0]] for node in graph.node if node.input[0] in tensors]
        floats += sum(4 * int(np.prod(x.dims)) for x in tensors.values() if x.data_type == onnx.TensorProto.FLOAT)
    assert (nodes["Conv"], nodes["Gemm"]) == (7, 3)
    assert nodes["QuantizeLinear"] > 6 and not {"BatchNormalization", "Round", "Sub", "Floor"} & set(nodes)
    assert len(weights) == 10 and {each.data_type for each in weights} == {onnx.TensorProto.INT8}
    assert floats < sum(int(np.prod(each.dims)) for each in weights)  # of scales and biases, fewer than of weights


def test_onnx_runtime_in_a_fresh_process_gives_the_same_answers(onnx_folder, small, x):
    pytest.importorskip("onnxruntime")
    np.save(onnx_folder / "x.npy", x.numpy())
    script = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); from run_onnx import Network\n"
        "net, x = Network('.'), np.load('x.npy'); [y] = net(x); np.save('y.npy', y)\n"
        "assert np.allclose(net(x[:1])[0], y[:1], atol=1e-4) and not {'chainfx', 'torch'} & set(sys.modules)"
    )
    in_fresh_process(onnx_folder, "-c", script, EXAMPLES)
    given, expected = torch.from_numpy(np.load(onnx_folder / "y.npy")), run(small.lower("float"), x)
    (mark,) = exits_of(small.graph_module)
    sure = run(small.lower("float").segments[0], x)[1]
    clear = (sure - mark.threshold).abs() > 0.001  # rounding may let others leave or stay
    assert 10 < int((sure[clear] > mark.threshold).sum()) < int(clear.sum()) - 10
    assert agreement(given[clear], expected[clear]) >= 0.995 and distance(given[clear], expected[clear]) < 0.01


def test_openvino_gives_the_same_answers(onnx_folder, small, x):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(onnx_folder / "segment0.onnx", "CPU", {"INFERENCE_NUM_THREADS": 1})
    given, expected = torch.from_numpy(compiled([x.numpy()])[0]), run(small.lower("float").segments[0], x)[0]
    assert agreement(given, expected) >= 0.98 and distance(given, expected) < 0.02


def test_torch_alone_runs_the_segments(small, x, pt2_folder):
    before = run(small, x)
    torch.save(x, pt2_folder / "x.pt")
    fresh(TORCH_ALONE, pt2_folder)
    assert distance(torch.load(pt2_folder / "y.pt"), run(small.lower("float"), x)) < 1e-5
    assert torch.equal(run(small, x), before)  # the export has not changed the network


def test_the_manifest_says_what_goes_where(pt2_folder):
    manifest = json.loads((pt2_folder / "manifest.json").read_text())
    threshold = manifest["segments"][0]["exit"]["threshold"]
    assert manifest == {
        "chainfx": chainfx.__version__,
        "format": "pt2",
        "inputs": [{"name": "x", "shape": [None, 1, 8, 8], "dtype": "float32"}],
        "segments": [
            {
                "file": "segment0.pt2",
                "inputs": ["x"],
                "outputs": ["logits0", "confidence0", "carried0_0"],
                "exit": {"name": "exit1", "threshold": threshold},
            },
            {"file": "segment1.pt2", "inputs": ["carried0_0"], "outputs": ["output0"], "exit": None},
        ],
    }


@pytest.mark.parametrize(
    "one",
    [ANY_MACHINE, Quantize(1, 1), Quantize(3, 2, scheme="dorefa"), Quantize(4, 8, granularity="tensor")],
    ids=["7-8", "1-1", "dorefa 3-2", "4-8 per tensor"],
)
def test_the_rewritten_graph_is_the_fake_quantized_network(one, x):
    graph_module = quantized(flipped(small_resnet((1, 1))), x, one=one)
    expected = run(copy.deepcopy(graph_module).double(), x.double())
    coded = to_codes(copy.deepcopy(graph_module).double())
    propagate_shapes(coded, (x.double(),))
    rewrite_for_export(coded, PLAIN)
    assert distance(run(coded, x.double()), expected) < 1e-6
    called = {node.target for node in coded.graph.nodes}
    assert not called & {ops.dequantize_weight, ops.quantize_activation, ops.mask_weight}
    assert "BatchNorm2d" not in {type(each).__name__ for each in coded.modules()}


def test_activations_of_more_than_8_bits_stay_in_arithmetic(x):
    graph_module = quantized(small_resnet((1, 1)), x, one=ANY_MACHINE)
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation):
        node.update_arg(2, 12)
    graph_module.recompile()
    coded = to_codes(copy.deepcopy(graph_module))
    propagate_shapes(coded, (x,))
    rewrite_for_export(coded, PLAIN)
    assert distance(run(coded, x), run(graph_module, x)) < 1e-5
    assert ops.round_activation in {node.target for node in coded.graph.nodes}


def test_masks_are_folded_into_the_codes(x):
    graph_module = graph_of(small_resnet((1, 1)), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=False)
    for one in (PruneWeights(0.5), Quantize(3, 8, scheme="dorefa", skip=["fc"])):
        graph_module = one.apply(graph_module, context).graph_module
    expected = run(graph_module.eval(), x)
    coded = to_codes(copy.deepcopy(graph_module))
    propagate_shapes(coded, (x,))
    rewrite_for_export(coded, PLAIN)
    assert distance(run(coded, x), expected) < 1e-5
    codes = [each for name, each in coded.named_buffers() if name.startswith("codes_")]
    assert {each.dtype for each in codes} == {torch.int8}
    assert all(float((each == 0).float().mean()) > 0.1 for each in codes[1:])
    assert ops.mask_weight not in {node.target for node in coded.graph.nodes}


def test_with_calibration_what_is_added_is_rounded_on_both_sides(x):
    graph_module = quantized(flipped(small_resnet((1, 1, 1))), x, one=ANY_MACHINE)
    coded = to_codes(copy.deepcopy(graph_module).double())
    propagate_shapes(coded, (x.double(),))
    ranges = ranges_of_terms(coded, [(x[:40].double(),), (x[40:].double(),)])
    whole = ranges_of_terms(coded, [(x.double(),)])
    assert len(ranges) == 3 and ranges.keys() == whole.keys()  # the ends of two blocks, and the way around one
    for node, (low, high) in ranges.items():
        assert low == pytest.approx(whole[node][0], abs=1e-9) and high == pytest.approx(whole[node][1], abs=1e-9)
    rewrite_for_export(coded, PLAIN, ranges)
    additions = [node for node in coded.graph.nodes if operator_of(node).name == "add"]
    assert len(additions) == 3  # the last sum is averaged, not quantized
    assert {source.target for node in additions[:2] for source in node.all_input_nodes} == {PLAIN.round}
    expected = run(graph_module.double(), x.double())
    assert 1e-6 < distance(run(coded, x.double()), expected) < 0.02


@pytest.mark.slow
def test_onnx_runtime_adds_in_integers_after_calibration(x, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = flipped(small_resnet((1, 1, 1)))
    small = chainfx.compile(model, [ANY_MACHINE], example_inputs=x, calibration=[x])
    small.export(tmp_path, calibration=[{"x": x[:32]}, x[32:]])
    graph = onnx.load(tmp_path / "segment0.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    additions = [node for node in graph.node if node.op_type == "Add"]
    assert all(makers[name] == "DequantizeLinear" for node in additions[:2] for name in node.input)
    assert len(additions) == 3
    session = runtime.InferenceSession(tmp_path / "segment0.onnx")
    given = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    assert distance(given, run(small.lower("float"), x)) < 0.05


def refused(small, path, file_format, **options):
    with pytest.raises((InputError, ArtifactError)) as caught:
        small.export(path, format=file_format, **options)
    return str(caught.value)


def test_errors_are_one_sentence_each(small, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    assert refused(small, tmp_path / "a", "hlo") == "format is 'hlo'; give one of 'onnx', 'pt2', 'aoti'."
    assert refused(small, file, "pt2") == f"{file} is or lies in a file; give a folder to save in."
    assert refused(copy.deepcopy(small).double(), tmp_path / "a", "onnx") == (
        "format='onnx' is for float32, but the network has tensors of torch.float64; call .float() first."
    )
    advice = "give a list of at least one batch of inputs, for format='onnx', or leave it out."
    assert (
        refused(small, tmp_path / "a", "onnx", calibration=[]) == f"calibration is a list for format='onnx'; {advice}"
    )
    assert refused(small, tmp_path / "a", "onnx", calibration=["x"]) == "input 'x' is a str; give a tensor."
    bad = torch.full((2, 1, 8, 8), math.nan)
    assert refused(small, tmp_path / "a", "onnx", calibration=[bad]) == (
        "a batch of calibration has values in 'x' that are not finite; mend or remove it."
    )
    said = refused(small, tmp_path / "b", "onnx", calibration=[torch.zeros(2, 3, 8, 8)])
    assert said.startswith(
        "the network does not accept a batch of calibration, x of shape (2, 3, 8, 8) in the first one: "
    ) and said.endswith("; give batches as the example inputs.")
    given = f"calibration is a list for format='pt2'; {advice}"
    assert refused(small, tmp_path / "a", "pt2", calibration=[torch.zeros(2, 1, 8, 8)]) == given
    given = f"calibration is a Tensor for format='onnx'; {advice}"
    assert refused(small, tmp_path / "a", "onnx", calibration=torch.zeros(2, 1, 8, 8)) == given
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert refused(small, tmp_path / "a", "onnx") == (
        "format='onnx' needs the package onnxscript, which is not installed; run pip install 'chainfx[export]'."
    )
    assert not (tmp_path / "a").exists()


class Reads(nn.Module):
    """Decides by a value, which no tracer and no export can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_a_module_that_torch_cannot_export_is_named(tmp_path):
    x = torch.ones(2, 4)
    small = chainfx.compile(nn.Sequential(nn.Linear(4, 4), Reads()), [Fuse()], example_inputs=x)
    said = refused(small, tmp_path, "pt2")
    assert said.startswith("the network cannot be exported to pt2: ")
    assert said.endswith("; write 1 so that torch.export takes it, or use save() and chainfx.load().")
