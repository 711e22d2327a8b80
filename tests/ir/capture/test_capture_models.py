"""Capture on the networks that people have: all of torchvision's classification and segmentation, a dozen of timm."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from chainfx.ir.capture.ways import capture_with_report
from chainfx.ir.graph import LAYERS
from tests.budget import mostly_slow
from tests.ir.channels.prune_models import SMALL

CLASSIFICATION = torchvision.models.list_models(module=torchvision.models)
SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
INITIALISERS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")
TRAIN_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.MultiheadAttention)

# one of each kind, and those whose structure differs between training and inference
QUICK = (
    *("convnext_tiny", "googlenet", "lraspp_mobilenet_v3_large", "regnet_x_400mf"),
    *("shufflenet_v2_x0_5", "swin_t", "vit_b_32"),
)
QUICK_TIMM = ("test_efficientnet", "test_mambaout", "test_byobnet")
TIMM = (
    *QUICK_TIMM,
    *("test_vit", "test_convnext", "test_nfnet"),
    *("resnet18", "mobilenetv3_small_050", "regnetx_002", "test_vit3", "swin_tiny_patch4_window7_224"),
    *("ghostnet_050", "mobilevit_xxs", "levit_128s"),
)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Parameters as memory gives them, for models of which only the structure counts."""
    with mock.patch.multiple(torch.nn.init, **{name: lambda tensor, *_, **__: tensor for name in INITIALISERS}):
        yield


def options_of(name):
    if name in SEGMENTATION:
        return {"weights_backbone": None}
    return {"init_weights": False} if name in TRAIN_ONLY else {}


def on_meta(name):
    """The model without data; RegNets compute their widths with tensors and cannot be built there."""
    device = torch.device("cpu" if name.startswith("regnet") else "meta")
    with without_initialisation(), device:
        return torchvision.models.get_model(name, weights=None, **options_of(name)).to("meta")


def check_structure(model, graph_module, report, dropped=()):
    assert report.opaque == ()
    assert report.aliases == ()
    assert all(name.startswith(dropped) for name in report.dropped)
    assert bool(report.dropped) is bool(dropped)
    folded = {each.path for each in report.folded}
    sources = {source for each in report.folded for source in each.sources}
    kept = [*graph_module.state_dict().keys() - folded, *report.dropped, *sources]
    assert sorted(kept) == sorted(model.state_dict())
    leaves = [graph_module.get_submodule(node.target) for node in graph_module.graph.find_nodes(op="call_module")]
    assert not any(isinstance(leaf, LAYER_TYPES) for leaf in leaves)
    assert all(isinstance(node.args[0], torch.fx.Node) for node in graph_module.graph.nodes if node.target in LAYERS)


@pytest.mark.parametrize("name", mostly_slow([*CLASSIFICATION, *SEGMENTATION], QUICK))
def test_every_torchvision_model_is_captured_without_opaque_leaves(name):
    model = on_meta(name)
    size = 299 if name == "inception_v3" else 224
    graph_module, report = capture_with_report(model, (torch.empty(2, 3, size, size, device="meta"),))
    check_structure(model, graph_module, report, TRAIN_ONLY.get(name, ()))
    assert report.method == ("sizes" if name.startswith("swin") else "symbolic")
    weights = [node.args[1] for node in graph_module.graph.nodes if node.target in LAYERS]
    expected = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, LAYER_TYPES[:-1]) and not path.startswith(TRAIN_ONLY.get(name, "none"))
    }
    assert expected <= {weight.target for weight in weights}


def outputs(model, images, *, training):
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(images)
    return result if isinstance(result, dict) else {"out": result}


def check_numbers(model, graph_module, *batches):
    for training in (False, True):
        for images in batches:
            expected = outputs(model, images, training=training)
            found = outputs(graph_module, images, training=training)
            assert expected.keys() == found.keys()
            assert all(torch.isfinite(tensor).all() for tensor in expected.values())
            assert all(torch.equal(found[key], expected[key]) for key in expected)


SIZES = {"small swin v2": (64, 64), "small vit": (64, 64), "swin_v2_t": (64, 64), "vit_b_32": (64, 64)}
QUICK_NUMBERS = ("shufflenet_v2_x0_5", "small swin v2", "small vit")
NUMBERS = (
    *QUICK_NUMBERS,
    *("resnet18", "densenet121", "convnext_tiny", "swin_v2_t", "vit_b_32", "lraspp_mobilenet_v3_large"),
)


@pytest.mark.parametrize("name", mostly_slow(NUMBERS, QUICK_NUMBERS))
def test_captured_torchvision_models_compute_the_same(name):
    size, other = SIZES.get(name, (64, 96))
    torch.manual_seed(0)
    options = options_of(name) | ({"image_size": size} if name.startswith("vit") else {})
    model = SMALL[name]() if name in SMALL else torchvision.models.get_model(name, weights=None, **options)
    graph_module, report = capture_with_report(model, (torch.empty(2, 3, size, size),))
    check_structure(model, graph_module, report)
    with no_fused_attention():
        check_numbers(model, graph_module, torch.randn(2, 3, size, size), torch.randn(3, 3, other, other))


@contextmanager
def no_fused_attention():
    """The reference without the fused eval kernel of attention, which rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", mostly_slow(TIMM, QUICK_TIMM))
def test_timm_families_are_captured_without_opaque_leaves(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **({"drop_path_rate": 0.1} if "vit" in name else {}))
    size = model.default_cfg["input_size"][-1]
    graph_module, report = capture_with_report(model, (torch.empty(2, 3, size, size),))
    check_structure(model, graph_module, report)
    check_numbers(model, graph_module, torch.randn(3, 3, size, size))


def test_dropout_of_timm_attention_follows_the_mode():
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", drop_path_rate=0.3, proj_drop_rate=0.2, attn_drop_rate=0.2)
    graph_module, _ = capture_with_report(model, (torch.empty(2, 3, 160, 160),))
    images = torch.randn(2, 3, 160, 160)
    check_numbers(model, graph_module, images)
    products = graph_module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    assert products
    assert not torch.equal(outputs(graph_module, images, training=True)["out"], graph_module.eval()(images))
