import moocore
import numpy as np
import pytest

from chainfx.study import area_under_front, front_of
from chainfx.study.fronts import area_at_equal_numbers, best_ratio

REFERENCE = 0.1


def test_an_area_worked_out_by_hand():
    # from loss 0 on 1 decade, from 0.02 on 3 decades; 0.08 loses more than a point with less; 0.2 counts nothing
    points = [[3.0, 0.02], [1.0, -0.01], [2.0, 0.08], [9.0, 0.2]]
    assert area_under_front(points, REFERENCE) == pytest.approx(0.2 * 1 + 0.8 * 3)
    assert area_under_front([[-1.0, 0.0]], REFERENCE) == 0  # dearer than the original, which is a point of every front


@pytest.mark.parametrize("seed", range(20))
def test_the_area_is_the_hypervolume_of_moocore(seed):
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(-0.5, 3, 12), rng.uniform(-0.02, 0.12, 12)], axis=1)
    clipped = np.stack([-np.maximum(points[:, 0], 0), np.maximum(points[:, 1], 0)], axis=1)
    expected = moocore.hypervolume(clipped, ref=[0, REFERENCE]) / REFERENCE
    assert area_under_front(points, REFERENCE) == pytest.approx(expected)
    assert sorted(front_of(points)) == np.flatnonzero(moocore.is_nondominated(points * [-1, 1])).tolist()


def test_areas_of_many_fronts_at_once():
    points = np.random.default_rng(0).uniform(0, 0.2, (3, 4, 5, 2))
    found = area_under_front(points, REFERENCE)
    assert found.shape == (3, 4) and found[2, 1] == area_under_front(points[2, 1], REFERENCE)


def test_equal_numbers_of_points():
    points = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert area_at_equal_numbers(points, 2, REFERENCE) == 2
    assert area_at_equal_numbers(points, 1, REFERENCE) == pytest.approx(1.5, abs=0.1)  # the mean over both choices


def test_the_best_ratio_at_a_loss():
    points = np.array([[1.0, 0.0], [2.0, 0.01], [3.0, 0.05]])
    assert [best_ratio(points, loss) for loss in (0.0, 0.01, 0.04, 0.05, -0.01)] == [1, 2, 2, 3, 0]
