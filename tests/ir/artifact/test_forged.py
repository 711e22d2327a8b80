"""A file that somebody wrote on purpose cannot make chainfx do anything but compute."""

import copy
import json
import os
import random
import resource
import sys
import time

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import ArtifactError
from chainfx.ir.artifact.documents import digest_of
from chainfx.passes import EarlyExit, PruneWeights, Quantize
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

# what a process can do to the outside, as the interpreter's audit hooks name it
OUTSIDE = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.dlopen", "urllib.", "winreg.", "pty.", "pickle.")


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.cell = nn.LSTM(8, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        seen, _ = self.cell(self.embed(x.flatten(2)))
        return self.head(seen.mean(1, keepdim=True)[:, 0, ...])


def _manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def _sign(folder, body):
    """Write a manifest as somebody would who knows how chainfx signs them."""
    body = {key: value for key, value in body.items() if key != "sha256"}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digest_of(body), **body}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A quantized and masked network with exits, and one with a recurrent layer: (folder, input, answer) of each."""
    found, x = [], images(16)
    passes = [PruneWeights(0.5), Quantize(3, 4), EarlyExit(exits=1, threshold=0.4, keep=True)]
    for name, net, chain, given in (
        ("exits", small_resnet((1, 1)), passes, x),
        ("mixed", Mixed().eval(), [PruneWeights(0.5)], torch.randn(2, 5, 6)),
    ):
        folder = tmp_path_factory.mktemp(name)
        trainer = FakeTrainer(given) if name == "exits" else None
        small = chainfx.compile(net, chain, example_inputs=given, trainer=trainer)
        small.save(folder)
        found.append((folder, given, small(given)))
    return found


@pytest.fixture
def forged(saved, tmp_path):
    """Change the manifest of the network of that number, sign it, and return the error that loading it raises."""

    def error_of(change, number=0):
        folder = saved[number][0]
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        for other in folder.glob("*.json"):
            (tmp_path / other.name).write_bytes(other.read_bytes())
        body = _manifest(folder)
        change(body)
        _sign(tmp_path, body)
        with pytest.raises(ArtifactError) as caught:
            chainfx.load(tmp_path)
        return str(caught.value)

    return error_of


def _first(body, op):
    return next(node for node in body["nodes"] if node["op"] == op)


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "builtins:eval", "builtins:exec", "builtins:__import__", "subprocess:run", "torch:load"),
        *("torch:from_file", "torch:import_ir_module", "torch:import_ir_module_from_buffer", "torch:fork"),
        *("torch:set_num_threads", "torch.hub:load", "torch:compile", "_operator:call", "_operator:attrgetter"),
        *("_operator:methodcaller", "operator:call", "torch.nn.functional:importlib", "torch.functional:Any"),
        *("torch.nn.functional:triplet_margin_with_distance_loss", "torchvision.models.resnet:resnet50"),
        *("torchvision.models._api:load_state_dict_from_url", "torchvision.ops.misc:_log_api_usage_once"),
        *("aten:aten.from_file.default", "aten:aten.set_.source_Tensor", "aten:prims.add.default", "chainfx:capture"),
        *("chainfx.ir.ops:math", "math:__loader__", "", ":", "torch", "torch:add:x"),
    ],
)
def test_a_function_outside_the_lists(forged, name):
    message = forged(lambda body: _first(body, "call_function").update(target=name))
    assert message == f"the saved graph calls {name!r}, which chainfx does not load; save it with this version."


@pytest.mark.parametrize("name", ["numpy", "apply_", "register_hook", "backward", "__reduce__", "data_ptr", "set_"])
def test_a_method_outside_the_lists(forged, name):
    def change(body):
        _first(body, "call_function").update(op="call_method", target=name)

    assert forged(change) == f"the saved graph calls the method {name!r}, which chainfx does not load."


@pytest.mark.parametrize("name", ["__class__", "grad_fn", "_typed_storage", 3, {"tuple": []}])
def test_an_attribute_outside_the_lists(forged, name):
    def change(body):
        call = _first(body, "call_function")
        call.update(target="builtins:getattr", args=[call["args"][0], name], kwargs={"dict": []})

    shown = () if isinstance(name, dict) else name
    assert forged(change) == f"the saved graph reads the attribute {shown!r}, which chainfx does not load."


@pytest.mark.parametrize(
    "name",
    ["subprocess:Popen", "torch.nn.modules.container:Sequential", "torch.nn.modules.module:Module", "os:PathLike"],
)
def test_a_module_outside_the_lists(forged, name):
    message = forged(lambda body: next(iter(body["modules"].values())).update({"class": name}))
    assert message == f"the saved graph has a module {name!r}, which chainfx does not load."


CODE = "x=__import__('os').system('touch forged')"


def test_code_in_the_name_of_an_input(forged):
    message = forged(lambda body: _first(body, "placeholder").update(target=CODE))
    assert message == f"the saved graph has the name {CODE!r}, which is no identifier; save the model again."


def test_code_in_the_name_of_a_node(forged):
    message = forged(lambda body: _first(body, "call_function").update(name="a; import os"))
    assert message == "the saved graph has the name 'a; import os', which is no identifier; save the model again."


def test_code_in_the_name_of_a_keyword(forged):
    message = forged(lambda body: _first(body, "call_function").update(kwargs={"dict": [[CODE, 1]]}))
    assert message == f"the saved graph has the name {CODE!r}, which is no identifier; save the model again."


def test_code_in_a_path(forged):
    path = 'a.b"), __import__("os").system("touch forged'

    def change(body):
        node = _first(body, "get_attr")
        body["tensors"][path] = body["tensors"][node["target"]]
        node["target"] = path

    assert forged(change).startswith(f"the saved graph has the path {path!r}, which cannot stand in code;")


@pytest.mark.parametrize("path", ["forward.__func__.__globals__", "__class__", "training", "nothing.weight"])
def test_a_node_reads_only_tensors_of_the_file(forged, path):
    message = forged(lambda body: _first(body, "get_attr").update(target=path))
    assert message == f"the saved graph reads {path!r}, which is no tensor of the file; save the model again."


def test_a_node_calls_only_modules_of_the_file(forged):
    message = forged(lambda body: _first(body, "call_module").update(target="forward"))
    assert message == "the saved graph calls 'forward', which is no module of the file; save the model again."


def test_a_node_of_an_unknown_kind(forged):
    message = forged(lambda body: _first(body, "call_module").update(op="call"))
    assert message == "the saved graph has a node of kind 'call', which chainfx does not load."


@pytest.mark.parametrize("bits", [2**63, 0, 9, "4", None])
def test_bits_that_are_none(forged, bits):
    """2 to the power of them would never be done."""
    seen = {}

    def change(body):
        node = next(node for node in body["nodes"] if node["target"] == "chainfx:dequantize_weight")
        node["args"][2] = bits
        seen.update(node)

    message = forged(change)
    assert f"node {seen['name']!r}: bits must be a literal 1..8, but its arguments are" in message


def test_a_dtype_that_is_none(forged):
    def change(body):
        _first(body, "call_function")["args"].append({"dtype": "torch.load"})

    assert forged(change) == "the saved graph has a dtype 'torch.load', which this torch does not have."


def test_an_option_that_a_module_does_not_have(forged):
    def change(body):
        body["modules"]["bn1"]["options"]["dict"].append(["device", "cuda"])

    assert forged(change) == "the saved graph makes a BatchNorm2d with device='cuda', which no network has."


def test_more_layers_than_any_network_has(forged):
    def change(body):
        options = {"dict": [["input_size", 1], ["hidden_size", 1], ["num_layers", 10**9]]}
        body["modules"]["more"] = {"class": "torch.nn.modules.rnn:LSTM", "options": options}

    assert forged(change) == "the saved graph makes a LSTM with num_layers=1000000000, which no network has."


def test_a_module_without_values_takes_no_memory(forged):
    def change(body):
        options = {"dict": [["in_features", 2**20], ["out_features", 2**20]]}
        body["modules"]["more"] = {"class": "torch.nn.modules.linear:Linear", "options": options}

    assert forged(change) == "the file has no values for tensor 'more.weight'; save the model again."


@pytest.mark.parametrize("change", [{"bits": 9}, {"bits": 0}, {"bits": 3.0}, {"shape": [2**40]}, {"shape": [-1, 2]}])
def test_sizes_that_are_not_those_of_the_bytes(forged, change):
    seen = {}

    def changed(body):
        name, entry = next((name, entry) for name, entry in body["tensors"].items() if "bits" in entry)
        seen.update({"name": name, **entry, **change})
        entry.update(change)

    message = forged(changed)
    size = message.partition(" has ")[2].partition(" bytes")[0]
    assert message == (
        f"tensor {seen['name']!r} has {size} bytes, which are not {seen['bits']} bits for each element of shape "
        f"{seen['shape']}; save the model again."
    )


def test_an_example_input_that_is_none(forged):
    shape = [2**40, 2**40]
    message = forged(lambda body: body["extra"]["signature"]["parameters"][0].update(shape=shape))
    assert message == f"the saved network has an example input of shape {shape}, which is none; save it again."


def _call(name, target, *args, op="call_function"):
    return {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {"dict": []}}


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([_call("a", "_operator:pow", 10**9, 10**9)], "'pow' for a number of more than 4096 bits"),
        ([_call("a", "_operator:lshift", 1, 10**12)], "'lshift' for a number of more than 4096 bits"),
        ([_call("a", "_operator:mul", "x", 10**12)], "'mul' for more than 65536 items"),
        (
            [
                _call("a", "expand", {"node": "x"}, 10**12, -1, -1, -1, op="call_method"),
                _call("b", "unbind", {"node": "a"}, op="call_method"),
            ],
            "'unbind' for more than 65536 parts",
        ),
        (
            [
                _call("n0", "_operator:add", [1], [2]),
                *(_call(f"n{i}", "_operator:add", *[{"node": f"n{i - 1}"}] * 2) for i in range(1, 60)),
            ],
            "'add' for more than 65536 items",
        ),
    ],
    ids=["power", "shift", "text", "parts", "doubled"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_python_itself_would_make_is_bounded(forged, calls, message, fails):
    """Also where a node before fails on tensors without data, so that all is evaluated another way."""

    def change(body):
        first = [_call("f", "cpu", {"node": "x"}, op="call_method")] if fails else []
        body["nodes"][1:1] = [*first, *calls]
        returned = body["nodes"][-1]["args"]
        returned[0] = {"tuple": [returned[0], *({"node": call["name"]} for call in (*first, calls[-1]))]}

    assert message in forged(change, number=1)


def test_a_manifest_that_is_nested_without_end(saved, tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 10**5)
    with pytest.raises(ArtifactError, match=r"is not a chainfx manifest or is cut short; save the model again\.$"):
        chainfx.load(tmp_path)


STRANGE = [
    *(None, True, False, 0, 1, -1, 2, 7, 8, 9, 1024, 2**31, 2**63, 2**70, -(2**40), 0.5, "", "x", "torch:add", "nan"),
    *("relu", "add", CODE, "os:system", "__class__", "weight", [], [1], [[1]], {}, {"node": "x"}, {"tuple": [1, 2]}),
    *({"dtype": "torch.int8"}, {"device": "cuda:99"}, {"slice": [None, None, 0]}, {"ellipsis": True}, {"float": "inf"}),
    *({"dict": []}, {"layout": "torch.sparse_coo"}, {"memory_format": "torch.load"}, {"node": 3}, {"x": 1, "y": 2}),
]


def _places(value, path=()):
    """Every place in a JSON value, the report aside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key not in ("report", "sha256"):
            yield (*path, key)
            yield from _places(item, (*path, key))


