"""Low-rank factors of a weight: how many, of what shapes, and their values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Factor", "SpatialFactors", "TuckerFactors", "dropped", "factors_of", "rank_for"]

_ZERO = 1e-24  # of the squared norm: what rounding in float64 leaves of a singular value that is zero


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the layers that replace a layer, in order: the shape of its weight, and the kernel axes it works along.

    ``axes[i]``: whether stride, padding and dilation of spatial axis i belong to this factor; empty for linear layers.
    """

    shape: tuple[int, ...]
    axes: tuple[bool, ...]


def dropped(values: Tensor) -> NDArray[np.float64]:
    """The sum of squares that rank r leaves out, r = 0 .. n: (n + 1,), of singular values (n,), largest first."""
    squares = values.detach().cpu().double().square().numpy()
    return np.append(squares[::-1].cumsum()[::-1], 0.0)


def rank_for(left_out: NDArray[np.float64], energy: float) -> int:
    """The least rank, at least 1, that keeps the share ``energy`` of the squares, given those :func:`dropped` (n + 1,).

    Of a weight that is zero everywhere no rank is better than another: n.
    """
    if not left_out[0]:
        return len(left_out) - 1
    allowed = (1 - energy + _ZERO) * left_out[0]
    return max(1, int((left_out[:-1] > allowed).sum()))


class SpatialFactors:
    """A matrix, or a kernel cut in two along its axes, by one singular value decomposition.

    A linear layer (m, n) becomes (r, n) and (m, r); a kernel (m, n, a, b) becomes (r, n, a, 1) and (m, r, 1, b):
    Jaderberg et al. 2014, arXiv 1405.3866, scheme 2. The first factor has the first kernel axis longer than 1 and all
    that are 1, so that strides act early. Among all factors of these shapes and rank r these have the least squared
    error, the sum of the dropped squared singular values (Eckart and Young 1936).
    """

    def __init__(self, weight: Tensor) -> None:
        self.shape = tuple(weight.shape)
        kernel = self.shape[2:]
        longer = [axis for axis, size in enumerate(kernel) if size > 1][:1]
        self.first = tuple(size == 1 or axis in longer for axis, size in enumerate(kernel))
        self._weight = weight.detach().double()
        matrix = self._matrix()
        self._tall = matrix.shape[0] > matrix.shape[1]
        self._basis, self._values = _left(matrix.T if self._tall else matrix)
        self.dropped = dropped(self._values)

    def _sizes(self) -> tuple[list[int], list[int]]:
        """The kernel of each factor."""
        kernel = self._weight.shape[2:]
        sizes = list(zip(kernel, self.first, strict=True))
        return [size if mine else 1 for size, mine in sizes], [1 if mine else size for size, mine in sizes]

    def _matrix(self) -> Tensor:
        """Rows: output channels and the second factor's axes; columns: input channels and the first factor's."""
        mine = [2 + axis for axis, first in enumerate(self.first) if first]
        others = [2 + axis for axis, first in enumerate(self.first) if not first]
        rows = self._weight.shape[0] * math.prod(self._weight.shape[axis] for axis in others)
        return self._weight.permute(0, *others, 1, *mine).reshape(rows, -1)

    def choices(self, energy: float) -> list[tuple[Factor, ...]]:
        """The factors that keep ``energy``."""
        return [self.of_rank(rank_for(self.dropped, energy))]

    def of_rank(self, rank: int) -> tuple[Factor, ...]:
        """The factors of a rank."""
        outputs, inputs = self._weight.shape[:2]
        one, other = self._sizes()
        rest = tuple(not mine for mine in self.first)
        return Factor((rank, inputs, *one), self.first), Factor((outputs, rank, *other), rest)

    def cheapest(self, cost: Callable[[tuple[Factor, ...]], float], weight: float) -> tuple[tuple[Factor, ...], float]:
        """The factors with the least sum of ``cost`` and ``weight`` times the squared error, and that sum."""
        choices = [self.of_rank(rank) for rank in range(1, len(self.dropped))]
        sums = [cost(choice) + weight * float(error) for choice, error in zip(choices, self.dropped[1:], strict=True)]
        best = min(range(len(sums)), key=sums.__getitem__)
        return choices[best], sums[best]

    def product(self, factors: tuple[Factor, ...]) -> Tensor:
        """The weight that the factors make (float64), the nearest one of its rank."""
        first, second = self.weights(factors)
        return torch.einsum("or...,ri...->oi...", second, first)

    def weights(self, factors: tuple[Factor, ...]) -> list[Tensor]:
        """The values of the factors (float64); the singular values are shared out evenly."""
        rank, matrix = factors[0].shape[0], self._matrix()
        basis, root = self._basis[:, :rank], self._values[:rank].sqrt()
        if self._tall:
            left, right = matrix @ basis / root, root[:, None] * basis.T
        else:
            left, right = basis * root, basis.T @ matrix / root[:, None]
        second = left.unflatten(0, (self.shape[0], -1)).movedim(2, 1)
        return [right.reshape(factors[0].shape), second.reshape(factors[1].shape)]


