"""The captured graph beside its model: both run on the same inputs, and must give the same answers.

Tracing follows Python code on stand-ins for tensors, and some code means something else on them: an operation in place
on a view, a buffer that is updated, an attribute that is assigned, a hook of the outermost module. So after capture the
graph and the model run on a few samples of the example inputs, and then on a batch of another size, in case a call
leaves something behind for the next. The images or sequences of the second call are of another size too, where the
graph fixes none and the model takes them. Both start from the same state of the random generators, in eval mode, and
what the model keeps is as before afterwards.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from chainfx.ir.capture.modes import in_mode
from chainfx.ir.capture.quiet import quiet
from chainfx.ir.capture.signature import arguments
from chainfx.ir.graph import evaluating, modules_by_path, seeded

__all__ = ["Difference", "find_difference", "source_of"]

_MOST_SAMPLES = 2
# images from this size on are made smaller, to a multiple of what usual networks divide them by
_LARGE, _MOST_STRIDES = 96, 32
_SEED = 0
# how far apart two ways of rounding may be, as a share of the largest value
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a graph computes something else than its model.

    ``path``: of the first module whose inputs agree and whose output does not; empty for the model itself. ``what``: on
    which inputs, in words. ``error``: what the graph raised, if it did.
    """

    path: str
    what: str
    error: str = ""


def find_difference(
    model: nn.Module,
    graph_module: GraphModule,
    examples: Sequence[Tensor],
    *,
    sizes_free: bool,
    by_name: tuple[str, ...] = (),
) -> Difference | None:
    """The first difference between a model and its graph; ``None`` if there is none beyond rounding.

    ``examples``: inputs in the order of ``forward``, batch first, on the model's device; the model is given the last
    of them ``by_name``. ``sizes_free``: whether the graph fixes no size
    but those of channels, so that other image sizes and lengths have to agree too. Inputs of other sizes that the model
    itself does not take are left out. Raises what the model raises on the example inputs.
    """
    few = _batched(examples, min(_MOST_SAMPLES, _batch_of(examples)))
    with _afresh(model, graph_module, examples):
        try:
            wanted = [_answer(model, few, by_name)]
        except Exception:  # a batch size may stand in its code
            few = tuple(examples)
            wanted = [_answer(model, few, by_name)]
        given = [("on the example inputs", few)]
        for what, inputs in _others(few, sizes_free=sizes_free):
            with suppress(Exception), quiet():  # what the model does not take says nothing about the graph
                wanted.append(_answer(model, inputs, by_name))
                given.append((what, inputs))
                break
    with _afresh(model, graph_module, examples):
        found = _first_difference(graph_module, given, wanted)
    if found is None:
        return None
    number, error = found
    calls = [inputs for _, inputs in given[: number + 1]]
    return Difference(_culprit(model, graph_module, calls, by_name), given[number][0], error)


def _first_difference(
    graph_module: GraphModule, given: Sequence[tuple[str, tuple[Tensor, ...]]], wanted: Sequence[Any]
) -> tuple[int, str] | None:
    """The number of the first call that gives another answer, and the error if it is one."""
    for number, (_, inputs) in enumerate(given):
        try:
            seen = _answer(graph_module, inputs)
        except Exception as error:  # where the model itself gave an answer
            return number, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"
        if not _agree(wanted[number], seen):
            return number, ""
    return None


@contextmanager
def _afresh(model: nn.Module, graph_module: GraphModule, examples: Sequence[Tensor]) -> Iterator[None]:
    """Calls in eval mode that all start from one state of the random generators and leave nothing behind."""
    devices = {x.device for x in (*examples, *model.parameters())}
    buffers = [(each, each.clone()) for each in (*model.buffers(), *graph_module.buffers())]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_mode(model, False))
        stack.enter_context(evaluating(graph_module))
        stack.enter_context(seeded(_SEED, devices))
        try:
            yield
        finally:
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _answer(run: Callable[..., Any], inputs: tuple[Tensor, ...], by_name: tuple[str, ...] = ()) -> Any:
    """What a call gives, with the inputs as it leaves them."""
    given = tuple(x.clone() for x in inputs)
    args, kwargs = arguments(given, by_name)
    return _copied(run(*args, **kwargs)), given


def source_of(module: nn.Module) -> str:
    """Where the ``forward`` of a module stands, as ``Name.forward at file.py:12``."""
    name = f"{type(module).__name__}.forward"
    try:
        return f"{name} at {inspect.getsourcefile(type(module))}:{inspect.getsourcelines(type(module).forward)[1]}"
    except (OSError, TypeError):  # made in a notebook or by exec
        return name


def _batch_of(examples: Sequence[Tensor]) -> int:
    return examples[0].shape[0] if examples[0].dim() else 1


