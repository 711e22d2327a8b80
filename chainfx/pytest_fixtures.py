"""A fixture of pytest that times networks: an original and what was made of it, by eager, compiled and int8.

Needs pytest-benchmark. A ``conftest.py`` with ``pytest_plugins = ["chainfx.pytest_fixtures"]`` offers it to all tests
beside it; ``benchmarks/bench_transformed.py`` of the repository uses it so.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from chainfx.deploy import CompressedModel, machine_facts
from chainfx.errors import InputError

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["Way", "benchmark_network"]

Way = Literal["eager", "compiled", "int8"]
"""What runs the network: its layers one by one in float, ``torch.compile`` in float, or the integer engine."""


@pytest.fixture
def benchmark_network(benchmark: "BenchmarkFixture") -> Callable[[nn.Module, Sequence[Tensor], Way], Any]:
    """A function that benchmarks calls of a network: ``benchmark_network(network, inputs, way)``.

    ``network`` is any module in eval mode or a :class:`~chainfx.deploy.CompressedModel`, ``inputs`` are one batch as it
    takes them, and ``way`` is ``"eager"``, ``"compiled"`` or ``"int8"``; with ``"int8"`` a test is skipped, with the
    reason, if no layer of the network runs in integers on this machine. Results are grouped by batch size, so that the
    networks of one ``pytest`` run stand below each other, and runs can be compared by ``--benchmark-compare``; versions
    and instruction set are in the file. The function returns what the network answers.

    Example, in a test:
        >>> @pytest.mark.parametrize("way", ["eager", "compiled", "int8"])
        ... @pytest.mark.parametrize("name", ["original", "small"])
        ... def test_mine(benchmark_network, pair, x, name, way):
        ...     benchmark_network(pair[name], (x,), way)
    """

    def run(network: nn.Module, inputs: Sequence[Tensor], way: Way) -> Any:
        benchmark.group = f"batch {len(inputs[0])}"
        benchmark.extra_info |= {"way": way, **machine_facts()}
        with torch.no_grad():
            form = _form(network, way)
            form(*inputs)  # compiles, packs weights
            return benchmark(form, *inputs)

    return run


def _form(network: nn.Module, way: Way) -> Any:
    """What is called: the network as ``way`` runs it."""
    if way not in get_args(Way):
        raise InputError(f"way is {way!r}; give one of {', '.join(map(repr, get_args(Way)))}.")
    if way == "int8":
        return _in_integers(network)
    decoded: Any = network.lower("float") if isinstance(network, CompressedModel) else network
    return decoded if way == "eager" else torch.compile(decoded, dynamic=False)


def _in_integers(network: nn.Module) -> nn.Module:
    if not isinstance(network, CompressedModel):
        pytest.skip(f"a {type(network).__name__} has no integer form")
    try:
        return network.lower("int8")
    except InputError as error:
        pytest.skip(str(error))
