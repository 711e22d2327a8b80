import numpy as np
import pytest
from scipy import stats

from chainfx.study import area_under_front, decide, detectable, least_p
from chainfx.study.statistics import _corrected, equivalence_p, two_sided_p

EIGHT = np.array([0.5, 1.2, 0.9, -0.1, 0.7, 1.0, 0.3, 0.6])


def test_p_values_are_those_of_scipy():
    assert two_sided_p(EIGHT) == pytest.approx(stats.ttest_1samp(EIGHT, 0).pvalue)
    one_sided = [
        stats.ttest_1samp(EIGHT, 1, alternative="less").pvalue,
        stats.ttest_1samp(EIGHT, -1, alternative="greater").pvalue,
    ]
    assert equivalence_p(EIGHT, 1.0) == pytest.approx(max(one_sided))
    flips = stats.permutation_test((EIGHT,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert two_sided_p(EIGHT, "sign-flip") == pytest.approx(flips.pvalue)


def test_the_smallest_p_of_flipping_signs():
    assert two_sided_p(np.ones(8), "sign-flip") == 2 / 2**8 == least_p(8, 1, "sign-flip")
    assert two_sided_p(np.ones(3), "sign-flip") == 0.25
    assert least_p(8, 6, "sign-flip") == 6 * 2 / 2**8 and least_p(2, 6, "sign-flip") == 1
    assert two_sided_p(np.full(20, 1.0), "sign-flip") == 1 / 20_000  # of 20,000 random choices of signs


def test_seeds_without_any_spread():
    assert (two_sided_p(np.zeros(8)), two_sided_p(np.ones(8)), two_sided_p(np.ones(1))) == (1, 0, 1)
    assert (equivalence_p(np.zeros(8), 0.1), equivalence_p(np.ones(8), 0.1), equivalence_p(np.ones(1), 2)) == (0, 1, 1)


def test_the_correction_counts_comparisons_of_which_a_null_may_be_true():
    nulls = [(0.001, 0.9), (0.9, 0.002), (0.004, 0.01)]
    # each times 3: no comparison has both nulls rejected before 0.01 comes
    assert _corrected(nulls) == [
        pytest.approx((0.003, 1.0)),
        pytest.approx((1.0, 0.006)),
        pytest.approx((0.012, 0.03)),
    ]
    assert _corrected([(0.001, 0.002), (0.04, 0.9)])[1][0] == pytest.approx(0.04)  # of the first nothing is open


def test_verdicts():
    noise = np.array([0.01, -0.02, 0.0, 0.015, -0.01, 0.005, -0.005, 0.01])
    wide = np.array([1.0, -2.0, 0.5, 1.5, -1.0, 0.2, -0.4, 0.9])
    found = decide([noise, noise + 1, noise - 1, wide], margin=0.1)
    assert [each.outcome for each in found] == ["equivalent", "first", "second", "undecided"]
    assert [each.more_seeds for each in found[:3]] == [0, 0, 0] and found[3].more_seeds is None
    assert found[1].confidence > 0.999 and found[3].confidence < 0.5
    assert decide([EIGHT, EIGHT[::-1]], 0.1)[0].p == pytest.approx(stats.ttest_1samp(EIGHT, 0).pvalue)


def test_with_fewer_than_eight_seeds_nothing_is_decided():
    (found,) = decide([np.linspace(1, 1.1, 7)], margin=0.1)
    assert (found.outcome, found.more_seeds) == ("undecided", 1)
    assert decide([np.linspace(-1e-3, 1e-3, 7)], margin=0.1)[0].outcome == "undecided"
    assert decide([np.array([])], margin=0.1)[0].more_seeds == 8
    assert decide([np.ones(2)], margin=0.1)[0].more_seeds == 6


def test_a_difference_that_is_real_and_within_the_margin_is_equivalence():
    (found,) = decide([0.05 + 0.001 * EIGHT], margin=0.1)
    assert found.outcome == "equivalent"


def synthetic(rng, studies, seeds, effects, spread=0.08):
    """Differences of areas (studies, comparisons, seeds) of synthetic studies at the size of the shipped design.

    Two passes of two strengths give four configurations, each a point: 1 to 3 decades of compression, losing more the
    further it compresses. ``effects``: by how many decades the first order of each comparison compresses further.
    Seeds differ in how well all their networks take compression; each case has noise of its own in both coordinates.
    """
    shape = (studies, len(effects), seeds, 2, 4)
    ratio = np.linspace(1, 3, 4) + rng.normal(0, spread, shape) + rng.normal(0, 0.2, (studies, 1, seeds, 1, 1))
    loss = np.linspace(0, 0.08, 4) + rng.normal(0, 0.01, shape) + rng.normal(0, 0.01, (studies, 1, seeds, 1, 1))
    ratio[..., 0, :] += np.asarray(effects)[:, None, None]
    areas = area_under_front(np.stack([ratio, loss], axis=-1), 0.1)
    return areas[..., 0] - areas[..., 1]


def outcomes(differences, margin, **options):
    return [[each.outcome for each in decide(list(study), margin, **options)] for study in differences]


def assert_rare(wrong):
    """Of 1,000 studies not more have a wrong verdict than chance allows (1 %) if 5 % of all studies had one."""
    assert stats.binomtest(wrong, 1000, 0.05, alternative="greater").pvalue > 0.01


MARGIN = 0.021  # log10 of 1.05


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [8, 10])
def test_of_100_000_studies_of_equal_orders_less_than_5_percent_have_a_wrong_verdict(seeds):
    """All six orders are equal, so that Holm's procedure is wrong if and only if the least p is below alpha / 6."""
    rng, wrong = np.random.default_rng(11 + seeds), 0
    for _ in range(50):
        differences = synthetic(rng, 2000, seeds, [0] * 6)
        errors = differences.std(-1, ddof=1) / np.sqrt(seeds)
        p = 2 * stats.t.sf(np.abs(differences.mean(-1)) / errors, seeds - 1)
        wrong += int((p.min(1) < 0.05 / 6).sum())
        first = [each.outcome for each in decide(list(differences[0]), MARGIN)]
        assert any(each in ("first", "second") for each in first) == (p[0].min() < 0.05 / 6)
    # six independent tests that are exact are wrong in 4.9 % of studies
    assert stats.binomtest(wrong, 100_000, 1 - (1 - 0.05 / 6) ** 6).pvalue > 0.01 and wrong < 5_000


@pytest.mark.parametrize("test", ["t", pytest.param("sign-flip", marks=pytest.mark.slow)])
def test_of_1000_studies_of_equal_orders_at_most_5_percent_have_a_wrong_verdict(test):
    found = outcomes(synthetic(np.random.default_rng(1), 1000, 8, [0] * 6), MARGIN, test=test)
    assert_rare(sum(any(each in ("first", "second") for each in study) for study in found))


def test_of_1000_studies_of_orders_at_the_margin_at_most_5_percent_call_one_equivalent():
    differences = np.random.default_rng(2).normal(MARGIN, 0.01, (1000, 6, 8))
    found = outcomes(differences, MARGIN)
    assert_rare(sum("equivalent" in study for study in found))


def test_mixed_truths_keep_wrong_verdicts_at_5_percent():
    rng = np.random.default_rng(3)
    truth = np.array([0, 0, 0, MARGIN, MARGIN, MARGIN])
    found = outcomes(rng.normal(truth[:, None], 0.006, (1000, 6, 8)), MARGIN)
    wrong = sum(
        any(each in ("first", "second") for each in study[:3]) or "equivalent" in study[3:] or "second" in study[3:]
        for study in found
    )
    assert_rare(wrong)


def test_power_rises_with_seeds_and_is_what_the_design_promises():
    rng = np.random.default_rng(4)
    spread = synthetic(rng, 500, 8, [0]).std()
    promised = detectable(12, 0.05 / 6) * spread
    share = {}
    for seeds in (8, 12, 24):
        found = outcomes(rng.normal(promised, spread, (150, 6, seeds)), MARGIN)
        share[seeds] = np.mean([[each == "first" for each in study] for study in found])
    assert share[8] < share[12] < share[24] and share[24] > 0.97
    assert share[12] == pytest.approx(0.8, abs=0.06)


def test_fewer_than_eight_seeds_never_give_a_verdict():
    found = outcomes(synthetic(np.random.default_rng(5), 50, 7, [1.0] * 6), MARGIN)
    assert {each for study in found for each in study} == {"undecided"}
