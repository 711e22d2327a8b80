"""Capture on toy models: one small module for each trap."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from chainfx.errors import CaptureError, InputError
from chainfx.ir.capture.ways import OpaqueLeaf, capture, capture_with_report
from chainfx.ir.graph.edit import LAYERS, tidy
from chainfx.ir.graph.leaves import ByMode

IMAGE = (2, 3, 8, 8)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


class FunctionalDropout(Plain):
    def forward(self, x):
        x = F.dropout2d(F.relu(self.norm(self.conv(x))), 0.5, self.training)
        x = F.dropout(x.mean((2, 3)), p=0.2 if self.training else 0.0)
        return self.head(x)


class StochasticDepth(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.rand((x.shape[0], 1, 1, 1)).add(0.8).floor() / 0.8


class Residual(Plain):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.depth = StochasticDepth()

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.head((x + self.depth(self.inner(x))).mean((2, 3)))


class Windows(Plain):
    """Shape-dependent control flow, and a reshape by a size computed from the batch."""

    def forward(self, x):
        x = self.norm(self.conv(x))
        if x.shape[-1] % 3 != 0:
            x = F.pad(x, (0, 3 - x.shape[-1] % 3))
        batch, channels, height, width = x.size()
        parts = list(x.view(batch, channels, height, 3, width // 3).unbind(3))
        total = sum(parts) / len(parts)
        assert total.dim() == 4
        return self.head(total.reshape(batch, channels, -1).mean(2) + torch.zeros(batch, 1, device=x.device))


class Norm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * 2.0, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Inherits(nn.Linear):
    pass


class Subclasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = Scaled(3, 4, 3)
        self.norm = Norm(4)
        self.head = Inherits(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


class Optional(Plain):
    def forward(self, x, mask=None, scale: float = 2.0, *, flip: bool = False):
        if mask is not None:
            x = x * mask
        return super().forward(x.flip(-1) if flip else x * scale)


class Paddings(nn.Module):
    def __init__(self):
        super().__init__()
        modes = ("reflect", "replicate", "circular")
        self.modes = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode) for mode in modes)
        self.even = nn.Conv2d(3, 3, (4, 3), padding="same", dilation=(1, 2))
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.valid = nn.Conv2d(3, 3, 3, padding="valid")
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        for conv in self.modes:
            x = conv(x)
        return self.up(self.valid(self.same(self.even(x))))


class OwnCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.last = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("kept", torch.ones(4, 1, 1))
        self.register_buffer("temporary", torch.full((4, 1, 1), 2.0), persistent=False)
        self.plain = torch.full((4, 1, 1), 3.0)
        self.other = torch.full((4, 1, 1), 5.0)

    def forward(self, x):
        x = F.conv2d(x, weight=self.weight, padding=1, stride=2)
        x = x * self.scale + self.kept + self.temporary + self.plain - self.other + torch.arange(4.0).view(4, 1, 1)
        return F.linear(bias=None, weight=self.last, input=x.mean((2, 3)))


class InPlace(Plain):
    def forward(self, x):
        x = self.norm(self.conv(x))
        x.mul_(0.5)
        x[:, 0] = 1.0
        x[:, 1].zero_()
        F.relu(x, inplace=True)
        return self.head(x.mean((2, 3)))


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x):
        return self.conv(x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, left, right):
        return {"sum": self.left(left) + self.right(right), "parts": (left, right)}


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, **options)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.body(x)


def differs_by_seed(model, inputs):
    """The outputs of two train-mode calls, to see that randomness is there at all."""
    return torch.equal(*(run(model, inputs, training=True, seed=seed) for seed in (0, 1)))


def run(model, inputs, *, training: bool, seed: int = 0):
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(seed)
    return model(*inputs)


def assert_equal(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def check(model, inputs, *others, method="symbolic", ignored=(), compile_it=True):
    """Everything that holds for each captured model; ``others`` are inputs of another batch size or resolution."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    modes = [module.training for module in model.modules()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    graph_module, report = capture_with_report(model, inputs)
    assert report.method == method
    assert [module.training for module in model.modules()] == modes
    assert_equal(dict(model.named_buffers()), buffers)
    folded = {source for each in report.folded for source in each.sources}
    expected_keys = [key for key in model.state_dict() if key not in ignored and key not in folded]
    expected_keys += [each.path for each in report.folded]
    copies = [graph_module, copy.deepcopy(graph_module), pickle.loads(pickle.dumps(graph_module))]
    if compile_it:
        copies.append(torch.compile(copy.deepcopy(graph_module), fullgraph=True, backend="eager"))
    for candidate in copies[:3]:
        assert sorted(candidate.state_dict()) == sorted(expected_keys)
        assert [node.name for node in candidate.graph.nodes] == [node.name for node in graph_module.graph.nodes]
    for training in (False, True):
        for given in (inputs, *others):
            expected = run(model, given, training=training)
            for candidate in copies[:3]:
                assert_equal(run(candidate, given, training=training), expected)
            if compile_it:
                copies[3].train(training)
                torch.manual_seed(0)
                assert_equal(copies[3](*given), expected)
                copies[3].load_state_dict({f"_orig_mod.{k}": v for k, v in graph_module.state_dict().items()})
    if not folded:
        check_gradients(model, graph_module, inputs)
    check_layers(graph_module)
    return graph_module, report


