"""One name for every spelling of an operator, and traits that torch itself confirms."""

import builtins
import functools
import math
import operator
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torchvision.ops import stochastic_depth

from chainfx.bitops.formulas import _FORMULAS
from chainfx.bitops.interpreter import count
from chainfx.ir.capture.export import _FUNCTIONS, _METHODS
from chainfx.ir.channels.rules.elementwise import RULES
from chainfx.ir.channels.rules.layers import _FUNCTIONS as CHANNEL_RULES
from chainfx.ir.channels.rules.layers import _MODULES as CHANNEL_MODULES
from chainfx.ir.graph import DEPTHWISE, DIALECT, LAYERS, Trait, leaves, name_of, names_with, operator_of, ops
from chainfx.ir.graph.operators import _NAMES, _TABLE, _TRAITS, _entered

aten = torch.ops.aten


def called(target, *args):
    """The operator of a call of a function, a method (a text) or a module (a class)."""
    graph = Graph()
    x = graph.placeholder("x")
    if isinstance(target, type) and issubclass(target, nn.Module):
        return operator_of(graph.call_module("layer"), lambda _: target.__new__(target))
    if isinstance(target, str):
        return operator_of(graph.call_method(target, (x, *args)))
    return operator_of(graph.call_function(target, (x, *args)))


class OwnForward(nn.ReLU):
    def forward(self, x):
        return x + 1


class NoForward(nn.ReLU6):
    pass


def add(x, y):
    """Somebody's own function with the name of torch's."""
    return x


