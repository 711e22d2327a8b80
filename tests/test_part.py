"""A part of a network is compressed as it is called, and comes back within the original class."""

import copy
import importlib.util
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

import chainfx
from chainfx.deploy import CompressedModel
from chainfx.errors import CaptureError, InputError
from chainfx.passes import Fuse, PruneChannels, Quantize
from tests.trainers import FakeTrainer


class Backbone(nn.Module):
    stride = 2

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, 2, 1)
        self.out_channels = 6

    def forward(self, image, scale=1.0, mask=None, **others):
        x = self.b(self.a(image).relu()) * scale
        if mask is not None:
            x = x * mask
        return OrderedDict(low=x, high=x.mean((2, 3)))


class Detector(nn.Module):
    """Takes a list of images, and asks its backbone for its width and stride."""

    def __init__(self, **options):
        super().__init__()
        self.backbone, self.options = Backbone(), options
        self.head, self.unused = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, pictures, factor=2):
        x = torch.stack(pictures)
        features = self.backbone(x, scale=float(factor), **self.options)
        return [{"boxes": self.head(row)} for row in features["high"]], self.backbone.out_channels * Backbone.stride


class Counting(nn.Module):
    """Counts its calls, in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = nn.Linear(4, 4), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        return self.body(x)


class Twice(nn.Module):
    def __init__(self, body, second):
        super().__init__()
        self.body, self.second = body, second

    def forward(self, x):
        return self.body(self.body(x) if self.second is None else self.second(self.body, x))


def pictures(count=2, size=8):
    torch.manual_seed(1)
    return [torch.rand(3, size, size) for _ in range(count)]


def detector(**options):
    torch.manual_seed(0)
    return Detector(**options)


def message_of(*args, **kwargs):
    with pytest.raises((InputError, CaptureError)) as caught:
        chainfx.compile(*args, **kwargs)
    return str(caught.value)


def test_the_original_comes_back_with_the_part_in_place(tmp_path):
    net, given = detector().eval(), pictures()
    before = copy.deepcopy(net.state_dict())
    small = chainfx.compile(net, [Fuse()], part="backbone", example_inputs=(given,))
    assert type(small) is Detector and type(small.backbone) is CompressedModel and not small.training
    assert (small.backbone.out_channels, small.backbone.stride) == (6, 2)
    wanted, found = net(given), small(given)
    assert found[1] == wanted[1]
    assert all(torch.allclose(a["boxes"], b["boxes"], atol=1e-6) for a, b in zip(found[0], wanted[0], strict=True))
    more = pictures(3, 10)
    assert torch.allclose(small(more)[0][2]["boxes"], net(more)[0][2]["boxes"], atol=1e-6)
    assert type(small.backbone(torch.rand(1, 3, 8, 8), scale=2.0)) is OrderedDict
    assert net.backbone.a.weight.shape == (8, 3, 3, 3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    small.backbone.save(tmp_path)
    again = copy.deepcopy(net)
    again.backbone = chainfx.load(tmp_path)
    again.backbone.out_channels = 6
    assert torch.equal(again(given)[0][0]["boxes"], found[0][0]["boxes"])
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(copied(given)[0][0]["boxes"], found[0][0]["boxes"])


def test_calibration_is_for_the_whole_network():
    net, given = detector().eval(), pictures()
    small = chainfx.compile(
        net,
        [PruneChannels(0.5), Quantize(8, 8)],
        part="backbone",
        example_inputs={"pictures": given},
        calibration=[(pictures(4),), {"pictures": pictures(3)}],
    )
    assert chainfx.count(small.backbone, torch.rand(1, 3, 8, 8)).macs == 64 * 27 * 4 + 16 * 36 * 6
    assert small(given)[0][0]["boxes"].shape == (2,)
    assert message_of(net, [Quantize(8, 8)], part="backbone", example_inputs=(given,), calibration=[(5,)]).startswith(
        "Detector does not accept calibration: "
    )


def test_the_network_is_not_changed_by_being_looked_at():
    net, x = Counting().eval(), torch.randn(2, 4)
    small = chainfx.compile(net, [Quantize(8, 8)], part="body", example_inputs=x, calibration=[x, x])
    assert (net.calls, int(net.seen), small.calls, int(small.seen)) == (0, 0, 0, 0)
    assert not net.body._forward_pre_hooks and not small.body._forward_pre_hooks


def test_what_was_finished_before_a_failure_is_the_whole_network():
    def fail(stage):
        if stage.record.index:
            raise MemoryError("full")

    net, given = detector().eval(), pictures()
    with pytest.raises(MemoryError) as caught:
        chainfx.compile(net, [Fuse()], part="backbone", example_inputs=(given,), on_stage=fail)
    assert type(caught.value.partial) is Detector
    assert caught.value.partial(given)[0][0]["boxes"].shape == (2,)


def test_calls_that_differ_from_what_was_seen_are_refused():
    net, given = detector().eval(), pictures()
    small = chainfx.compile(net, [Fuse()], part="backbone", example_inputs=(given,))
    with pytest.raises(InputError) as caught:
        small(given, factor=3)
    assert str(caught.value) == (
        "the network was captured without an example of 'scale', which keeps its default 2.0; leave it out, or compile "
        "with an example of it."
    )


REFUSED = {
    "no such part": (
        "neck",
        {},
        "part='neck' is no module inside of Detector; give the dotted path of one (directly in it are backbone, head, "
        "unused).",
    ),
    "the whole": (
        "",
        {},
        "part='' is no module inside of Detector; give the dotted path of one (directly in it are backbone, head, "
        "unused).",
    ),
    "not called": (
        "unused",
        {},
        "Detector does not call its part 'unused' on example_inputs; give a part whose forward it runs.",
    ),
    "a list": (
        "backbone",
        {"sizes": [1, 2]},
        "part 'backbone' is called with 'sizes', a list, which no graph can take; give a part that takes tensors "
        "alone.",
    ),
    "a cache": (
        "backbone",
        {"past": type("StaticCache", (), {})()},
        "part 'backbone' is called with 'past', a StaticCache, which no graph can take; a decoder that keeps keys and "
        "values cannot be compressed, its encoder can.",
    ),
}


@pytest.mark.parametrize(("part", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_parts_that_cannot_be(part, options, message):
    assert message_of(detector(**options), [Fuse()], part=part, example_inputs=(pictures(),)) == message


def test_wrong_inputs_of_the_whole():
    assert message_of(detector(), [Fuse()], part="backbone", example_inputs=torch.zeros(1, 2, 8, 8)) == (
        "Detector does not accept example_inputs: stack(): argument 'tensors' (position 1) must be tuple of Tensors, "
        "not Tensor; with part=..., give a tuple of its arguments or a mapping of them by name."
    )


def test_a_trainer_is_for_whole_networks():
    net = detector()
    assert message_of(
        net, [Fuse()], part="backbone", example_inputs=(pictures(),), trainer=FakeTrainer(torch.zeros(1))
    ) == (
        "a trainer works on whole networks, not on part='backbone'; compile the module itself, model.backbone, with a "
        "trainer whose data are its inputs, and put the result in its place."
    )


def test_a_part_that_is_called_several_times():
    x = torch.randn(2, 4)
    net = Twice(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), None).eval()
    small = chainfx.compile(net, [Fuse()], part="body", example_inputs=x)
    assert torch.allclose(small(x), net(x), atol=1e-6)
    other = Twice(net.body, lambda body, x: body(body(x)[:, None])).eval()
    assert message_of(other, [Fuse()], part="body", example_inputs=x) == (
        "part 'body' is called in several ways, which one graph cannot serve: input 'input' has shape (2, 1, 4) of 3 "
        "dimensions, but the network was captured with 2, (2, 4); give as many."
    )


def test_a_detection_network_of_torchvision():
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    net = FasterRCNN(
        BackboneWithFPN(body, {"1": "0", "3": "1"}, [8, 16], 8),
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
    ).eval()
    image = torch.rand(3, 64, 64)
    small = chainfx.compile(net, [Fuse()], part="backbone", example_inputs=([image],))
    assert type(small) is type(net)
    features, wanted = small.backbone(image[None]), net.backbone(image[None])
    assert list(features) == list(wanted)
    assert all(torch.allclose(features[key], wanted[key], atol=1e-4) for key in wanted)
    assert small([image])[0].keys() == net([image])[0].keys()


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture(scope="module")
def generator():
    """A tiny encoder and decoder that generates."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=30, d_model=16, max_position_embeddings=32, forced_eos_token_id=2, **sizes, **tokens)
    net = BartForConditionalGeneration(config).eval()
    net.final_logits_bias = torch.randn(1, 30) * 3  # or it would answer with one word
    return net


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_within_a_network_that_generates(generator, tmp_path):
    ids = torch.randint(3, 30, (2, 6))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    small = chainfx.compile(generator, [Fuse()], part="model.encoder", example_inputs=example)
    assert type(small) is type(generator)
    for length in (6, 9):
        ids = torch.randint(3, 30, (2, length))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(small.generate(**given, **options), generator.generate(**given, **options))
        answer, wanted = small.model.encoder(**given), generator.model.encoder(**given)
        assert type(answer) is type(wanted)
        assert torch.allclose(answer.last_hidden_state, wanted.last_hidden_state, atol=1e-5)
    small.model.encoder.save(tmp_path)
    assert type(chainfx.load(tmp_path)(**given)) is type(wanted)


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_a_decoder_with_its_cache_is_refused(generator):
    ids = torch.randint(3, 30, (2, 6))
    assert message_of(generator, [Fuse()], part="model.decoder", example_inputs={"input_ids": ids}) == (
        "BartDecoder returns a EncoderDecoderCache, which no graph can hold; have it return tensors, alone or in "
        "tuples, lists, dictionaries, named tuples and dataclasses (without a cache of keys and values: "
        "use_cache=False)."
    )


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_classifiers_of_transformers_answer_in_their_own_class(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    net = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=24, **sizes)).eval()
    ids = torch.randint(0, 30, (2, 6))
    small = chainfx.compile(net, [Fuse()], example_inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    small.save(tmp_path)
    for model in (small, chainfx.load(tmp_path)):
        for length in (6, 17):
            ids, mask = torch.randint(0, 30, (3, length)), torch.ones(3, length, dtype=torch.long)
            mask[0, 3:] = 0
            answer, wanted = model(input_ids=ids, attention_mask=mask), net(input_ids=ids, attention_mask=mask)
            assert type(answer) is type(wanted) and torch.equal(answer[0], answer.logits)
            assert torch.allclose(answer.logits, wanted.logits, atol=1e-5)
    words = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=24, n_embd=16, n_layer=1, n_head=2)).eval()
    assert message_of(words, [Fuse()], example_inputs={"input_ids": ids}) == (
        "GPT2LMHeadModel returns a DynamicCache, which no graph can hold; have it return tensors, alone or in tuples, "
        "lists, dictionaries, named tuples and dataclasses (without a cache of keys and values: use_cache=False)."
    )
    words.config.use_cache = False
    small = chainfx.compile(words, [Fuse()], example_inputs={"input_ids": ids})
    assert torch.allclose(small(input_ids=ids).logits, words(input_ids=ids).logits, atol=1e-5)