def check_gradients(model, graph_module, inputs):
    """Every parameter gets the gradient that the model gives it (sharing: the same tensors)."""
    leaves = {id(parameter) for parameter in graph_module.parameters()}
    assert leaves == {id(parameter) for parameter in model.parameters()}
    gradients = []
    for module in (copy.deepcopy(model), copy.deepcopy(graph_module)):
        torch.manual_seed(0)
        output = torch.utils._pytree.tree_leaves(module.train()(*inputs))
        sum(
            (tensor.sin() * torch.linspace(0, 1, tensor.numel()).view(tensor.shape)).sum() for tensor in output
        ).backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert all(gradient is not None for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], msg=name)


def check_layers(graph_module):
    """Layer calls are positional, of full length, with numbers as tuples; no conv or linear module is left."""
    for node in graph_module.graph.nodes:
        if node.target in LAYERS:
            assert not node.kwargs
            assert len(node.args) == (3 if node.target is F.linear else 8 if "transpose" in node.target.__name__ else 7)
            assert node.target is F.linear or all(isinstance(node.args[index], tuple) for index in (3, 4))
        if node.op == "call_module":
            assert not isinstance(graph_module.get_submodule(node.target), nn.Linear | nn.Conv2d)


def image(batch=2, size=8):
    return (torch.randn(batch, 3, size, size),)


def calls(graph_module, kind):
    return [node.name for node in graph_module.graph.nodes if node.op == kind]


def test_plain_layers_are_named_calls():
    graph_module, report = check(Plain(), image(), image(3, 11))
    assert calls(graph_module, "call_module") == ["norm", "drop"]
    assert [node.name for node in graph_module.graph.nodes if node.target in LAYERS] == ["conv", "head"]
    conv = graph_module.graph.find_nodes(op="call_function", target=F.conv2d)[0]
    assert conv.args[2:] == (None, (1, 1), (1, 1), (1, 1), 1)
    assert (report.opaque, report.dropped, report.aliases, report.eval_structure) == ((), (), (), False)


def test_captured_graph_shares_parameters_and_modules():
    model = Plain()
    graph_module = capture(model, image())
    assert graph_module.conv.weight is model.conv.weight
    assert graph_module.norm is model.norm


@pytest.mark.parametrize("training", [True, False])
def test_what_torch_puts_between_graph_and_leaves_has_the_mode_of_the_model(training):
    graph_module = capture(nn.Sequential(nn.Sequential(Plain())).train(training), image())
    assert {module.training for module in graph_module.modules()} == {training}


def test_capture_again_gives_the_same_text():
    graph_module = capture(FunctionalDropout(), image())
    assert capture(graph_module, image()).code == graph_module.code


def test_functional_dropout_follows_the_mode():
    model = FunctionalDropout()
    graph_module, _ = check(model, image(), image(3, 9))
    assert not differs_by_seed(graph_module, image())
    modules = [graph_module.get_submodule(node.target) for node in graph_module.graph.find_nodes(op="call_module")]
    found = sorted(repr(module) for module in modules if isinstance(module, ByMode))
    assert found == ["ByMode(in_training=0.2, in_evaluation=0.0)", "ByMode(in_training=True, in_evaluation=False)"]


def test_flag_starts_in_the_mode_of_the_model():
    for training in (False, True):
        graph_module = capture(FunctionalDropout().train(training), image())
        assert graph_module.training is training
        assert graph_module.training_mode.training is training


