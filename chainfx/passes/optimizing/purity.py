"""Which nodes of a graph are values: the same each time, and changed by nothing."""

from torch.fx import GraphModule, Node

from chainfx.ir.graph import Trait, changes_in_place, is_dialect, names_with, operator_of

__all__ = ["changing_nodes", "is_pure"]

_RANDOM = frozenset(
    {"alpha_dropout", "bernoulli", "dropout", "empty", "empty_like", "feature_alpha_dropout", "feature_dropout"}
    | {"gumbel_softmax", "new_empty", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm"}
    | {"rrelu", "stochastic_depth"}
)


def changing_nodes(graph_module: GraphModule) -> set[Node]:
    """The nodes whose memory something changes in place: what changes it, what is changed, and what that is a view of.

    A graph in train form has no view that is read after what it is a view of was changed: capture refuses such a model.
    """
    views = names_with(Trait.VIEW)
    at = graph_module.get_submodule
    found: set[Node] = set()
    waiting = [node for node in graph_module.graph.nodes if changes_in_place(node, graph_module)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        shares = operator_of(node, at).name in views or changes_in_place(node, graph_module)
        if shares and node.args and isinstance(node.args[0], Node):
            waiting.append(node.args[0])
        if node.op == "get_attr":
            waiting += [same for same in graph_module.graph.find_nodes(op="get_attr") if same.target == node.target]
    return found


def is_pure(node: Node, changing: set[Node]) -> bool:
    """Whether a node calls a function of torch or Python that gives the same for the same, and nothing changes that.

    The ops of chainfx do not count: what they say is a fact, not a value.
    """
    if node.op not in ("call_function", "call_method") or is_dialect(node):
        return False
    name = operator_of(node).name
    return bool(name) and name not in _RANDOM and not changing & {node, *node.all_input_nodes}
