"""Every reason for a difference, on the smallest network where it occurs, and the sum that leaves nothing out."""

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.bitops import counters
from chainfx.bitops.counters import Counter, Tally
from chainfx.bitops.crosscheck import UNEXPLAINED, CrossCheck, Difference, ToolCheck, cross_check


class Functional(nn.Module):
    """A function with one weight."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, *inputs):
        return self.function(*inputs, self.weight)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.weight = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        return x @ (self.table @ self.weight)


class OnCpu(nn.Module):
    """Cannot run on the meta device, since it names another one."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x) + torch.ones(4, device="cpu")


class Own(nn.Linear):
    """A subclass, which ptflops has no hook for."""


def norm_net():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def checked(tool, model, *shapes):
    """The check by one tool of a batch of two; its differences add up to the whole difference, and nothing changed."""
    if not next(counter for counter in counters.COUNTERS if counter.package == tool).version:
        pytest.skip(f"{tool} is not installed")
    before = copy.deepcopy(model.state_dict())
    model.train()
    check = cross_check(model, tuple(torch.randn(shape) for shape in shapes))
    (result,) = (each for each in check.tools if each.tool == tool)
    assert result.macs is not None, result.note
    assert result.macs == check.macs + sum(Fraction(each.theirs) - each.ours for each in result.differences)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert check.uncounted == ()
    return check.macs, [
        (each.module, each.operator, each.ours, each.theirs, each.reason) for each in result.differences
    ]


def test_torch_agrees_module_by_module():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x):
            return F.linear(self.inner(self.inner(x)), self.inner[0].weight)

    assert checked("torch", Twice(), (2, 4)) == (5 * 16, [])


VECTOR = "torch's counter has no formula for a product with a vector"
ONCE = "no input changes it: chainfx counts it as done once, before all samples"
TORCH = [
    (nn.Bilinear(3, 4, 5), ((2, 3), (2, 4)), ("bilinear", 80, 0, "torch's counter has no formula for this operator")),
    (Functional(lambda x, w: x @ w, 4), ((2, 4),), ("matmul", 4, 0, VECTOR)),
    (
        Functional(lambda x, w: torch.addmv(x[:, 0], x, w), 4),
        ((2, 4),),
        ("addmv", 4, 0, "torch's counter has no formula for this operator"),
    ),
    (Constant(), ((2, 3),), ("matmul", 0, 30, ONCE)),
]


@pytest.mark.parametrize(("model", "shapes", "expected"), TORCH)
def test_where_torch_differs(model, shapes, expected):
    _, differences = checked("torch", model, *shapes)
    assert differences == [("", *expected)]


def test_torch_misses_attention_on_real_cpu_tensors():
    reason = "torch's counter has no formula for the CPU kernel of attention"
    assert checked("torch", OnCpu(), (2, 2, 5, 4)) == (
        400,
        [("", "scaled_dot_product_attention", 400, 0, reason)],
    )


def test_torch_adds_both_branches_of_a_condition():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.wide, self.back = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)

        def dear(self, x):
            return self.back(self.wide(x))

        def cheap(self, x):
            return self.one(x)

        def forward(self, x):
            return torch.cond(x.sum() > 0, self.dear, self.cheap, (self.one(x),))

    example = (torch.randn(1, 4),)
    with torch.no_grad():
        exported = torch.export.export(Branches().eval(), example).module()
    check = cross_check(exported, example)
    assert (check.macs, check.tools[0].macs) == (16 + 64, 16 + 64 + 16)
    assert check.tools[0].differences == (
        Difference("", "cond", 0, 16, "torch's counter adds both branches of torch.cond"),
    )


NORM = "fvcore counts normalization as MACs"
EINSUM = "fvcore takes half of numpy's FLOPs of an einsum, which counts products without a sum too"
FVCORE = [
    (
        norm_net(),
        ((2, 2, 4, 4),),
        [
            ("1", "batch_norm", 0, 96, NORM),
            ("3", "adaptive_avg_pool2d", 0, 48, "fvcore counts pooling as MACs"),
        ],
    ),
    (nn.LayerNorm(4), ((2, 3, 4),), [("", "layer_norm", 0, 60, NORM)]),
    (
        nn.Upsample(scale_factor=2),
        ((2, 3, 2, 2),),
        [("", "upsample_nearest2d", 0, 48, "fvcore counts resampling as MACs")],
    ),
    (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        ((2, 5, 8),),
        [
            (
                "self_attn",
                "scaled_dot_product_attention",
                400,
                0,
                "fvcore has no handle for this operator",
            ),
            ("norm1", "layer_norm", 0, 200, NORM),
            ("norm2", "layer_norm", 0, 200, NORM),
        ],
    ),
    (nn.GRU(5, 4, batch_first=True), ((2, 6, 5),), [("", "gru", 648, 0, "fvcore has no handle for this operator")]),
    (
        Functional(lambda x, w: torch.einsum("bi,j->bij", x, w), 4),
        ((2, 3),),
        [("", "einsum", 0, 6, EINSUM)],
    ),
    (Constant(), ((2, 3),), [("", "matmul", 0, 30, ONCE)]),
    (nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 2, 3)), ((2, 4, 9),), []),
]


@pytest.mark.parametrize(("model", "shapes", "expected"), FVCORE)
def test_where_fvcore_differs(model, shapes, expected):
    assert checked("fvcore", model, *shapes)[1] == expected


