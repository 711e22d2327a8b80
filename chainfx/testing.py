"""The conformance suite for passes: what every pass must hold, one's own included.

Example, in a test of a package that offers a pass:
    >>> import torch
    >>> from torch import nn
    >>> from chainfx.passes import Fuse
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    >>> result = check_pass(Fuse(), net, (torch.randn(2, 1, 5, 5),))
    >>> result.modified
    True
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import PassError
from chainfx.ir.artifact import fingerprint
from chainfx.ir.capture import capture
from chainfx.ir.graph import (
    FACTS,
    Matrix,
    content_hash,
    facts_of,
    get_tensor,
    is_dialect,
    matrices_of,
    modules_by_path,
    verify,
)
from chainfx.passes import NEEDS, Pass, PassContext, PassResult
from chainfx.scheduler import check_applied

__all__ = ["check_pass"]


def check_pass(one: Pass, model: nn.Module, example_inputs: Sequence[Tensor], *, targets: int = 2) -> PassResult:
    """Apply a pass to a model and assert the contract of :class:`~chainfx.passes.base.Pass`; returns the result.

    Held: options round-trip through JSON; ``info`` is well formed; the graph is valid before and after; ``modified`` is
    honest; no fact of the graph changes that is not declared; two runs with the same seed give the same graph and
    tensors; what is in ``skipped`` is named as :class:`~chainfx.passes.Skipped` says, with a reason; if the domain of
    the pass is the weights, every parameter of two or more dimensions is changed or in ``skipped``; the requested
    parameters exist; the model itself is not changed. A pass of several rounds goes through all of them, without
    tuning. Raises ``AssertionError`` that names the rule. The example inputs serve as calibration and, with classes 0
    .. ``targets`` - 1 in turn, as validation data.
    """
    inputs = tuple(example_inputs)
    _hold(type(one).from_spec(json.loads(json.dumps(one.spec()))) == one, "options do not round-trip through JSON")
    _hold(one.info.needs <= NEEDS and one.needs <= one.info.needs, f"needs must be a subset of {sorted(NEEDS)}")
    declared = one.info.requires | one.info.establishes | one.info.invalidates
    _hold(declared <= FACTS and one.invalidates <= one.info.invalidates, f"facts must be of {sorted(FACTS)}")
    graph_module = copy.deepcopy(capture(model, inputs))
    before = fingerprint(graph_module)
    first, second = (_applied(one, graph_module, inputs, targets) for _ in range(2))
    _hold(fingerprint(graph_module) == before, "the pass changed a graph that is not its own")
    after = fingerprint(first.graph_module)
    _hold(first.modified == (after != before), f"modified={first.modified} is not what happened")
    _hold(after == fingerprint(second.graph_module), "two runs with the same seed differ")
    _hold(all(item.node and item.reason for item in first.skipped), "what is skipped needs a node and a reason")
    unknown = {item.node for item in first.skipped} - _names_in(graph_module) - _names_in(first.graph_module)
    _hold(not unknown, f"skipped names what is no node, parameter or module: {sorted(unknown)}")
    silent = _silent(graph_module, first) if one.info.domain == "weights" else []
    _hold(not silent, f"parameters are neither changed nor named in skipped: {silent}")
    if first.tune is not None and first.tune.parameters is not None:
        unknown = set(first.tune.parameters) - {name for name, _ in first.graph_module.named_parameters()}
        _hold(not unknown, f"it asks to tune parameters that do not exist: {sorted(unknown)}")
    return first


def _applied(one: Pass, graph_module: GraphModule, inputs: tuple[Tensor, ...], targets: int) -> PassResult:
    own = copy.deepcopy(graph_module)
    labels = torch.arange(len(inputs[0]), device=inputs[0].device) % targets
    context = PassContext(graph_module, inputs, calibration=[inputs], validation=[(inputs, labels)], tunes=True)
    verify(own, inputs)
    results = []
    for number in range(one.rounds):
        before = facts_of(own)
        results.append(one.apply(own, replace(context, round=number, entry=graph_module)))
        own = results[-1].graph_module
        verify(own, inputs)
        try:
            check_applied(one, before, facts_of(own))
        except PassError as error:
            raise AssertionError(str(error)) from error
    skipped = tuple(dict.fromkeys(item for each in results for item in each.skipped))
    return replace(results[-1], modified=any(each.modified for each in results), skipped=skipped)


def _names_in(graph_module: GraphModule) -> set[str]:
    """All that ``skipped`` may name: the nodes, and the paths of parameters and modules."""
    parameters = (name for name, _ in graph_module.named_parameters(remove_duplicate=False))
    return {*(node.name for node in graph_module.graph.nodes), *modules_by_path(graph_module), *parameters}


def _silent(before: GraphModule, result: PassResult) -> list[str]:
    """The paths of the matrices that a pass has neither changed nor named."""
    named, after = {item.node for item in result.skipped}, result.graph_module
    matrices = (matrix for matrix in matrices_of(before) if not matrix.names & named)
    return [matrix.path for matrix in matrices if _seen(matrix, before) == _seen(matrix, after)]


def _seen(matrix: Matrix, graph_module: GraphModule) -> tuple[str, list[str]]:
    """What changes when a pass does something to a matrix: its values, or the calls that read it.

    Of a call the function and the literals count; of a quantizer or a mask also the tensors that it reads beside.
    """
    tensors = dict(graph_module.named_parameters(remove_duplicate=False))

    def shown(user: Node) -> str:
        def beside(node: Node) -> str:
            stored = is_dialect(user) and node.op == "get_attr"
            return content_hash(get_tensor(graph_module, str(node.target))) if stored else "a tensor"

        return f"{user.target} {map_arg((user.args, user.kwargs), beside)}"

    nodes = graph_module.graph.find_nodes(op="get_attr")
    users = (user for node in nodes if node.target in matrix.paths for user in node.users)
    return content_hash(tensors.get(matrix.path)), sorted(map(shown, users))


def _hold(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
