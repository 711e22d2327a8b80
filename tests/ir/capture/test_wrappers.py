"""What people hand over in place of a network is unwrapped, or refused with the sentence that fits."""

import sys

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import CaptureError, InputError
from chainfx.ir.capture import capture, export_to_read
from chainfx.passes import Fuse
from chainfx.training import Trainer


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def within(wrap):
    model = net()
    model[0] = wrap(model[0])
    return model


def compiled_in_place():
    model = net()
    model.compile(backend="eager")
    return model


def compressed():
    return chainfx.compile(net(), [Fuse()], example_inputs=torch.randn(2, 4))


TAKEN = {
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "compiled in place": compiled_in_place,
    "parallel": lambda: nn.DataParallel(net()),
}
TAKEN_TOO = {
    "several": lambda: torch.compile(nn.DataParallel(torch.compile(net(), backend="eager")), backend="eager"),
    "compiled within": lambda: within(lambda layer: torch.compile(layer, backend="eager")),
}


@pytest.mark.parametrize(
    "make",
    [*TAKEN.values(), *(pytest.param(make, marks=pytest.mark.slow) for make in TAKEN_TOO.values())],
    ids=[*TAKEN, *TAKEN_TOO],
)
@pytest.mark.filterwarnings("ignore")
def test_wrappers_are_taken_off(make):
    model, x = make(), torch.randn(2, 4)
    small = chainfx.compile(model, [Fuse()], example_inputs=x)
    assert torch.allclose(small(x), net()(x), atol=1e-6)
    assert chainfx.count(model, x).macs == 4 * 8 + 8 * 3
    assert torch.allclose(capture(model, (x,))(x), net()(x), atol=1e-6)


def test_a_wrapped_compressed_network_is_counted():
    x = torch.randn(1, 4)
    assert chainfx.count(torch.compile(compressed(), backend="eager"), x).macs == 4 * 8 + 8 * 3


def exported():
    return torch.export.export(net(), (torch.zeros(2, 4),)).module()


