"""Every value that asks for a form has a renderer, in a process that imported no more than the value."""

import ast
import pickle
from pathlib import Path

import torch
from torch import nn

import chainfx
from chainfx import rendering
from chainfx.bitops import CrossCheck
from chainfx.deploy import BenchReport, Latency, Lowered, Lowering
from chainfx.ir.channels import analyse_channels
from chainfx.linting import explain
from chainfx.passes import Metric, PassSummary, PruneChannels, Quantize
from chainfx.scheduler import ChainReport, plan
from chainfx.search import Search, SearchResult, Trial
from chainfx.study import Claim, Prediction, Status, StudyResult, shipped_design
from tests.bitops.graphs import linear_report
from tests.fresh import fresh
from tests.report.values import COMPRESSED, ORIGINAL

PACKAGE = Path(chainfx.__file__).parent

# reads values from a file without naming a module of chainfx, and writes into it how each shows
PRINTING = """
import pickle, sys, pathlib
file = pathlib.Path(sys.argv[1])
file.write_bytes(pickle.dumps([str(value) for value in pickle.loads(file.read_bytes())]))
"""


def one_of_each():
    """A value of every class that has a renderer."""
    report = linear_report(("a", "first"))
    order = plan([Quantize(), PruneChannels(0.5)], order="given")
    x = (torch.zeros(2, 4),)
    graph_module = chainfx.capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), x)
    analysis = analyse_channels(graph_module, x)
    chain = ChainReport("the plan", (ORIGINAL, COMPRESSED))
    lowered = Lowering("AVX2", (Lowered("conv1", "conv2d", "int8", ""),))
    timed = BenchReport({"threads": "1"}, ("int8",), (Latency.of("int8", 1, [0.5]),))
    several = [lowered, timed, order, order.edges[0], order.findings[0], analysis, chain, PassSummary.of(Quantize)]
    several += [chainfx.lint([Quantize()]), explain(graph_module, x)]
    study = StudyResult(shipped_design("pairwise"), {}, (), (), Status(1, 2, 3.0, 4.0, ()))
    several += [study, study.design, study.law(), study.status]
    searched = SearchResult(Search({"fuse": {"skip": [()]}}, 0), Metric(), 0.5, (Trial({}, (), 0.5, 0.0, 0.5),))
    several += [searched, Claim("order matters", "paper", "some", ()), Prediction(("fuse",), (), 0, 0, {})]
    return [report, report.diff(report), CrossCheck(1, ()), *several]


def asked_for():
    """The class and the form of every call ``rendered(self, form)`` in the package."""
    return {
        (cls.name, call.args[1].value)
        for source in (path.read_text() for path in PACKAGE.rglob("*.py"))
        if "rendered(self" in source
        for cls in ast.walk(ast.parse(source))
        if isinstance(cls, ast.ClassDef)
        for call in ast.walk(cls)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "rendered"
    }


def test_what_values_ask_for_is_what_is_registered():
    registered = {(cls.__name__, form) for cls, form in rendering._RENDERERS}
    assert registered == asked_for()


def test_a_fresh_process_shows_every_value_as_this_one(tmp_path):
    values = one_of_each()
    assert {type(value) for value in values} == {cls for cls, _ in rendering._RENDERERS}
    file = tmp_path / "values"
    file.write_bytes(pickle.dumps(values))
    fresh(PRINTING, file)
    assert pickle.loads(file.read_bytes()) == [str(value) for value in values]
