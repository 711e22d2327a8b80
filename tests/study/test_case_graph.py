"""Cases become ready when the one before them is finished."""

from chainfx.study.case_graph import CaseGraph
from tests.study.designs import tiny


def test_each_case_is_taken_once_behind_the_one_before_it():
    design, seen = tiny(seeds=(0, 1)), []
    graph = CaseGraph(design.all_cases())
    while (case := graph.take()) is not None:
        assert not case.passes or case.beginning(len(case.passes) - 1) in seen
        seen.append(case)
        graph.finish(case)
    assert sorted(case.hash for case in seen) == sorted(case.hash for case in design.all_cases())


def test_what_goes_on_from_a_case_waits_for_it_and_a_case_can_be_given_back():
    graph = CaseGraph(tiny().all_cases())
    original = graph.take()
    assert not original.passes and graph.take() is None
    graph.give_back(original)
    assert graph.take() is original and graph.take() is None
    graph.finish(original)
    first, second = graph.take(), graph.take()
    assert [len(case.passes) for case in (first, second)] == [1, 1] and graph.take() is None
    graph.finish(second)
    assert graph.take().beginning(1) == second