class TuckerFactors:
    """A kernel (m, n, ...) as a 1x1 convolution to s channels, the kernel's core (r, s, ...) and a 1x1 back to m.

    Tucker-2 by the higher-order SVD (Kim et al. 2016, arXiv 1511.06530, sec. 3): r and s are the ranks that keep the
    energy in the unfoldings along the output and the input channels. The squared error is at most the sum of what both
    drop, and at least the larger (De Lathauwer et al. 2000, property 10). A side with full rank needs no 1x1.
    """

    def __init__(self, weight: Tensor) -> None:
        self.shape = tuple(weight.shape)
        self._weight = weight.detach().double()
        spectra = [_left(self._weight.movedim(mode, 0).flatten(1)) for mode in (0, 1)]
        self._bases = [basis for basis, _ in spectra]
        self.dropped = [dropped(values) for _, values in spectra]

    def choices(self, energy: float) -> list[tuple[Factor, ...]]:
        """The factors that keep ``energy`` in both unfoldings: with both sides cut, or only one."""
        outputs, inputs = self._weight.shape[:2]
        out, inside = (rank_for(each, energy) for each in self.dropped)
        ranks = {(out, inside), (out, inputs), (outputs, inside)} - {(outputs, inputs)}
        return [self._factors(*each) for each in sorted(ranks)]

    def cheapest(self, cost: Callable[[tuple[Factor, ...]], float], weight: float) -> tuple[tuple[Factor, ...], float]:
        """The factors with the least sum of ``cost`` and ``weight`` times the squared error, and that sum.

        ``cost`` has to be a sum over the factors, of each in proportion to the size of its weight, as MACs are.
        """
        outputs, inputs = self.shape[:2]
        single = self._factors(1, 1)
        core = next(place for place, factor in enumerate(single) if all(factor.axes))
        before, middle, after = (cost(part) if part else 0.0 for part in (single[:core], single[: core + 1], single))
        middle, after = middle - before, after - middle
        errors = self._errors()
        out, inside = np.arange(1, errors.shape[0] + 1)[:, None], np.arange(1, errors.shape[1] + 1)[None]
        sums = middle * out * inside + weight * errors
        sums += before * inside * (inside < inputs) + after * out * (out < outputs)
        sums[(out == outputs) & (inside == inputs)] = np.inf  # that is the whole kernel
        place = np.unravel_index(int(sums.argmin()), sums.shape)
        return self._factors(int(place[0]) + 1, int(place[1]) + 1), float(sums[place])

    def _errors(self) -> NDArray[np.float64]:
        """The squared error at every rank of the outputs and of the inputs, from 1 on."""
        core = torch.einsum("mn...,mr,ns->rs...", self._weight, self._bases[0], self._bases[1])
        kept = core.flatten(2).square().sum(2).cumsum(0).cumsum(1).cpu()
        errors: NDArray[np.float64] = (kept[-1, -1] - kept).clamp(min=0).numpy()
        return errors

    def product(self, factors: tuple[Factor, ...]) -> Tensor:
        """The weight that the factors make (float64)."""
        out, inside = self._ranks(factors)
        project = (basis[:, :rank] @ basis[:, :rank].T for basis, rank in zip(self._bases, (out, inside), strict=True))
        return torch.einsum("mn...,mo,ni->oi...", self._weight, *project)

    @staticmethod
    def _ranks(factors: tuple[Factor, ...]) -> tuple[int, int]:
        """The channels that the core gives and takes."""
        out, inside = next(factor.shape[:2] for factor in factors if all(factor.axes))
        return out, inside

    def _factors(self, out: int, inside: int) -> tuple[Factor, ...]:
        outputs, inputs, *kernel = self._weight.shape
        ones, none, every = [1] * len(kernel), (False,) * len(kernel), (True,) * len(kernel)
        before = [Factor((inside, inputs, *ones), none)] if inside < inputs else []
        after = [Factor((outputs, out, *ones), none)] if out < outputs else []
        return (*before, Factor((out, inside, *kernel), every), *after)

    def weights(self, factors: tuple[Factor, ...]) -> list[Tensor]:
        """The values of the factors (float64): orthonormal 1x1 convolutions around the projected core."""
        outputs, inputs = self._weight.shape[:2]
        out, inside = self._ranks(factors)
        out_basis, in_basis = self._bases[0][:, :out], self._bases[1][:, :inside]
        core = self._weight
        core = torch.einsum("mn...,ns->ms...", core, in_basis) if inside < inputs else core
        core = torch.einsum("mn...,mr->rn...", core, out_basis) if out < outputs else core
        found = [in_basis.T] * (inside < inputs) + [core] + [out_basis] * (out < outputs)
        return [value.reshape(factor.shape) for value, factor in zip(found, factors, strict=True)]


def _left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of a matrix; its columns, often many, are rotated together first."""
    left, values, _ = torch.linalg.svd(torch.linalg.qr(matrix.T, mode="r").R.T, full_matrices=False)
    return left, values


def factors_of(weight: Tensor, scheme: str) -> SpatialFactors | TuckerFactors:
    """The factors of a layer's weight: by ``scheme`` (``tucker``, ``spatial``), or by SVD if there is no kernel."""
    pointwise = all(size == 1 for size in weight.shape[2:])
    return SpatialFactors(weight) if pointwise or scheme == "spatial" else TuckerFactors(weight)
