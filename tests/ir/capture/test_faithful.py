"""What capture gives computes what the model does; where it would not, it says so or keeps that part whole."""

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import CaptureError
from chainfx.ir.capture import capture_with_report
from chainfx.passes import Fuse

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) + 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def normalized(net):
    net.register_forward_pre_hook(lambda module, args: ((args[0] - 3) / 2,))


def probabilities(net):
    net.register_forward_hook(lambda module, args, out: out.softmax(1))


def both(net):
    normalized(net)
    probabilities(net)


def doubled(net):
    net[0].register_forward_hook(lambda module, args, out: out * 2)


def replaced(net):
    forward = net.forward
    net.forward = lambda x: forward(x) + 1


@pytest.mark.parametrize("change", [normalized, probabilities, both, doubled, replaced])
def test_hooks_and_a_forward_of_its_own_count(change):
    net = network()
    plain = net(X)
    change(net)
    expected = net(X)
    assert not torch.allclose(plain, expected)
    torch.testing.assert_close(chainfx.capture(net, (X,))(X), expected)
    torch.testing.assert_close(chainfx.compile(net, [Fuse()], example_inputs=X)(X), expected)


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.weight_norm])
def test_a_norm_of_the_outermost_module_is_computed_or_refused(norm):
    torch.manual_seed(0)
    net = norm(nn.Linear(8, 6)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
        expected = net(X)
        try:
            seen = chainfx.capture(net, (X,))(X)
        except CaptureError:
            return
    torch.testing.assert_close(seen, expected)


class Counts(nn.Module):
    """Code that depends on how often it was called."""

    def __init__(self, parameters=False):
        super().__init__()
        self.calls = 0
        self.scale = nn.Parameter(torch.tensor(2.0)) if parameters else 2.0

    def forward(self, x):
        self.calls += 1
        return x * self.scale * self.calls


def test_a_state_of_the_model_itself_is_refused():
    with pytest.raises(CaptureError) as caught:
        chainfx.capture(Counts(), (X,))
    message = str(caught.value)
    start = "cannot capture Counts faithfully: called again, on a batch of 3, its graph gives another answer"
    assert message.startswith(f"{start} than Counts.forward at {__file__}:")
    assert message.endswith(
        "; tracing does not see code that changes views in place, keeps a state in attributes or draws random numbers "
        "of its own: write it without, or move it "
        "into a submodule without parameters, which then stays one opaque node."
    )


def test_the_model_is_as_it_was_after_a_refusal():
    net = Counts()
    with pytest.raises(CaptureError):
        chainfx.capture(net, (X,))
    assert net.calls == 0 and net.scale == 2.0


class Around(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(8, 8), inside, nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.inside(self.first(x)))


@pytest.mark.parametrize("parameters", [False, True])
def test_a_part_that_is_not_followed_stays_whole_and_is_reported(parameters):
    net = Around(Counts(parameters)).eval()
    graph_module, report = capture_with_report(net, (X,))
    assert [leaf.path for leaf in report.opaque] == ["inside"]
    seen = graph_module(X), graph_module(X)
    net.inside.calls = 0
    torch.testing.assert_close(seen, (net(X), net(X)))


def test_what_is_stored_in_attributes_while_tracing_is_forgotten():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), None

        def forward(self, x):
            self.last = self.layer(x)
            return self.last.relu()

    net = Remembers().eval()
    graph_module = chainfx.capture(net, (X,))
    assert net.last is None
    torch.testing.assert_close(graph_module(X), net(X))


def test_the_comparison_can_be_left_out():
    graph_module = chainfx.capture(Counts(), (X,), compare=False)
    assert torch.equal(graph_module(X), X * 2)
    assert chainfx.count(Counts(), X).macs == 0


def test_augmented_assignment_on_a_view_is_not_lost_in_silence():
    """torch.fx has no node for ``z += 1`` on a view: ``torch.export`` has one, or the model is refused."""

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.a(x)
            z = y.view(-1)
            z += 1
            return self.b(y)

    net = Adds().eval()
    with torch.no_grad():
        expected = net(X)
        try:
            seen = chainfx.capture(net, (X,))(X)
        except CaptureError as error:
            assert "gives another answer" in str(error)
            return
    torch.testing.assert_close(seen, expected)
