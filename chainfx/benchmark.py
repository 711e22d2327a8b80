"""How fast a compressed network is beside another: both compiled, in turns, in one process."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.deploy import BenchReport, CompressedModel, Latency, load, machine_facts, time_in_turns
from chainfx.errors import InputError

__all__ = ["bench"]

BATCHES = (1, 8, 64)


def bench(
    model: CompressedModel | str | Path,
    against: nn.Module | None = None,
    *,
    samples: Tensor | Sequence[Tensor] | None = None,
    batches: Sequence[int] = BATCHES,
    seconds: float = 2.0,
    compiled: bool = True,
) -> BenchReport:
    """Measure how long calls of a compressed network take, beside another network if one is given.

    All contenders take turns in one process: the network on its engine, on the float engine too if that is another, and
    ``against``. What runs in float is compiled by ``torch.compile`` first, the network and ``against`` alike; layers in
    integers are calls of finished kernels, which compiling does not make faster.

    Parameters:
        model: the network, or the folder that it was saved in; it is not changed.
        against: another network that takes the same inputs, such as the original.
        samples: inputs as the network takes them, batch first, that batches are taken from in turn; random numbers
            unless given. With early exits the times depend on them.
        batches: the batch sizes.
        seconds: how long at most each contender is timed for each batch size; less if the median is known to 3 %
            before.
        compiled: ``False`` leaves all as it is.

    Raises:
        InputError: for batch sizes below 1, samples that are not what the network takes, or another network that takes
            other inputs.

    Example:
        >>> import torch, chainfx
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)).eval(), torch.randn(2, 8)
        >>> small = chainfx.compile(net, [chainfx.passes.PruneChannels(0.5)], example_inputs=x)
        >>> report = chainfx.bench(small, net, batches=[1], seconds=0.01, compiled=False)
        >>> [(each.network, each.batch) for each in report.latencies]
        [('float', 1), ('against', 1)]
    """
    if not batches or any(type(batch) is not int or batch < 1 for batch in batches):
        raise InputError(f"batches is {list(batches)!r}; give whole numbers of at least 1.")
    small = model if isinstance(model, CompressedModel) else load(model)
    given = _given(small, samples)
    if against is not None:
        _check_takes(against, given)
    contenders = _contenders(small, against, compiled)
    latencies: list[Latency] = []
    with torch.no_grad():
        for batch in batches:
            found = [tuple(_repeated(x, batch).split(batch)) for x in given]
            calls = {name: _call(network, list(zip(*found, strict=True))) for name, network in contenders.items()}
            latencies += time_in_turns(calls, batch, seconds)
    facts = {"inputs": "random numbers" if samples is None else f"{len(given[0])} samples", **machine_facts()}
    return BenchReport(facts, tuple(contenders), tuple(latencies))


def _given(small: CompressedModel, samples: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The inputs to take batches from."""
    if samples is None:
        generator = torch.Generator(device="cpu").manual_seed(0)
        return tuple(_random(x, generator) for x in small.example_inputs)
    given = (samples,) if isinstance(samples, Tensor) else tuple(samples)
    small.signature.check(given)
    if len({len(x) for x in given}) != 1 or not len(given[0]):
        raise InputError("samples must have at least one row each, and as many in all inputs.")
    return given


def _check_takes(against: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Raise for a network that one sample of the inputs does not fit, before anything is compiled."""
    try:
        with torch.no_grad():
            against(*(x[:1] for x in given))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(str(tuple(x.shape[1:])) for x in given)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"against does not take what the compressed network takes, samples of shape {shapes}: {reason}; "
            f"give a network with the same inputs."
        ) from error


def _random(example: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers like an input; zeros where it holds whole numbers, which often are places in a table."""
    if not example.is_floating_point():
        return example
    return torch.randn(example.shape, generator=generator, device="cpu").to(example)


def _repeated(samples: Tensor, batch: int) -> Tensor:
    """Samples again and again until they are at least one batch and a whole number of batches."""
    count = max(batch, len(samples) // batch * batch)
    return samples[torch.arange(count, device=samples.device) % len(samples)]


def _contenders(small: CompressedModel, against: nn.Module | None, compiled: bool) -> dict[str, nn.Module]:
    """What is timed, by name."""
    found: dict[str, nn.Module] = {} if small.engine == "float" else {small.engine: small}
    decoded, word = small.lower("float"), " compiled" if compiled else ""
    if compiled:
        decoded.compile(dynamic=False)
    found[f"float{word}"] = decoded
    if against is not None:
        compiling: Any = torch.compile  # typed for functions, it gives a module for a module
        found[f"against{word}"] = compiling(against, dynamic=False) if compiled else against
    return found


def _call(network: nn.Module, inputs: list[tuple[Tensor, ...]]) -> Callable[[], object]:
    """A call that runs the next batch."""
    following = itertools.cycle(inputs)
    return lambda: network(*next(following))