def _batched(examples: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """The examples with ``count`` samples, repeated if there are fewer; inputs without the batch stay as they are."""
    batch = _batch_of(examples)
    if not batch or not examples[0].dim():
        return tuple(examples)
    rows = torch.arange(count, device=examples[0].device) % batch
    return tuple(x[rows.to(x.device)] if x.dim() and x.shape[0] == batch else x for x in examples)


def _others(few: tuple[Tensor, ...], *, sizes_free: bool) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Inputs for a later call, to which the first may leave a state, with the words for them; the model may take any.

    One more sample, first with images or sequences of another size, so that one call tells as much as three.
    """
    batch = _batch_of(few)
    more = _batched(few, batch + 1) if few[0].dim() and batch else few
    for resize in (_other_images, _longer_sequences, _longer_signals) if sizes_free else ():
        other = tuple(resize(x) for x in more)
        if any(a.shape != b.shape for a, b in zip(more, other, strict=True)):
            shapes = ", ".join(str(tuple(x.shape)) for x in other)
            yield f"called again, on inputs of shape {shapes}", other
    if more is not few:
        yield f"called again, on a batch of {batch + 1}", more


def _other_images(x: Tensor) -> Tensor:
    """About two thirds of the rows and columns, which takes half the time; half as many again for small images."""
    if x.dim() < 4 or 0 in x.shape:
        return x
    for dim in (x.dim() - 2, x.dim() - 1):
        size = x.shape[dim]
        if size >= _LARGE:
            x = x.narrow(dim, 0, size * 2 // 3 // _MOST_STRIDES * _MOST_STRIDES)
        else:
            x = torch.cat([x, x.narrow(dim, 0, max(1, size // 2))], dim)
    return x


def _longer_sequences(x: Tensor) -> Tensor:
    """One more position."""
    return torch.cat([x, x[:, :1]], 1) if x.dim() in (2, 3) and x.shape[1] > 1 else x


def _longer_signals(x: Tensor) -> Tensor:
    """One more value of each channel."""
    return torch.cat([x, x[:, :, :1]], 2) if x.dim() == 3 and x.shape[2] > 1 else x


def _copied(value: Any) -> Any:
    """An answer that later calls cannot change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _copied(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any) -> list[Any]:
    """The tensors and plain values of an answer in order, without the ``None`` of what was not asked for."""
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


def _agree(first: Any, second: Any) -> bool:
    one, other = _leaves(first), _leaves(second)
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))


def _same(first: Any, second: Any) -> bool:
    """Whether two leaves are equal, tensors of floating point up to rounding; NaN is equal to NaN."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second) and bool(first == second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    finite = first[torch.isfinite(first)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    bound = _ROUNDING.get(first.dtype, 1e-1) * largest
    return torch.allclose(first, second, rtol=0, atol=max(bound, torch.finfo(first.dtype).tiny), equal_nan=True)


class _Values(Interpreter):
    """Runs a graph and keeps what every node gave, as it was then."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.seen: list[Tensor] = []

    def run_node(self, n: Node) -> Any:
        """Run one node as usual and copy the tensors that it gives."""
        value = super().run_node(n)
        self.seen.extend(leaf.detach().clone() for leaf in _leaves(value) if isinstance(leaf, Tensor))
        return value


def _culprit(
    model: nn.Module, graph_module: GraphModule, inputs: Sequence[tuple[Tensor, ...]], by_name: tuple[str, ...]
) -> str:
    """The path of the first module that the graph does not compute, empty for the model's own code.

    ``inputs`` are those of the calls up to the one whose answers differ. Modules are asked in the order in which they
    finish that one. Of one whose output no node of the graph gives, either the inputs are somewhere in the graph, then
    it is the one; or they are not, then the code that calls it is.
    """
    *earlier, last = inputs
    calls: list[tuple[str, Any, Any]] = []
    with _afresh(model, graph_module, last):
        for each in earlier:
            _answer(model, each, by_name)
        with ExitStack() as stack:
            for path, module in modules_by_path(model).items():
                if path:
                    stack.callback(module.register_forward_hook(_recorder(calls, path), with_kwargs=True).remove)
            _answer(model, last, by_name)
    values = _Values(graph_module)
    with _afresh(model, graph_module, last), suppress(Exception):  # what was run until then is all there is
        for each in earlier:
            _answer(graph_module, each)
        _answer(values.run, last)
    for path, given, result in calls:
        if not _known(result, values.seen):
            return path if _known(given, values.seen) else path.rpartition(".")[0]
    return ""


def _recorder(calls: list[tuple[str, Any, Any]], path: str) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        calls.append((path, _copied([*args, *kwargs.values()]), _copied(result)))

    return record


def _known(value: Any, seen: Sequence[Tensor]) -> bool:
    """Whether some node of the graph gave each tensor of a value."""
    tensors = [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]
    return all(any(_same(tensor, other) for other in seen) for tensor in tensors)
