import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import chainfx
from chainfx.deploy.lower import fold_codes, split_segments, to_codes
from chainfx.deploy.model import CompressedModel, _zeros
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.artifact import write_document
from chainfx.ir.graph import ops
from chainfx.ir.graph.checks import verify
from chainfx.ir.graph.exits import Answer, exits_of
from chainfx.passes import EarlyExit, Fuse, PassContext, PostTrainingQuantize, PruneWeights, Quantize
from tests.budget import mostly_slow
from tests.fresh import fresh
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer

LOW = Quantize(3, 4)


def exiting(x, *, share=0.4, quantize=LOW, model=None, exits=2):
    """A network with exits at which about ``share`` of the samples that reach them leave."""
    graph_module = graph_of(model or small_resnet((2, 2, 2)), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=True)
    if quantize:
        quantize.apply(graph_module, context)
        verify(graph_module, (x,))
    EarlyExit(exits=exits).apply(graph_module, context)
    verify(graph_module, (x,))
    graph_module.eval()
    with torch.no_grad():
        for name, parameter in graph_module.named_parameters():
            if ".fc2." in name:
                parameter.mul_(20)
        for mark, logits in zip(exits_of(graph_module), graph_module(x), strict=False):
            threshold = float(ops.confidence(logits, mark.criterion).quantile(1 - share))
            mark.node.update_arg(2, threshold)
    graph_module.recompile()
    return graph_module


@pytest.fixture(scope="module")
def x():
    return images(32)


@pytest.fixture(scope="module")
def compressed(x):
    return chainfx.compile(
        small_resnet((2, 2)),
        [Quantize(1, 4), EarlyExit(exits=1, max_drop=0.2, keep=True)],
        example_inputs=x,
        trainer=FakeTrainer(x),
    )


