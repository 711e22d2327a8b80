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

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.artifact import fingerprint
from chainfx.ir.capture import capture
from chainfx.ir.graph import FACTS, facts_of, verify
from chainfx.passes import NEEDS, Pass, PassContext, PassResult
from chainfx.scheduler import check_applied

__all__ = ["check_pass"]


def check_pass(one: Pass, model: nn.Module, example_inputs: Sequence[Tensor], *, targets: int = 2) -> PassResult:
    """Apply a pass to a model and assert the contract of :class:`~chainfx.passes.base.Pass`; returns the result.

    Held: options round-trip through JSON; ``info`` is well formed; the graph is valid before and after; ``modified`` is
    honest; no fact of the graph changes that is not declared; two runs with the same seed give the same graph and
    tensors; nodes in ``skipped`` have reasons; the requested parameters exist; the model itself is not changed. Raises
    ``AssertionError`` that names the rule. The example inputs serve as calibration and, with classes 0 .. ``targets`` -
    1 in turn, as validation data.
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
    if first.tune is not None and first.tune.parameters is not None:
        unknown = set(first.tune.parameters) - {name for name, _ in first.graph_module.named_parameters()}
        _hold(not unknown, f"it asks to tune parameters that do not exist: {sorted(unknown)}")
    return first


def _applied(one: Pass, graph_module: GraphModule, inputs: tuple[Tensor, ...], targets: int) -> PassResult:
    own = copy.deepcopy(graph_module)
    labels = torch.arange(len(inputs[0])) % targets
    context = PassContext(graph_module, inputs, calibration=[inputs], validation=[(inputs, labels)], tunes=True)
    verify(own, inputs)
    result = one.apply(own, context)
    verify(result.graph_module, inputs)
    try:
        check_applied(one, facts_of(graph_module), facts_of(result.graph_module))
    except PassError as error:
        raise AssertionError(str(error)) from error
    return result


def _hold(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
