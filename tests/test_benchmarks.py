"""The commands of ``benchmarks/`` on tiny networks: that they run, and that what they count is right."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import chainfx
from chainfx import zoo
from chainfx.deploy import Machine

pytest_plugins = ["pytester"]
FOLDER = Path(__file__).parents[1] / "benchmarks"
needs_kernels = pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")


@pytest.fixture
def benchmark_file(monkeypatch):
    """A function that imports a file of ``benchmarks/`` by name."""
    monkeypatch.syspath_prepend(FOLDER)
    before = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of images at random in the form of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("test", 40)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 128, (count, 32, 32, 3)) + 12 * labels[:, None, None, None]
        np.savez(folder / f"{part}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def run(module, monkeypatch, capsys, *arguments):
    """What the command of a file prints."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()
    return capsys.readouterr().out


def tiny():
    return zoo.resnet((1, 1), 8).eval()


@pytest.mark.slow
def test_peers_answer_as_the_network_does(benchmark_file, tmp_path):
    peers, ours = benchmark_file("peers"), benchmark_file("bench_peers")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network, x = tiny(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = ["eager", "ort", "ort int8", "ort int8 (qdq)"]
    names += ["openvino", "openvino int8 (qdq)"] if find_spec("openvino") else []
    names += ["openvino int8"] if find_spec("nncf") else []
    found = peers.peers_of(network, ours.quantized(network, x), x, tmp_path, names)
    assert list(found) == names
    with torch.no_grad():
        exact = network(x)
        for name, ready in found.items():
            given = ready(x)()
            given = given if name == "eager" else torch.from_numpy(given[0])
            assert float((given - exact).norm() / exact.norm()) < (0.1 if "int8" in name else 1e-5), name


@pytest.mark.slow
def test_peers_are_timed_beside_the_integer_engine(benchmark_file, monkeypatch, capsys):
    module = benchmark_file("bench_peers")
    monkeypatch.setattr(module, "network_of", lambda name: tiny())
    arguments = ["--models", "resnet34", "--peers", "eager", "--batches", "2", "--seconds", "0"]
    report = json.loads(run(module, monkeypatch, capsys, *arguments, "--json"))["resnet34"]
    package = ["chainfx package"] if find_spec("torchao") else []
    assert [each["network"] for each in report["latencies"]] == ["chainfx int8", *package, "eager"]
    assert all(each["batch"] == 2 and each["p50"] > 0 for each in report["latencies"])
    shown = run(module, monkeypatch, capsys, *arguments)
    assert "batch 2: chainfx int8 takes" in shown and "fastest other, eager" in shown
    assert ("and chainfx package takes" in shown) == bool(package)


def test_images_are_chosen_in_the_shares_of_the_exits(benchmark_file):
    module = benchmark_file("bench_chain")
    taken = torch.tensor([2, 0, 0, 1, 0, 0, 2, 0])
    assert module.in_shares(taken, (0.5, 0.25, 0.25), 4).tolist() == [1, 2, 3, 0]
    assert module.in_shares(taken, (0.6, 0.0, 0.4), 3).tolist() == [1, 2, 0]
    assert module.in_shares(taken, (0.0, 1.0, 0.0), 3).tolist() == [3, 3, 3]


@pytest.fixture(scope="module")
def small_recipe():
    return {"blocks": (1, 2), "width": 8, "student": (1, 1), "exits": 1}


@pytest.mark.slow
def test_a_chain_is_made_once_and_timed_on_images_that_leave_as_measured(
    benchmark_file, cifar, small_recipe, monkeypatch, capsys, tmp_path
):
    module, artefact = benchmark_file("bench_chain"), benchmark_file("chain_artefact")
    monkeypatch.setattr(module, "Recipe", lambda: artefact.Recipe(**small_recipe))
    monkeypatch.setattr(module, "SINGLE", 4)
    arguments = ["--data", cifar, "--work", tmp_path, "--images", "40", "--tested", "20", "--peers", "eager"]
    arguments += ["--batches", "1", "8", "--seconds", "0", "--json"]
    found = json.loads(run(module, monkeypatch, capsys, *arguments))
    assert sum(found["rates"]) == pytest.approx(1) and set(found["accuracies"]) == {"original", "chain"}
    names = [name for name in module.CHAINS if find_spec("torchao") or "package" not in name] + ["original", "eager"]
    assert [(each["network"], each["batch"]) for each in found["latencies"]] == [(n, b) for b in (1, 8) for n in names]

    def never(*arguments):
        raise AssertionError("it is trained again")

    monkeypatch.setattr(artefact, "_halved", never)
    made = artefact.make(artefact.Recipe(**small_recipe), cifar, tmp_path, 40)
    images, labels = artefact.test_images(cifar, 20)
    taken, right = module.exits_taken(made.small, images, labels)
    assert right == float((made.small(images).argmax(1) == labels).double().mean()) == found["accuracies"]["chain"]
    assert set(taken.tolist()) <= set(range(len(made.small.segments)))
    if find_spec("torchao"):
        packaged = module.peers.packaged(made.small, tmp_path / "package")
        torch.testing.assert_close(packaged(images), made.small(images), rtol=1e-3, atol=1e-3)
    assert [line.split(":")[0] for line in module.profile(made.small, images).splitlines()] == [
        f"segment {index}" for index in range(len(made.small.segments))
    ]


@needs_kernels
@pytest.mark.parametrize("name", ["gpt2 block", "vit_b_16"])
def test_torchao_alone_and_in_chainfx_have_the_same_error(name, benchmark_file):
    pytest.importorskip("torchao")
    module = benchmark_file("bench_torchao")
    small_vit = {"image_size": 32, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 1024}
    options = {"gpt2 block": {"width": 32, "heads": 2}, "vit_b_16": small_vit}[name]
    found = module.measure(*module.network_of(name, **options), [1], 0.0, eager=True)
    assert found.errors["float"] == 0
    for each in ("dynamic", "weights"):
        alone = found.errors[f"alone {each}"]
        assert found.errors[f"chainfx {each}"] == pytest.approx(alone, rel=1e-4) and alone > 1e-4
    assert "batch 1: chainfx dynamic takes" in str(found)


@needs_kernels
def test_integers_are_timed_beside_float(benchmark_file):
    module = benchmark_file("bench_integers")
    report = module.report_of(tiny(), 0.0, batches=[2], compiled=False)
    assert [each.network for each in report.latencies] == ["int8", "float", "eager"]


@needs_kernels
def test_a_layer_is_timed_beside_the_operator_that_it_calls(benchmark_file, monkeypatch, capsys):
    module = benchmark_file("bench_calls")
    for operator, layer in (
        module.convolution(4, 6),
        module.convolution(4, 6, 1, 2),
        module.linear(8),
    ):
        assert torch.equal(operator(), layer())
    operator, layer = module.convolution(4, 6, adds=True)
    assert operator().shape == layer().shape
    assert run(module, monkeypatch, capsys, "--seconds", "0").count("|\n") == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which compiles
@needs_kernels
def test_gates_between_packages_and_by_cond_answer_as_the_network(benchmark_file, monkeypatch, capsys):
    pytest.importorskip("torchao")
    module = benchmark_file("bench_gates")
    options = ("--blocks", "1", "1", "--width", "8", "--size", "16", "--seconds", "0", "--json")
    found = json.loads(run(module, monkeypatch, capsys, *options))
    assert found["wrong"] == [] and found["integer calls"]["cond"] < found["integer calls"]["packages"] == 10


@pytest.mark.slow
def test_engines_are_compared_with_float64(benchmark_file, monkeypatch, capsys):
    module = benchmark_file("bench_agreement")
    monkeypatch.setattr(module, "NETWORKS", {"tiny": tiny})
    shown = run(module, monkeypatch, capsys, "--images", "4").splitlines()
    assert [line.split()[:2] for line in shown] == [["tiny", each] for each in module.ENGINES]
    exact = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert module.compare(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), exact).split() == [
        *("moved", "50.0%", "distance", "4.5e-01", "agree", "50.0%")
    ]


