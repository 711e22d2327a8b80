"""Early exits of networks that answer at every token or at every pixel."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.bitops import count
from chainfx.deploy import CompressedModel
from chainfx.errors import ArtifactError, PassError
from chainfx.ir.artifact.documents import digest_of
from chainfx.ir.graph import Answer, exit_rates, exits_of, layers_of, ops, verify
from chainfx.passes import EarlyExit, PassContext, Quantize, exit_places
from chainfx.recipe import load_recipe
from chainfx.scheduler import ChainReport
from chainfx.training import Trainer, from_tensors, language_modelling, segmentation, token_classification
from tests.fresh import fresh
from tests.nets import graph_of, warm

WORDS = 12


class Words(nn.Module):
    """Answers at every token: an embedding, blocks that add, a vocabulary."""

    def __init__(self, depth=3):
        super().__init__()
        self.words, self.out = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, tokens):
        x = self.words(tokens)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.out(x)


class Maps(nn.Module):
    """Answers at every pixel: a convolution that halves, two more, resized to the images or to a part of them."""

    def __init__(self, part=1):
        super().__init__()
        self.part, self.stem, self.norm = part, nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.body, self.out = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)), nn.Conv2d(6, 4, 1)

    def forward(self, images):
        x = torch.relu(self.norm(self.stem(images)))
        for layer in self.body:
            x = torch.relu(layer(x))
        sizes = [side // self.part for side in images.shape[2:]]
        return F.interpolate(self.out(x), size=sizes, mode="bilinear", align_corners=False)


def tokens(number=24, length=5):
    return torch.randint(WORDS, (number, length), generator=torch.Generator().manual_seed(0))


def images(number=24, height=8, width=6):
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(0))


NETWORKS = {"token": (Words, tokens), "pixel": (Maps, images)}
TASKS = {"token": token_classification(WORDS), "pixel": segmentation(4)}


def exiting(kind, *, measure="max-softmax", exits=2, quantize=None, leave=0.5, model=None):
    """A network with exits at which about a share of the samples leaves, and its inputs."""
    make, data = NETWORKS[kind]
    x = data()
    graph_module = graph_of(warm(model or make(), x), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=True, task=TASKS[kind])
    if quantize:
        quantize.apply(graph_module, context)
        verify(graph_module, (x,))
    graph_module = EarlyExit(exits=exits, criterion=f"{kind}-{measure}").apply(graph_module, context).graph_module
    verify(graph_module, (x,))
    with torch.no_grad():
        for output, mark in zip(graph_module.eval()(x), exits_of(graph_module), strict=False):
            sure = ops.confidence(output, mark.criterion)
            mark.node.update_arg(2, float(sure.quantile(1 - leave)))
    graph_module.recompile()
    return graph_module, x


def test_a_head_for_tokens_and_one_for_pixels():
    for kind, parameters in (("token", 8 * (WORDS + 2) + WORDS), ("pixel", 4 * (6 + 1))):
        make, data = NETWORKS[kind]
        x = data()
        graph_module = graph_of(warm(make(), x), x)
        original, context = copy.deepcopy(graph_module), PassContext(graph_module, (x,), tunes=True, task=TASKS[kind])
        result = EarlyExit(exits=2, criterion=f"{kind}-entropy").apply(graph_module, context)
        verify(result.graph_module, (x,))
        outputs, expected = result.graph_module.eval()(x), original.eval()(x)
        assert [each.shape for each in outputs] == [expected.shape] * 3
        assert torch.equal(outputs[-1], expected)
        old = {name for name, _ in original.named_parameters()}
        new = {name: each for name, each in result.graph_module.named_parameters() if name not in old}
        assert set(result.tune.parameters) == set(new)
        assert sum(each.numel() for name, each in new.items() if name.startswith("exit1.")) == parameters
        (weight,) = (each for name, each in new.items() if name.startswith("exit1.") and each.dim() > 1)
        bound = weight.shape[1] ** -0.5  # as torch's layers start
        assert -bound <= weight.min() < -bound / 2 and bound / 2 < weight.max() <= bound


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("quantize", [None, Quantize(4, 4)])
def test_segments_give_each_sample_the_answer_of_the_first_sure_exit(kind, quantize):
    graph_module, x = exiting(kind, quantize=quantize)
    rates = exit_rates(graph_module, [((x,), None)])
    assert all(0 < rate < 1 for rate in rates.values())
    small, rows = CompressedModel(graph_module, (x[:2],), None), []
    assert small.engine == ("int8" if quantize else "float")
    for number in (len(x), 1):
        torch.testing.assert_close(small(x[:number]), Answer(graph_module)(x[:number]), atol=1e-6, rtol=1e-6)
    for segment in small.segments:
        segment.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    small(x)
    stay = [1, 1 - rates["exit1"], 1 - rates["exit1"] - rates["exit2"]]
    assert rows == [round(len(x) * share) for share in stay]


def test_the_expected_cost_is_that_of_body_and_heads_by_who_reaches_them():
    """Words of 8 features: a block has 64 MACs a token, a head and the last layer 96; 5 tokens a sample."""
    graph_module, x = exiting("token")
    report = count(graph_module, (x[:1],), exit_rates={"exit1": 0.25, "exit2": 0.5})
    assert report.macs == 5 * (3 * 64 + 3 * 96)
    # the first exit stands after the first block, the second after the third
    assert float(report.expected_macs) == 5 * ((64 + 96) + 0.75 * (2 * 64 + 96) + 0.25 * 96)


def test_heads_of_a_quantized_body_are_quantized():
    for kind in NETWORKS:
        graph_module, _ = exiting(kind, quantize=Quantize(2, 4), exits=1)
        (head,) = (layer for layer in layers_of(graph_module) if layer.path.startswith("exit1"))
        assert (head.weight_quantizer.args[1], head.input_quantizer.args[2]) == (8, 8)  # as the last layer


def test_heads_for_pixels_follow_the_size_of_the_images():
    for part in (1, 2):
        graph_module, _ = exiting("pixel", model=Maps(part), exits=1)
        larger = images(height=12, width=16)
        outputs = graph_module(larger)
        assert [tuple(each.shape) for each in outputs] == [(24, 4, 12 // part, 16 // part)] * 2
        names = [node.name for node in graph_module.graph.nodes]
        assert any(name.startswith("interpolate") for name in names[: names.index("exit1")]) is (part == 1)


@pytest.mark.slow
def test_saved_and_loaded_in_a_fresh_process(tmp_path):
    for kind in NETWORKS:
        graph_module, x = exiting(kind, quantize=Quantize(4, 4))
        small = CompressedModel(graph_module, (x[:2],), ChainReport("", ()))
        small.save(tmp_path / kind)
        torch.save((x, small(x)), tmp_path / f"{kind}.pt")
    fresh(
        "import sys, torch, chainfx\n"
        "for kind in ('token', 'pixel'):\n"
        "    x, expected = torch.load(f'{sys.argv[1]}/{kind}.pt')\n"
        "    assert torch.equal(chainfx.load(f'{sys.argv[1]}/{kind}')(x), expected), kind\n",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("criterion", "reason"),
    [
        *(
            (
                name,
                f"exit 'exit1' answers with shape (2, 4, 8, 6), but its criterion {name!r} reads {dims} dimensions; "
                "mend the pass that made it",
            )
            for name, dims in (("token-max-softmax", 3), ("max-softmax", 2))
        ),
        (
            "pixel-luck",
            "node 'exit1': criterion must be one of entropy, margin, max-sigmoid, max-softmax, pixel-entropy, "
            "pixel-margin, pixel-max-softmax, token-entropy, token-margin, token-max-softmax, but its arguments are "
            "('exit1', 1.01, 'pixel-luck'); mend the pass",
        ),
    ],
)
def test_a_file_whose_criterion_reads_another_shape_is_refused(tmp_path, criterion, reason):
    graph_module, x = exiting("pixel", exits=1)
    (mark,) = exits_of(graph_module)
    mark.node.update_arg(2, 1.01)
    CompressedModel(graph_module, (x[:2],), ChainReport("", ())).save(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert text.count("pixel-max-softmax") == 1
    body = json.loads(text.replace("pixel-max-softmax", criterion))
    del body["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": digest_of(body), **body}))
    with pytest.raises(ArtifactError) as caught:
        chainfx.load(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds a graph that cannot run: {reason}; save the model again."


DATA = {
    "token accuracy": (token_classification(WORDS), Words, tokens(80), (tokens(80) * 5) % WORDS),
    "perplexity": (language_modelling(WORDS), Words, tokens(80), tokens(80)),
    "mIoU": (segmentation(4), Maps, images(80), images(80).mean(1).mul(2).add(2).clamp(0, 3).long()),
}


@pytest.mark.parametrize("metric", DATA)
@pytest.mark.parametrize("max_drop", [0.0, 0.2])
def test_the_threshold_is_the_cheapest_that_keeps_the_metric(metric, max_drop):
    task, make, x, targets = DATA[metric]
    data = from_tensors(x, targets, task=task)
    kind = "pixel" if metric == "mIoU" else "token"
    one = EarlyExit(exits=2, criterion=f"{kind}-max-softmax", max_drop=max_drop, keep=True)
    trainer = Trainer(data, epochs=1, learning_rate=0.1, batch_size=40)
    torch.manual_seed(0)
    small = chainfx.compile(make().eval(), [one], example_inputs=x[:2], trainer=trainer, warn_drop=None)
    record = small.report.records[-1]
    assert record.measured_by.name == metric
    full, sweep = record.profile["full_accuracy"], record.profile["sweep"]
    worse = 1 if task.metric.higher_is_better else -1
    allowed = [point for point in sweep if worse * (full - point["accuracy"]) <= max_drop + 1e-9]
    chosen = next(point for point in sweep if point["threshold"] == record.profile["threshold"])
    assert chosen["cost"] == min(point["cost"] for point in allowed)
    assert record.metric == pytest.approx(chosen["accuracy"])
    assert record.exit_rates == pytest.approx(chosen["rates"])
    assert trainer.evaluate(Answer(small.graph_module)) == pytest.approx(record.metric)  # tallied by batches there


def test_a_recipe(tmp_path):
    text = "model: {name: 'torch.nn:Identity'}\ninput: [2, 3]\npasses:\n  - early-exit: "
    (tmp_path / "recipe.yaml").write_text(text + "{exits: 1, criterion: token-margin, max_drop: 2.0}\n")
    assert load_recipe(tmp_path / "recipe.yaml").passes == (EarlyExit(1, criterion="token-margin", max_drop=2.0),)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("file_format", ["pt2", "onnx"])
def test_exported_segments(tmp_path, kind, file_format):
    if file_format == "onnx":
        pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    graph_module, x = exiting(kind)
    small = CompressedModel(graph_module.requires_grad_(False), (x[:2],), None)
    small.export(tmp_path, file_format)
    values = [x]
    for place, (segment, known) in enumerate(zip(_segments(tmp_path, file_format), small.segments, strict=True)):
        outputs, expected = segment(*values), known(*values)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert len(outputs) == len(expected)
        for one, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        values = [value[: 10 - place] for value in expected[2:]]  # a batch of another size


def _segments(folder, file_format):
    """The exported segments in order, as functions of tensors that give a tuple of them."""
    for segment in json.loads((folder / "manifest.json").read_text())["segments"]:
        if file_format == "pt2":
            module = torch.export.load(folder / segment["file"]).module()
            yield lambda *values, module=module: given if isinstance(given := module(*values), tuple) else (given,)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(folder / segment["file"])
            names = segment["inputs"]
            yield lambda *values, session=session, names=names: tuple(
                map(torch.from_numpy, session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)}))
            )


def refused(one, model, x):
    graph_module = graph_of(model, x)
    with pytest.raises(PassError) as caught:
        one.apply(graph_module, PassContext(graph_module, (x,), tunes=True, task=TASKS[one.criterion[:5]]))
    return str(caught.value)


class Pooled(nn.Module):
    """Maps that become one vector a sample, and maps again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        vector = self.b(torch.relu(self.a(x)).mean((2, 3)))
        return self.c(vector[:, :, None, None].expand(-1, -1, 4, 4))


