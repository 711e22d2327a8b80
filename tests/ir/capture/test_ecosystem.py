"""Networks of transformers and timm, tiny ones, as the README says: captured, called by keyword, and compressed."""

import pytest
import torch

import chainfx
from chainfx.passes import PruneHeads, Quantize

pytestmark = pytest.mark.slow  # importing transformers takes longer than all that is done with it

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **SIZES)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=99, max_position_embeddings=64, num_labels=3, **SIZES)
    words = torch.randint(0, 99, (2, 12))
    mask = torch.ones_like(words)
    mask[1, 7:] = 0
    return transformers.BertForSequenceClassification(config), {"input_ids": words, "attention_mask": mask}


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 99, (2, 12))}


def timm_vit():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes), {"x": torch.randn(2, 3, 32, 32)}


@pytest.mark.parametrize("make", [vit, bert, gpt2, timm_vit])
def test_a_network_is_captured_and_called_as_the_original(make):
    torch.manual_seed(0)
    model, inputs = make()
    model = model.eval()
    small = chainfx.compile(model, [Quantize(32, 32, first=None, last=None)], example_inputs=inputs)
    with torch.no_grad():
        expected, found = model(**inputs), small(**inputs)
    if not isinstance(expected, torch.Tensor):
        expected, found = expected["logits"], found["logits"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [vit, bert, timm_vit])
def test_half_of_its_heads_go_and_it_is_quantized(make):
    torch.manual_seed(0)
    model, inputs = make()
    passes = [PruneHeads(0.5), Quantize(8, 8)]
    small = chainfx.compile(model.eval(), passes, example_inputs=inputs, calibration=[inputs])
    original, pruned, quantized = (record.after for record in small.report.records)
    assert pruned.macs < 0.9 * original.macs and quantized.bitops < pruned.bitops / 10
    small(**inputs)
