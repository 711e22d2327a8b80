import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from chainfx.bitops import count
from chainfx.errors import PassError, ScheduleError
from chainfx.ir.graph import layers_of, ops
from chainfx.ir.graph.checks import verify
from chainfx.ir.graph.exits import Answer, exit_rates, exits_of, segments
from chainfx.passes.base import PassContext
from chainfx.passes.early_exit import EarlyExit
from chainfx.passes.exiting import NEVER, exit_places
from chainfx.passes.quantize import Quantize
from chainfx.scheduler import plan
from tests.nets import graph_of, images, small_resnet

TWO = EarlyExit(exits=2)


def with_exits(one=TWO, *, quantize=None, model=None, x=None):
    x = images(32) if x is None else x
    graph_module = graph_of(model or small_resnet((2, 2, 2)), x)
    targets = torch.arange(len(x)) % 10
    context = PassContext(graph_module, (x,), calibration=[(x,)], validation=[((x,), targets)], tunes=True)
    original = copy.deepcopy(graph_module)
    if quantize:
        quantize.apply(graph_module, context)
        verify(graph_module, (x,))
        original = copy.deepcopy(graph_module)
    result = one.apply(graph_module, context)
    verify(result.graph_module, (x,))
    with torch.no_grad():
        for name, parameter in result.graph_module.named_parameters():
            if ".fc2." in name:
                parameter.mul_(20)  # untrained heads are never sure; these are, now and then
    return original, result, context, x


def set_threshold(graph_module, threshold):
    for mark in exits_of(graph_module):
        mark.node.update_arg(2, threshold)
    graph_module.recompile()


def test_all_exits_are_returned_and_the_final_answer_is_unchanged_exactly():
    original, result, _, x = with_exits()
    assert result.modified
    outputs = result.graph_module(x)
    assert [mark.name for mark in exits_of(result.graph_module)] == ["exit1", "exit2"]
    assert [tuple(part.shape) for part in outputs] == [(32, 10)] * 3
    assert torch.equal(outputs[-1], original(x))


def test_threshold_zero_takes_the_first_exit_and_above_one_the_full_network():
    original, result, _, x = with_exits()
    graph_module = result.graph_module
    set_threshold(graph_module, 0.0)
    assert torch.equal(Answer(graph_module)(x), graph_module(x)[0])
    set_threshold(graph_module, NEVER)
    assert torch.equal(Answer(graph_module)(x), original(x))


def test_only_the_heads_are_to_be_trained_by_the_settings_of_the_source():
    original, result, _, _ = with_exits()
    names = set(dict(original.named_parameters()))
    assert set(result.tune.parameters) == set(dict(result.graph_module.named_parameters())) - names
    assert (result.tune.optimizer, result.tune.learning_rate, result.tune.weight_decay) == ("adam", 5e-3, 0.0)
    assert result.tune.from_scratch


def test_head_parameters_are_those_of_the_formula():
    _, result, _, _ = with_exits(EarlyExit(exits=1))
    head = sum(p.numel() for name, p in result.graph_module.named_parameters() if name.startswith("exit1."))
    channels = 8
    assert head == 64 * channels + 64 + 2 + 16_448 + 65 * 10


def test_heads_start_uniform_within_one_over_the_root_of_what_a_row_reads():
    x = images()
    graph_module = graph_of(small_resnet((2, 2)), x)
    context = PassContext(graph_module, (x,), tunes=True)
    fresh = EarlyExit(exits=1).apply(copy.deepcopy(graph_module), context).graph_module
    values = {name: p for name, p in fresh.named_parameters() if name.startswith("exit1.")}
    assert (values["exit1.slope"].item(), values["exit1.shift"].item()) == (1.0, 0.0)
    channels = values["exit1.codebook.weight"].shape[1]
    for layer, reads in (("codebook", channels), ("fc1", 256), ("fc2", 64)):
        for kind in ("weight", "bias"):
            largest = values[f"exit1.{layer}.{kind}"].abs().max().item() * reads**0.5
            assert 0.8 < largest <= 1, (layer, kind)
        assert values[f"exit1.{layer}.weight"].min() < 0 < values[f"exit1.{layer}.weight"].max()
    other = EarlyExit(exits=1).apply(copy.deepcopy(graph_module), replace(context, seed=1)).graph_module
    assert not torch.equal(other.get_parameter("exit1.fc1.weight"), values["exit1.fc1.weight"])


