"""Networks that people have, one of each family, and what becomes of them when half of their channels are pruned.

They have seeded values instead of trained ones, and are narrow or shallow where they would be heavy.
"""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import nn

from chainfx.ir.artifact import load_graph, save_graph
from chainfx.ir.capture import capture_with_report
from chainfx.ir.channels import prune
from chainfx.passes import PassContext, PruneChannels, prune_channels
from tests.ir.channels.masked import difference, masked_outputs
from tests.ir.channels.prune_models import INITIALISERS, calibrate, give_values, parameters

LOST = 0.4
"""The share of its parameters that a network must lose when half of its channels go."""

LITTLE = {"sequencer2d_s": "its LSTMs are opaque"}
"""Networks that lose less, with the reason."""


@dataclass(frozen=True)
class Family:
    """A network: the package and its name there, the size of the images, and options that make it smaller."""

    package: str
    name: str
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)

    def built(self) -> nn.Module:
        """The network without values."""
        with mock.patch.multiple(nn.init, **{each: lambda tensor, *_, **__: tensor for each in INITIALISERS}):
            return MAKERS[self.package](self.name, **self.options)

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """A batch of two random images in float64, or of two texts."""
        if self.name in TEXTS:
            return (torch.randint(0, 50, (2, 12)),)
        return (torch.randn(2, 3, self.size, self.size, dtype=torch.float64),)


TEXTS = ("BertForSequenceClassification", "GPT2LMHeadModel")


def _of_timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **options)


def _of_torchvision(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


def _of_transformers(name: str, **options: Any) -> nn.Module:
    import transformers

    cls = getattr(transformers, name)
    return cls(cls.config_class(**options))


MAKERS = {"timm": _of_timm, "torchvision": _of_torchvision, "transformers": _of_transformers}

_TWO = {"depth": 2}
TIMM = tuple(
    Family("timm", *each)
    for each in (
        *(("beit_base_patch16_224", 64, {"img_size": 64, **_TWO}), ("cait_xxs24_224", 64, {"img_size": 64, **_TWO})),
        *(("convnext_atto",), ("convnextv2_atto",), ("cspresnet50",), ("densenet121",), ("dla34",), ("dpn68",)),
        *(("edgenext_xx_small",), ("efficientnet_b0",), ("efficientvit_b0",), ("ese_vovnet19b_dw",), ("fastvit_t8",)),
        *(("fbnetc_100",), ("ghostnet_100",), ("hgnetv2_b0",), ("hrnet_w18_small",), ("inception_v4", 96)),
        *(("legacy_xception", 96), ("levit_128s", 224), ("mixer_s32_224", 64, {"img_size": 64}), ("mixnet_s",)),
        *(("mobilenetv3_large_100",), ("mobileone_s0",), ("mobilevit_xxs",), ("nf_regnet_b0",), ("poolformer_s12",)),
        *(("pvt_v2_b0",), ("regnety_004",), ("repvgg_a0",), ("res2net50_26w_4s",), ("resnet18",)),
        *(("resnetv2_50x1_bit",), ("rexnet_100",), ("sequencer2d_s", 224, {"layers": (1, 1, 1, 1)}), ("skresnet18",)),
        *(("swin_tiny_patch4_window7_224", 224, {"depths": (1, 1, 2, 1)}), ("tf_efficientnet_b0",), ("tresnet_m",)),
        *(("vit_tiny_patch16_224", 64, {"img_size": 64}),),
    )
)
"""Forty families of timm."""

_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "use_cache": False}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
TRANSFORMERS = (
    Family("transformers", "BertForSequenceClassification", options={**_SMALL, "vocab_size": 50}),
    Family("transformers", "GPT2LMHeadModel", options=_GPT2),
    Family("transformers", "ViTForImageClassification", 32, {**_SMALL, "image_size": 32, "patch_size": 8}),
)
_AS_THEY_ARE = {"weights_backbone": None}
TORCHVISION = tuple(
    Family("torchvision", *each)
    for each in (
        *(("alexnet",), ("convnext_tiny",), ("densenet121",), ("efficientnet_b0",), ("efficientnet_v2_s",)),
        *(("googlenet", 64, {"init_weights": False}), ("inception_v3", 96, {"init_weights": False}), ("mnasnet1_0",)),
        *(("mobilenet_v2",), ("mobilenet_v3_large",), ("regnet_y_400mf",), ("resnet18",), ("resnet50",)),
        *(("resnext50_32x4d",), ("shufflenet_v2_x1_0",), ("squeezenet1_1",), ("swin_t",), ("swin_v2_t",)),
        *(("vgg11_bn",), ("vit_b_32", 64, {"image_size": 64}), ("wide_resnet50_2",)),
        *(("deeplabv3_mobilenet_v3_large", 64, _AS_THEY_ARE), ("lraspp_mobilenet_v3_large", 64, _AS_THEY_ARE)),
    )
)
"""Networks of the families of torchvision."""


def measured(family: Family) -> dict[str, Any]:
    """Capture, prune, compare with the masked original, save and load; what was seen, as plain JSON values."""
    torch.manual_seed(0)
    model, inputs = family.built().double().eval(), family.inputs()
    give_values(model)
    graph_module, report = capture_with_report(model, inputs)
    calibrate(graph_module, inputs)
    before = parameters(graph_module)
    (wanted, analysis), result = _pruned(graph_module, inputs)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        answer = graph_module(*inputs)
        save_graph(graph_module, Path(folder))
        loaded = load_graph(Path(folder))[0](*inputs)
    return {
        "package": family.package,
        "name": family.name,
        "input": list(inputs[0].shape),
        "method": report.method,
        "fixed": sorted({dim for each in report.signature.inputs for dim in each.fixed}),
        "opaque": sorted({leaf.class_name for leaf in report.opaque}),
        "folded": len(report.folded),
        "parameters": before,
        "lost": 1 - parameters(graph_module) / before,
        "stays": _reasons(graph_module, analysis),
        "named": len(result.skipped),
        "difference": difference(answer, wanted),
        "loaded": difference(loaded, answer),
    }


def _pruned(graph_module, inputs):
    """What the masked original gives, with the analysis, and the result of the pass."""
    seen = []

    def watched(network, analysis, keep):
        seen.append((masked_outputs(network, analysis, keep, inputs)[0], analysis))
        prune(network, analysis, keep)

    with mock.patch.object(prune_channels, "prune", watched):
        result = PruneChannels(0.5, importance="l2").apply(graph_module, PassContext(graph_module, inputs))
    return seen[0], result


def _reasons(graph_module, analysis) -> dict[str, float]:
    """Why parameters stay whole, or layers keep outputs, each reason with their share of what is left.

    Without the outputs of the network, which stay everywhere.
    """
    sizes = {path: parameter.numel() for path, parameter in graph_module.named_parameters()}
    whys = {each.path: each.reason for each in analysis.frozen} | dict(analysis.outside)
    found: dict[str, float] = {}
    for path, reason in whys.items():
        if reason == "it is an output of the network":
            continue
        bare = re.sub(r" \(node '[^']*'\)", "", reason)
        found[bare] = found.get(bare, 0) + sizes[path] / sum(sizes.values())
    return dict(sorted(found.items(), key=lambda each: -each[1]))
