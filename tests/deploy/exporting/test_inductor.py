import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel, Machine, engines
from chainfx.deploy.exporting import difference_of, inductor, integer_segments, packages, random_inputs
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.graph import exits_of
from chainfx.passes import Fuse, PostTrainingQuantize
from tests.deploy.exporting.test_export import ANY_MACHINE, in_fresh_process
from tests.deploy.test_model import exiting

pytest.importorskip("torchao", reason="the extra 'torchao' is not installed")
EXAMPLE = Path(__file__).parents[3] / "examples" / "run_aoti.cpp"
OLDER = Machine("AVX2", kernels=True, saturates=True)


@pytest.fixture(scope="module")
def x():
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small(x):
    torch.manual_seed(0)
    net = zoo.resnet(blocks=(1, 1), width=8).eval()
    return chainfx.compile(net, [PostTrainingQuantize(7, 8)], example_inputs=x[:2], calibration=[x])


@pytest.fixture(scope="module")
def leaving(x):
    """About half of the samples leave at its exit."""
    torch.manual_seed(0)
    net = zoo.resnet(blocks=(1, 1), width=8).eval()
    graph_module = exiting(x, exits=1, share=0.5, quantize=ANY_MACHINE, model=net)
    return CompressedModel(graph_module, (x[:2],), None)


def settings():
    from torch._inductor import config

    return config.freezing, config.pre_grad_custom_pass, config.layout_optimization


def test_the_graph_for_inductor_is_the_network(small, x):
    before = settings()
    (segment,), rows = integer_segments(small.graph_module, (x[:2],), OLDER, "it")
    with inductor.frozen():
        assert settings()[0] is True
    assert settings() == before
    assert [row.engine for row in rows] == ["pt2e"] * 7 and rows[0].operator == "conv2d"
    assert difference_of(small.lower("float")(x), segment(x)) == ""


