"""Sizes stay free where the code allows it; what it branches on is a limit that every call is checked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.errors import InputError
from chainfx.ir.capture import Signature, capture_with_report
from chainfx.passes import Fuse


class C2f(nn.Module):
    """The loop over chunks of the YOLO family."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.m = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = list(self.a(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.o(torch.cat(y, 1))


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        if x.dim() != 4:
            raise ValueError("not an image")
        p = self.a(x)
        q = [*self.b(p).split(2, 1)]
        return p + F.interpolate(torch.cat(q, 1), size=p.shape[2:])


class Positions(nn.Module):
    """A sequence with positions, as BERT has them; a mask only where there is something to mask."""

    def __init__(self, longest=20):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(9, 6), nn.Embedding(longest, 6), nn.Linear(6, 3)
        self.register_buffer("ids", torch.arange(longest)[None])

    def forward(self, tokens, mask=None):
        batch, length = tokens.shape
        x = self.words(tokens) + self.places(self.ids[:, :length])
        if mask is not None and mask.dim() == 2 and mask.shape[-1] - length >= 0:
            x = x * mask[:, :, None]
        if length > 1:
            x = x + x.mean(1, keepdim=True)
        return self.out(x).view(batch, length, 3)


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(2, 4, 3, padding=1)

    def forward(self, x):
        first, second = [*self.a(x).chunk(2, 1)]
        return first * second + x.shape[2]


def captured(net, *inputs):
    torch.manual_seed(0)
    return capture_with_report(net.eval(), inputs)


def agree(net, graph_module, *inputs):
    return torch.allclose(graph_module(*inputs), net(*inputs), atol=1e-6)


@pytest.mark.parametrize("make", [C2f, Pyramid])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 16, 24), (2, 3, 7, 50)])
def test_images_of_any_size(make, shape):
    net = make().eval()
    graph_module, report = captured(net, torch.randn(2, 3, 16, 16))
    assert report.signature.inputs[0].fixed in ((), (1,)) and report.signature.inputs[0].limits == ()
    assert agree(net, graph_module, torch.randn(shape))


@pytest.mark.parametrize("masked", [True, False])
def test_sequences_of_any_length(masked, tmp_path):
    net, tokens = Positions().eval(), torch.randint(0, 9, (2, 6))
    mask = torch.ones(2, 6)
    examples = {"tokens": tokens, "mask": mask} if masked else {"tokens": tokens}
    small = chainfx.compile(net, [Fuse()], example_inputs=examples)
    small.save(tmp_path)
    for model in (small, chainfx.load(tmp_path)):
        assert [each.fixed for each in model.signature.inputs] == [()] * len(examples)
        for length in (2, 3, 6, 20):
            tokens, mask = torch.randint(0, 9, (3, length)), torch.rand(3, length).round()
            args = (tokens, mask) if masked else (tokens,)
            assert torch.allclose(model(*args), net(*args), atol=1e-6)
        one = (tokens[:, :1], mask[:, :1]) if masked else (tokens[:, :1],)
        with pytest.raises(InputError) as caught:
            model(*one)
        assert str(caught.value).startswith(
            "input 'tokens' has shape (3, 1), but its dimension 1 has to be 2 or more, as the code goes another way "
            "for others at `if length > 1:` at test_guards.py:"
        )
        assert str(caught.value).endswith("; give such a size, or compile with an example of the other.")


@pytest.mark.parametrize("condition", [lambda h, w: h == w, lambda h, w: h - w > -20], ids=["square", "not too wide"])
def test_sizes_that_the_code_compares_have_to_stay_equal(condition, tmp_path):
    net = Branching(condition).eval()
    small = chainfx.compile(net, [Fuse()], example_inputs=torch.randn(2, 3, 16, 16))
    small.save(tmp_path)
    for model in (small, chainfx.load(tmp_path)):
        x = torch.randn(2, 3, 40, 40)
        assert torch.allclose(model(x), net(x), atol=1e-6)
        with pytest.raises(InputError) as caught:
            model(torch.randn(2, 3, 16, 40))
        assert str(caught.value) == (
            "input 'x' has size 40 in dimension 3, and 'x' has 16 in dimension 2, but they have to be equal, as the "
            f"code goes another way for others at {model.signature.bounded_by}; give equal sizes, or compile with an "
            "example of the other."
        )
        assert model.signature.bounded_by.startswith("`if self.condition(x.shape[2], x.shape[3]):` at test_guards.py:")


