"""What a file may say: arguments of every kind come back as they were, and nothing outside the lists is called."""

import json
import math
import operator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import swin_transformer

from chainfx.errors import ArtifactError
from chainfx.ir.artifact import fingerprint, load_graph, save_graph
from chainfx.ir.artifact.literals import encode
from chainfx.ir.graph import DEPTHWISE, ByMode, assign_, ops
from tests.nets import graph_of, images, small_resnet


def graph_that_calls(target, *args, op="call_function", root=None, **kwargs):
    graph = torch.fx.Graph()
    graph.output(graph.create_node(op, target, (graph.placeholder("x"), *args), kwargs))
    return torch.fx.GraphModule(root or nn.Module(), graph)


def there_and_back(graph_module, folder):
    save_graph(graph_module, folder)
    return load_graph(folder)[0]


def forged(folder, change):
    """Change a manifest on purpose, with a right checksum."""
    import hashlib

    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **body}))


ARGUMENTS = [
    None,
    True,
    3,
    "text",
    0.5,
    math.inf,
    -math.inf,
    (1, (2, None)),
    [1, [2.5]],
    {"a": 1, "b": (2,)},
    slice(1, None, 2),
    (Ellipsis, slice(None, 3)),
    torch.float16,
    torch.device("cpu"),
    torch.channels_last,
    torch.strided,
]


@pytest.mark.parametrize("value", ARGUMENTS, ids=repr)
def test_an_argument_comes_back_as_it_was(value, tmp_path):
    loaded = there_and_back(graph_that_calls(operator.getitem, value, other=value), tmp_path)
    call = next(node for node in loaded.graph.nodes if node.op == "call_function")
    for found in (call.args[1], call.kwargs["other"]):
        assert found == value and isinstance(found, type(value))


def test_an_argument_is_written_as_in_all_files_of_the_format():
    value = (Ellipsis, slice(None, 3), -math.inf, torch.float16, {"a": [1]})
    assert encode(value) == {
        "tuple": [
            {"ellipsis": True},
            {"slice": [None, 3, None]},
            {"float": "-inf"},
            {"dtype": "torch.float16"},
            {"dict": [["a", [1]]]},
        ]
    }


def test_a_number_that_is_none_comes_back_as_none(tmp_path):
    loaded = there_and_back(graph_that_calls(torch.add, math.nan), tmp_path)
    assert math.isnan(next(node for node in loaded.graph.nodes if node.op == "call_function").args[1])


def test_an_argument_without_a_safe_form_is_refused(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_that_calls(torch.add, 1 + 2j), tmp_path)
    assert str(caught.value) == "the argument (1+2j) of type complex has no safe form."
    save_graph(graph_that_calls(torch.add, (1,)), tmp_path)
    forged(tmp_path, lambda body: body["nodes"][1]["args"].__setitem__(1, {"code": "print()"}))
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    assert str(caught.value) == "the saved graph has an argument of unknown kind 'code'."


FUNCTIONS = {
    **{f: f"builtins:{f.__name__}" for f in (getattr, int, float, bool, len, max, min, abs, round)},
    **{f: f"chainfx:{f.__name__}" for f in (ops.quantize_weight, ops.exit_point, assign_, *DEPTHWISE.values())},
    torch.add: "torch:add",
    F.relu: "torch.nn.functional:relu",
    F.linear: "torch._C._nn:linear",
    operator.getitem: "_operator:getitem",
    math.floor: "math:floor",
    torch.ops.aten.add.Tensor: "aten:aten.add.Tensor",
    torch.sym_int: "torch:sym_int",
    torch.special.expit: "torch._C._special:special_expit",
    torch.functional.norm: "torch.functional:norm",
    swin_transformer._patch_merging_pad: "torchvision.models.swin_transformer:_patch_merging_pad",
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: FUNCTIONS[function])
def test_a_function_goes_by_a_name_of_the_list(function, tmp_path):
    graph_module = graph_that_calls(function, "shape" if function is getattr else 1)
    loaded = there_and_back(graph_module, tmp_path)
    call = next(node for node in loaded.graph.nodes if node.op == "call_function")
    assert call.target is function
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["nodes"][1]["target"] == FUNCTIONS[function]


@pytest.mark.parametrize("module", ["chainfx.ir.ops", "chainfx.ir.leaves", "chainfx.ir.depthwise", "chainfx"])
def test_files_of_0_1_named_the_file_of_their_day(module, tmp_path):
    save_graph(graph_that_calls(ops.mask_weight, None, "2:4"), tmp_path)
    forged(tmp_path, lambda body: body["nodes"][1].update(target=f"{module}:mask_weight"))
    loaded, _ = load_graph(tmp_path)
    assert loaded.graph.find_nodes(op="call_function", target=ops.mask_weight)