def test_exits_stand_where_the_macs_are_balanced():
    _, result, _, x = with_exits(EarlyExit(exits=3), model=small_resnet((3, 3, 3)))
    macs = {row.node: row.macs for row in count(result.graph_module, (x,)).rows}
    parts = segments(result.graph_module)
    body = [
        sum(macs.get(n.name, 0) for n in part if not n.name.startswith(("exit", "conv2d", "linear"))) for part in parts
    ]
    reached = torch.tensor(body).cumsum(0) / sum(body)
    assert (reached[:3] - torch.tensor([0.25, 0.5, 0.75])).abs().max() < 0.1


def test_exits_at_named_nodes_in_any_order():
    _, result, _, _ = with_exits(EarlyExit(exits=("stages_1_0_relu2", "stages_0_0_relu2")))
    taps = [mark.node for mark in exits_of(result.graph_module)]
    assert len(taps) == 2
    first, second, _ = segments(result.graph_module)
    assert "stages_0_0_relu2" in {node.name for node in first}
    assert "stages_1_0_relu2" in {node.name for node in second}


def test_heads_of_a_quantized_body_are_quantized_from_the_start():
    _, result, _, _ = with_exits(quantize=Quantize(2, 4))
    graph_module = result.graph_module
    heads = [layer for layer in layers_of(graph_module) if layer.path.startswith("exit")]
    assert len(heads) == 6
    for layer in heads:
        classifier = "fc2" in layer.path
        assert layer.weight_quantizer.args[1] == (8 if classifier else 2)
        assert layer.input_quantizer.args[2] == (8 if classifier else 4)
    trained = set(result.tune.parameters)
    assert all(layer.input_quantizer.args[1].target in trained for layer in heads)
    assert not any(name.startswith(("conv1", "stages", "fc.")) for name in trained)


def test_the_threshold_is_the_cheapest_that_keeps_the_accuracy():
    _, result, context, x = with_exits(EarlyExit(exits=2, max_drop=0.05))
    finished = EarlyExit(exits=2, max_drop=0.05).finish(result.graph_module, context)
    profile = finished.profile
    chosen = next(point for point in profile["sweep"] if point["threshold"] == profile["threshold"])
    allowed = [p for p in profile["sweep"] if p["accuracy"] >= profile["full_accuracy"] - 0.05 - 1e-9]
    assert chosen in allowed
    assert chosen["cost"] == min(p["cost"] for p in allowed)
    assert {mark.threshold for mark in exits_of(finished.graph_module)} == {profile["threshold"]}
    assert exit_rates(finished.graph_module, context.validation) == pytest.approx(chosen["rates"])
    targets = context.validation[0][1]
    accuracy = (Answer(finished.graph_module)(x).argmax(1) == targets).float().mean()
    assert float(accuracy) == pytest.approx(chosen["accuracy"])