def test_codes_give_the_fake_quantized_weights_bit_for_bit(x):
    graph_module = exiting(x)
    lowered = to_codes(graph_module)
    assert not lowered.graph.find_nodes(op="call_function", target=ops.quantize_weight)
    assert not any("weight" in name and "conv" in name for name, _ in lowered.named_parameters())
    for one, other, third in zip(graph_module(x), lowered(x), fold_codes(lowered)(x), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    codes = [buffer for name, buffer in lowered.named_buffers() if name.endswith(".codes")]
    assert {code.dtype for code in codes} == {torch.uint8}
    assert graph_module.conv1.weight.shape == (4, 1, 3, 3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_staged_execution_gives_each_sample_the_answer_of_the_first_sure_exit(x, share):
    graph_module = exiting(x, share=share).double()
    verify(graph_module, (x.double(),))
    small = CompressedModel(graph_module, (x.double(),), None)
    for inputs in (x[:1].double(), x.double()):
        torch.testing.assert_close(small(inputs), Answer(graph_module)(inputs), atol=1e-12, rtol=1e-12)


def test_a_file_may_ask_for_example_inputs_of_a_bounded_size():
    assert _zeros([2, 3], "float32").shape == (2, 3)
    for shape in ([2**28 + 1], [2**15, 2**15], [-1], [True]):
        with pytest.raises(ArtifactError) as caught:
            _zeros(shape, "uint8")
        assert str(caught.value) == (
            f"the saved network has an example input of shape {shape}, which is none; save it again."
        )


def test_samples_that_left_are_not_computed(x):
    graph_module = exiting(x, share=0.4)
    small = CompressedModel(graph_module, (x,), None)
    seen = []
    for segment in small.segments:
        segment.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    small(x)
    index = torch.stack([ops.confidence(part, "max-softmax") for part in graph_module(x)[:-1]])
    thresholds = torch.tensor([mark.threshold for mark in exits_of(graph_module)])[:, None]
    sure = index >= thresholds
    assert seen == [32, int((~sure[0]).sum()), int((~sure[0] & ~sure[1]).sum())]
    assert 0 < seen[2] < seen[1] < 32


def test_a_segment_all_samples_leave_before_is_never_run(x):
    graph_module = exiting(x, share=1.0)
    small = CompressedModel(graph_module, (x,), None)
    small.segments[1].register_forward_pre_hook(lambda module, args: pytest.fail("computed for nobody"))
    assert small(x).shape == (32, 10)


def test_a_sample_whose_confidence_is_no_number_runs_to_the_end(x):
    graph_module = exiting(x, quantize=False)
    for mark in exits_of(graph_module):
        mark.node.update_arg(2, 0.0)
    graph_module.recompile()
    inputs = x.clone()
    inputs[3] = float("nan")
    small, seen = CompressedModel(graph_module, (x,), None), []
    for segment in small.segments:
        segment.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    answers = small(inputs)
    assert seen == [32, 1, 1]
    torch.testing.assert_close(answers, Answer(graph_module)(inputs), equal_nan=True)
    assert torch.isnan(answers[3]).all() and not torch.isnan(answers[:3]).any()


def test_stages_is_the_old_name_of_segments(compressed):
    assert compressed.stages is compressed.segments and len(compressed.segments) == 2


class Skips(nn.Module):
    """Reads a batch size and the input late, so that segments must carry the input and compute the size again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(14, 4)

    def forward(self, x):
        size = x.size(0)
        y = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(torch.cat([y.reshape(size, 8), x.view(size, -1)], dim=1))


def test_values_used_late_are_carried_and_sizes_are_computed_again():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    graph_module = graph_of(Skips(), x)
    y = next(node for node in graph_module.graph.nodes if node.name.startswith("relu"))
    with graph_module.graph.inserting_after(y):
        part = graph_module.graph.call_method("narrow", (y, 1, 0, 4))
        with graph_module.graph.inserting_after(part):
            mark = graph_module.graph.call_function(ops.exit_point, (part, "early", 0.3, "max-softmax"))
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    output.args = ((mark, output.args[0]),)
    graph_module.recompile()
    verify(graph_module, (x,))
    parts = split_segments(graph_module)
    assert [len(part.graph.find_nodes(op="placeholder")) for part in parts] == [1, 2]
    small = CompressedModel(graph_module, (x,), None)
    left = ops.confidence(graph_module(x)[0], "max-softmax") >= 0.3
    assert 0 < int(left.sum()) < 16
    torch.testing.assert_close(small(x), Answer(graph_module)(x))


def counting(seen):
    """A backend of ``torch.compile`` that compiles nothing and puts each graph into ``seen``."""

    def backend(graph_module, example_inputs):
        seen.append(graph_module)
        return graph_module.forward

    return backend


GRAPHS = 2 if torch.__version__ >= "2.14" else 3  # torch 2.9 makes one of single samples beside convolutions
INTEGERS = Quantize(4, 8, first=7, last=7, scheme="uniform")


@pytest.mark.parametrize("first", mostly_slow([1, 100], [1]))
@pytest.mark.parametrize("quantize", mostly_slow([None, INTEGERS], [None]))
@pytest.mark.parametrize("whole", mostly_slow([False, True], [False]))
def test_a_staged_network_has_at_most_two_graphs_a_segment_for_all_batches(quantize, whole, first, x):
    """Compiled segment by segment, and by ``torch.compile`` on the whole, whichever batch comes first."""
    small = CompressedModel(exiting(x, exits=1, quantize=quantize, model=small_resnet((1, 1))), (x,), None)
    seen = []
    with torch.no_grad():
        batches = [images(count) for count in (first, 1, 2, 3, 7, 15, 16, 17, 33, 64, 100, 255, 256)]
        expected = [small(each) for each in batches]
        torch._dynamo.reset()
        compiled = torch.compile(small, backend=counting(seen)) if whole else small
        if not whole:
            small.compile(backend=counting(seen))
        for each, answer in zip(batches, expected, strict=True):
            torch.testing.assert_close(compiled(each), answer, atol=1e-5, rtol=1e-5)
    assert len(small.segments) <= len(seen) <= GRAPHS * len(small.segments)


@pytest.mark.parametrize("quantize", mostly_slow([False, True], [False]))
def test_a_network_in_one_segment_has_at_most_two_graphs_for_all_batches(quantize, x):
    passes = [PostTrainingQuantize(7, 8)] if quantize else [Fuse()]
    small = chainfx.compile(small_resnet((1, 1)), passes, example_inputs=x, calibration=[x])
    seen = []
    torch._dynamo.reset()
    small.compile(backend=counting(seen))
    with torch.no_grad():
        for count in (100, 1, 2, 3, 7, 15, 16, 17, 33, 64, 255, 256):
            assert small(images(count)).shape == (count, 10)
    assert 1 <= len(seen) <= (2 if quantize else GRAPHS)


def test_how_stages_compile_can_be_said(x, monkeypatch):
    given = []
    small = CompressedModel(exiting(x, exits=1), (x,), None)
    monkeypatch.setattr(nn.Module, "compile", lambda module, *args, **options: given.append((args, options)))
    small.compile()
    small.compile("mode", fullgraph=False, dynamic=False)
    assert given == [
        ((), {"fullgraph": True}),
        ((), {"fullgraph": True}),
        (("mode",), {"fullgraph": False, "dynamic": False}),
        (("mode",), {"fullgraph": False, "dynamic": False}),
    ]


class Tied(nn.Module):
    """One weight for two layers, a bare parameter as a weight, and a weight that a bag of embeddings reads as well."""

    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.EmbeddingBag(7, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.bare = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        x = self.words(x)
        x = nn.functional.linear(self.b(torch.relu(self.a(x))), self.bare)
        return nn.functional.linear(x, self.words.weight)


@pytest.mark.parametrize(("inner", "codes"), [(8, 3), (4, 4)])
def test_codes_of_a_shared_weight_are_stored_once_for_each_way_to_quantize_it(inner, codes):
    """The first layer is quantized to 8 bits: with the second at 8 bits it shares codes, at 4 bits it does not."""
    torch.manual_seed(0)
    words = torch.randint(7, (4, 5))
    graph_module = graph_of(Tied().eval(), words)
    Quantize(inner, 32, first=8, last=8).apply(
        graph_module, PassContext(graph_module, (words,), calibration=[(words,)])
    )
    verify(graph_module, (words,))
    text, names = str(graph_module.graph), list(graph_module.state_dict())
    lowered = to_codes(graph_module)
    assert torch.equal(lowered(words), graph_module(words))
    folded = fold_codes(lowered)
    assert torch.equal(folded(words), graph_module(words))
    assert len([name for name, _ in folded.named_buffers()]) == codes
    stored = {name for name, _ in lowered.named_buffers() if name.endswith("codes")}
    assert len(stored) == codes
    assert (str(graph_module.graph), list(graph_module.state_dict())) == (text, names)
    assert not any(name.startswith("words.") for name in stored)  # the bag is shared with the graph that came in
    assert not hasattr(graph_module.get_submodule("words"), "codes")


def test_it_is_for_inference(compressed):
    assert not any(module.training for module in compressed.modules())
    assert not compressed.eval().training and not compressed.train(False).training
    with pytest.raises(InputError) as caught:
        compressed.train()
    assert str(caught.value) == (
        "a CompressedModel is for inference and cannot be put in train mode; "
        "tune with a trainer inside chainfx.compile."
    )


def test_a_saved_network_gives_the_same_bits_in_a_fresh_process(compressed, x, tmp_path):
    compressed.save(tmp_path / "small")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, pathlib, torch, chainfx; p = pathlib.Path(sys.argv[1]); m = chainfx.load(p / 'small');"
        "torch.save((m(torch.load(p / 'x.pt', weights_only=True)).detach(), list(m.exit_names)), p / 'y.pt')"
    )
    fresh(code, tmp_path)
    answers, names = torch.load(tmp_path / "y.pt", weights_only=True)
    assert torch.equal(answers, compressed(x))
    assert names == ["exit1"]
    loaded = chainfx.load(tmp_path / "small")
    assert loaded.report == compressed.report
    assert str(loaded.graph_module.graph) == str(compressed.graph_module.graph)


def test_one_bit_weights_take_one_bit_on_disk(compressed, x, tmp_path):
    compressed.save(tmp_path)
    storage = compressed.report.records[-1].after.storage_bits / 8
    size = (tmp_path / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") + 8
    assert size - header == pytest.approx(storage, abs=64)


def test_a_graph_that_is_no_compressed_model_is_refused(tmp_path, x):
    from chainfx.ir.artifact.files import save_graph

    save_graph(graph_of(small_resnet(), x), tmp_path)
    with pytest.raises(ArtifactError) as caught:
        chainfx.load(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds a graph but no CompressedModel; give a folder save() wrote."


def test_codes_that_are_folded_are_gone_and_masks_with_them(x):
    graph_module = graph_of(small_resnet((1, 1)), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    for one in (PruneWeights(0.5), Quantize(4, 32, first=None, last=None)):
        one.apply(graph_module, context)
        verify(graph_module, (x,))
    lowered = to_codes(graph_module.train())
    folded = fold_codes(lowered)
    assert not lowered.training and not folded.training and graph_module.training
    names = [name for name, _ in folded.named_buffers() if "bn" not in name and "shortcut" not in name]
    assert names and all(name.startswith("decoded_") for name in names)
    targets = {node.target for node in folded.graph.nodes if node.op == "call_function"}
    assert not targets & set(ops.DIALECT)
    graph_module.eval()
    assert torch.equal(folded(x), graph_module(x))
    assert all(node.meta.get("val") is not None for node in lowered.graph.nodes if node.target is ops.dequantize_weight)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.words(x).mean(1))


def test_the_examples_keep_their_shapes_and_dtypes_and_none_of_their_values(tmp_path):
    words = torch.randint(1, 9, (4, 5))
    small = chainfx.compile(Words().eval(), [Quantize(4, 32, first=None, last=None)], example_inputs=words)
    small.save(tmp_path)
    loaded = chainfx.load(tmp_path)
    for each in (small, loaded):
        (example,) = each.example_inputs
        assert (example.shape, example.dtype, int(example.abs().sum())) == (words.shape, words.dtype, 0)
        assert each.exit_names == () and len(each.stages) == 1 and not each.stages[0].training
    assert torch.equal(loaded(words), small(words))


def test_the_report_lies_beside_a_compact_manifest(compressed, tmp_path):
    compressed.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors", "report.json"]
    manifest, report = ((tmp_path / name).read_text() for name in ("manifest.json", "report.json"))
    assert "\n" not in manifest and '"records"' not in manifest
    plain = json.loads(report)
    assert {key: plain[key] for key in ("plan", "findings", "records")} == compressed.report.to_dict()
    counted = chainfx.count(compressed, compressed.example_inputs, "strict")
    repriced = chainfx.load(tmp_path).report.records[-1].report.reprice("strict")
    assert (repriced.expected_bitops, repriced.macs) == (counted.expected_bitops, counted.macs)


def test_a_report_that_is_not_the_one_saved_with_the_network_is_refused(compressed, tmp_path):
    compressed.save(tmp_path)
    path = tmp_path / "report.json"
    text = path.read_text()
    changed = f"{path} was changed after it was saved (its SHA-256 differs); save the model again."

    def refused(message):
        with pytest.raises(ArtifactError) as caught:
            chainfx.load(tmp_path)
        assert str(caught.value) == message

    path.write_text(text.replace('"metric":', '"metric":1'))
    refused(changed)
    write_document(path, {**compressed.report.to_dict(), "plan": "another"})
    refused(changed)
    path.write_text(text[:-1])
    refused(f"{path} is not a chainfx report or is cut short; save the model again.")
    path.unlink()
    refused(f"{path} does not exist; give the folder that save() wrote.")
    path.write_text(text)
    chainfx.load(tmp_path)


def test_an_artefact_of_chainfx_0_1_is_read(tmp_path):
    """It has the report in its manifest, and records without cost reports."""
    model = chainfx.load(Path(__file__).parents[1] / "fixtures/chainfx_0_1/small")
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    expected = [[0.25525284, -0.03419040, -0.00444616], [0.30592516, -0.11263947, 0.04043893]]
    torch.testing.assert_close(model(x), torch.tensor(expected))
    records = model.report.records
    assert [(record.name, record.after.macs, record.after.bitops) for record in records] == [
        ("original", 56, 57344.0),
        ("prune-channels", 28, 28672.0),
        ("quantize", 28, 1792.0),
    ]
    assert str(model.report).startswith("order: prune-channels -> quantize\n")
    model.save(tmp_path)
    again = chainfx.load(tmp_path)
    assert again.report == model.report and torch.equal(again(x), model(x))


def test_it_deepcopies(compressed, x):
    assert torch.equal(copy.deepcopy(compressed)(x), compressed(x))