def test_a_row_of_training_has_both_rates(benchmark_file, monkeypatch, capsys):
    module = benchmark_file("bench_training")
    monkeypatch.setattr(module, "network", lambda name, data: chainfx.capture(tiny(), data.example_inputs(2)))
    monkeypatch.setattr(module, "SIZES", {"tiny": 8})
    header, _, row = run(module, monkeypatch, capsys, "--images", "16", "--rounds", "1", "--networks", "tiny").split(
        "\n"
    )[:3]
    assert header.count("|") == row.count("|") == 6
    name, size, hand, ours, ratio = (cell.strip() for cell in row.strip("| ").split("|"))
    assert (name, size) == ("tiny", "8")
    assert float(ratio) == pytest.approx(float(ours) / float(hand), rel=0.1)


@pytest.mark.slow
def test_accuracies_are_those_of_the_integer_engine(benchmark_file, cifar, monkeypatch, capsys):
    module = benchmark_file("bench_quantization")
    data = module.load(cifar, 16, 20)
    network = tiny()
    batches = [inputs[0] for inputs in data.calibration(16, module.BATCH)]
    for small in module.quantized(network, batches, 7, 8):
        assert small.engine == ("int8" if Machine.here().kernels else "float")
    right = module.accuracy(network, data)
    assert right * 20 == round(right * 20)


@needs_kernels
def test_a_row_of_accuracy_is_of_the_integer_engine(benchmark_file, cifar):
    module = benchmark_file("bench_accuracy")
    data = module.load(cifar, 16, 20)
    name, inside, was, found, points, same = (
        cell.strip() for cell in module.row("tiny", tiny(), data, 7, 16).strip("| ").split("|")
    )
    count, of = map(int, inside.split(" of "))
    assert name == "tiny" and 0 < count <= of
    assert float(points) == pytest.approx(float(found[:-1]) - float(was[:-1]), abs=0.01)
    assert 0 <= float(same[:-1]) <= 100


@pytest.mark.slow
def test_passes_are_timed_by_a_fixture(pytester, benchmark_file):
    result = pytester.runpytest_subprocess(
        FOLDER / "bench_transformed.py",
        "-k",
        "fuse and eager and not batch64",
        "--benchmark-disable",
        "-p",
        "no:cacheprovider",
    )
    result.assert_outcomes(passed=1)
