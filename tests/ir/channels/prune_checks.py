"""What must hold of every pruned network; shared by the tests and by tools/pruning_table.py. Each check raises."""

from dataclasses import dataclass
from typing import Any

import torch

from chainfx.bitops import count
from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from tests.ir.channels.masked import TOLERANCE, difference, masked_outputs, outputs, planned_shapes


@dataclass(frozen=True)
class Promise:
    """What the analysis says of the network without the removed channels; taken before the removal.

    ``outputs`` of the masked network, ``macs`` of each node for the whole batch, ``shapes`` of the state dict.
    """

    inputs: tuple
    outputs: Any
    macs: dict
    shapes: dict

    @classmethod
    def of(cls, graph_module, analysis, keep, inputs):
        masked, macs = masked_outputs(graph_module, analysis, keep, inputs)
        return cls(inputs, masked, macs, planned_shapes(graph_module, analysis, keep))

    def check(self, pruned):
        """The largest relative difference of the outputs, which is under the tolerance; shapes and costs are equal."""
        assert {path: list(tensor.shape) for path, tensor in pruned.state_dict().items()} == self.shapes
        with torch.no_grad():
            worst = difference(pruned(*self.inputs), self.outputs)
        assert worst <= TOLERANCE, f"the pruned network differs from the masked one by {worst:.2g}"
        report = count(pruned, self.inputs)
        found = {row.node: row.macs * len(self.inputs[0]) for row in report.rows if row.macs}
        visible = for_each_sample(pruned) - {node.name for node in pruned.graph.find_nodes(op="call_module")}
        assert {name: macs for name, macs in found.items() if name in visible} == {
            name: macs for name, macs in self.macs.items() if name in visible
        }
        assert report.parameters == sum(p.numel() for p in pruned.parameters())
        return worst


def for_each_sample(graph_module):
    """The names of the nodes that depend on an input; the counter does not count the others for every sample."""
    names = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" or any(source.name in names for source in node.all_input_nodes):
            names.add(node.name)
    return names


def check_pruned(graph_module, analysis, keep, inputs):
    """Prune in place and check what the analysis promised."""
    promise = Promise.of(graph_module, analysis, keep, inputs)
    prune(graph_module, analysis, keep)
    return promise.check(graph_module)


def trainable(graph_module, inputs):
    """The names of the parameters that a backward pass in train mode reaches, found without data."""
    tensors = {**dict(graph_module.named_parameters()), **dict(graph_module.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    parameters = {name: meta[name].requires_grad_() for name, _ in graph_module.named_parameters()}
    graph_module.train()
    answers = torch.func.functional_call(graph_module, meta, tuple(each.to("meta") for each in inputs))
    graph_module.eval()
    sum(each.mean() for each in outputs(answers)).backward()
    return {name for name, parameter in parameters.items() if parameter.grad is not None}


def check_trains(graph_module, inputs, reached):
    """One step of gradient descent, in place: loss and gradients are finite, and reach what they reached before."""
    with torch.no_grad():
        before = outputs(graph_module(*inputs))
    graph_module.train()
    loss = sum(each.square().mean() for each in outputs(graph_module(*inputs)))
    loss.backward()
    graph_module.eval()
    gradients = {name: p.grad for name, p in graph_module.named_parameters() if p.grad is not None}
    assert gradients.keys() == reached
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
    torch.optim.SGD(graph_module.parameters(), lr=1e-3).step()
    with torch.no_grad():
        after = outputs(graph_module(*inputs))
    assert all(each.isfinite().all() for each in after)
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(before, after, strict=True))


def check_recaptures(graph_module, analysis, keep, inputs):
    """Captured again, a pruned network computes the same, and its groups have the sizes that were kept."""
    again = capture(graph_module, inputs)
    with torch.no_grad():
        assert difference(again(*inputs), graph_module(*inputs)) == 0
    found = analyse_channels(again, inputs, fold=analysis.fold)
    kept = [len(keep.get(group.name, range(group.size))) for group in analysis.groups]
    # a group of one unit is none: it cannot be pruned
    assert sorted(group.size for group in found.groups) == sorted(size for size in kept if size > 1)


def check_exports(graph_module, inputs):
    """``torch.export`` (not strict) gives a program that computes the same."""
    program = torch.export.export(graph_module, inputs, strict=False)
    with torch.no_grad():
        assert difference(program.module()(*inputs), graph_module(*inputs)) <= TOLERANCE


def check_compiles(graph_module, inputs, backend="aot_eager"):
    """``torch.compile`` without graph breaks gives what eager mode gives."""
    torch._dynamo.reset()
    compiled = torch.compile(graph_module, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert difference(compiled(*inputs), graph_module(*inputs)) <= TOLERANCE
