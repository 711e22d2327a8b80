"""Each convention against the numbers that its authors print."""

from fractions import Fraction

import pytest
import torch

from chainfx import zoo
from chainfx.bitops import CostReport, LayerFacts, convention_names, count, get_convention, register_convention
from chainfx.deploy.lower import to_codes
from chainfx.errors import CostError, InputError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph import ops
from chainfx.ir.graph.formats import FLOAT32, Format
from chainfx.passes import Distill, PassContext, PruneChannels, Quantize
from chainfx.scheduler.planning import plan
from chainfx.scheduler.runner import run
from tests.bitops.graphs import quantize_layers
from tests.trainers import FakeTrainer

IMAGE = (torch.zeros(1, 3, 224, 224, device="meta"),)
LAST = 20  # ResNet-18 has 20 convolutions and one linear layer


def resnet18(weights: int | None = None, activations: int = 8):
    import torchvision

    with torch.device("meta"):
        graph_module = capture(torchvision.models.resnet18().eval(), IMAGE)
    return graph_module if weights is None else quantize_layers(graph_module, lambda *_: (weights, activations))


def facts(weight: int, activation: int, macs: int = 1000, **options) -> LayerFacts:
    pair = (Format(weight), Format(activation)) if weight < 32 else (FLOAT32, FLOAT32)
    return LayerFacts(macs, Fraction(options.pop("fan_in", 64)), *pair, nominal=pair, **options)


def test_the_shipped_conventions():
    shipped = {"bayesian_bits", "fixops64", "hawq_v3", "mac_bw_ba", "strict", "uniq_bops", "uniq_bops_sparse"}
    assert shipped <= set(convention_names())


@pytest.mark.parametrize(("bits", "giga"), [(None, 1858), (8, 116), (4, 34.7)])
def test_hawq_v3_prints_these_for_resnet18(bits, giga):
    report = count(resnet18(bits, bits or 0), IMAGE, "hawq_v3")
    assert round(report.bitops / 1e9, 1 if bits == 4 else 0) == giga


@pytest.mark.parametrize(("bits", "mega"), [(None, 1814), (5, 781), (4, 542)])
def test_fixops64_of_resnet18(bits, mega):
    assert round(count(resnet18(bits, bits or 0), IMAGE, "fixops64").bitops / 1e6) == mega


@pytest.mark.parametrize(
    ("convention", "cost"),
    [
        ("mac_bw_ba", 8),
        ("strict", 8),
        ("hawq_v3", 8),
        ("bayesian_bits", 8),
        ("uniq_bops", 8 + 8 + 6 + 6),  # shifts by up to 6 places, sums of 64
        ("uniq_bops_sparse", 4 + 8 + 6 + 6),  # half of the weights are zero
        ("fixops64", Fraction(8, 64)),
    ],
)
def test_a_product_with_a_power_of_two_is_a_shift(convention, cost):
    pair = Format(4, "shift"), Format(8)
    layer = LayerFacts(1000, Fraction(64), *pair, nominal=pair, nonzero=Fraction(1, 2))
    assert get_convention(convention)(layer) == 1000 * cost


def test_exponential_weights_are_counted_as_shifts_in_every_form_and_survive_json():
    graph_module = capture(torch.nn.Linear(64, 10), (torch.zeros(1, 64),))
    one = Quantize(4, 8, first=None, last=None, scheme="exponential")
    one.apply(graph_module, PassContext(graph_module, (torch.zeros(1, 64),), calibration=[(torch.ones(1, 64),)]))
    report = count(graph_module, (torch.zeros(1, 64),), "strict")
    assert report.bitops == 640 * 8
    assert CostReport.from_dict(report.to_dict()) == report
    assert count(to_codes(graph_module), (torch.zeros(1, 64),), "strict").bitops == 640 * 8