class Added(nn.Module):
    """A block that adds to its input, with a linear layer that reads rows out of order, as after attention."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        turned = self.first(self.norm(x)).transpose(1, 2).contiguous().transpose(1, 2)
        return x + self.second(turned)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    rows = torch.randn(4, 8, 8)
    return chainfx.compile(Added().eval(), [PostTrainingQuantize(7, 8)], example_inputs=rows, calibration=[rows]), rows


def test_linear_layers_read_rows_in_order_and_no_addition_reads_an_input(block):
    """Kernels that add write over what they add to, and torchao knows rows out of order for one batch size alone."""
    small, rows = block
    (segment,), _ = integer_segments(small.graph_module, (rows,), OLDER, "it")
    for node in segment.graph.nodes:
        if getattr(node.target, "__name__", "") == "_round_inductor":
            assert node.args[0].target == "contiguous"
    (x,) = segment.graph.find_nodes(op="placeholder")
    assert [str(user.target) for user in x.users] == ["norm", str(torch.maximum)]
    torch.testing.assert_close(segment(rows), small.lower("float")(rows).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which compiles
def test_a_block_that_adds_to_its_input_leaves_it_alone_for_any_batch_size(block):
    small, rows = block
    compiled = small.lower("pt2e")
    for batch in (3, 1, 4):
        given = rows[:batch].clone()
        assert difference_of(small(rows[:batch]), compiled(given)) == "" and torch.equal(given, rows[:batch])


def overwriting(segment, *values):
    answer = segment.forward(*values)
    values[0].add_(1.0)
    return answer


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (overwriting, "segment 0 answers otherwise once it is compiled: it writes over its inputs"),
        (
            lambda segment, *values: segment.forward(*values) + 1e3,
            "segment 0 answers otherwise once it is compiled: 1e+03 away from values up to ",
        ),
        (
            lambda segment, *values: segment.forward(*values),
            "torchao's passes found 0 of the 7 layers that can run in integers",
        ),
    ],
)
def test_what_was_compiled_has_to_be_what_was_asked_for(small, call, problem, monkeypatch):
    monkeypatch.setattr(torch.fx.GraphModule, "compile", lambda segment, **options: None)
    monkeypatch.setattr(engines, "called", call)
    with pytest.raises(InputError) as caught:
        small.lower("pt2e")
    assert str(caught.value).startswith(f"engine='pt2e' was asked for, but {problem}")
    assert str(caught.value).endswith("; use engine='int8'.")


def test_layers_that_this_machine_cannot_run_in_integers_have_weights_in_float(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    chain = [PostTrainingQuantize(8, 8, skip=("2",)), PostTrainingQuantize(7, 8, skip=("0",))]
    mixed = chainfx.compile(net, chain, example_inputs=x, calibration=[x], order="given", engine="float")
    (segment,), rows = integer_segments(mixed.graph_module, (x[:2],), OLDER, "it")
    assert {row.name: row.engine for row in rows} == {"0": "float", "2": "pt2e"}
    decodes = [node for node in segment.graph.nodes if getattr(node.target, "__name__", "") == "_decode_inductor"]
    assert len(decodes) == 1 and torch.allclose(mixed(x), segment(x), atol=1e-5)


def test_where_no_layer_can_run_in_integers_it_is_refused(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    plain = chainfx.compile(net, [Fuse()], example_inputs=x[:2])
    with pytest.raises(InputError) as caught:
        plain.lower("pt2e")
    assert str(caught.value) == (
        "engine='pt2e' was asked for, but no layer can run in integers here (0: its weight is not quantized)."
    )


def test_calls_of_kernels_are_machine_code_while_it_compiles():
    from torch._inductor import config

    with inductor.frozen():
        assert config.cpp_wrapper and config.freezing
    assert not config.cpp_wrapper and not config.freezing


def test_without_torchao_it_is_refused(small, monkeypatch, tmp_path):
    import sys

    inductor.inductor_options.cache_clear()
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.inductor_passes.x86", None)
    with pytest.raises(InputError) as caught:
        small.export(tmp_path, format="aoti")
    assert str(caught.value).startswith("format='aoti' needs the package torchao, which is not installed or has no")
    assert str(caught.value).endswith("run pip install 'chainfx[torchao]'.")


def compiled_to(answer, calls, monkeypatch):
    """Let packages be compiled in no time, to something that gives ``answer(values)`` with so many integer calls."""
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda program, **options: None)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda file: answer)
    monkeypatch.setattr(packages, "integer_calls", lambda file: calls)


def test_a_package_with_other_calls_or_other_answers_is_not_handed_over(small, monkeypatch, tmp_path):
    compiled_to(small.lower("float"), 7, monkeypatch)
    small.export(tmp_path / "right", format="aoti")
    manifest = json.loads((tmp_path / "right" / "manifest.json").read_text())
    assert manifest["format"] == "aoti" and [each["file"] for each in manifest["segments"]] == ["segment0.pt2"]
    compiled_to(small.lower("float"), 6, monkeypatch)
    with pytest.raises(ArtifactError) as caught:
        small.export(tmp_path / "calls", format="aoti")
    assert str(caught.value) == (
        "the package has 6 integer calls, but 7 layers run in integers on the int8 engine; this version of torch and "
        "torchao does not find all of them, so export to 'onnx', or use the int8 engine."
    )
    compiled_to(lambda values: small.lower("float")(values) * 1.2, 7, monkeypatch)
    with pytest.raises(ArtifactError, match=r"segment0\.pt2 answers otherwise than the network: .* away from values"):
        small.export(tmp_path / "answers", format="aoti")


def test_random_inputs_have_another_batch_and_keep_whole_numbers():
    made = random_inputs((torch.zeros(2, 3), torch.ones(2, 5, dtype=torch.long), torch.zeros(4)))
    assert [tuple(each.shape) for each in made] == [(3, 3), (3, 5), (4,)] and made[1].dtype == torch.long


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which compiles
def test_inductor_runs_it_in_integers(small, x):
    before = settings()
    compiled = small.lower("pt2e")
    assert compiled.engine == "pt2e" and {row.engine for row in compiled.lowering} == {"pt2e"}
    for batch in (1, 2, 5, 32):
        assert difference_of(small(x[:batch]), compiled(x[:batch])) == ""
    assert settings() == before
    assert difference_of(small(x), copy.deepcopy(compiled)(x)) == ""


def test_answers_of_any_structure_are_compared():
    def answer(value):
        return {"logits": torch.ones(2), "more": [(torch.full((2,), value), None)], "empty": torch.ones(0)}

    assert difference_of(answer(1.0), answer(1.01)) == ""
    assert difference_of(answer(1.0), answer(2.0)) == "1 away from values up to 1"


@pytest.fixture(scope="module")
def gray():
    """Of images with one channel."""
    torch.manual_seed(0)
    net = zoo.resnet(blocks=(1, 1), width=8, in_channels=1).eval()
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, chainfx.compile(net, [PostTrainingQuantize(7, 8)], example_inputs=x[:2], calibration=[x])


def test_one_channel_is_given_another_of_zeros(gray):
    x, small = gray
    (segment,), _ = integer_segments(small.graph_module, (x[:2],), OLDER, "it")
    assert {node.target for node in segment.graph.nodes} >= {F.pad}
    assert difference_of(small.lower("float")(x), segment(x)) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which compiles
def test_images_of_one_channel(gray, tmp_path):
    x, small = gray
    small.export(tmp_path, format="aoti")
    package = torch._inductor.aoti_load_package(str(tmp_path / "segment0.pt2"))
    compiled = small.lower("pt2e")
    with torch.no_grad():
        for batch in (1, 5, 32):
            expected = small(x[:batch])
            assert difference_of(expected, package(x[:batch])) == difference_of(expected, compiled(x[:batch])) == ""


# the batch and single samples, one that leaves and one that goes on
ON_PACKAGES = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from run_aoti import Network
net, x = Network("."), torch.load("x.pt")
y = net(x)
torch.save([y, torch.cat([net(row) for row in x.split(1)])], "y.pt")
assert not {"chainfx", "torchao"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which compiles
def test_packages_run_in_fresh_processes_of_python_and_cpp(leaving, x, tmp_path):
    leaving.export(tmp_path, format="aoti")
    expected = leaving(x)
    torch.save(x, tmp_path / "x.pt")
    in_fresh_process(tmp_path, "-c", ON_PACKAGES, EXAMPLE.parent)
    for given in torch.load(tmp_path / "y.pt"):
        assert difference_of(expected, given) == ""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    torch_path = Path(torch.__file__).parent
    headers = [f"-I{torch_path / 'include'}", f"-I{torch_path / 'include/torch/csrc/api/include'}"]
    libraries = [
        f"-L{torch_path / 'lib'}",
        f"-Wl,-rpath,{torch_path / 'lib'},--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    program = tmp_path / "run_aoti"
    subprocess.run(["g++", "-O1", "-std=c++20", EXAMPLE, "-o", program, *headers, *libraries], check=True)
    (mark,) = exits_of(leaving.graph_module)
    files = [tmp_path / "segment0.pt2", str(mark.threshold), tmp_path / "segment1.pt2"]
    left = leaving.lower("float").segments[0](x)[1] >= mark.threshold
    for sample in (int(left.nonzero()[0]), int((~left).nonzero()[0])):
        (tmp_path / "image.bin").write_bytes(x[sample].numpy().tobytes())
        command = [program, tmp_path / "image.bin", *map(str, x.shape[1:]), "--", *files]
        printed = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
        given = torch.tensor([float(line) for line in printed.split()])
        assert difference_of(expected[sample], given) == ""
