"""Count one network with several tools: where their numbers differ from those of chainfx, by how much, and why."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.bitops.branches import inline_branches
from chainfx.bitops.counters import COUNTERS, Counter, Tally, Work, undisturbed
from chainfx.bitops.formulas import Call, find_formula
from chainfx.bitops.interpreter import count
from chainfx.bitops.reading import tensors_in
from chainfx.bitops.rows import Uncounted
from chainfx.ir.capture import capture
from chainfx.ir.graph import evaluating, operator_of, propagate_shapes
from chainfx.rendering import rendered

__all__ = ["UNEXPLAINED", "CrossCheck", "Difference", "ToolCheck", "cross_check"]

UNEXPLAINED = "unexplained"
"""The reason of a :class:`Difference` for which no rule of chainfx has one."""
_ONCE = "no input changes it: chainfx counts it as done once, before all samples"


@dataclass(frozen=True, slots=True)
class Difference:
    """Work that a tool and chainfx count differently: MACs of one sample.

    ``module``: path of the module that runs it, empty for the network itself. ``operator``: as the side that counts
    it calls it. ``reason``: :data:`UNEXPLAINED` if no rule knows it.
    """

    module: str
    operator: str
    ours: int | Fraction
    theirs: int | Fraction
    reason: str


@dataclass(frozen=True, slots=True)
class ToolCheck:
    """What one tool counts for one sample; ``macs`` is ``None`` if it gave no number, and ``note`` says why.

    ``macs`` is what chainfx counts plus ``theirs - ours`` of all ``differences``, exactly.
    """

    tool: str
    version: str
    macs: int | Fraction | None
    differences: tuple[Difference, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """The MACs of one sample by chainfx and by other tools, with every difference; ``print`` it.

    ``uncounted``: what chainfx itself could not count.
    """

    macs: int
    tools: tuple[ToolCheck, ...]
    uncounted: tuple[Uncounted, ...] = ()

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences for which no rule gives a reason."""
        return tuple(d for tool in self.tools for d in tool.differences if d.reason == UNEXPLAINED)

    def __str__(self) -> str:
        return rendered(self, "text")


def cross_check(model: nn.Module, example_inputs: Sequence[Tensor]) -> CrossCheck:
    """Count a network with chainfx, torch's own counter, fvcore and ptflops, and say where they differ and why.

    ``example_inputs``: positional, batch first, as for :func:`chainfx.count`. torch's counter runs a copy of the
    network without data, or the network itself if it cannot run so; fvcore and ptflops run the network itself, in
    eval mode, and leave it as it was. A tool that is not installed, or fails, is listed with that instead of a number.
    A graph module is counted as it is, any other model is captured first; raises what
    :func:`~chainfx.ir.capture.capture` and :func:`~chainfx.bitops.interpreter.count` raise.

    >>> import torch
    >>> check = cross_check(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), (torch.zeros(1, 8),))
    >>> check.macs, check.tools[0].tool, check.tools[0].macs, check.unexplained
    (32, 'torch', 32, ())
    """
    inputs = tuple(example_inputs)
    graph_module = model if isinstance(model, GraphModule) else capture(model, inputs, compare=False)
    report = count(graph_module, inputs)
    batch = inputs[0].shape[0] if inputs[0].dim() else 1
    works = _works(graph_module, inputs, {row.node: row.macs * batch for row in report.rows}, model is graph_module)
    tools = [_checked(counter, model, inputs, works, report.macs) for counter in COUNTERS]
    return CrossCheck(report.macs, tuple(tools), report.uncounted)


def _works(
    graph_module: GraphModule, inputs: tuple[Tensor, ...], counted: Mapping[str, int], is_model: bool
) -> list[Work]:
    """The nodes with MACs: those that chainfx counts (by name, whole batch), and those that are done once.

    A graph module that ``is_model`` itself runs its functions at the top; one that was captured tells of each node in
    which module of the model it ran.
    """
    whole, _, _ = inline_branches(graph_module)
    if whole is not graph_module:  # else counting has just left the shapes there
        with evaluating(whole):
            propagate_shapes(whole, inputs)
    works = []
    for node in whole.graph.nodes:
        if not node.op.startswith("call"):
            continue
        key, name, _ = operator_of(node, whole.get_submodule)
        macs = counted[node.name] if node.name in counted else _macs_once(whole, node, key)
        if macs:
            outputs = sum(tensor.numel() for tensor in tensors_in(node.meta["val"])[:1])
            operands = [source.meta["val"] for source in node.all_input_nodes]
            works.append(
                Work(
                    module=_running(node, is_model),
                    operator=name,
                    key=key,
                    macs=macs,
                    outputs=outputs,
                    target=node.target,
                    by_vector=key == "matmul" and any(x.dim() == 1 for x in operands if isinstance(x, Tensor)),
                    constant=node.name not in counted,
                )
            )
    return works


