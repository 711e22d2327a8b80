"""k-means on a line: the exact solver against all partitions, what each init gives, and the budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainfx.passes.sharing import INITS, Values, allocate, cluster, members

DRAW = np.random.default_rng(0)


def squared_error(values, book):
    return float(((values[:, None] - book) ** 2).min(1).sum())


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(1, 5))
def test_the_exact_solver_finds_the_best_of_all_partitions(numbers, entries):
    values = np.array(sorted(numbers), np.float64)
    book = cluster(Values.of(values), entries, "optimal", DRAW)
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cuts) if len(part))
        for cuts in itertools.combinations_with_replacement(range(len(values) + 1), entries - 1)
    )
    assert len(book) <= entries and (np.diff(book) > 0).all()
    assert squared_error(values, book) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("init", INITS)
def test_lloyds_algorithm_ends_where_every_entry_is_the_mean_of_its_members(init):
    values = np.random.default_rng(1).normal(size=500)
    book = cluster(Values.of(values), 8, init, np.random.default_rng(2))
    places = members(values, book)
    assert np.allclose(book, [values[places == each].mean() for each in range(8)])
    assert (np.abs(values[:, None] - book).argmin(1) == places).all()
    assert Values.of(values).error(book) == pytest.approx(squared_error(values, book))


def test_where_centroids_begin():
    """Where one step changes nothing: equally far apart, and at equal steps of the distribution."""
    even = np.repeat([0.0, 1.0, 2.0, 9.0], [1, 1, 1, 1])
    assert cluster(Values.of(even), 4, "linear", DRAW).tolist() == [0, 1, 2, 9]
    dense = np.concatenate([np.linspace(0, 1, 1000), [50.0]])
    assert cluster(Values.of(dense), 2, "linear", DRAW).round(2).tolist() == [0.5, 50]
    assert cluster(Values.of(dense), 2, "density", DRAW).round(2).tolist() != [0.5, 50]


def test_many_values_are_pooled_first_and_the_result_is_still_better_than_the_other_inits():
    values = Values.of(np.random.default_rng(3).laplace(size=20_000))
    errors = {init: values.error(cluster(values, 16, init, np.random.default_rng(4))) for init in INITS}
    assert errors["optimal"] == min(errors.values())


def test_the_budget_is_spent_where_it_helps_most():
    choices = [{1: (8.0, 100), 2: (2.0, 200), 3: (0.5, 300)}, {1: (1.0, 100), 2: (0.9, 200)}]
    assert [allocate(choices, size) for size in (199, 200, 300, 400, 500)] == [None, [1, 1], [2, 1], [3, 1], [3, 2]]
    assert allocate([], 1) == []