@torch.fx.wrap
def half_of(x):
    """Wrapped by its author: entered while tracing, and given up where it wants a tensor itself."""
    if x.shape[2] > 6 and type(x) is not torch.Tensor:
        raise TypeError("a tensor, please")
    return x / 2


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if x.shape[2] < 3:
            return x
        return half_of(self.a(x))


def test_a_function_that_was_given_up_asks_for_no_size():
    net = Wrapping().eval()
    graph_module, report = captured(net, torch.randn(2, 3, 8, 8))
    (known,) = report.signature.inputs
    assert [limit[1:] for limit in known.limits] == [(3, None), (3, None)]
    assert agree(net, graph_module, torch.randn(2, 3, 3, 5))


def test_signals_of_any_length():
    net = Signal().eval()
    graph_module, report = captured(net, torch.randn(2, 2, 12))
    assert report.signature.inputs[0].fixed == (1,)
    assert agree(net, graph_module, torch.randn(3, 2, 31))


class Branching(nn.Module):
    """Another answer for some sizes."""

    def __init__(self, condition):
        super().__init__()
        self.a, self.condition = nn.Conv2d(3, 4, 3, 2, 1), condition

    def forward(self, x):
        if self.condition(x.shape[2], x.shape[3]):
            x = x * 2
        return self.a(x)


CONDITIONS = {
    "odd": lambda h, w: h % 2 == 1,
    "in steps": lambda h, w: h // 8 == 2,
    "one size": lambda h, w: h == 16,
    "far": lambda h, w: h > 20,
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_a_size_that_cannot_stay_free_is_fixed_with_the_line_that_is_why(condition):
    _, report = captured(Branching(condition), torch.randn(2, 3, 16, 16))
    assert report.method == "sizes" and report.signature.inputs[0].fixed == (1, 2, 3)
    assert report.signature.why.startswith("capture wrote the sizes down for `")
    assert " at test_guards.py:" in report.signature.why


@pytest.mark.parametrize(
    ("condition", "limits"),
    [
        (lambda h, w: h + w > 8, (5, None)),
        (lambda h, w: h < 300, (0, 128)),
        (lambda h, w: 2 * h > 7 and h <= 600, (4, 509)),
        (lambda h, w: h + 1 > 0, None),
    ],
)
def test_a_condition_that_holds_for_a_range_is_a_limit(condition, limits):
    net = Branching(condition).eval()
    graph_module, report = captured(net, torch.randn(2, 3, 16, 16))
    (known,) = report.signature.inputs
    assert known.fixed == (1,)
    assert known.limits == (() if limits is None else ((2, *limits), (3, *limits)))
    assert agree(net, graph_module, torch.randn(1, 3, 24, 40))


KNOWN = {
    "parameters": [{"name": "x", "given": "either", "shape": [2, 3], "dtype": "torch.float32", "fixed": []}],
    "why": "",
}


@pytest.mark.parametrize(
    "bounds",
    [
        {"limits": [[2, 1, 4]]},
        {"limits": [[1, "a", 4]]},
        {"limits": [[1, 1]]},
        {"limits": [[None, 1, 4]]},
        {"tied": [[5, 1]]},
        {"tied": [[0]]},
        {"tied": [[0, None]]},
        {"batch": 2},
        {"batch": -1},
        {"batch": "1"},
    ],
)
def test_bounds_that_nobody_wrote_are_refused(bounds):
    assert Signature.from_dict(KNOWN).to_dict() == KNOWN
    with pytest.raises((ValueError, TypeError, KeyError)):
        Signature.from_dict({**KNOWN, "parameters": [{**KNOWN["parameters"][0], **bounds}]})


@pytest.mark.parametrize("answers", [[64], ["a"], [-1], [True]])
def test_answers_that_nobody_wrote_are_refused(answers):
    with pytest.raises((ValueError, TypeError)):
        Signature.from_dict({**KNOWN, "answers": answers})
