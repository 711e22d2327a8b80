"""Whole networks against torch's own counter, operator by operator and module by module; nothing may stay uncounted."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chainfx.bitops import count
from chainfx.bitops.crosscheck import cross_check
from chainfx.ir.capture import ways as capturing
from tests.budget import mostly_slow
from tests.ir.capture.test_capture_models import CLASSIFICATION, SEGMENTATION, on_meta
from tests.nets import small_resnet

VIDEO = torchvision.models.list_models(module=torchvision.models.video)
FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "mobilenet_v3_small",
    "r3d_18",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_v2_t",
    "vit_b_32",
)
ONCE = "no input changes it: chainfx counts it as done once, before all samples"


def example_for(name, batch=1):
    if name not in VIDEO:
        size = 299 if name == "inception_v3" else 224
        return torch.empty(batch, 3, size, size, device="meta")
    size = 112 if name.endswith("_18") else 224
    return torch.empty(batch, 3, 16, size, size, device="meta")


def agrees_with_torch(name):
    """Equal to torch's counter in every module, but for the position biases of Swin V2, which no input changes."""
    model, example = on_meta(name).eval(), example_for(name)
    check = cross_check(model, (example,))
    with FlopCounterMode(display=False) as counter:
        model(example)
    (theirs,) = (tool for tool in check.tools if tool.tool == "torch")
    assert theirs.macs * 2 == counter.get_total_flops() > 0
    assert check.uncounted == ()
    assert {each.reason for each in theirs.differences} == ({ONCE} if name.startswith("swin_v2") else set())
    assert check.macs == theirs.macs - sum(each.theirs for each in theirs.differences)
    return check


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, ("resnet18", "convnext_tiny", "r3d_18")))
def test_one_network_of_every_family(name):
    agrees_with_torch(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*CLASSIFICATION, *SEGMENTATION, *VIDEO] if name not in FAMILIES])
def test_every_other_torchvision_network(name):
    agrees_with_torch(name)


class Everything(nn.Module):
    """Operators in their functional spellings."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))
        self.bilinear, self.embedding = nn.Bilinear(3, 4, 5), nn.Embedding(10, 4)

    def forward(self, x):
        products = torch.einsum("bij,jk->bik", x, self.weight) + torch.matmul(x, self.weight) + x @ self.weight
        found = self.embedding(x.argmax(2)) @ self.weight
        return products, self.bilinear(x[:, :, :3], x), found, x.mT.bmm(x), F.scaled_dot_product_attention(x, x, x)


SMALL = [
    pytest.param(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (2, 5, 8), marks=pytest.mark.slow),
    (nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.ConvTranspose1d(4, 2, 3, groups=2), nn.Flatten()), (2, 4, 10)),
    (Everything(), (2, 3, 4)),
    pytest.param(small_resnet(), (2, 1, 8, 8), marks=pytest.mark.slow),
    pytest.param(nn.Sequential(nn.LSTM(5, 4, batch_first=True)), (2, 6, 5), marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The tensor attributes")
@pytest.mark.parametrize(("model", "shape"), SMALL, ids=lambda value: type(value).__name__)
def test_the_exported_graph_counts_as_the_traced_one(model, shape):
    example = (torch.randn(shape),)
    traced, how = capturing.capture_with_report(model.eval(), example)
    assert how.method == "symbolic"
    original = capturing._Capture._first
    with mock.patch.object(capturing._Capture, "_first", lambda self, *_: original(self, "export")):
        exported, how = capturing.capture_with_report(model, example)
    assert how.method == "export"
    ours, theirs = count(traced, example), count(exported, example)
    assert (ours.uncounted, theirs.uncounted) == ((), ())
    for column in ("macs", "elementwise", "bitops", "parameters", "storage_bits"):
        assert getattr(ours, column) == getattr(theirs, column)


MODULES = [
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), ((2, 5, 8),)),
    (nn.Transformer(8, 2, 1, 1, 16, batch_first=True), ((2, 5, 8), (2, 3, 8))),
    (
        nn.MultiheadAttention(8, 2, batch_first=True, kdim=4, vdim=6, add_bias_kv=True),
        ((2, 5, 8), (2, 3, 4), (2, 3, 6)),
    ),
    (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 2, stride=2)), ((2, 4, 6, 6),)),
    (
        nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.AvgPool3d(2), nn.ConvTranspose3d(4, 1, 2)),
        ((2, 2, 5, 5, 5),),
    ),
    (nn.Sequential(nn.GRU(5, 4, num_layers=2, bidirectional=True, batch_first=True)), ((2, 6, 5),)),
    (nn.LSTM(5, 4, proj_size=2, batch_first=True), ((2, 6, 5),)),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(("model", "shapes"), MODULES, ids=lambda value: type(value).__name__)
def test_modules_equal_torch_s_counter(model, shapes):
    check = cross_check(model.eval(), tuple(torch.randn(shape) for shape in shapes))
    theirs = check.tools[0]
    assert (theirs.tool, theirs.macs, theirs.differences, check.uncounted) == ("torch", check.macs, (), ())
    assert check.macs > 0


def test_a_shared_module_and_a_tied_weight_count_as_often_as_they_run_and_are_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.shared, self.head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.again = nn.Sequential(self.shared, nn.ReLU())

        def forward(self, x):
            return self.head(self.again(self.shared(self.shared(self.embedding(x)))))

    tokens = torch.zeros(1, 7, dtype=torch.long)
    check = cross_check(Tied().eval(), (tokens,))
    assert check.macs == 7 * (3 * 16 + 40) == check.tools[0].macs
    assert check.tools[0].differences == ()
    report = count(capturing.capture(Tied(), (tokens,)), (tokens,))
    assert (report.parameters, report.storage_bits) == (40 + 20, (40 + 20) * 32)
