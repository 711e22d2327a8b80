"""A pass that leaves a broken graph is refused, wherever it breaks it, and what it made is not kept."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

import chainfx
from chainfx.errors import GraphError
from chainfx.ir.graph import ops, output_node
from chainfx.passes import Fuse, Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.scheduler import StageRunner
from tests.nets import graph_of, images, small_resnet


@dataclass(frozen=True)
class Breaks(Pass):
    """Puts an exit without a name into the graph, when it is applied or when it is finished."""

    info: ClassVar[PassInfo] = PassInfo("breaks", Kind.STATIC, Granularity.LAYER)
    when: str = "apply"

    def apply(self, graph_module, context, /):
        return self._broken(graph_module, "apply")

    def finish(self, graph_module, context, /):
        return self._broken(graph_module, "finish")

    def _broken(self, graph_module, when):
        if when == self.when:
            output = output_node(graph_module)
            with graph_module.graph.inserting_before(output):
                mark = graph_module.graph.call_function(ops.exit_point, (output.args[0], "", 0.5, "margin"))
            output.args = ((mark, output.args[0]),)
            graph_module.recompile()
        return PassResult(graph_module, modified=when == self.when)


def test_a_broken_network_is_refused_before_its_first_stage():
    x = images()
    context = PassContext(None, (x,))
    broken = Breaks().apply(graph_of(small_resnet((1, 1)), x), context).graph_module
    with pytest.raises(GraphError):
        StageRunner(broken, example_inputs=(x,))


@pytest.mark.parametrize("when", ["apply", "finish"])
def test_a_pass_that_leaves_a_broken_graph_is_refused_every_time(when, tmp_path):
    x, resumed = images(), []
    for _ in range(2):
        with pytest.raises(GraphError) as caught:
            chainfx.compile(
                small_resnet((1, 1)),
                [Fuse(), Breaks(when)],
                example_inputs=x,
                order="given",
                workdir=tmp_path,
                on_stage=lambda stage: resumed.append((stage.record.name, stage.resumed)),
            )
        assert str(caught.value) == (
            "node 'exit_point': an exit has a literal name, but its arguments are ('', 0.5, 'margin'); mend the pass."
        )
        assert [record.name for record in caught.value.partial.report.records] == ["original", "fuse"]
    assert resumed[1::2] == [("fuse", False), ("fuse", True)]


@dataclass(frozen=True)
class Peeks(Pass):
    """Remembers what the trainer is given after it."""

    info: ClassVar[PassInfo] = PassInfo("peeks", Kind.STATIC, Granularity.LAYER)

    def apply(self, graph_module, context, /):
        return PassResult(graph_module, modified=False)

    def finish(self, graph_module, context, /):
        pytest.fail("a broken graph came this far")


@dataclass(frozen=True)
class BreaksAndPeeks(Breaks):
    """A pass that breaks the graph and would be finished."""

    finish = Peeks.finish


def test_a_broken_graph_is_seen_before_it_is_tuned_or_finished():
    with pytest.raises(GraphError):
        chainfx.compile(small_resnet((1, 1)), [BreaksAndPeeks()], example_inputs=images())
