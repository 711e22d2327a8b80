"""The training loops in examples/ run, where what they are written with is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = {"own_loop": "torch", "own_loop_accelerate": "accelerate", "own_loop_lightning": "lightning"}


def loaded(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("default")  # of the libraries, not of chainfx
@pytest.mark.parametrize(("name", "library"), LOOPS.items(), ids=LOOPS)
def test_a_loop_recovers_what_quantization_lost(name, library, monkeypatch):
    pytest.importorskip(library)
    small = loaded(name, monkeypatch).main()
    first, last = small.report.records
    assert last.tuned and last.metric > 0.6 < first.metric


@pytest.mark.filterwarnings("default")
def test_the_trainer_of_transformers(monkeypatch):
    pytest.importorskip("transformers")
    small = loaded("own_loop_transformers", monkeypatch).main()
    last = small.report.records[-1]
    assert last.tuned and last.modified and last.requests == ({"teacher": True},)