@pytest.mark.parametrize(
    ("name", "spellings"),
    {
        "conv": [torch.conv2d, F.conv2d, F.conv1d, nn.Conv2d, nn.Conv3d, aten.conv2d.default, *DEPTHWISE.values()],
        "conv_transpose": [F.conv_transpose2d, nn.ConvTranspose1d, aten.conv_transpose2d.input],
        "add": [torch.add, operator.add, operator.iadd, "add", "add_", aten.add.Tensor, aten.add_.Tensor, aten.add],
        "relu": [torch.relu, F.relu, nn.ReLU, "relu", "relu_", aten.relu_.default],
        "relu6": [F.relu6, nn.ReLU6, NoForward],
        "hardtanh": [F.hardtanh, nn.Hardtanh],
        "cat": [torch.cat, torch.concat, torch.concatenate, aten.cat.default],
        "div": [operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div_"],
        "reshape": ["view", "reshape", torch.reshape, aten.view.default, aten._unsafe_view.default],
        "transpose": [torch.transpose, "swapaxes", torch.swapdims],
        "batch_norm": [F.batch_norm, nn.BatchNorm1d, nn.BatchNorm2d],
        "adaptive_avg_pool": [F.adaptive_avg_pool2d, nn.AdaptiveAvgPool3d, aten._adaptive_avg_pool2d.default],
        "max_pool_with_indices": [aten.max_pool2d_with_indices.default],
        "softmax": [F.softmax, torch.softmax, nn.Softmax, nn.Softmax2d, aten._softmax.default],
        "matmul": [operator.matmul, operator.imatmul, torch.matmul, "matmul", torch.linalg.matmul],
        "bitwise_and": [operator.and_, operator.iand, torch.bitwise_and, "__and__"],
        "numel": ["numel", "nelement"],
        "len": [len],
        "quantize_weight": [ops.quantize_weight],
        "assign": [leaves.assign_],
        "stochastic_depth": [stochastic_depth],
        "floor": [math.floor, torch.floor, "floor_", aten.floor.default],
        "": [add, lambda x: x, OwnForward, nn.Module],
    }.items(),
)
def test_all_spellings_have_one_name(name, spellings):
    assert {called(each).name for each in spellings} == {name}


def test_attributes_of_tensors_are_operators_and_others_are_not():
    found = {name: called(getattr, name).name for name in ("shape", "T", "mT", "data", "values", "mean")}
    named = {"shape": "shape", "T": "t", "mT": "mT", "data": "data", "values": "getattr", "mean": "getattr"}
    assert found == named


def test_the_rank_stands_in_the_spelling():
    spellings = (F.conv1d, nn.MaxPool3d, aten.max_pool2d_with_indices.default, F.linear, "add_", DEPTHWISE[F.conv2d])
    assert [called(each).rank for each in spellings] == [1, 3, 2, 0, 0, 2]


def test_a_subclass_has_the_rank_of_its_base_and_is_printed_by_its_own_name():
    class Windowed(nn.MaxPool2d):
        pass

    assert called(Windowed) == ("max_pool", "Windowed", 2)


def test_what_is_no_call_has_no_name():
    graph = Graph()
    assert operator_of(graph.placeholder("add")).name == operator_of(graph.get_attr("relu")).name == ""
    assert operator_of(graph.call_module("relu")).name == ""


def test_an_unknown_operator_has_its_bare_spelling():
    assert name_of("Some_New_Op2d_") == "somenewop"


def test_every_name_is_one_of_torch():
    homes = (torch, Tensor, F, nn, operator, builtins, aten, torch._C._nn)
    spellings = {name for home in homes for name in dir(home)}
    spellings |= {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    spellings |= {each.__name__ for each in (*DIALECT, leaves.assign_, stochastic_depth)}
    plain = {spelling.lower().replace("_", "") for spelling in spellings}
    assert sorted(_NAMES.keys() - plain - {re.sub("[123]d", "", spelling) for spelling in plain}) == []


def test_entries_that_contradict_one_another_are_refused():
    with pytest.raises(ValueError) as error:
        _entered([(Trait.MOVEMENT | Trait.ARITHMETIC, "spin")])
    assert str(error.value) == (
        "the operator 'spin' is entered as MOVEMENT and ARITHMETIC of MOVEMENT, ARITHMETIC, CONSTRUCTOR, PRODUCT; "
        "give it exactly one."
    )
    with pytest.raises(ValueError) as error:
        _entered([(Trait.KEEPS_SHAPE, "spin")])
    assert str(error.value) == (
        "the operator 'spin' is entered as none of MOVEMENT, ARITHMETIC, CONSTRUCTOR, PRODUCT; give it exactly one."
    )
    with pytest.raises(ValueError) as error:
        _entered([(Trait.ARITHMETIC | Trait.POINTWISE | Trait.REDUCTION, "spin")])
    assert str(error.value) == (
        "the operator 'spin' is entered as POINTWISE and REDUCTION of POINTWISE, BROADCAST, REARRANGEMENT, REDUCTION, "
        "ALONG_AXIS, POOLING, RESIZING; give it at most one."
    )


@pytest.mark.parametrize("again", ["spin", "other=spin", "Spin2d", "spin_=turn"])
def test_an_operator_that_is_entered_twice_is_refused(again):
    with pytest.raises(
        ValueError, match=r"^the spelling '.*' is entered for 'spin' already; enter each operator once.$"
    ):
        _entered([(Trait.MOVEMENT, "spin=whirl"), (Trait.MOVEMENT, again)])


def test_traits_that_follow_from_one_another():
    everything = frozenset(_TRAITS)
    assert names_with(Trait.MOVEMENT) - {"embedding"} < names_with(Trait.KEEPS_FORMAT)
    assert names_with(Trait.LAYER) | names_with(Trait.PAIRING) < names_with(Trait.PRODUCT)
    assert names_with(Trait.FOLDABLE) < names_with(Trait.POINTWISE) | names_with(Trait.BROADCAST)
    assert names_with(Trait.ACTIVATION) < names_with(Trait.ARITHMETIC)
    assert names_with(Trait.SIZES) < names_with(Trait.MOVEMENT)
    assert not names_with(Trait.FOLDABLE) & names_with(Trait.KEEPS_CONSTANTS)
    kinds = (Trait.MOVEMENT, Trait.ARITHMETIC, Trait.CONSTRUCTOR, Trait.PRODUCT)
    assert functools.reduce(operator.or_, map(names_with, kinds)) == everything
    assert (
        sum(len(names_with(kind)) for kind in kinds) == len(everything) == len(" ".join(w for _, w in _TABLE).split())
    )


# what torch makes of tensors, for operators that need more than a tensor, or are spelled otherwise

SPELLED = {
    "alias": aten.alias.default,
    "assign": lambda x: leaves.assign_(x.clone(), 0, 1.0),
    "cuda": lambda x: x.cuda() if torch.cuda.is_available() else x,
    "data": lambda x: x.data,
    "exit_point": lambda x: ops.exit_point(x, "exit1", 0.5, "entropy"),
    "fill": lambda x: x.clone().fill_(0.5),
    "flip": lambda x: x.flip(1),
    "full_like": lambda x: torch.full_like(x, 2.0),
    "identity": nn.Identity(),
    "lift_fresh": aten.lift_fresh.default,
    "lift_fresh_copy": aten.lift_fresh_copy.default,
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(0, 1),
    "permute": lambda x: x.permute(1, 0, *range(2, x.dim())),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[None, None], 2),
    "quantize_activation": lambda x: ops.quantize_activation(x, torch.tensor(1.0), 4, True),
    "quantize_weight": lambda x: ops.quantize_weight(x, 4, "uniform", None),
    "coded_weight": lambda x: ops.coded_weight(x, "huffman"),
    "mask_weight": lambda x: ops.mask_weight(x, x > 0.5, "unstructured"),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "repeat": lambda x: x.repeat(2, *[1] * (x.dim() - 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "requires_grad": lambda x: x.clone().requires_grad_(),
    "roll": lambda x: x.roll(1, 0),
    "stochastic_depth": lambda x: stochastic_depth(x, 0.5, "row", training=False),
    "t": lambda x: x.T,
    "threshold": lambda x: F.threshold(x, 0.4, 0.2),
    "tile": lambda x: x.tile(2),
    "to": lambda x: x.to(torch.float64),
    "transpose": lambda x: x.transpose(0, 1),
    "type": lambda x: x.type(torch.float64),
    "type_as": lambda x: x.type_as(x),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "zero": lambda x: x.clone().zero_(),
}
DROPOUTS = ("dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout")
SPELLED |= {name: lambda x, name=name: getattr(torch, name)(x, 0.5, False) for name in DROPOUTS}
SPELLED["bitwise_not"] = lambda x: operator_on_integers("bitwise_not", x)


def operator_on_integers(name, *tensors):
    return getattr(torch, name)(*((each * 100).long() for each in tensors))


def function_of(name):
    """How torch is asked for an operator on tensors alone."""
    if name in SPELLED:
        return SPELLED[name]
    for home in (torch, F, Tensor, aten):
        if callable(found := getattr(home, name, None)):
            return found
    raise LookupError(name)


def changed(function, tensors, which, place):
    """Which elements of the result change if one element of one tensor does, and the shape of the result."""
    moved = [each.clone() for each in tensors]
    moved[which][place] += 0.37
    results = []
    for each in (tensors, moved):
        torch.manual_seed(0)
        result = function(*[one.clone() for one in each])
        results.append(result[0] if isinstance(result, tuple) else result)
    before, after = results
    same = before == after if before.dtype == torch.bool else (before == after) | (before.isnan() & after.isnan())
    return ~same, before.shape


PLACE = (1, 2)


def numbers(rows=4, columns=6):
    """Numbers between 0.05 and 0.6, all different."""
    torch.manual_seed(1)
    return 0.05 + 0.55 * torch.randperm(rows * columns).reshape(rows, columns) / (rows * columns)


@pytest.mark.parametrize("name", sorted(names_with(Trait.POINTWISE) - {"empty_like"}))
def test_pointwise_is_from_the_element_at_the_same_place(name):
    x = numbers()
    differs, shape = changed(function_of(name), [x], 0, PLACE)
    differs[PLACE] = False
    assert shape == x.shape
    assert not differs.any()


TAKES = {
    "addcdiv": 3,
    "addcmul": 3,
    "clamp_max": 2,
    "clamp_min": 2,
    "lerp": 3,
    "quantize_activation": 1,
}
SEVERAL = {
    **{name: functools.partial(operator_on_integers, name) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")},
    "masked_fill": lambda x, y: x.masked_fill(y > 0.3, 0.5),
    "where": lambda x, y: torch.where(x > 0.3, x, y),
}


@pytest.mark.parametrize("name", sorted(names_with(Trait.BROADCAST)))
def test_broadcast_is_from_the_elements_at_the_same_place(name):
    function = SEVERAL.get(name) or function_of(name)
    tensors = [numbers(), numbers().flip(0), numbers().flip(1)][: TAKES.get(name, 2)]
    for which in range(len(tensors)):
        differs, shape = changed(function, tensors, which, PLACE)
        differs[PLACE] = False
        assert shape == tensors[0].shape
        assert not differs.any()


@pytest.mark.parametrize("name", sorted(names_with(Trait.REARRANGEMENT)))
def test_rearrangement_makes_no_new_values(name):
    x = numbers()
    assert torch.isin(function_of(name)(x), x).all()


@pytest.mark.parametrize("name", sorted(names_with(Trait.REDUCTION) | names_with(Trait.ALONG_AXIS)))
def test_reductions_and_softmax_stay_within_a_line_of_their_axis(name):
    function = functools.partial(function_of(name), dim=1)
    differs, shape = changed(function, [numbers()], 0, PLACE)
    differs[PLACE[0]] = False
    assert shape == (numbers().shape if name in names_with(Trait.ALONG_AXIS) else (4,))
    assert not differs.any()


WINDOWS = {
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "fractional_max_pool": lambda x: F.fractional_max_pool2d(x, 2, output_size=2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "upsample": nn.Upsample(scale_factor=2),
    "upsample_bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "upsample_bilinear": nn.UpsamplingBilinear2d(scale_factor=2),
    "upsample_linear": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    "upsample_nearest": nn.UpsamplingNearest2d(scale_factor=2),
    "upsample_nearest_exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "upsample_trilinear": lambda x: F.interpolate(x[:, :, None], scale_factor=2, mode="trilinear"),
}


@pytest.mark.parametrize("name", sorted(names_with(Trait.POOLING) | names_with(Trait.RESIZING)))
def test_pooling_and_resizing_keep_samples_and_channels_apart(name):
    x = numbers(8, 16).reshape(2, 4, 4, 4)
    differs, shape = changed(WINDOWS[name], [x], 0, (1, 2, 1, 1))
    assert shape[:2] == x.shape[:2]
    assert differs[1, 2].any() or name == "upsample"
    differs[1, 2] = False
    assert not differs.any()


NORMS = {
    "batch_norm": lambda x: F.batch_norm(x, *torch.zeros(2, 4, device="meta")),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": F.instance_norm,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "sync_batch_norm": nn.SyncBatchNorm(4, device="meta").eval(),
}
ORDERS = ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 1, 3))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", sorted(names_with(Trait.KEEPS_SHAPE)))
def test_what_keeps_the_shape_keeps_the_dtype_and_the_layout_is_known(name, order):
    with torch.device("meta"):
        x = torch.empty(4, 4, 4, 4, dtype=torch.float64 if name not in NORMS else torch.float32).permute(order)
        result = (NORMS.get(name) or function_of(name))(x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert result.stride() == (x if name in names_with(Trait.KEEPS_LAYOUT) else x.contiguous()).stride()


@pytest.mark.parametrize("name", sorted(names_with(Trait.KEEPS_CONSTANTS)))
def test_what_keeps_constants_gives_back_a_constant(name):
    constant = torch.tensor([0.5, -0.25]).reshape(1, 2, 1, 1).expand(2, 2, 4, 4)
    result = WINDOWS[name](constant) if name in WINDOWS else function_of(name)(constant)
    assert torch.equal(result, constant[..., : result.shape[2], : result.shape[3]])


@pytest.mark.parametrize("name", sorted(names_with(Trait.FOLDABLE)))
def test_what_is_foldable_takes_the_values_of_channels_alone(name):
    values = torch.tensor([0.5, -0.25, 0.0, 1.5])
    whole = function_of(name)(values.reshape(1, 4, 1, 1).expand(2, 4, 3, 3).contiguous())
    alone = function_of(name)(values).reshape(1, 4, 1, 1).expand_as(whole)
    torch.testing.assert_close(whole, alone, equal_nan=True)


@pytest.mark.parametrize("name", sorted(names_with(Trait.IDEMPOTENT)))
def test_idempotent_twice_is_once(name):
    function, x = function_of(name), torch.linspace(-9, 9, 50)
    assert torch.equal(function(function(x)), function(x))


@pytest.mark.parametrize("name", sorted(names_with(Trait.KEEPS_FORMAT) - names_with(Trait.MOVEMENT)))
def test_what_keeps_the_format_makes_no_new_values(name):
    x = numbers(8, 16).reshape(2, 4, 4, 4)
    plain = name.removesuffix("_with_indices")
    result = WINDOWS[plain](x) if plain in WINDOWS else function_of(name)(x)
    assert torch.isin(result, x).all()


# the rooms speak of the same operators


def test_channel_rules_are_of_operators_that_the_house_knows():
    assert {*RULES, *CHANNEL_RULES, *CHANNEL_MODULES} <= _TRAITS.keys()


def test_products_and_formulas_are_the_same_operators():
    assert _FORMULAS.keys() == names_with(Trait.PRODUCT)


def test_layers_of_the_train_form_are_the_operators_with_that_trait():
    assert {called(each).name for each in LAYERS} == names_with(Trait.LAYER)


def test_an_exported_operator_stays_the_same_operator_in_the_train_form():
    for name, function in _FUNCTIONS.items():
        assert called(function).name == called(getattr(aten, name)).name == name_of(name)
    for name in _METHODS:
        assert called(name).name == called(getattr(aten, name)).name


@pytest.mark.parametrize("name", sorted(names_with(Trait.POINTWISE) - names_with(Trait.CONSTRUCTOR) - SPELLED.keys()))
def test_what_the_channel_analysis_takes_for_pointwise_the_counter_takes_for_work_or_movement(name):
    graph = Graph()
    graph.output(graph.call_function(function_of(name), (graph.placeholder("x"),)))
    report = count(GraphModule(nn.Module(), graph), (numbers(1, 6),))
    assert report.uncounted == ()
    assert sum(row.elementwise for row in report.rows) == (6 if name in names_with(Trait.ARITHMETIC) else 0)