class ByHand(nn.Module):
    """Answers that are parts of the input: two exits and the end, each after 6 x 6 + 2 x 6 multiplications."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 2, bias=False) for _ in range(3))
        for place, (layer, head) in enumerate(zip(self.body, self.heads, strict=True)):
            layer.weight.data.copy_(torch.eye(6))
            head.weight.data.copy_(torch.eye(6)[2 * place : 2 * place + 2])

    def forward(self, x):
        answers = []
        for layer, head in zip(self.body, self.heads, strict=True):
            x = layer(x)
            answers.append(head(x))
        return tuple(answers)


# for each sample: how sure it is of class 0, the right one, at the first exit, at the second, at the end
SURE = torch.tensor(
    [
        *[[0.95, 0.5, 0.9]] * 4,  # sure and right at once
        [0.15, 0.95, 0.9],  # 0.85 sure and wrong, then right
        *[[0.65, 0.75, 0.9]] * 2,
        [0.35, 0.25, 0.9],  # 0.65 sure and wrong, then 0.75 sure and wrong
        [0.45, 0.45, 0.9],
        [0.45, 0.45, 0.1],
    ]
)


def by_hand():
    """The network with its two exits, and a context with the ten samples."""
    x = torch.stack([SURE.log(), (1 - SURE).log()], 2).flatten(1)
    graph_module = graph_of(ByHand(), x)
    output = graph_module.graph.find_nodes(op="output")[0]
    *answers, last = output.args[0]
    marks = []
    for index, answer in enumerate(answers, start=1):
        with graph_module.graph.inserting_after(answer):
            arguments = (answer, f"exit{index}", NEVER, "max-softmax")
            marks.append(graph_module.graph.call_function(ops.exit_point, arguments))
    output.args = ((*marks, last),)
    graph_module.recompile()
    verify(graph_module, (x,))
    return graph_module, PassContext(graph_module, (x,), validation=[((x,), torch.zeros(10, dtype=torch.long))])


@pytest.mark.parametrize(
    ("max_drop", "above", "up_to", "rates", "accuracy"),
    [
        (0.0, 0.85, 0.95, (0.4, 0.1), 0.9),
        (0.1, 0.75, 0.85, (0.5, 0.0), 0.8),
        (0.2, 0.55, 0.65, (0.8, 0.0), 0.7),
        (0.3, 0.0, 0.55, (1.0, 0.0), 0.6),
    ],
)
def test_the_threshold_is_the_cheapest_that_loses_no_more_than_max_drop(max_drop, above, up_to, rates, accuracy):
    """Without an exit 0.9 are right. The second exit is reached by 1 - r1, the end by 1 - r1 - r2, a third each."""
    graph_module, context = by_hand()
    finished = EarlyExit(exits=2, max_drop=max_drop).finish(graph_module, context)
    assert finished.modified
    threshold = finished.profile["threshold"]
    assert above < threshold <= up_to + 1e-6
    assert [mark.threshold for mark in exits_of(finished.graph_module)] == [threshold] * 2
    points = {point["threshold"]: point for point in finished.profile["sweep"]}
    chosen, never = points[threshold], points[NEVER]
    assert (never["accuracy"], chosen["accuracy"]) == pytest.approx((0.9, accuracy))
    assert list(chosen["rates"].values()) == pytest.approx(rates)
    reach = (1, 1 - rates[0], 1 - rates[0] - rates[1])
    assert chosen["cost"] / never["cost"] == pytest.approx(sum(reach) / 3)
    assert list(exit_rates(finished.graph_module, context.validation).values()) == pytest.approx(rates)
    assert finished.profile["full_accuracy"] == pytest.approx(0.9)
    assert list(finished.profile["exit_accuracy"].values()) == pytest.approx([0.6, 0.7])


def test_the_expected_cost_is_that_of_the_segments_by_who_reaches_them():
    """Three segments of 48 MACs, reached by all, by 0.6 and by 0.5 of the samples."""
    graph_module, context = by_hand()
    report = count(graph_module, context.example_inputs, exit_rates={"exit1": 0.4, "exit2": 0.1})
    assert report.macs == 3 * 48
    assert float(report.expected_macs) == pytest.approx(48 * (1 + 0.6 + 0.5))
    assert float(report.expected_bitops) == pytest.approx(48 * 1024 * (1 + 0.6 + 0.5))


def test_a_given_threshold_is_kept():
    one = EarlyExit(exits=1, threshold=0.7)
    _, result, context, _ = with_exits(one)
    assert not one.finish(result.graph_module, context).modified
    assert exits_of(result.graph_module)[0].threshold == 0.7


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = torch.relu(layer(x))
        return self.head(x.mean(dim=1) if x.dim() == 3 else x)


@pytest.mark.parametrize("shape", [(8, 5, 6), (8, 6)])
def test_heads_on_tokens_and_on_vectors(shape):
    x = torch.randn(*shape)
    graph_module = graph_of(Tokens(), x)
    context = PassContext(graph_module, (x,), validation=[((x,), torch.zeros(8, dtype=torch.long))], tunes=True)
    expected = graph_module(x)
    result = EarlyExit(exits=2).apply(graph_module, context)
    verify(result.graph_module, (x,))
    assert [tuple(part.shape) for part in result.graph_module(x)] == [(8, 4)] * 3
    assert torch.equal(result.graph_module(x)[-1], expected)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            lambda: EarlyExit(exits=0),
            "early-exit: exits=0 is out of range; use a number from 1 or a tuple of names of nodes.",
        ),
        (
            lambda: EarlyExit(exits=()),
            "early-exit: exits=() is out of range; use a number from 1 or a tuple of names of nodes.",
        ),
        (
            lambda: EarlyExit(threshold=-0.5),
            "early-exit: threshold=-0.5 is out of range; use None or a number from 0.",
        ),
        (
            lambda: EarlyExit(criterion="luck"),
            "early-exit: criterion='luck' is out of range; use one of entropy, margin, max-sigmoid, max-softmax, "
            "pixel-entropy, pixel-margin, pixel-max-softmax, token-entropy, token-margin, token-max-softmax.",
        ),
        (
            lambda: EarlyExit(keep=1),
            "early-exit: keep=1 is out of range; use true or false.",
        ),
        (
            lambda: EarlyExit(max_drop=-0.1),
            "early-exit: max_drop=-0.1 is out of range; use a number from 0, in units of the metric.",
        ),
    ],
)
def test_options_out_of_range(one, message):
    with pytest.raises(PassError) as caught:
        one()
    assert str(caught.value) == message


class Deep(nn.Module):
    """Four layers: three that cost 36 each and one that costs 3,600."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 600)

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = torch.relu(layer(x))
        return self.d(x)


