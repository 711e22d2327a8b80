"""How a captured network is called, and what capturing it fixed."""

import copy
import inspect
import json

import pytest
import torch
from torch import nn

from chainfx.errors import InputError
from chainfx.ir.capture.compare import find_difference
from chainfx.ir.capture.export import export_to_read
from chainfx.ir.capture.parameters import Input, Omitted
from chainfx.ir.capture.signature import Signature, arguments, signature_of
from chainfx.ir.capture.ways import capture, capture_to_read, capture_with_report


class Speech(nn.Module):
    """Two inputs, an optional one between them, and options."""

    def __init__(self):
        super().__init__()
        self.sounds, self.speaker, self.out = nn.Linear(6, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, sounds, weights=None, speaker=None, *, scale=1.0, kernel=torch.tanh):
        x = self.sounds(sounds)
        if weights is not None:
            x = x * weights.unsqueeze(-1)
        if speaker is not None:
            x = x + self.speaker(speaker).unsqueeze(1)
        return self.out(kernel(x) * scale)


class ByNameAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, *, left, right, bias: float = 0.5):
        return self.left(left) - self.right(right) + bias


class ByNameWithSizes(ByNameAlone):
    """Symbolic tracing cannot follow the loop."""

    def forward(self, *, left, right, bias: float = 0.5):
        return sum(part.tanh() for part in super().forward(left=left, right=right).chunk(2, 1))


class ByNameForExport(ByNameAlone):
    """No tracing of chainfx's own can follow the question."""

    def forward(self, *, left, right, bias: float = 0.5):
        if not isinstance(right, torch.Tensor):
            raise TypeError("not a tensor")
        return super().forward(left=left, right=right).relu()


class Sum(nn.Module):
    def forward(self, first, /, *others):
        return sum(others, first)


class Anything(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x, **further):
        return self.out(x) + further.get("shift", 0)


def speech(batch=2, length=5):
    return torch.randn(batch, length, 6), torch.rand(batch, length), torch.randn(batch, 3)


def pairs(batch=2):
    return {"left": torch.randn(batch, 3), "right": torch.randn(batch, 5)}


def message_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_the_parameters_are_those_of_forward():
    sounds, _, speaker = speech()
    signature, examples = signature_of(Speech(), {"speaker": speaker, "sounds": sounds})
    assert signature.parameters == (
        Input("sounds", "either", (2, 5, 6), torch.float32),
        Omitted("weights", "either", "None"),
        Input("speaker", "either", (2, 3), torch.float32),
        Omitted("scale", "name", "1.0"),
        Omitted("kernel", "name", "..."),
    )
    assert examples[0] is sounds and examples[1] is speaker
    assert signature.by_name == ("speaker",)
    assert arguments(examples, signature.by_name) == ((sounds,), {"speaker": speaker})


def test_parameters_that_have_no_name_for_callers():
    signature, _ = signature_of(Sum(), (torch.zeros(2),) * 3)
    assert [(each.name, each.given) for each in signature.inputs] == [
        ("first", "position"),
        ("others_0", "position"),
        ("others_1", "position"),
    ]
    assert signature.by_name == ()
    assert message_of(signature.bind, (1, 2), {"others_1": 3}) == (
        "the network takes first, others_0, others_1, but 'others_1' is given by name; call it as the original."
    )


def test_what_forward_takes_beside_its_parameters_is_given_by_name():
    x, shift = torch.randn(2, 3), torch.randn(2, 2)
    model = Anything().eval()
    graph_module, report = capture_with_report(model, {"shift": shift, "x": x})
    assert [(each.name, each.given) for each in report.signature.inputs] == [("x", "either"), ("shift", "name")]
    assert torch.equal(graph_module(x, shift), model(x, shift=shift))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, None, 3), {}),
        ((1,), {"speaker": 3}),
        ((), {"speaker": 3, "sounds": 1}),
        ((1,), {"scale": 1.0, "speaker": 3, "weights": None}),
    ],
)
def test_inputs_are_bound_as_python_binds_them(args, kwargs):
    sounds, _, speaker = speech()
    signature, _ = signature_of(Speech(), {"sounds": sounds, "speaker": speaker})
    bound = inspect.signature(Speech().forward).bind(*args, **kwargs).arguments
    assert signature.bind(args, kwargs) == (bound["sounds"], bound["speaker"]) == (1, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((1,), {}, "'speaker' is missing"),
        ((), {"speaker": 3}, "'sounds' is missing"),
        ((1,), {"speaker": 3, "sound": 1}, "'sound' is not among them"),
        ((1,), {"speaker": 3, "sounds": 1}, "'sounds' is given twice"),
        ((1, None, 3, 4), {}, "4 inputs are given by position"),
    ],
)
def test_calls_that_do_not_fit(args, kwargs, problem):
    sounds, _, speaker = speech()
    signature, _ = signature_of(Speech(), {"sounds": sounds, "speaker": speaker})
    assert message_of(signature.bind, args, kwargs) == (
        f"the network takes sounds, speaker, but {problem}; call it as the original."
    )


