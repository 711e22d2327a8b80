"""How many bits each codebook gets, so that all of them together fit into a budget and the error is least."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["allocate"]


def allocate(choices: Sequence[Mapping[int, tuple[float, int]]], budget: float) -> list[int] | None:
    """The choice for each of several things with the least error in all, of those whose size fits into the budget.

    ``choices``: for each thing, by the name of a choice (a number of bits), its error and its size. The solver is exact
    (a multiple-choice knapsack as an integer program, HiGHS). ``None`` if even the smallest choices do not fit.

    >>> allocate([{1: (9.0, 10), 2: (1.0, 20)}, {1: (2.0, 10), 2: (1.5, 20)}], 30)
    [2, 1]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # heavy, and needed for a budget alone

    rows = [(thing, name, *each) for thing, of in enumerate(choices) for name, each in of.items()]
    if not rows:
        return []
    owners, names = np.array([row[0] for row in rows]), [row[1] for row in rows]
    errors, sizes = (np.array([row[place] for row in rows], np.float64) for place in (2, 3))
    chosen_once = LinearConstraint((owners == np.arange(len(choices))[:, None]).astype(np.float64), 1, 1)
    fits = LinearConstraint(sizes[None], -np.inf, budget)
    found = milp(errors, integrality=np.ones(len(rows), np.int64), bounds=Bounds(0, 1), constraints=[chosen_once, fits])
    if found.x is None:
        return None
    return [names[place] for place in np.flatnonzero(found.x > 0.5)]
