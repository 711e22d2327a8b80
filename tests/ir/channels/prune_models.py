"""Networks that people have, with seeded values, and everything that must hold when they are pruned."""

import time
from unittest import mock

import torch
import torchvision
from torch import nn
from torchvision.models import convnext, maxvit, swin_transformer

from chainfx import zoo
from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from tests.ir.channels import prune_checks as checks
from tests.ir.channels.masked import random_keep

CLASSIFICATION = torchvision.models.list_models(module=torchvision.models)
SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
ZOO = ("resnet20", "resnet32", "resnet34", "resnet56", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenet_v2")
NAMES = (*CLASSIFICATION, *SEGMENTATION, *(f"zoo.{name}" for name in ZOO))

REQUIRED_SHARE = 0.9
SIZE = 64
# the smallest image on which every layer of the network sees more than its own padding, where 64 pixels do not do
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
INITIALISERS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")
NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def size_of(name):
    return 32 if name.startswith("zoo.") else SIZES.get(name, SIZE)


def built(name):
    """The network without values."""
    with mock.patch.multiple(nn.init, **{each: lambda tensor, *_, **__: tensor for each in INITIALISERS}):
        if name in SMALL:
            return SMALL[name]()
        if name.startswith("zoo."):
            return getattr(zoo, name.removeprefix("zoo."))()
        options = {"weights_backbone": None} if name in SEGMENTATION else {}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        if name.startswith("vit"):
            options["image_size"] = size_of(name)
        return torchvision.models.get_model(name, weights=None, **options)


@torch.no_grad()
def give_values(model):
    """Random parameters, every one of which matters: none is zero, one or tiny as after initialization."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMALIZATIONS) and name == "weight":
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() > 1 and name.endswith("weight"):
                parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
            else:
                parameter.normal_(std=0.2)


@torch.no_grad()
def calibrate(graph_module, inputs):
    """BatchNorm statistics of the inputs, so that deep networks neither vanish nor explode."""
    norms = [each for each in graph_module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    graph_module.train()(*inputs)
    graph_module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var.clamp_(min=0.1)


def network(name):
    """The graph of a network in float64, eval mode, with seeded values, and a batch of two random images."""
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, size_of(name), size_of(name), dtype=torch.float64),)
    model = built(name).double().eval()
    give_values(model)
    graph_module = capture(model, inputs, compare=False)
    calibrate(graph_module, inputs)
    return graph_module, inputs


def in_groups(graph_module, analysis):
    """The number of parameters with a dimension of which a group is a part."""
    paths = {member.path for group in analysis.groups for member in group.members}
    return sum(p.numel() for path, p in graph_module.named_parameters() if path in paths)


def parameters(graph_module):
    return sum(p.numel() for p in graph_module.parameters())


def measure(name, ratio, *, lowers=True):
    """Prune one network at one ratio, check everything, and say what was seen as plain JSON values.

    ``lowers``: whether to export and compile as well. Raises when pruned and masked network differ; what else does not
    hold is a sentence in ``failures``.
    """
    graph_module, inputs = network(name)
    row = {"model": name, "ratio": ratio, "input": list(inputs[0].shape), "parameters": parameters(graph_module)}
    reached = checks.trainable(graph_module, inputs)
    start = time.process_time()
    analysis = analyse_channels(graph_module, inputs)
    row["analysis_seconds"] = time.process_time() - start
    row["groups"] = len(analysis.groups)
    row["in_groups"] = in_groups(graph_module, analysis)
    row["frozen"] = [[each.path, each.channels, each.reason] for each in analysis.frozen]
    keep = random_keep(analysis, ratio)
    promise = checks.Promise.of(graph_module, analysis, keep, inputs)
    start = time.process_time()
    prune(graph_module, analysis, keep)
    row["surgery_seconds"] = time.process_time() - start
    row["difference"] = promise.check(graph_module)
    row["kept"] = parameters(graph_module)
    steps = {"captures again": lambda: checks.check_recaptures(graph_module, analysis, keep, inputs)}
    if lowers:
        steps["exports"] = lambda: checks.check_exports(graph_module, inputs)
        steps["compiles"] = lambda: checks.check_compiles(graph_module, inputs)
    steps["trains"] = lambda: checks.check_trains(graph_module, inputs, reached)
    row["failures"] = dict(filter(None, (failure(step, check) for step, check in steps.items())))
    row["checked"] = list(steps)
    return row


def failure(step, check):
    """``None``, or the step and the first line of what it raised."""
    try:
        check()
    except Exception as error:
        return step, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return None


def problems(row):
    """What a row of :func:`measure` says that should not be, as sentences."""
    found = [f"{step}: {why}" for step, why in row["failures"].items()]
    share = row["in_groups"] / row["parameters"]
    if share < REQUIRED_SHARE:
        found.append(f"only {share:.1%} of the parameters are in groups")
    return found


def small_swin(block, merging):
    return swin_transformer.SwinTransformer(
        [4, 4], 12, [2, 2], [2, 3], [4, 4], num_classes=5, block=block, downsample_layer=merging
    )


def small_convnext():
    setting = convnext.CNBlockConfig
    return convnext.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=5)


def small_maxvit():
    return maxvit.MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 4, 0.1, num_classes=5)


SMALL = {
    "small swin": lambda: small_swin(swin_transformer.SwinTransformerBlock, swin_transformer.PatchMerging),
    "small swin v2": lambda: small_swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2),
    "small convnext": small_convnext,
    "small maxvit": small_maxvit,
    "small vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32, num_classes=5),
    "small densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5),
    "small regnet": lambda: torchvision.models.RegNet(
        torchvision.models.regnet.BlockParams.from_init_params(
            depth=4, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25
        )
    ),
    "small efficientnet": lambda: torchvision.models.EfficientNet(
        [
            torchvision.models.efficientnet.MBConvConfig(4, 3, 2, 8, 8, 2, 0.25, 1.0),
            torchvision.models.efficientnet.FusedMBConvConfig(4, 3, 2, 8, 8, 2),
        ],
        0.1,
    ),
}