def test_inputs_by_name_alone_are_said_to_be():
    signature, _ = signature_of(ByNameAlone(), pairs())
    assert message_of(signature.bind, (1, 2), {}) == (
        "the network takes left (by name), right (by name), but 2 inputs are given by position; call it as the "
        "original."
    )


@pytest.mark.parametrize(
    ("kwargs", "name", "default"),
    [
        ({"weights": torch.ones(2, 5)}, "weights", "None"),
        ({"scale": 2.0}, "scale", "1.0"),
        ({"kernel": torch.sin}, "kernel", "..."),
        ({"kernel": torch.tanh}, "kernel", "..."),
    ],
)
def test_a_parameter_that_was_left_out_keeps_its_default(kwargs, name, default):
    sounds, _, speaker = speech()
    signature, _ = signature_of(Speech(), {"sounds": sounds, "speaker": speaker})
    assert message_of(signature.bind, (sounds,), {"speaker": speaker, **kwargs}) == (
        f"the network was captured without an example of {name!r}, which keeps its default {default}; leave it out, or "
        "compile with an example of it."
    )


@pytest.mark.parametrize(
    ("cls", "method"), [(ByNameAlone, "symbolic"), (ByNameWithSizes, "sizes"), (ByNameForExport, "export")]
)
def test_parameters_by_name_alone_are_captured_in_each_way(cls, method):
    model = cls().eval()
    graph_module, report = capture_with_report(model, pairs())
    assert report.method == method
    given = pairs(3)
    assert torch.allclose(graph_module(given["left"], given["right"]), model(**given), atol=1e-6)
    read = capture_to_read(model, pairs())
    assert (read is None) == (method == "export")
    assert len(export_to_read(model, pairs()).graph.find_nodes(op="placeholder")) == 2


def test_examples_in_order_reach_the_parameters_that_have_to_be_given_by_name():
    given = pairs()
    model = ByNameAlone().eval()
    graph_module = capture(model, (given["left"], given["right"]))
    assert torch.equal(graph_module(given["left"], given["right"]), model(**given))


def test_the_comparison_calls_the_model_by_name():
    model = ByNameAlone().eval()
    examples = tuple(pairs().values())
    graph_module, report = capture_with_report(model, examples)
    by_name = report.signature.by_name
    assert find_difference(model, graph_module, examples, sizes_free=True, by_name=by_name) is None
    graph_module = copy.deepcopy(graph_module)
    with torch.no_grad():
        graph_module.right.weight.add_(1.0)
    found = find_difference(model, graph_module, examples, sizes_free=True, by_name=by_name)
    assert (found.path, found.what) == ("right", "on the example inputs")


def test_one_tensor_is_one_example():
    graph_module = capture(nn.Linear(3, 2).eval(), torch.randn(4, 3))
    assert len(graph_module.graph.find_nodes(op="placeholder")) == 1


def test_examples_by_name_skip_what_lies_between():
    sounds, _, speaker = speech()
    model = Speech().eval()
    graph_module, _ = capture_with_report(model, {"speaker": speaker, "sounds": sounds})
    assert torch.allclose(graph_module(sounds, speaker), model(sounds, speaker=speaker), atol=1e-6)


def test_symbolic_tracing_fixes_no_size():
    _, report = capture_with_report(Speech().eval(), speech()[:2])
    assert report.method == "symbolic"
    assert [each.fixed for each in report.signature.inputs] == [(), ()] and report.signature.why == ""
    report.signature.check(speech(3, 9)[:2])


