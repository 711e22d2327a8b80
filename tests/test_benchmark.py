import json

import pytest
import torch
from typer.testing import CliRunner

import chainfx
from chainfx.cli import app
from chainfx.deploy import Machine
from chainfx.errors import InputError
from chainfx.passes import PostTrainingQuantize
from tests.nets import images, small_resnet


@pytest.fixture(scope="module")
def small():
    x = images()
    return chainfx.compile(small_resnet((1, 1)), [PostTrainingQuantize(7, 7)], example_inputs=x, calibration=[x])


def names(report):
    return [(each.network, each.batch) for each in report.latencies]


def test_all_contenders_are_timed_with_every_batch_size(small):
    report = chainfx.bench(small, small_resnet((1, 1)), batches=[1, 3], seconds=0.0, compiled=False)
    engines = ["int8", "float"] if Machine.here().kernels else ["float"]
    assert names(report) == [(name, batch) for batch in (1, 3) for name in (*engines, "against")]
    assert report.facts["inputs"] == "random numbers"
    assert report.facts["threads"] == str(torch.get_num_threads())
    assert small.engine == engines[0]


def test_batches_are_taken_from_the_samples_in_turn(small):
    class Seen(torch.nn.Module):
        def forward(self, x):
            batches.append(x[:, 0, 0, 0].tolist())
            return x

    batches = []
    samples = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()
    report = chainfx.bench(small, Seen(), samples=samples, batches=[2, 4], seconds=0.0, compiled=False)
    assert report.facts["inputs"] == "3 samples"
    assert batches[:3] == [[0.0], [0.0, 1.0], [0.0, 1.0]]  # the first shows that it takes them
    assert [0.0, 1.0, 2.0, 0.0] in batches


@pytest.mark.parametrize("batches", [[], [0], [1, -2], [1.5]])
def test_batch_sizes_are_whole_numbers(small, batches):
    with pytest.raises(InputError) as caught:
        chainfx.bench(small, batches=batches)
    assert str(caught.value) == f"batches is {batches!r}; give whole numbers of at least 1."


def test_samples_must_be_there(small):
    with pytest.raises(InputError) as caught:
        chainfx.bench(small, samples=images(0))
    assert str(caught.value) == "samples must have at least one row each, and as many in all inputs."


def test_another_network_takes_the_same_inputs(small):
    with pytest.raises(InputError) as caught:
        chainfx.bench(small, torch.nn.Linear(5, 2), batches=[1])
    start, end = (
        "against does not take what the compressed network takes, samples of shape (1, 8, 8): ",
        "; give a network with the same inputs.",
    )
    assert str(caught.value) == start + "mat1 and mat2 shapes cannot be multiplied (8x8 and 5x2)" + end


def test_the_command_line_times_a_saved_network(small, tmp_path):
    small.save(tmp_path / "net")
    arguments = ["bench", str(tmp_path / "net"), "--against", "tests.nets:small_resnet", "--batch", "2", "--eager"]
    result = CliRunner().invoke(app, [*arguments, "--seconds", "0", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["networks"][-1] == "against" and {each["batch"] for each in report["latencies"]} == {2}
    shown = CliRunner().invoke(app, [*arguments, "--seconds", "0"])
    assert "p50 ms" in shown.output and "against" in shown.output