def test_stochastic_depth_stays_a_leaf_that_hides_nothing():
    graph_module, report = check(Residual(), image(5), image(3, 9), compile_it=False)
    assert calls(graph_module, "call_module") == ["norm", "depth"]
    assert report.opaque == ()


def test_shape_dependent_control_flow_keeps_the_batch_free():
    graph_module, report = check(Windows(), image(), image(5), method="sizes")
    assert report.opaque == ()
    assert not any(node.target is torch._assert for node in graph_module.graph.nodes)


def test_subclasses():
    graph_module, report = check(Subclasses(), image(), image(3, 6), compile_it=False)
    assert [each.sources for each in report.folded] == [("conv.weight",)]
    assert calls(graph_module, "call_module") == ["norm", "norm_act"]
    assert [node.name for node in graph_module.graph.nodes if node.target in LAYERS] == ["conv", "head"]


def test_what_does_nothing_leaves_no_node():
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3), nn.Sequential(), nn.Linear(3, 2))
    graph_module, _ = check(model, (torch.randn(2, 4),), (torch.randn(3, 4),), compile_it=False)
    assert calls(graph_module, "call_module") == []


def test_shared_modules_keep_their_first_name():
    graph_module, report = check(Shared(), image(), ignored=("second.weight", "second.bias"))
    assert report.aliases == (("second.weight", "first.weight"), ("second.bias", "first.bias"))
    assert [node.name for node in graph_module.graph.nodes if node.target in LAYERS] == ["first", "first_1"]


def test_optional_arguments_keep_their_defaults():
    graph_module, _ = check(Optional(), image())
    assert calls(graph_module, "placeholder") == ["x"]
    check(Optional(), (*image(), torch.rand(2, 1, 8, 8)), (*image(4, 6), torch.rand(4, 1, 6, 6)), compile_it=False)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_paddings_become_numbers():
    graph_module, _ = check(Paddings(), image(), image(3, 9), compile_it=False)
    paddings = {node.name: node.args[4] for node in graph_module.graph.nodes if node.target is F.conv2d}
    assert paddings == {
        "modes_0": (0, 0),
        "modes_1": (0, 0),
        "modes_2": (0, 0),
        "even": (1, 2),
        "same": (1, 1),
        "valid": (0, 0),
    }


def test_own_calls_are_normalised_and_constants_stay_out_of_the_state():
    graph_module, _ = check(OwnCalls(), image(), image(3, 12), compile_it=False)
    conv = graph_module.graph.find_nodes(op="call_function", target=F.conv2d)[0]
    assert conv.args[2:] == (None, (2, 2), (1, 1), (1, 1), 1)
    assert not hasattr(OwnCalls(), "constant0")


def test_in_place_operations_survive_dead_code_elimination():
    graph_module, _ = check(InPlace(), image(), image(3, 6))
    tidied = copy.deepcopy(graph_module)
    tidy(tidied)
    inputs = image()
    assert_equal(run(tidied, inputs, training=False), run(graph_module, inputs, training=False))


def test_parametrized_weights_are_folded():
    _, report = check(Parametrized(), image(), compile_it=False)
    assert [each.path for each in report.folded] == ["conv.weight"]


def test_several_inputs_and_structured_outputs():
    inputs = (torch.randn(2, 6), torch.randn(2, 3))
    check(TwoInputs(), inputs, (torch.randn(5, 6), torch.randn(5, 3)))


