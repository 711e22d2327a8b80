"""The paper's compression ratios (arXiv 2403.17447) to every printed digit, through chainfx's own passes, untrained.

CR = P / P' * 32 / b_w, where P are all parameters, those of the exit heads included, each at the network's nominal
weight width: what chainfx calls the ``nominal`` storage. BitOpsCR of the static part is under ``mac_bw_ba``.
"""

from functools import partial

import pytest
import torch

from chainfx import zoo
from chainfx.bitops import count
from chainfx.ir.capture.ways import capture
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.scheduler.planning import plan
from chainfx.scheduler.runner import run
from tests.budget import mostly_slow
from tests.trainers import FakeTrainer

X = torch.zeros(1, 3, 32, 32)
RESNET30, RESNET_EXITS = (2, 4, 6, 2), ("stages_1_1_relu2", "stages_2_0_relu2", "stages_2_4_relu2")
VGG13, VGG_EXITS = (2, 2, 2, 2, 2), ("features_5", "features_16", "features_29")

# network, student, exits behind convolution D/4-1, D/2-1 and 3D/4-1, share pruned, weight bits, printed CR, BitOpsCR
LINES = {
    "ResNet-34 CIFAR-10": (zoo.resnet34, RESNET30, RESNET_EXITS, 0.40, 1, 113.850, 413.6),
    "ResNet-34 CIFAR-100 1w8a": (partial(zoo.resnet34, 100), RESNET30, RESNET_EXITS, 0.20, 1, 64.170, 231.5),
    "ResNet-34 CIFAR-100 4w8a": (partial(zoo.resnet34, 100), RESNET30, RESNET_EXITS, 0.15, 4, 14.209, 51.4),
    "VGG-19 CIFAR-10": (zoo.vgg19, VGG13, VGG_EXITS, 0.20, 1, 105.136, 350.4),
    "VGG-19 CIFAR-100": (partial(zoo.vgg19, 100), VGG13, VGG_EXITS, 0.20, 1, 104.446, 350.3),
    "VGG-19 SVHN": (zoo.vgg19, VGG13, VGG_EXITS, 0.40, 1, 184.997, 624.3),
}


@pytest.mark.parametrize("line", mostly_slow(LINES, ["VGG-19 SVHN"]))
def test_the_storage_ratio_and_the_static_bit_operations_of_the_paper(line):
    make, depth, exits, ratio, bits, storage_ratio, bitops_ratio = LINES[line]
    passes = [
        EarlyExit(exits, threshold=0.9, keep=True),
        Quantize(bits, 8),
        PruneChannels(ratio, round_to=1),
        Distill(depth=depth),
    ]
    stages = list(run(capture(make().eval(), (X,)), plan(passes), example_inputs=(X,), trainer=FakeTrainer(X)))
    assert [stage.record.name for stage in stages[1:]] == ["distill", "prune-channels", "quantize", "early-exit"]
    original, static, final = (count(stages[at].graph_module, (X,)) for at in (0, 3, 4))
    assert original.storage["nominal"] / final.storage["nominal"] == pytest.approx(storage_ratio, abs=0.005)
    assert original.bitops / static.bitops == pytest.approx(bitops_ratio, abs=0.05)