BIAS = "ptflops counts the addition of a bias as MACs"
FUNCTIONS = (
    "ptflops counts activation, softmax, pooling, resizing and element-wise functions as MACs, also those that a "
    "module it has counted calls inside"
)
OUTSIDE = "ptflops counts plain torch.nn modules, not functions or subclasses in their place"
MODULES = "ptflops counts activation, normalization, pooling and resizing modules as MACs"
SHARED = nn.Linear(4, 4)
PTFLOPS = [
    (
        norm_net(),
        ((2, 2, 4, 4),),
        [
            ("", "functions", 0, 96, FUNCTIONS),
            ("0", "bias", 0, 48, BIAS),
            ("1", "BatchNorm2d", 0, 96, MODULES),
            ("2", "ReLU", 0, 48, MODULES),
            ("3", "AdaptiveAvgPool2d", 0, 48, MODULES),
        ],
    ),
    (Own(4, 3), ((2, 4),), [("", "linear", 12, 0, OUTSIDE)]),
    (
        nn.Sequential(nn.Linear(4, 3, bias=False), type("Linear", (nn.Linear,), {})(3, 2)),
        ((2, 4),),
        [("1", "linear", 6, 0, OUTSIDE)],
    ),
    (Functional(F.linear, 3, 4), ((2, 4),), [("", "linear", 12, 0, OUTSIDE)]),
    (Functional(lambda x, w: x @ w, 4, 3), ((2, 4),), [("", "matmul", 12, 0, OUTSIDE)]),
    (Functional(lambda x, w: torch.mm(x, w) + x.matmul(w), 4, 3), ((2, 4),), []),
    (Constant(), ((2, 3),), [("", "matmul", 15, 0, OUTSIDE)]),
    (
        nn.Sequential(SHARED, nn.Sequential(SHARED)),
        ((2, 4),),
        [
            ("", "modules with several names", 0, 40, "ptflops adds up a shared module once for every name it has"),
            ("0", "bias", 0, 8, BIAS),
        ],
    ),
]


@pytest.mark.parametrize(("model", "shapes", "expected"), PTFLOPS)
def test_where_ptflops_differs(model, shapes, expected):
    assert sorted(checked("ptflops", model, *shapes)[1]) == expected


@pytest.mark.parametrize(("model", "named"), [(nn.LSTM(5, 4, batch_first=True), "LSTM"), (nn.GRUCell(5, 4), "GRUCell")])
def test_formulas_that_ptflops_has_of_its_own(model, named):
    shape = (2, 6, 5) if named == "LSTM" else (2, 5)
    macs, ((module, operator, ours, theirs, reason),) = checked("ptflops", model, shape)
    assert (module, ours, named in operator) == ("", macs, True)
    assert theirs > ours
    assert reason.startswith("ptflops has a formula of its own for recurrent layers")


def test_attention_by_ptflops():
    _, differences = checked("ptflops", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8))
    ((ours, theirs, reason),) = [each[2:] for each in differences if each[0] == "self_attn"]
    # scaling 40, softmax 2 * 25, bias 3 * 40 + 40
    assert (theirs - ours, reason.startswith("ptflops has a formula of its own")) == (40 + 50 + 160, True)


def test_a_difference_that_no_rule_knows_is_said_to_be_unexplained(monkeypatch):
    def run(model, inputs, works):
        return Tally({("", "mul"): Fraction(7), ("0", "addmm"): Fraction(60)})

    monkeypatch.setattr("chainfx.bitops.crosscheck.COUNTERS", (Counter("torch", False, run),))
    check = cross_check(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), (torch.zeros(2, 4),))
    assert check.unexplained == (
        Difference("0", "linear, addmm", 20, 30, UNEXPLAINED),
        Difference("", "mul", 0, Fraction(7, 2), UNEXPLAINED),
    )
    assert str(check).splitlines()[1].endswith(": 33.5 (+13.5)")


def test_absent_and_failing_tools_are_said_to_be(monkeypatch):
    def fail(model, inputs, works):
        raise AssertionError("no such\nthing")

    tools = (Counter("no-such-tool", True, fail), Counter("torch", True, fail))
    monkeypatch.setattr("chainfx.bitops.crosscheck.COUNTERS", tools)
    check = cross_check(nn.Linear(4, 5), (torch.zeros(2, 4),))
    assert check == CrossCheck(
        20,
        (
            ToolCheck("no-such-tool", "", None, note="not installed"),
            ToolCheck("torch", tools[1].version, None, note="failed with AssertionError: no such"),
        ),
    )
    on_meta = cross_check(nn.Linear(4, 5, device="meta"), (torch.zeros(2, 4, device="meta"),))
    assert on_meta.tools[1].note == "cannot count a network on the meta device"


def test_a_graph_module_is_counted_as_it_is():
    graph_module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)))
    check = cross_check(graph_module, (torch.zeros(2, 4),))
    assert (check.macs, check.tools[0].macs, check.tools[0].differences) == (30, 30, ())


def test_what_chainfx_cannot_count_is_printed():
    check = cross_check(Functional(lambda x, w: torch.fft.fft(x @ w), 4, 4), (torch.zeros(2, 4),))
    assert [item.operator for item in check.uncounted] == ["fft_fft"]
    assert "NOT COUNTED by chainfx: fft_fft (fft_fft, operator without a formula)" in str(check)