class Table(nn.Module):
    """A second input that has no batch, and a loop that only known sizes allow."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x, table):
        halves = [half.sigmoid() for half in (x + table).split(2, 1)]
        return self.out(torch.cat(halves, 1))


def test_capture_with_sizes_fixes_all_but_the_batch_and_names_the_line():
    _, report = capture_with_report(Table().eval(), (torch.randn(2, 4), torch.randn(1, 4)))
    line = next(n for n, text in enumerate(inspect.getsourcelines(Table)[0]) if "halves = " in text)
    number = inspect.getsourcelines(Table)[1] + line
    why = (
        "capture wrote the sizes down for `halves = [half.sigmoid() for half in (x + table).split(2, 1)]` at "
        f"test_signature.py:{number}"
    )
    assert report.method == "sizes" and report.signature.why == why
    assert [each.fixed for each in report.signature.inputs] == [(1,), (0, 1)]
    report.signature.check((torch.randn(7, 4), torch.randn(1, 4)))
    assert message_of(report.signature.check, (torch.randn(2, 4), torch.randn(2, 4))) == (
        f"input 'table' has shape (2, 4), but its dimension 0 is fixed at 1, as {why}; give that size, or compile with "
        "an example of the other."
    )


def test_export_fixes_all_but_the_batch():
    _, report = capture_with_report(ByNameForExport().eval(), pairs())
    assert [each.fixed for each in report.signature.inputs] == [(1,), (1,)]
    assert report.signature.why.startswith("capture wrote the sizes")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "input 'x' is a list; give a tensor."),
        (
            torch.randn(5, 2, 4),
            "input 'x' has shape (5, 2, 4) of 3 dimensions, but the network was captured with 2, (2, 4); give as many.",
        ),
        (
            torch.ones(2, 4, dtype=torch.long),
            "input 'x' has dtype torch.int64, but the network was captured with torch.float32; give floating-point "
            "values.",
        ),
    ],
)
def test_inputs_of_another_kind(given, message):
    assert message_of(Signature.by_position(["x"], [torch.zeros(2, 4)]).check, [given]) == message


@pytest.mark.parametrize(
    ("dtype", "fitting", "other", "kind"),
    [
        (torch.long, torch.int32, torch.bool, "integer"),
        (torch.bool, torch.bool, torch.uint8, "boolean"),
        (torch.complex64, torch.complex128, torch.float32, "complex"),
        (torch.float32, torch.bfloat16, torch.complex64, "floating-point"),
    ],
)
def test_dtypes_of_one_kind_are_taken(dtype, fitting, other, kind):
    signature = Signature.by_position(["x"], [torch.zeros(3, dtype=dtype)])
    signature.check([torch.zeros(8, dtype=fitting)])
    assert message_of(signature.check, [torch.zeros(3, dtype=other)]) == (
        f"input 'x' has dtype {other}, but the network was captured with {dtype}; give {kind} values."
    )


def test_a_signature_is_plain_json():
    _, report = capture_with_report(ByNameWithSizes().eval(), pairs())
    assert report.signature.why and isinstance(report.signature.parameters[2], Omitted)
    assert Signature.from_dict(json.loads(json.dumps(report.signature.to_dict()))) == report.signature


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"given": "somehow"},
        {"dtype": "torch.load"},
        {"fixed": [2]},
        {"fixed": None},
        {"default": 1},
    ],
)
def test_json_that_is_no_signature(change):
    data = Signature.by_position(["x"], [torch.zeros(2, 4)]).to_dict()
    data["parameters"][0].update(change)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Signature.from_dict(data)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({}, "example_inputs is empty; give a tuple of tensors, one for each positional input of the model."),
        (
            {"sounds": None},
            "example_inputs has a NoneType; give a tuple of tensors, one for each positional input of the model.",
        ),
        (
            {"sounds": torch.ones(2, 5, 6), "spaeker": torch.ones(2, 3)},
            "Speech.forward takes sounds, weights, speaker, scale, kernel and needs sounds, but example_inputs has "
            "sounds, spaeker; give one tensor for each input.",
        ),
        (
            {"speaker": torch.ones(2, 3)},
            "Speech.forward takes sounds, weights, speaker, scale, kernel and needs sounds, but example_inputs has "
            "speaker; give one tensor for each input.",
        ),
        (
            (torch.ones(2),) * 5,
            "Speech.forward takes sounds, weights, speaker, scale, kernel and needs sounds, but example_inputs has 5; "
            "give one tensor for each input.",
        ),
    ],
)
def test_examples_that_forward_does_not_take(examples, message):
    assert message_of(capture, Speech(), examples) == message