def _mutated(body, places, rng):
    """A manifest with one to three of its places changed: given a strange value, that of another, or taken away."""
    for _ in range(rng.randint(1, 3)):
        *path, key = rng.choice(places)
        *source, other = rng.choice(places)
        try:
            holder, donor = body, body
            for part in path:
                holder = holder[part]
            for part in source:
                donor = donor[part]
            action = rng.choice(("strange", "strange", "other", "drop", "twice"))
            if action == "strange":
                holder[key] = copy.deepcopy(rng.choice(STRANGE))
            elif action == "other":
                holder[key] = copy.deepcopy(donor[other])
            elif action == "drop":
                del holder[key]
            elif isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return body


class _Watch:
    """Notes what the process does to the outside while it is on; an audit hook can never be taken off."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, args):
        if self.on and (event.startswith(OUTSIDE) or (event == "open" and "w" in str(args[1]))):
            self.seen.append((event, args))


_WATCH = _Watch()


def _loaded(folder):
    """The network in a folder, or ``None`` if that is refused; nothing but that may happen, in bounded time."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _WATCH.seen.clear()
    _WATCH.on = True
    try:
        return chainfx.load(folder)
    except ArtifactError as error:
        assert "\n" not in str(error)
        return None
    finally:
        _WATCH.on = False
        assert not _WATCH.seen
        assert time.process_time() - started < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_the_watch_sees_what_happens_to_the_outside(tmp_path):
    _WATCH.seen.clear()
    _WATCH.on = True
    os.system("true")
    (tmp_path / "x").write_text("x")
    _WATCH.on = False
    assert [event for event, _ in _WATCH.seen] == ["os.system", "open"]