def test_without_quantizers_mac_bw_ba_is_1024_a_mac_and_at_w4a8_a_32nd():
    plain, small = (count(resnet18(bits), IMAGE) for bits in (None, 4))
    assert plain.bitops == plain.macs * 1024
    assert small.bitops * 32 == plain.bitops


def test_strict_and_mac_bw_ba_differ_where_the_ends_stay_wide():
    ends = (0, LAST)
    graph_module = quantize_layers(resnet18(), lambda index, _: None if index in ends else (4, 4))
    nominal, strict = (count(graph_module, IMAGE, name) for name in ("mac_bw_ba", "strict"))
    wide = sum(row.macs for row in strict.rows if row.weight_bits == 32)
    assert wide == 112 * 112 * 64 * 147 + 512 * 1000
    assert nominal.bitops == nominal.macs * 16
    assert strict.bitops == (strict.macs - wide) * 16 + wide * 1024


def test_first_and_last_are_the_ends():
    report = count(resnet18(4, 4), IMAGE, "hawq_v3")
    dear = [row.node for row in report.rows if row.macs and row.bitops == row.macs * 64]
    assert dear == [next(row.node for row in report.rows if row.macs), report.rows[-1].node]


SMALL_IMAGE = (torch.zeros(1, 3, 32, 32),)


@pytest.fixture(scope="module")
def resnet34():
    """The paper's network for CIFAR-10 in float, and its student of 30 layers with 40 % of the channels pruned."""
    graph_module = capture(zoo.resnet34().eval(), SMALL_IMAGE, compare=False)
    chain = plan([Distill(depth=(2, 4, 6, 2)), PruneChannels(0.4, round_to=1)])
    stages = list(run(graph_module, chain, example_inputs=SMALL_IMAGE, trainer=FakeTrainer(SMALL_IMAGE[0])))
    return count(graph_module, SMALL_IMAGE), count(stages[-1].graph_module, SMALL_IMAGE)


@pytest.mark.parametrize(
    ("convention", "widths", "ratio"),
    [
        ("mac_bw_ba", {"*": (1, 8)}, 413.6),
        ("hawq_v3", {"*": (1, 8)}, 405.3),
        ("strict", {"*": (1, 8), "conv1": (32, 32), "fc": (32, 32)}, 301.2),
        ("strict", {"*": (1, 8), "conv1": (32, 32), "fc": (32, 32), "*shortcut*": (8, 8)}, 292.0),
        ("uniq_bops", {"*": (1, 8)}, 132.0),
    ],
)
def test_how_much_the_choice_matters(resnet34, convention, widths, ratio):
    original, student = resnet34
    assert round(original.reprice(convention).bitops / student.reprice(convention, widths).bitops, 1) == ratio


@pytest.mark.parametrize(("weight", "product", "uniq"), [(1, 128, 39.8), (4, 32, 20.1), (8, 16, 12.1)])
def test_quantization_alone(resnet34, weight, product, uniq):
    original, _ = resnet34

    def ratio(convention):
        return original.reprice(convention).bitops / original.reprice(convention, {"*": (weight, 8)}).bitops

    assert ratio("mac_bw_ba") == ratio("strict") == product
    assert round(ratio("uniq_bops"), 1) == round(ratio("uniq_bops_sparse"), 1) == uniq


@pytest.mark.parametrize("name", ["mac_bw_ba", "strict", "hawq_v3", "bayesian_bits", "uniq_bops", "fixops64"])
def test_the_docstring_has_formula_and_check(name):
    text = get_convention(name).__doc__
    assert "MACs * " in text
    assert "Check: " in text


@pytest.mark.parametrize("name", sorted(convention_names()))
def test_every_printed_number_comes_with_its_convention(name):
    report = count(resnet18(4, 4), IMAGE, name)
    assert f"convention {name} " in str(report).splitlines()[0]
    assert report.to_dict()["convention"] == name


