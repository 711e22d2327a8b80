"""How much memory of its own a loaded network takes, in a process that has loaded and run one before."""

import subprocess
import sys

import pytest
import torch

import chainfx
from chainfx import zoo
from chainfx.passes import PostTrainingQuantize

MEASURE = """
import ctypes, gc, sys
import torch, chainfx

def own():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

def settle():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)

first = chainfx.load(sys.argv[1])
with torch.no_grad():
    first(torch.zeros(1, 3, 64, 64))
settle()
before = own()
network = chainfx.load(sys.argv[2])
settle()
print(own() - before)
with torch.no_grad():
    network(torch.zeros(1, 3, 64, 64))
settle()
print(own() - before, network.engine)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much memory a process has of its own")
def test_an_8_bit_network_takes_little_more_than_its_file(tmp_path):
    """Codes stay in the file, which is mapped into memory; packed for the kernels they are as many bytes again."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    networks = {"small": zoo.resnet((1, 1), 8), "resnet50": torchvision.models.resnet50(weights=None)}
    x = torch.randn(1, 3, 64, 64)
    for name, network in networks.items():
        chain = [PostTrainingQuantize(8, 7)]  # runs in integers on processors without VNNI too
        chainfx.compile(network.eval(), chain, example_inputs=x, calibration=[x]).save(tmp_path / name)
    folders = [str(tmp_path / name) for name in networks]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *folders], capture_output=True, text=True, check=True
    )
    loaded, run, engine = ended.stdout.split()
    size = sum(file.stat().st_size for file in (tmp_path / "resnet50").iterdir())
    print(f"loaded {int(loaded) / size:.2f}x, run {int(run) / size:.2f}x the file on {engine}")
    assert int(loaded) <= 0.5 * size
    assert engine != "int8" or int(run) <= 1.5 * size


def test_a_loaded_network_keeps_its_tensors_when_its_folder_is_saved_anew(tmp_path):
    """They are those of the file before, which has another one in its place now."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    first, second = (
        chainfx.compile(zoo.resnet((1, 1), 8).eval(), [PostTrainingQuantize(8, 32)], example_inputs=x) for _ in range(2)
    )
    first.save(tmp_path)
    loaded = chainfx.load(tmp_path)
    second.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), first(x)) and not torch.equal(loaded(x), second(x))
        assert torch.equal(chainfx.load(tmp_path)(x), second(x))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["manifest.json", "model.safetensors", "report.json"]