def _fuzz(saved, folder, rounds, seed):
    """How many of some changed files were loaded, and how many refused."""
    rng = random.Random(seed)
    counts = {"loaded": 0, "refused": 0}
    contents = [{each.name: each.read_bytes() for each in source.iterdir()} for source, _, _ in saved]
    places = [list(_places(json.loads(files["manifest.json"]))) for files in contents]
    own = [folder / str(number) for number in range(len(saved))]
    for place, files in zip(own, contents, strict=True):
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
    for number in range(rounds):
        at = number % len(saved)
        (_, x, answer), folder = saved[at], own[at]
        changed = "manifest.json"
        honest = rng.random() < 0.3
        if honest:  # damaged on the way
            changed = rng.choice(sorted(contents[at]))
            path = folder / changed
            data = bytearray(contents[at][changed])
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data)) + 1))])
        else:
            _sign(folder, _mutated(json.loads(contents[at]["manifest.json"]), places[at], rng))
        small = _loaded(folder)
        counts["refused" if small is None else "loaded"] += 1
        if honest and small is not None:
            assert torch.equal(small(x), answer)
        (folder / changed).write_bytes(contents[at][changed])
    return counts


@pytest.mark.filterwarnings("ignore")
def test_changed_files_are_refused_or_loaded_and_nothing_else_happens(saved, tmp_path):
    counts = _fuzz(saved, tmp_path, rounds=100, seed=0)
    assert min(counts.values()) > 4, counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_changed_files(saved, tmp_path):
    _fuzz(saved, tmp_path, rounds=10_000, seed=1)