@pytest.mark.parametrize(
    "name",
    [
        *("chainfx:plan", "chainfx.ir.other:mask_weight", "torch:_assert", "torch:set_", "torch:Tensor", "torch:nn"),
        *(
            "torch.nn.functional:_in_projection_packed",
            "torchvision.io:read_file",
            "math:nothing",
            "torch.functional:Tensor",
        ),
    ],
)
def test_names_beside_the_lists_are_refused(name, tmp_path):
    save_graph(graph_that_calls(torch.add, 1), tmp_path)
    forged(tmp_path, lambda body: body["nodes"][1].update(target=name))
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    message = f"the saved graph calls {name!r}, which chainfx does not load; save it with this version."
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["aten.add.Nothing", "aten.nothing.Tensor", "prims.add.default"])
def test_an_operator_that_torch_does_not_have_is_refused(name, tmp_path):
    save_graph(graph_that_calls(torch.add, 1), tmp_path)
    forged(tmp_path, lambda body: body["nodes"][1].update(target=f"aten:{name}"))
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    assert str(caught.value) == (
        f"the saved graph calls {f'aten:{name}'!r}, which chainfx does not load; save it with this version."
    )


def foreign(x):
    return x


@pytest.mark.parametrize("function", [foreign, torch.load, torch.from_file], ids=lambda each: each.__name__)
def test_a_function_without_a_safe_name_is_not_saved(function, tmp_path):
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_that_calls(function), tmp_path)
    name = function.__name__
    assert str(caught.value) == (
        f"node {name!r} calls {name!r}, which has no safe name; use a torch function to save it."
    )


@pytest.mark.parametrize("name", ["_make_subclass", "nothing_of_the_kind", "grad_fn"])
def test_what_is_no_method_of_a_tensor_is_not_called(name, tmp_path):
    save_graph(graph_that_calls("relu", op="call_method"), tmp_path)
    forged(tmp_path, lambda body: body["nodes"][1].update(target=name))
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    assert str(caught.value) == f"the saved graph calls the method {name!r}, which chainfx does not load."


