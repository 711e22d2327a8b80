"""The last step of capture: make a graph module of a trace, and clean the trace up before that.

The graph module holds the very tensors and leaf modules of the model, not copies of them.
"""

import operator
from collections.abc import Mapping

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from chainfx.ir.capture.normal_form import layer_name, name_after, new_node
from chainfx.ir.capture.opened import put_torch_layers
from chainfx.ir.capture.tracer import Trace, TrainFormTracer
from chainfx.ir.graph import (
    AUGMENTED,
    LAYERS,
    GraphToRead,
    assign_,
    changes_in_place,
    changes_what_is_used,
    cuts_tensor,
    modules_by_path,
)

__all__ = ["build", "build_to_read", "rename", "simplify"]


def build(model: nn.Module, trace: Trace, modules: Mapping[str, nn.Module]) -> GraphModule:
    """Make the graph module of a trace of ``model``, with the model's own parameters, buffers and leaf modules.

    ``modules`` are further leaf modules that the graph calls and the model does not have, by the path that they get.
    The nodes are named anew, so that equal models give equal names. Every module of the result is in the mode (train
    or eval) of the model.
    """
    graph = _renamed(trace.graph)
    shell = nn.Module()
    _fill(shell, model, trace, modules)
    graph_module = GraphModule(shell, graph, class_name=type(model).__name__)
    graph_module.graph.lint()
    put_torch_layers(graph_module, trace.opened)
    for module in modules_by_path(graph_module).values():
        if type(module) is nn.Module:  # what torch puts between the graph module and its leaves, in train mode
            module.training = model.training
    return graph_module


def rename(graph_module: GraphModule) -> None:
    """Give the nodes of a graph the names that they get when it is traced again."""
    graph_module.graph = _renamed(graph_module.graph)


def build_to_read(model: nn.Module, trace: Trace) -> GraphModule:
    """Make a graph module that can be read but not run, which is much quicker: no code is generated for its forward.

    It is what the counter and the channel analysis work on. It holds the model's own modules and tensors.
    """
    if _has_gaps(trace):
        _close_gaps(trace.graph)
    graph_module = GraphToRead(trace.graph)
    _fill(graph_module, model, trace, {})
    return graph_module


def simplify(trace: Trace, model: nn.Module) -> Trace:
    """Clean up a trace in place, and return it.

    After ``x.add_(y)`` later nodes read the result of the call in place of ``x``, so that the graph shows that they
    depend on it. ``x += y`` becomes ``x = x + y`` where nothing else reads x. Nodes whose result nobody uses are
    removed, unless they change a tensor that something reads.
    """
    _spell_out(trace.graph, model)
    _use_results_of_mutation(trace, model)
    _remove_dead(trace.graph, model)
    if _has_gaps(trace):
        alive = set(trace.graph.nodes)
        for path, steps in trace.steps.items():
            trace.steps[path] = [step for step in steps if isinstance(step, str) or step in alive]
    return trace


def _has_gaps(trace: Trace) -> bool:
    """Whether nodes that were recorded have been erased since."""
    return len(trace.scopes) > len(trace.graph.nodes)


def _fill(shell: nn.Module, model: nn.Module, trace: Trace, modules: Mapping[str, nn.Module]) -> None:
    """Put the model's tensors and children, and the constants and leaves beyond those, into ``shell``."""
    shell.training = model.training
    shell._parameters.update(model._parameters)
    shell._buffers.update(model._buffers)
    shell._non_persistent_buffers_set.update(model._non_persistent_buffers_set)
    shell._modules.update(model._modules)
    for name, module in modules.items():
        shell.add_module(name, module.train(model.training))
    for name, tensor in trace.constants.items():
        shell.register_buffer(name, tensor, persistent=False)


def _spell_out(graph: Graph, model: nn.Module) -> None:
    """Let ``x += y`` make a new tensor, if only what takes its result can tell the difference."""
    for node in graph.nodes:
        if node.target in AUGMENTED and (_is_assigned(node) or not changes_what_is_used(node, model)):
            node.target = AUGMENTED[node.target]


def _is_assigned(node: Node) -> bool:
    """Whether the result goes to where the operand was read, as ``x[i] += y`` does."""
    part = node.args[0]
    return isinstance(part, Node) and any(
        user.target is assign_ and user.args == (*part.args, node) for user in node.users
    )


def _use_results_of_mutation(trace: Trace, model: nn.Module) -> None:
    """Let what comes after ``x.add_(y)`` take its result, which is ``x``: so no mutation looks like dead code.

    A mutated view, ``x[i].zero_()``, is assigned to where it lies, so that what comes after takes the assignment.
    """
    graph = trace.graph
    unused = [node for node in graph.nodes if not node.users and node.op != "output"]
    order: dict[Node, float] = {node: index for index, node in enumerate(graph.nodes)} if unused else {}

    def take_instead(old: Node, new: Node) -> None:
        old.replace_all_uses_with(new, lambda user: order[user] > order[new])

    for node in unused:
        changed = node.args[0] if node.args else None
        if not isinstance(changed, Node) or not changes_in_place(node, model):
            continue
        take_instead(changed, node)
        whole = _indexed(changed)
        if not node.users and whole is not None:
            with graph.inserting_after(node):
                assigned = graph.call_function(assign_, (*changed.args, node))
            order[assigned] = order[node] + 0.5
            scope = trace.scopes[assigned] = trace.scopes[node]
            trace.steps[scope].insert(trace.steps[scope].index(node) + 1, assigned)
            take_instead(whole, assigned)


def _indexed(node: Node) -> Node | None:
    """The tensor ``x`` of a node ``x[index]``; ``None`` for the parts that a tensor was cut into and all else."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, Node) and not cuts_tensor(source) else None


def _remove_dead(graph: Graph, model: nn.Module) -> None:
    """Erase what nobody uses, and assertions; keep what changes a tensor in place that something reads."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output") and not changes_what_is_used(node, model):
            graph.erase_node(node)


def _close_gaps(graph: Graph) -> None:
    """Give every node the name that it would have in :func:`_renamed`; nodes made later may then clash."""
    names = Graph()._graph_namespace
    for node in graph.nodes:
        name = layer_name(node.args[1]) if node.target in LAYERS else None
        node.name = names.create_name(name or name_after(node.target), None)


def _renamed(graph: Graph) -> Graph:
    """A copy whose names are those of tracing it again, without the gaps that erased nodes leave.

    Of what tracing knows about a node, the modules that it ran in are kept.
    """
    copy = Graph(tracer_cls=TrainFormTracer)
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        name = layer_name(node.args[1]) if node.target in LAYERS else None
        args = map_arg(node.args, copies.__getitem__)
        kwargs = map_arg(node.kwargs, copies.__getitem__)
        copies[node] = new_node(copy, node.op, node.target, args, kwargs, name)
        if "nn_module_stack" in node.meta:
            copies[node].meta["nn_module_stack"] = node.meta["nn_module_stack"]
    return copy