class Attention(nn.Module):
    def __init__(self, call="self", **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.call = call

    def forward(self, query, key=None, value=None):
        if self.call == "self":
            return self.attention(query, query, query, need_weights=False)[0]
        if self.call == "weights":
            return self.attention(query, query, query, average_attn_weights=False)
        if self.call == "cross":
            return self.attention(query, key, key)
        return self.attention(query, key, value)


def tokens(batch_first, length, batch, channels=8):
    return torch.randn(*((batch, length) if batch_first else (length, batch)), channels)


@pytest.fixture
def slow_path():
    """The reference without the fused eval kernel, which rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("self", {"dropout": 0.2}),
        ("weights", {"dropout": 0.2, "bias": False}),
        ("cross", {}),
        ("all", {"kdim": 6, "vdim": 4}),
        ("all", {"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.1}),
    ],
)
def test_attention_is_written_out(call, options, batch_first):
    def inputs(batch):
        sizes = (options.get("kdim", 8), options.get("vdim", 8))
        query = tokens(batch_first, 5, batch)
        key, value = (tokens(batch_first, 7, batch, size) for size in sizes)
        return {"cross": (query, key), "all": (query, key, value)}.get(call, (query,))

    model = Attention(call, batch_first=batch_first, **options)
    if not batch_first:
        graph_module, _ = check(model, inputs(2), inputs(2), compile_it=False)
    else:
        graph_module, _ = check(model, inputs(2), inputs(3), compile_it=call == "self")
    assert not any(
        isinstance(graph_module.get_submodule(node.target), nn.MultiheadAttention)
        for node in graph_module.graph.find_nodes(op="call_module")
    )
    product = F.scaled_dot_product_attention if call == "self" else torch.bmm
    assert graph_module.graph.find_nodes(op="call_function", target=product)


class Masked(nn.Module):
    def __init__(self, *, padded, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", torch.triu(torch.ones(5, 5, dtype=torch.bool), 1))
        self.padded, self.need_weights = padded, need_weights

    def forward(self, x, padding):
        options = {"attn_mask": self.mask, "need_weights": self.need_weights, "is_causal": True}
        return self.attention(x, x, x, key_padding_mask=padding > 2 if self.padded else None, **options)[0]


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_masks(padded, need_weights):
    def inputs(batch):
        return tokens(True, 5, batch), torch.randn(batch, 5)

    model = Masked(padded=padded, need_weights=need_weights)
    unused = not padded and not need_weights
    method, dropped = ("symbolic", ("mask",)) if unused else ("sizes", ())
    report = check(model, inputs(2), inputs(3), method=method, ignored=dropped, compile_it=False)[1]
    assert report.dropped == dropped


@pytest.mark.usefixtures("slow_path")
def test_unbatched_attention_is_known_by_its_rank():
    check(Attention("weights"), (torch.randn(5, 8),), method="sizes", compile_it=False)


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"norm_first": True, "activation": "gelu"}, marks=pytest.mark.slow)], ids=["", "gelu"]
)
def test_transformer_encoder_is_inlined(options):
    graph_module, report = check(Encoder(**options), (torch.randn(2, 5, 8),), (torch.randn(3, 5, 8),), method="sizes")
    layers = [node.name for node in graph_module.graph.nodes if node.target in LAYERS]
    stem = "body_layers_0"
    assert layers[:4] == [
        f"{stem}_self_attn_in_proj",
        f"{stem}_self_attn_out_proj",
        f"{stem}_linear1",
        f"{stem}_linear2",
    ]
    assert report.opaque == ()


class DataBranch(nn.Module):
    """A submodule that looks at the data; with parameters it hides them."""

    def __init__(self, channels):
        super().__init__()
        if channels:
            self.inner = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        if x.mean() > 100:
            return x
        return self.inner(x) if hasattr(self, "inner") else x * 2


class WithBranch(nn.Module):
    def __init__(self, channels=0):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.branch = DataBranch(channels)

    def forward(self, x):
        return self.branch(self.conv(x))


class RootBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x) + torch.rand(1)
        if x.sum() > 0:
            x = -x
        return x


def test_what_looks_at_the_data_without_parameters_stays_a_leaf():
    graph_module, report = check(WithBranch(), image(), image(4, 9), compile_it=False)
    assert report.opaque == (OpaqueLeaf("branch", "DataBranch", 0, 0.0),)
    assert calls(graph_module, "call_module") == ["branch"]


def test_opaque_leaf_reports_its_share():
    torch.manual_seed(0)
    graph_module, report = capture_with_report(WithBranch(4), image())
    assert report.opaque == (OpaqueLeaf("branch", "DataBranch", 20, 20 / 132),)
    assert sorted(graph_module.state_dict()) == sorted(WithBranch(4).state_dict())


def test_a_branch_on_data_in_the_root_names_its_line():
    line = RootBranch.forward.__code__.co_firstlineno + 2
    with pytest.raises(CaptureError) as caught:
        capture(RootBranch(), image())
    assert str(caught.value) == (
        f"cannot capture RootBranch at {__file__}:{line}: `if x.sum() > 0:` needs a value that only the data give; "
        "replace the branch by torch.where, or move these lines into a submodule without parameters, "
        "which then stays one opaque node."
    )


class Heads(Plain):
    """A head that only train mode enters, and dropout in both modes."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        if self.training:
            return F.dropout(self.head(x), 0.5, self.training), self.auxiliary(x)
        return F.dropout(self.head(x), 0.5, self.training)


def test_heads_of_train_mode_are_dropped_and_reported():
    model = Heads()
    graph_module, report = capture_with_report(model, image())
    assert report.eval_structure
    assert report.dropped == ("auxiliary.weight", "auxiliary.bias")
    inputs = image()
    assert_equal(run(graph_module, inputs, training=False), run(model, inputs, training=False))
    assert_equal(run(graph_module, inputs, training=True), run(model, inputs, training=True)[0])


class Caches(Plain):
    """Stores in eval mode what it computes in both."""

    def __init__(self):
        super().__init__()
        self.cache = {}
        self.inner = Caching(self.cache)

    def forward(self, x):
        return super().forward(x) + self.inner(x.device)


class Caching(nn.Module):
    def __init__(self, cache):
        super().__init__()
        self.offsets = nn.Parameter(torch.randn(5))
        self.cache = cache

    def forward(self, device):
        if self.training:
            return self.offsets * 2
        self.seen = str(device)
        if self.seen not in self.cache:
            self.cache[self.seen] = self.offsets * 2
        return self.cache[self.seen]


def test_what_tracing_stores_is_forgotten():
    model = Caches()
    graph_module, report = capture_with_report(model, image())
    assert report.opaque == ()
    assert model.cache == {}
    assert not hasattr(model.inner, "seen")
    assert_equal(run(graph_module, image_of_ones(), training=True), run(model, image_of_ones(), training=True))


def image_of_ones():
    return (torch.ones(2, 3, 8, 8),)


def test_recurrent_layers_are_reported_as_opaque():
    report = capture_with_report(nn.Sequential(nn.LSTM(4, 3)), (torch.randn(2, 5, 4),))[1]
    assert report.opaque == (OpaqueLeaf("0", "LSTM", 108, 1.0),)


class Nested(nn.Module):
    """Code that only ``torch.export`` follows: it asks whether its input is a tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Linear(4, 2)
        self.register_buffer("temporary", torch.full((4, 1, 1), 2.0), persistent=False)

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            raise TypeError("not a tensor")
        x = F.relu_(self.norm(self.conv(x))) + self.temporary * torch.tensor(3.0)
        x = F.dropout(self.up(x), 0.2, self.training).mean((2, 3))
        return {"logits": self.head(self.drop(x)), "batch": [x.reshape(x.shape[0], 2, -1)]}


def test_export_gives_the_train_form():
    graph_module, report = check(Nested(), image(), image(5), method="export", compile_it=False)
    assert report.opaque == ()
    assert calls(graph_module, "call_module") == ["training_mode", "norm", "drop"]
    assert [node.name for node in graph_module.graph.nodes if node.target in LAYERS] == ["conv", "up", "head"]


def test_export_frees_a_batch_of_one():
    graph_module = capture(Nested(), image(1)).eval()
    assert graph_module(*image(3))["logits"].shape == (3, 2)


def test_wrong_shape_is_an_input_error():
    with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(2, 4, 8, 8\): .*; give inputs"):
        capture(Plain(), (torch.randn(2, 4, 8, 8),))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "example_inputs is empty; give a tuple of tensors, one for each positional input of the model."),
        ((1,), "example_inputs has a int; give a tuple of tensors, one for each positional input of the model."),
        (
            image() * 2,
            "Plain.forward takes x and needs x, but example_inputs has 2; give one tensor for each input.",
        ),
    ],
)
def test_wrong_inputs(inputs, message):
    with pytest.raises(InputError) as caught:
        capture(Plain(), inputs)
    assert str(caught.value) == message


def test_lazy_parameters_are_refused():
    with pytest.raises(InputError) as caught:
        capture(nn.Sequential(nn.LazyConv2d(3, 1)), image())
    assert str(caught.value) == "parameter '0.weight' has no shape yet; run the model once before capturing it."


def test_meta_models_are_captured():
    with torch.device("meta"):
        graph_module = capture(Windows(), image())
    assert graph_module.conv.weight.is_meta
    assert graph_module(*(tensor.to("meta") for tensor in image(3))).shape == (3, 5)


def test_tracing_leaves_torch_and_the_model_as_they_were():
    torch.backends.mha.set_fastpath_enabled(True)
    before = (torch.zeros, torch.rand)
    model = RootBranch()
    attributes = set(vars(model))
    state = torch.get_rng_state()
    with pytest.raises(CaptureError):
        capture(model, (torch.ones(2, 3, 8, 8),))
    assert (torch.zeros, torch.rand) == before
    assert torch.backends.mha.get_fastpath_enabled()
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), state)