def _running(node: Node, is_model: bool) -> str:
    """The path of the module that runs a node."""
    if node.op == "call_module":
        return str(node.target)
    stack = () if is_model else tuple(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _macs_once(graph_module: GraphModule, node: Node, key: str) -> int:
    """The MACs of a node that depends on no input."""
    formula = find_formula(key)
    if formula is None:
        return 0
    module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    return formula.macs(Call(args, kwargs, node.meta["val"], module)) or 0


def _checked(
    counter: Counter, model: nn.Module, inputs: tuple[Tensor, ...], works: Sequence[Work], macs: int
) -> ToolCheck:
    """What a tool counts, with its differences; a tool that is absent or fails is noted."""
    if not counter.version:
        return ToolCheck(counter.package, "", None, note="not installed")
    has_data = not any(tensor.is_meta for tensor in (*inputs, *model.parameters(), *model.buffers()))
    networks = [] if counter.needs_data else [_without_data(model, inputs)]
    networks += [(model, inputs)] if has_data else []
    note = "cannot count a network on the meta device"
    for network, given in networks:
        try:
            with undisturbed(), evaluating(network):
                tally = counter.run(network, given, works)
        except Exception as error:  # whatever a tool raises is what there is to say of it
            note = f"failed with {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        else:
            return _compared(counter, tally, works, macs, batch=inputs[0].shape[0] if inputs[0].dim() else 1)
    return ToolCheck(counter.package, counter.version, None, note=note)


def _without_data(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy of a model, and its inputs, on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(model, memo), tuple(tensor.detach().to("meta") for tensor in inputs)


def _compared(counter: Counter, tally: Tally, works: Sequence[Work], macs: int, batch: int) -> ToolCheck:
    differences = tuple(
        replace(each, ours=_share(each.ours, batch), theirs=_share(each.theirs, batch))
        for each in [*_differences(tally, works), *_cheaper_branches(works, macs * batch, tally)]
    )
    total = _share(sum(tally.counts.values(), start=Fraction(0)), batch)
    return ToolCheck(counter.package, counter.version, total, differences)


def _share(total: int | Fraction, batch: int) -> int | Fraction:
    value = Fraction(total) / batch
    return value.numerator if value.denominator == 1 else value


def _differences(tally: Tally, works: Sequence[Work]) -> Iterator[Difference]:
    """Module by module: what is known to be counted differently, and what then remains."""
    theirs: dict[str, dict[str, Fraction]] = defaultdict(dict)
    ours: dict[str, list[Work]] = defaultdict(list)
    for (module, operator), counted in tally.counts.items():
        if counted:
            theirs[module][operator] = counted
    for work in works:
        ours[work.module].append(work)
    for module in dict.fromkeys((*ours, *theirs)):
        yield from _of_module(module, ours[module], theirs[module], tally)


def _of_module(module: str, works: list[Work], theirs: dict[str, Fraction], tally: Tally) -> Iterator[Difference]:
    rest = dict(theirs)
    for operator in [operator for operator in theirs if operator in tally.extra]:
        yield Difference(module, operator, 0, rest.pop(operator), tally.extra[operator])
    expected: list[Work] = []
    for work in works:
        reason = tally.blind(work)
        if reason is None:
            expected.append(work)
            if work.constant:
                yield Difference(module, work.operator, 0, work.macs, _ONCE)
        elif not work.constant:
            yield Difference(module, work.operator, work.macs, 0, reason)
    mine, total = sum(work.macs for work in expected), sum(rest.values(), start=Fraction(0))
    if mine != total:
        once = sum(work.macs for work in expected if work.constant)
        names = dict.fromkeys([*(work.operator for work in expected), *rest])
        keys = [*(work.key for work in expected), *rest]
        reason = next((tally.loose[key] for key in keys if key in tally.loose), UNEXPLAINED)
        yield Difference(module, ", ".join(names), mine - once, total - once, reason)


def _cheaper_branches(works: Sequence[Work], macs: int, tally: Tally) -> Iterator[Difference]:
    """What the worst case of chainfx leaves out: of every ``torch.cond``, the cheaper branch."""
    left_out = sum(work.macs for work in works if not work.constant) - macs
    if left_out:
        yield Difference("", "cond", 0, left_out, tally.loose.get("cond", UNEXPLAINED))