SCRIPTED = "of torch.jit, whose Python code is gone; give the module that it was made from."
REFUSED = {
    "scripted": (lambda: torch.jit.script(net()), f"model is a RecursiveScriptModule {SCRIPTED}"),
    "traced": (lambda: torch.jit.trace(net(), torch.zeros(2, 4)), f"model is a TopLevelTracedModule {SCRIPTED}"),
    "scripted within": (lambda: within(torch.jit.script), f"module '0' is a RecursiveScriptModule {SCRIPTED}"),
    "parallel within": (
        lambda: within(nn.DataParallel),
        "module '0' is a DataParallel; put the module inside of it, its .module, in its place.",
    ),
    "a program": (
        lambda: torch.export.export(net(), (torch.zeros(2, 4),)),
        "model is an ExportedProgram, not a torch.nn.Module; give the network itself.",
    ),
    "a class": (lambda: nn.Linear, "model is the class Linear, not a torch.nn.Module; give the network itself."),
    "tensors": (
        lambda: net().state_dict(),
        "model is an OrderedDict, not a torch.nn.Module; give the network itself.",
    ),
    "compressed within": (
        lambda: nn.Sequential(compressed(), nn.Linear(3, 3)),
        "module '0' is a CompressedModel, which is compressed already; give the network that it was made from.",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "do",
    [
        lambda model: chainfx.compile(model, [Fuse()], example_inputs=torch.zeros(2, 4)),
        lambda model: chainfx.count(model, torch.zeros(2, 4)),
        lambda model: capture(model, (torch.zeros(2, 4),)),
    ],
    ids=["compile", "count", "capture"],
)
def test_what_cannot_be_read_is_one_sentence(make, message, do):
    with pytest.raises(InputError) as caught:
        do(make())
    assert str(caught.value) == message


def test_a_graph_of_export_is_counted():
    assert chainfx.count(exported(), torch.zeros(2, 4)).macs == 4 * 8 + 8 * 3
    for do in (
        lambda model, x: chainfx.compile(model, [Fuse()], example_inputs=x),
        lambda model, x: capture(model, (x,)),
    ):
        with pytest.raises(InputError) as caught:
            do(exported(), torch.zeros(2, 4))
        assert str(caught.value) == (
            "model is a graph of torch.export, which has no train mode; give the module that was exported."
        )


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_a_compressed_network_is_not_compressed_again(wrap):
    model = wrap(compressed())
    for do in (
        lambda: chainfx.compile(model, [Fuse()], example_inputs=torch.zeros(2, 4)),
        lambda: capture(model, (torch.zeros(2, 4),)),
    ):
        with pytest.raises(InputError) as caught:
            do()
        assert str(caught.value) == (
            "model is a CompressedModel, which is compressed already; give the network that it was made from."
        )


class Sharded(nn.Linear):
    pass


def test_a_sharded_network_is_refused():
    Sharded.__name__ = "FullyShardedDataParallel"
    with pytest.raises(InputError) as caught:
        capture(nn.Sequential(Sharded(4, 4)), (torch.zeros(2, 4),))
    assert str(caught.value) == (
        "module '0' is a FullyShardedDataParallel, whose parameters lie on several processes; gather them in a plain "
        "network and give that."
    )


class Code(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.a, self.code = nn.Linear(4, 4), code

    def forward(self, x):
        return self.code(self.a(x))


def branch(y):
    if y.sum() > 0:
        return y
    return -y


def loop(y):
    while y.abs().max() < 10:
        y = y * 2 + 1
    return y


def number(y):
    return y * float(y.abs().max())


def rows(y):
    return torch.stack([row * index for index, row in enumerate(y)])


LEAF = "move these lines into a submodule without parameters, which then stays one opaque node."
DATA = "needs a value that only the data give"
ADVICE = {
    "branch": (branch, f"`if y.sum() > 0:` {DATA}; replace the branch by torch.where, or {LEAF}"),
    "loop": (
        loop,
        f"`while y.abs().max() < 10:` {DATA}; run a number of steps that does not depend on the data, or {LEAF}",
    ),
    "rows": (
        rows,
        "`return torch.stack([row * index for index, row in enumerate(y)])` needs a value that changes with the batch "
        f"size; compute all samples at once, without a loop over the batch, or {LEAF}",
    ),
}


@pytest.mark.parametrize(("code", "message"), ADVICE.values(), ids=ADVICE)
def test_the_advice_fits_the_cause_and_nothing_else_is_said(code, message, capfd):
    with pytest.raises(CaptureError) as caught:
        capture(Code(code).eval(), (torch.randn(2, 4),))
    where, _, said = str(caught.value).partition(": ")
    assert where.startswith(f"cannot capture Code at {__file__}:")
    assert said == message
    assert capfd.readouterr() == ("", "")


def test_export_for_reading_fails_in_silence(capfd):
    assert export_to_read(Code(branch).eval(), (torch.randn(2, 4),)) is None
    assert capfd.readouterr() == ("", "")


def test_inputs_of_other_sizes_are_tried_in_silence(capfd):
    graph = capture(net(), (torch.randn(2, 4),))
    capture(graph, (torch.randn(2, 4),))
    assert capfd.readouterr() == ("", "")


def test_silence_is_for_the_one_thread():
    import threading

    from chainfx.ir.capture.quiet import quiet

    before, said = sys.stderr, []

    class Stream:
        write = said.append

    sys.stderr = Stream()
    try:
        with quiet():
            sys.stderr.write("mine")
            other = threading.Thread(target=lambda: sys.stderr.write("theirs"))
            other.start()
            other.join()
        sys.stderr.write("after")
    finally:
        sys.stderr = before
    assert said == ["theirs", "after"]


OPTIONS = {
    "trainer": (
        {"trainer": object()},
        "trainer is a object, which has no fingerprint, tune, evaluate, calibration, validation; give "
        "chainfx.training.Trainer(data) or an object with all that chainfx.passes.Trainer lists.",
    ),
    "trainer class": (
        {"trainer": Trainer},
        "trainer is the class Trainer, not an object of it; give chainfx.training.Trainer(data) or an object with all "
        "that chainfx.passes.Trainer lists.",
    ),
    "seed": ({"seed": "a"}, "seed='a' is no whole number; give one, such as 0."),
    "order": ({"order": "random"}, "order='random' is not known; use 'auto' or 'given'."),
    "one batch": (
        {"calibration": torch.zeros(4, 4)},
        "calibration is of type Tensor; give a list of batches of inputs.",
    ),
    "a number": ({"calibration": 5}, "calibration is of type int; give a list of batches of inputs."),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_are_none(options, message):
    with pytest.raises(chainfx.errors.ChainfxError) as caught:
        chainfx.compile(net(), [Fuse()], example_inputs=torch.zeros(2, 4), **options)
    assert str(caught.value) == message


def test_options_that_nobody_knows():
    with pytest.raises(TypeError) as caught:
        chainfx.passes.PruneChannels(0.5, rounding=8)
    assert str(caught.value) == "PruneChannels.__init__() got an unexpected keyword argument 'rounding'"
    with pytest.raises(TypeError) as caught:
        Trainer(None, rate=0.1)
    assert str(caught.value) == "Trainer.__init__() got an unexpected keyword argument 'rate'"
