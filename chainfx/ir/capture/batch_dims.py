"""Networks whose batch is not the first dimension, such as recurrent ones that take (length, batch, features).

Everything in chainfx has the batch first: counts per sample, calibration, trainers, exits. So such a network is
captured as it is called by a ``forward`` that moves the batch from the front to where the network wants it, and the
batch of the answers back to the front. :class:`~chainfx.ir.capture.signature.Signature` undoes both around the graph.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.errors import InputError
from chainfx.ir.capture.modes import in_mode
from chainfx.ir.capture.outputs import each_tensor, taken_apart
from chainfx.ir.capture.signature import Signature, arguments
from chainfx.ir.graph import MetaEvaluator, modules_by_path

__all__ = ["batch_first", "check_batch_first", "with_forward"]

Forward = Callable[..., Any]


def batch_first(
    model: nn.Module, signature: Signature, examples: Sequence[Tensor], batch_dim: int
) -> tuple[nn.Module, Signature]:
    """The same model called with the batch first, and a signature that knows where the caller has it.

    ``batch_dim``: where the batch is in the first of the ``examples``, and in every other one that is as long there.
    Where it is in the answers is seen by running the model with two numbers of samples. Raises
    :class:`~chainfx.errors.InputError` where there is no such dimension, or an answer has no single one for the batch.
    """
    first = examples[0]
    if type(batch_dim) is not int or not 0 <= batch_dim < first.dim():
        raise InputError(
            f"batch_dim={batch_dim!r} is no dimension of the first input, which has shape {tuple(first.shape)}; give a "
            f"number from 0 to {first.dim() - 1}."
        )
    held = {each.name: _holds(x, first, batch_dim) for each, x in zip(signature.inputs, examples, strict=True)}
    answers = _where_answered(model, signature, examples, [*held.values()], batch_dim)
    declared = inspect.signature(model.forward)

    def moving(forward: Forward) -> Forward:
        def called(*args: Any, **kwargs: Any) -> Any:
            bound = declared.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if held.get(name) and value is not None:
                    bound.arguments[name] = _moved(value, 0, batch_dim)
            plain, form = taken_apart(forward(*bound.args, **bound.kwargs), type(model).__name__)
            dims = iter(answers)
            done = each_tensor(plain, lambda x: _moved(x, next(dims), 0))
            return done if form is None else form.put(done)

        return called

    batches = {name: batch_dim for name, here in held.items() if here}
    return with_forward(model, moving, declared), signature.with_batches(batches, answers)


def check_batch_first(graph_module: GraphModule, examples: Sequence[Tensor]) -> None:
    """Raise :class:`~chainfx.errors.InputError` if a recurrent layer takes the first dimension of the inputs as time.

    Seen on shapes alone, from what the first such layer is given for two sizes of that dimension; nothing is said of a
    graph that takes one size only.
    """
    modules = modules_by_path(graph_module)
    calls = graph_module.graph.find_nodes(op="call_module")
    first = next((node for node in calls if isinstance(modules[str(node.target)], nn.RNNBase)), None)
    length = examples[0].shape[0] if examples[0].dim() else 0
    if first is None or modules[str(first.target)].batch_first or not length:
        return
    try:
        few, many = (_shape_before(graph_module, modules, first, _longer(examples, n)) for n in (length, 2 * length))
    except Exception:  # the graph takes no other size
        return
    if len(few) == 3 and few[0] != many[0]:
        raise InputError(
            f"module {str(first.target)!r} takes dimension 0 of the inputs as time, so the batch is in another; give "
            f"batch_dim=1, or build the layer with batch_first=True."
        )


def _shape_before(
    graph_module: GraphModule, modules: Mapping[str, nn.Module], layer: Node, inputs: Sequence[Tensor]
) -> torch.Size:
    """The shape of what a layer is given; neither it nor what follows is evaluated, since that takes long."""
    evaluator, waiting = MetaEvaluator(modules), iter(inputs)
    values: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node is layer:
            break
        values[node] = next(waiting) if node.op == "placeholder" else evaluator.value(node, values.__getitem__)
    shape: torch.Size = values[layer.all_input_nodes[0]].shape
    return shape


def _longer(examples: Sequence[Tensor], size: int) -> list[Tensor]:
    """The examples without data, with another size in the first dimension of those that have it from the first."""
    first = examples[0].shape[0]

    def sized(x: Tensor) -> Tensor:
        shape = (size, *x.shape[1:]) if x.dim() and x.shape[0] == first else x.shape
        return torch.empty(shape, dtype=x.dtype, device="meta")

    return [sized(x) for x in examples]


def with_forward(module: nn.Module, changed: Callable[[Forward], Forward], declared: inspect.Signature) -> nn.Module:
    """The same module, its parameters and children shared, with a ``forward`` made of its own and these parameters."""
    shell = copy.copy(module)
    own = vars(module).get("forward") or functools.partial(type(module).forward, shell)
    forward = changed(own)

    def called(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    called.__signature__ = declared  # type: ignore[attr-defined]  # where inspect looks first
    shell.forward = called
    return shell


def _moved(x: Any, source: int, target: int) -> Any:
    return x if source == target else x.movedim(source, target)


def _holds(x: Tensor, first: Tensor, dim: int) -> bool:
    return x.dim() > dim and x.shape[dim] == first.shape[dim]


def _where_answered(
    model: nn.Module, signature: Signature, examples: Sequence[Tensor], held: Sequence[bool], dim: int
) -> tuple[int, ...]:
    """The dimension of the batch in each tensor that a model returns: the one that grows with the batch."""
    more = [torch.cat([x, x.narrow(dim, 0, 1)], dim) if here else x for x, here in zip(examples, held, strict=True)]
    shapes = []
    for inputs in (examples, more):
        with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(model, False):
            args, kwargs = arguments(inputs, signature.by_name)
            plain, _ = taken_apart(model(*args, **kwargs), type(model).__name__)
        shapes.append(_shapes_of(plain))
    return tuple(_grown(few, many, dim) for few, many in zip(*shapes, strict=True))


def _shapes_of(plain: Any) -> list[torch.Size]:
    found: list[torch.Size] = []
    each_tensor(plain, lambda x: found.append(x.shape))
    return found


def _grown(few: torch.Size, many: torch.Size, batch_dim: int) -> int:
    dims = [dim for dim, sizes in enumerate(zip(few, many, strict=True)) if sizes[0] != sizes[1]]
    if len(dims) != 1 or many[dims[0]] != few[dims[0]] + 1:
        raise InputError(
            f"batch_dim={batch_dim}: the network answers with shape {tuple(few)}, and {tuple(many)} for one sample "
            f"more, so no dimension of it is the batch; give the dimension of the first input that is."
        )
    return dims[0]