def test_where_no_head_can_answer_as_the_network_does():
    x = images(2, 8, 8)
    assert refused(EarlyExit(criterion="pixel-margin", exits=("b",)), Pooled(), x) == (
        "early-exit: node 'b' has shape (2, 4), from which no head makes answers of the network's shape; usable are a, "
        "relu, getitem, expand."
    )
    odd = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    assert refused(EarlyExit(criterion="pixel-margin", exits=1), odd, x) == (
        "early-exit: the network answers with maps of 6 x 6, which is no whole part of the size of its images, so the "
        "heads cannot follow it; resize the answer to the images."
    )
    assert refused(EarlyExit(criterion="token-margin"), odd, x) == (
        "early-exit: the network does not return one tensor of logits (N, length, classes), which "
        "criterion='token-margin' reads; wrap it so that it does."
    )


class Masked(nn.Module):
    """Every layer reads a mask beside the tokens."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x, mask):
        factor = mask.unsqueeze(-1).to(x.dtype)
        for layer in self.layers:
            x = layer(x * factor).relu()
        return x


@pytest.mark.parametrize("exits", [("relu", "relu_1"), 2])
def test_a_tap_may_stand_beside_a_mask(exits):
    x, mask = torch.randn(4, 5, 6), torch.ones(4, 5, dtype=torch.long)
    mask[1, 2:] = 0
    graph_module = graph_of(Masked(), x, mask)
    assert exit_places(graph_module, (x, mask)) == ("mul_1", "mul_2")
    context = PassContext(graph_module, (x, mask), tunes=True, task=TASKS["token"])
    result = EarlyExit(exits=exits, threshold=0.5, criterion="token-margin").apply(graph_module, context)
    assert [each.name for each in exits_of(result.graph_module)] == ["exit1", "exit2"]
    verify(result.graph_module, (x, mask))
    small = CompressedModel(result.graph_module, (x, mask), None)
    torch.testing.assert_close(small(x, mask), Answer(result.graph_module)(x, mask))