def test_uniq_by_hand():
    assert get_convention("uniq_bops")(facts(4, 8, fan_in=64)) == 1000 * (32 + 12 + 6)
    half = facts(4, 8, fan_in=64, nonzero=Fraction(1, 2))
    assert get_convention("uniq_bops_sparse")(half) == 1000 * (16 + 12 + 6)
    assert get_convention("uniq_bops")(half) == 1000 * (32 + 12 + 6)


def test_bayesian_bits_by_hand():
    cost = get_convention("bayesian_bits")
    kept = {"kept_outputs": Fraction(1, 2), "kept_inputs": Fraction(1, 4)}
    assert cost(facts(4, 8, **kept)) == 1000 * 32 / 8
    assert cost(facts(32, 32, first=True)) == 1000 * 1024
    first = LayerFacts(1000, Fraction(9), Format(4), FLOAT32, (Format(4), Format(4)), first=True)
    assert cost(first) == 1000 * 4 * 8


@pytest.mark.parametrize("name", ["mac_bw_ba", "strict", "hawq_v3", "bayesian_bits", "uniq_bops", "fixops64"])
def test_more_bits_never_cost_less(name):
    cost = get_convention(name)
    grid = [[cost(facts(w, a)) for a in range(1, 9)] for w in range(1, 9)]
    assert all(row == sorted(row) for row in grid)
    assert all(list(column) == sorted(column) for column in zip(*grid, strict=True))
    assert cost(facts(8, 8)) <= cost(facts(32, 32))


SEEN: list[Fraction] = []


@register_convention("fan_in_probe")
def fan_in_probe(layer: LayerFacts) -> int:
    SEEN.append(layer.fan_in)
    return 0


def test_the_fan_in_of_a_layer():
    SEEN.clear()
    assert count(resnet18(), IMAGE, "fan_in_probe").bitops == 0
    assert (SEEN[0], SEEN[1], SEEN[-1]) == (3 * 49, 64 * 9, 512)


def test_unknown_convention():
    with pytest.raises(CostError) as caught:
        count(resnet18(), IMAGE, "flops")
    assert str(caught.value) == f"there is no convention named 'flops'; use one of {', '.join(convention_names())}."


def test_a_name_is_given_once():
    with pytest.raises(InputError) as caught:
        register_convention("strict")(lambda layer: 0)
    assert str(caught.value) == "the convention 'strict' is registered already; give yours another name."


# bad input


def test_an_example_of_the_wrong_shape():
    with pytest.raises(InputError) as caught:
        count(quantize_layers(resnet18(), lambda *_: None), (torch.zeros(1, 4, 224, 224),))
    assert str(caught.value) == (
        "the network does not accept example_inputs of shape (1, 4, 224, 224): Given groups=1, weight of size "
        "[64, 3, 7, 7], expected input[1, 4, 224, 224] to have 3 channels, but got 4 channels instead; "
        "give inputs of the shape it was made for."
    )


def depends_on_data(x):
    return x[x > 0].sum() + 1


def test_shapes_that_depend_on_data():
    with pytest.raises(InputError) as caught:
        count(torch.fx.symbolic_trace(depends_on_data), (torch.zeros(2, 4),))
    assert str(caught.value) == (
        "what node 'getitem' gives depends on the data (aten.nonzero.default), so the shapes of the network do not "
        "follow from those of its inputs; leave this operation out of the network."
    )


@pytest.mark.parametrize("bits", [None, 0, 2.5, "x", True])
@pytest.mark.parametrize(("target", "position"), [(ops.quantize_weight, 1), (ops.quantize_activation, 2)])
def test_a_quantizer_without_literal_bits(target, position, bits):
    graph_module = resnet18(4, 4)
    node = graph_module.graph.find_nodes(op="call_function", target=target)[0]
    node.update_arg(position, bits)
    with pytest.raises(CostError) as caught:
        count(graph_module, IMAGE)
    assert str(caught.value) == (
        f"node {node.name!r} has bits={bits!r}; a quantizer needs its bits as a whole number of at least 1."
    )