def refused(one, model, x, **context):
    """The sentence with which a pass refuses a network."""
    graph_module = graph_of(model, x)
    with pytest.raises(PassError) as caught:
        one.apply(graph_module, PassContext(graph_module, (x,), **context))
    return str(caught.value)


def test_exits_are_as_many_as_asked_for_where_all_that_costs_comes_last():
    x = torch.randn(2, 6)
    graph_module = graph_of(Deep(), x)
    result = EarlyExit(exits=3).apply(graph_module, PassContext(graph_module, (x,)))
    first, second, third, _ = segments(result.graph_module)
    for name, part in (("relu", first), ("relu_1", second), ("relu_2", third)):
        assert name in {node.name for node in part}


def test_the_pass_stands_once_in_a_chain():
    with pytest.raises(ScheduleError) as caught:
        plan([EarlyExit(exits=1), EarlyExit(exits=2)])
    assert str(caught.value) == (
        "pass 'early-exit' stands a second time at position 2, but it cannot repeat; leave one out."
    )


def test_no_exit_stands_where_all_the_work_is_done():
    x = torch.randn(2, 6)
    ends_in_more = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.LogSoftmax(1))
    assert refused(EarlyExit(exits=2), ends_in_more, x) == (
        "early-exit: exits=2, but the network has only 1 places for an exit (_1); use fewer."
    )


def test_no_exit_stands_before_the_first_work():
    network = nn.Sequential(nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    assert exit_places(graph_of(network, torch.randn(2, 6)), (torch.randn(2, 6),)) == ("_2",)


def test_places_that_cannot_be_used_are_named_with_those_that_can():
    x = torch.randn(2, 6)
    assert refused(EarlyExit(exits=4), Deep(), x) == (
        "early-exit: exits=4, but the network has only 3 places for an exit (relu, relu_1, relu_2); use fewer."
    )
    assert refused(EarlyExit(exits=("nowhere",)), Deep(), x) == (
        "early-exit: there is no node 'nowhere'; usable are a, relu, b, relu_1, c, relu_2."
    )
    assert refused(EarlyExit(exits=("d",)), Deep(), x) == (
        "early-exit: node 'd' does not carry the whole network; usable are a, relu, b, relu_1, c, relu_2."
    )
    volumes = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    assert refused(EarlyExit(exits=("_1",)), volumes, torch.randn(2, 1, 2, 2, 2)) == (
        "early-exit: node '_1' does not carry the whole network; usable are _2."
    )


def test_a_network_without_logits_and_a_drop_without_held_out_data_are_refused():
    message = (
        "early-exit: the network does not return one tensor of logits (N, classes), which criterion='max-softmax' "
        "reads; wrap it so that it does."
    )
    assert refused(EarlyExit(), nn.Conv2d(1, 2, 1), torch.randn(2, 1, 4, 4)) == message
    graph_module, context = by_hand()
    with pytest.raises(PassError) as caught:
        EarlyExit(exits=2).finish(graph_module, replace(context, validation=None))
    assert str(caught.value) == (
        "early-exit: max_drop needs held-out data and there is none; give a trainer or a threshold."
    )


def test_too_many_exits_a_wrong_node_and_a_second_time():
    model = small_resnet((1, 1))
    with pytest.raises(PassError) as caught:
        with_exits(EarlyExit(exits=9), model=model)
    assert str(caught.value).startswith("early-exit: exits=9, but the network has only ")
    with pytest.raises(PassError) as caught:
        with_exits(EarlyExit(exits=("nowhere",)), model=model)
    assert str(caught.value).startswith("early-exit: there is no node 'nowhere'; usable are ")
    with pytest.raises(PassError) as caught:
        with_exits(EarlyExit(exits=("stages_0_0_conv1",)), model=model)
    assert str(caught.value).startswith("early-exit: node 'stages_0_0_conv1' does not carry the whole network; usable")
    _, result, context, _ = with_exits()
    with pytest.raises(PassError) as caught:
        EarlyExit().apply(result.graph_module, context)
    assert str(caught.value) == "early-exit: the network has exits already; give the pass once."
