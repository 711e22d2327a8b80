"""A pass of an installed package (tests/plugin) is found by its entry point, in a process that knows nothing of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh import fresh

SOURCE = Path(__file__).parents[1] / "plugin"

USES_IT = """
import json, sys, torch, chainfx
from torch import nn
from chainfx.passes import Fuse, PruneChannels, get_pass, pass_from_spec, pass_names
from chainfx.testing import check_pass

assert not any(name.startswith("chainfx_clip") for name in sys.modules)
assert "clip-weights" in pass_names() and "fuse" in pass_names()
cls = get_pass("clip-weights")
assert cls.__module__ == "chainfx_clip"
one = pass_from_spec(json.loads(json.dumps(cls(0.1).spec())))
assert one == cls(0.1)

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
x = torch.randn(2, 1, 8, 8)
assert check_pass(one, net, (x,)).modified
assert not check_pass(cls(100.0), net, (x,)).modified
small = chainfx.compile(net, [one, PruneChannels(0.5), Fuse()], example_inputs=x)
assert [record.name for record in small.report.records] == ["original", "prune-channels", "clip-weights", "fuse"]
weights = [p for p in small.graph_module.parameters() if p.dim() > 1]
assert len(weights) == 2 and all(p.abs().max() <= 0.1 for p in weights)
small.save(sys.argv[1])
assert torch.equal(chainfx.load(sys.argv[1])(x), small(x))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the package into, without any network."""
    place = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, place / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", place / "site"]
    done = subprocess.run([*pip, *options, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "site"


def test_it_is_found_runs_in_a_chain_and_keeps_the_contract(installed, tmp_path):
    fresh(USES_IT, tmp_path / "small", path=[installed])


def test_the_command_line_lists_it(installed):
    code = "from chainfx.cli import main; import sys; sys.argv[:] = ['chainfx', 'passes']; main()"
    listed = {each.partition(":")[0]: each for each in fresh(code, path=[installed]).out.split("\n\n")}
    assert listed["clip-weights"].splitlines() == [
        "clip-weights: static, sub-neuron",
        "  Cut the parameters of two or more dimensions off at `limit` in magnitude; the",
        "  graph stays as it is.",
        "  limit=1.0",
    ]


def test_a_second_package_with_the_same_name_is_an_error_that_names_both(installed, tmp_path):
    metadata = tmp_path / "other-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[chainfx.passes]\nclip-weights = other.passes:Clip\n")
    ended = fresh("import chainfx; chainfx.passes.pass_names()", path=[installed, tmp_path], check=False)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        "chainfx.errors.PassError: two packages offer a pass named 'clip-weights': "
        "chainfx_clip:ClipWeights and other.passes:Clip; uninstall one."
    )