MODULES = [
    nn.BatchNorm2d(3, eps=1e-3, momentum=None, affine=False),
    nn.Dropout(0.25, inplace=True),
    nn.LayerNorm((3, 4), bias=False),
    nn.Conv2d(3, 6, (3, 1), stride=2, padding=(1, 0), groups=3, bias=False, padding_mode="reflect"),
    nn.Linear(3, 2),
    nn.MaxPool2d(2, return_indices=False, ceil_mode=True),
    nn.LSTM(5, 4, 2, bias=False, bidirectional=True),
    nn.PReLU(3, 0.1),
    ByMode(0.25, None),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_a_module_is_built_again_from_its_arguments(module, tmp_path):
    root = nn.Module()
    root.inside = module
    loaded = there_and_back(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    assert type(loaded.inside) is type(module) and repr(loaded.inside) == repr(module)
    assert list(loaded.state_dict()) == [f"inside.{name}" for name in module.state_dict()]
    assert all(torch.equal(value, loaded.inside.state_dict()[key]) for key, value in module.state_dict().items())


def test_a_module_that_does_not_keep_an_argument_is_not_saved(tmp_path):
    root = nn.Module()
    root.inside = torchvision.ops.FrozenBatchNorm2d(3)
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    assert str(caught.value) == (
        "module 'inside' (torchvision.ops.misc.FrozenBatchNorm2d) does not keep its argument 'num_features', so that "
        "it cannot be rebuilt; replace it by torch.nn modules to save."
    )


def test_a_parametrized_module_is_not_saved(tmp_path):
    root = nn.Module()
    root.inside = torch.nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    assert str(caught.value) == (
        "module 'inside' is of class torch.nn.utils.parametrize.ParametrizedLinear, whose code a safe file cannot "
        "hold; take its parametrizations off (torch.nn.utils.parametrize.remove_parametrizations) to save."
    )


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_module_with_a_hook_is_not_saved(kind, tmp_path):
    root = nn.Module()
    root.inside = nn.Linear(3, 2)
    getattr(root.inside, kind)(lambda *_: None)
    with pytest.raises(ArtifactError) as caught:
        save_graph(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    assert str(caught.value) == (
        "module 'inside' (torch.nn.modules.linear.Linear) has a hook, whose code a safe file cannot "
        "hold; take it off (spectral_norm: torch.nn.utils.remove_spectral_norm) to save."
    )


@pytest.mark.parametrize("name", ["torch.nn:Identities", "torch.nn:functional", "builtins:dict", "torch.optim:SGD"])
def test_a_forged_manifest_builds_no_other_module(name, tmp_path):
    root = nn.Module()
    root.inside = nn.ReLU()
    save_graph(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    forged(tmp_path, lambda body: body["modules"]["inside"].update({"class": name}))
    with pytest.raises(ArtifactError) as caught:
        load_graph(tmp_path)
    assert str(caught.value) == f"the saved graph has a module {name!r}, which chainfx does not load."


def test_shared_and_boolean_buffers_come_back(tmp_path):
    root = nn.Module()
    root.a, root.b = nn.Module(), nn.Module()
    shared, mask = torch.arange(3.0), torch.tensor([True, False, True])
    for part in (root.a, root.b):
        part.register_buffer("values", shared)
        part.register_buffer("mask", mask)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for path in ("a.values", "a.mask", "b.values", "b.mask"):
        x = graph.call_function(torch.mul, (x, graph.get_attr(path)))
    graph.output(x)
    loaded = there_and_back(torch.fx.GraphModule(root, graph), tmp_path)
    assert list(loaded.state_dict()) == ["a.values", "a.mask", "b.values", "b.mask"]
    assert loaded.a.values is loaded.b.values and loaded.a.mask is loaded.b.mask
    assert torch.equal(loaded.a.mask, mask) and torch.equal(loaded.a.values, shared)
    assert not list(loaded.parameters())


@pytest.mark.parametrize("module", ["chainfx", "chainfx.ir.leaves"])
def test_modules_of_chainfx_go_by_a_name_without_a_file_and_by_that_of_0_1(module, tmp_path):
    root = nn.Module()
    root.inside = ByMode(1, 2)
    save_graph(graph_that_calls("inside", op="call_module", root=root), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["modules"]["inside"]["class"] == "chainfx:ByMode"
    forged(tmp_path, lambda body: body["modules"]["inside"].update({"class": f"{module}:ByMode"}))
    loaded, _ = load_graph(tmp_path)
    assert type(loaded.inside) is ByMode and loaded.inside.in_evaluation == 2


def test_the_mode_and_the_name_of_the_class_come_back(tmp_path):
    for training in (False, True):
        graph_module = graph_of(small_resnet(), images()).train(training)
        graph_module.__class__.__name__ = "Net"
        loaded = there_and_back(graph_module, tmp_path)
        assert loaded.training is training
        assert all(module.training is training for module in loaded.modules())
        assert type(loaded).__name__ == "Net"


def test_a_second_save_replaces_the_first(tmp_path):
    there_and_back(graph_of(small_resnet((1, 1)), images()), tmp_path / "deep" / "er")
    second = graph_of(small_resnet((2, 1)), images())
    loaded = there_and_back(second, tmp_path / "deep" / "er")
    assert fingerprint(loaded) == fingerprint(second)


@pytest.fixture
def saved(tmp_path):
    save_graph(graph_of(small_resnet((1, 1)), images()), tmp_path)
    return tmp_path


def test_another_format_a_missing_and_a_foreign_tensor_file(saved):
    import hashlib

    tensors = saved / "model.safetensors"
    junk = b"\x10\0\0\0\0\0\0\0 not a header!!!!"
    kept = tensors.read_bytes()
    forged(saved, lambda body: body.update(tensors_sha256=hashlib.sha256(junk).hexdigest()))
    tensors.write_bytes(junk)
    with pytest.raises(
        ArtifactError, match=r"model.safetensors is not a safetensors file: .*; save the model again\.$"
    ):
        load_graph(saved)
    tensors.unlink()
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert str(caught.value) == f"{tensors} does not exist; copy the whole folder that save() wrote."
    tensors.write_bytes(kept)
    forged(saved, lambda body: body.update(format=2))
    with pytest.raises(ArtifactError) as caught:
        load_graph(saved)
    assert str(caught.value) == f"{saved / 'manifest.json'} has format 2, this chainfx reads 1; save it again."


class Own(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.weight = factor, nn.Parameter(torch.ones(2))

    def extra_repr(self):
        return f"{self.factor}"

    def forward(self, x):
        return x * self.factor * self.weight


def test_the_fingerprint_of_what_cannot_be_saved_is_that_of_its_name_text_and_tensors():
    def of(factor, weight=1.0):
        root = nn.Module()
        root.inside = Own(factor)
        root.inside.weight.data.fill_(weight)
        return fingerprint(graph_that_calls("inside", op="call_module", root=root))

    assert of(2) == of(2)
    assert len({of(2), of(3), of(2, weight=4.0)}) == 3
    assert fingerprint(graph_that_calls(foreign)) != fingerprint(graph_that_calls(torch.relu))


def test_the_fingerprint_sees_what_trains_and_the_mode():
    def of(change):
        graph_module = graph_of(small_resnet((1, 1)), images())
        change(graph_module)
        return fingerprint(graph_module)

    changes = [
        lambda graph_module: None,
        lambda graph_module: graph_module.train(),
        lambda graph_module: graph_module.get_parameter("fc.bias").requires_grad_(False),
        lambda graph_module: graph_module.get_buffer("bn1.running_mean").add_(1),
    ]
    assert len({of(change) for change in changes}) == len(changes)
