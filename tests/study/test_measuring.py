"""Latency beside the original, bytes and memory as costs of points, and verdicts by them."""

import dataclasses
import time

import pytest
import torch

import chainfx.study.measuring
from chainfx.deploy import Latency
from chainfx.errors import StudyError
from chainfx.passes import EarlyExit
from chainfx.scheduler import StageRunner
from chainfx.study import MEASURED, Design, Subject, analyse, run_study
from chainfx.study.claims import claims_on
from chainfx.study.measuring import Bench, allocated_at_peak
from tests.nets import graph_of, images, small_resnet, warm
from tests.study.designs import PRUNE, tiny
from tests.study.test_analysis import design, filled, further

ENDPOINTS = ("storage", *MEASURED)


def timed_once(calls, batch, seconds):
    """One call of each, as the real one would time it many times."""
    found = []
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        found.append(Latency.of(name, batch, [time.perf_counter() - begin]))
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    study = tiny(measured=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chainfx.study.measuring, "time_in_turns", timed_once)
        return analyse(run_study(study, tmp_path_factory.mktemp("measured"), subject=Subject.of(study)))


def test_every_point_carries_what_was_measured(measured):
    points = {" ".join(record.passes): record.points[0].measured for record in measured.records[0].values()}
    assert all(set(each) == set(MEASURED) for each in points.values())
    original, *others = (points[name] for name in sorted(points))
    assert original["latency-1"] == original["latency-64"] == 1.0
    assert all(each["latency-64"] not in (0, 1) and each["bytes"] not in (0, original["bytes"]) for each in others)
    assert all(each["memory"] < original["memory"] for each in others)
    assert all(each["peak-memory"] > 0 for each in (original, *others))


def test_verdicts_can_be_judged_by_every_cost(measured):
    for endpoint in ENDPOINTS:
        judged = measured.judged_by(endpoint)
        assert judged.design.cost == endpoint and len(judged.verdicts) == len(measured.verdicts)
        ratio = judged.points(judged.design.arms[0], "paper")[0].ratio
        assert ratio == pytest.approx(_ratio(measured, endpoint))
    assert {*measured.verdicts[0].also} == {"strict", "storage", *MEASURED, "test set"}


def _ratio(result, endpoint):
    records = {record.passes: record for record in result.records[0].values()}
    first, original = records[(PRUNE,)], records[()]
    if endpoint == "storage":
        return original.storage_bits / first.storage_bits
    return original.points[0].measured[endpoint] / first.points[0].measured[endpoint]


def test_memory_is_what_torch_holds_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(1000)

    def both():
        kept = torch.empty(1000)
        return kept, torch.empty(500)

    assert allocated_at_peak(one_after_the_other) == 4000
    assert allocated_at_peak(both) == 6000


def test_exits_are_timed_at_the_threshold_of_the_point():
    x = images(64)
    graph_module = graph_of(warm(small_resnet((1, 1)), x), x[:2])
    runner = StageRunner(graph_module, example_inputs=(x[:2],))
    stage = runner.next(runner.first(), EarlyExit(exits=1, threshold=0.5, keep=True))
    bench = Bench(runner.first(), (x[:2],), (x,))
    with torch.no_grad():
        exits = stage.graph_module(x)
        for threshold, wanted in ((0.0, exits[0]), (1.01, exits[-1])):
            assert torch.allclose(bench._deployed(stage, threshold)(x), wanted, atol=1e-5)
    assert stage.graph_module(x)[0].shape == exits[0].shape


def test_what_was_not_measured_is_no_endpoint(tmp_path):
    with pytest.raises(StudyError) as caught:
        tiny(endpoint="latency-1")
    assert str(caught.value) == "design: endpoint='latency-1' cannot be; use measured=True with it."
    with pytest.raises(StudyError) as caught:
        tiny(endpoint="watts")
    assert str(caught.value) == (
        "design: endpoint='watts' cannot be; use one of bitops, storage, latency-1, latency-64, bytes, memory, "
        "peak-memory."
    )
    store = filled(tmp_path, design(), further)
    with pytest.raises(StudyError) as caught:
        analyse(store).judged_by("bytes")
    assert str(caught.value) == "design: endpoint='bytes' cannot be; use measured=True with it."
    record = next(each for each in store.records() if not each.passes)
    with pytest.raises(StudyError) as caught:
        record.cost(record.points[0], "bytes")
    assert str(caught.value) == "the record of the original has no 'bytes'; it has storage, mac_bw_ba, strict."


def timed(letters):
    """By time PQ is better as it is by bit operations, and EP instead of PE."""
    return {"PQ": 0.25, "QP": 0.5, "PE": 0.5, "EP": 0.25}.get(letters, 0.5)


def test_the_claim_of_latency_is_tested_by_both_batch_sizes(tmp_path):
    result = analyse(filled(tmp_path, design(measured=True), further, timed=timed))
    (claim,) = (each for each in claims_on([result]) if each.name == "stable under measured latency")
    says = {test.what: test.says for test in claim.tests}
    assert says == {
        f"{better} is better by BitOps; by the time of {batch} samples {pair}": word
        for batch in (1, 64)
        for better, pair, word in (("PQ", "PQ against QP", "for"), ("PE", "PE against EP", "against"))
    }
    assert claim.outcome == "contradicted"


def test_the_claim_of_latency_is_about_pairs_that_a_larger_grid_decides(tmp_path):
    def steadily(letters, seed):
        return 1.0

    reduced = analyse(filled(tmp_path / "reduced", design(measured=True, cases=1), steadily, timed=timed))
    whole = analyse(filled(tmp_path / "whole", design(), further))
    for results in ([reduced, whole], [whole, reduced]):
        (claim,) = (each for each in claims_on(results) if each.name == "stable under measured latency")
        assert [test.what.partition(" is")[0] for test in claim.tests] == ["PQ", "PE"] * 2
    (alone,) = (each for each in claims_on([reduced]) if each.name == "stable under measured latency")
    assert alone.outcome == "not tested"


def test_records_of_former_versions_carry_less(tmp_path):
    study = design(measured=True)
    store = filled(tmp_path, study, further, timed=timed)
    for record in store.records():
        less = [{name: point.measured[name] for name in ("bytes", "memory")} for point in record.points]
        points = [dataclasses.replace(point, measured=of) for point, of in zip(record.points, less, strict=True)]
        store.keep(dataclasses.replace(record, points=tuple(points)))
    assert {*analyse(store).verdicts[0].also} == {"strict", "storage", "bytes", "memory", "test set"}


def test_designs_say_what_verdicts_are_about():
    assert "primary endpoint: time of 64 samples, mean of" in str(tiny(measured=True, endpoint="latency-64"))
    assert Design.from_dict(tiny(measured=True).to_dict()).measured
    assert dataclasses.replace(tiny(), measured=True).hash != tiny().hash
