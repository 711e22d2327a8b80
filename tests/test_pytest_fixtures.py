import importlib

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import InputError
from chainfx.passes import Fuse, PostTrainingQuantize
from tests.nets import images, small_resnet

pytest.importorskip("pytest_benchmark")
pytest_plugins = ["chainfx.pytest_fixtures"]


@pytest.fixture(scope="module")
def x():
    return images(4)


@pytest.fixture(scope="module")
def small(x):
    return chainfx.compile(small_resnet((1,)), [PostTrainingQuantize(7, 8)], example_inputs=x, calibration=[x])


@pytest.mark.parametrize("way", ["eager", pytest.param("compiled", marks=pytest.mark.slow), "int8"])
def test_the_network_runs_as_asked_and_answers(benchmark_network, benchmark, small, x, way):
    benchmark.disabled = True  # one call is enough here
    answers = benchmark_network(small, (x,), way)
    reference = small if way == "int8" else small.lower("float")
    assert torch.allclose(answers, reference(x), atol=1e-5)
    assert benchmark.group == "batch 4" and benchmark.extra_info["way"] == way
    assert benchmark.extra_info["torch"] == torch.__version__


@pytest.fixture(scope="module")
def form():
    return importlib.import_module("chainfx.pytest_fixtures")._form  # after pytest has it as a plugin


def test_what_has_no_integers_is_skipped_with_the_reason(form, x):
    with pytest.raises(pytest.skip.Exception, match=r"^a Linear has no integer form$"):
        form(nn.Linear(8, 8).eval(), "int8")
    in_float = chainfx.compile(small_resnet((1,)), [Fuse()], example_inputs=x)
    with pytest.raises(pytest.skip.Exception, match=r"^engine='int8' was asked for, but no layer can run in integers"):
        form(in_float, "int8")


def test_another_way_is_an_error(form, small):
    with pytest.raises(InputError) as caught:
        form(small, "onnx")
    assert str(caught.value) == "way is 'onnx'; give one of 'eager', 'compiled', 'int8'."
