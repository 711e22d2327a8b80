"""The shares of all samples that leave at exits and take branches: given by name, and checked in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from chainfx.errors import CostError

__all__ = ["Rates"]

_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Rates:
    """Which share of all samples leaves at each exit, and which takes the true branch of each ``torch.cond``.

    The rates are ``None`` where nobody measured them.
    """

    exits: tuple[str, ...]
    exit_rates: tuple[float, ...] | None
    conditions: tuple[str, ...]
    true_rates: tuple[float, ...] | None

    def share(self, segment: int, branch: str) -> Fraction:
        """The share of samples that runs what is in a segment and branch.

        Raises :class:`CostError` if no rates are known.
        """
        for names, rates in ((self.exits, self.exit_rates), (self.conditions, self.true_rates)):
            if names and rates is None:
                raise CostError(
                    f"the expected cost needs the exit rate of {names[0]!r}, which nobody measured; "
                    f"give exit_rates with {_meaning(names is self.exits)}, or ask for the worst case."
                )
        return self._taking(branch, self._reaching(segment))

    def _reaching(self, segment: int) -> Fraction:
        left = sum((Fraction(rate) for rate in (self.exit_rates or ())[:segment]), start=Fraction(0))
        return max(1 - left, Fraction(0))

    def _taking(self, branch: str, reaching: Fraction) -> Fraction:
        if not branch:
            return reaching
        name, _, side = branch.rpartition(".")
        around = self._taking(name.rpartition(".")[0], reaching)
        taken = min(Fraction((self.true_rates or ())[self.conditions.index(name)]), around)
        return taken if side == "true" else around - taken

    def given(self, rates: Mapping[str, float] | None) -> "Rates":
        """The same exits and conditions with these rates, each in [0, 1].

        Raises :class:`CostError`, which names the rate, if one is wrong.
        """
        if rates is None:
            return Rates(self.exits, None, self.conditions, None)
        self._check_names(rates)
        for name in (*self.exits, *self.conditions):
            if not 0 <= rates[name] <= 1:
                raise CostError(
                    f"the exit rate of {name!r} is {rates[name]}; it is a share of all samples, from 0 to 1."
                )
        left = 0.0
        for name in self.exits:
            left += rates[name]
            if left > 1 + _TOLERANCE:
                total = sum(rates[other] for other in self.exits)
                raise CostError(
                    f"the exit rates add up to {total:.6g}, above 1 from {name!r} on; "
                    "give shares of all samples, not of those that reach an exit."
                )
        found = [tuple(float(rates[name]) for name in names) for names in (self.exits, self.conditions)]
        checked = Rates(self.exits, found[0], self.conditions, found[1])
        checked._check_branches()
        return checked

    def _check_names(self, rates: Mapping[str, float]) -> None:
        names = (*self.exits, *self.conditions)
        for name in sorted(rates):
            if name not in names:
                known = f"its exits are {', '.join(names)}" if names else "it has no exits"
                raise CostError(f"exit_rates names {name!r}, which is no exit of the network; {known}.")
        for name in names:
            if name not in rates:
                raise CostError(f"the exit rate of {name!r} is missing; give {_meaning(name in self.exits)}.")

    def _check_branches(self) -> None:
        """No more samples take the true branch of a ``torch.cond`` inside another's branch than get there."""
        for name, rate in zip(self.conditions, self.true_rates or (), strict=True):
            around = self._taking(name.rpartition(".")[0], Fraction(1))
            if rate > around + Fraction(_TOLERANCE):
                raise CostError(
                    f"the exit rate of {name!r} is {rate:.6g}, but only {float(around):.6g} of all samples get there; "
                    "give shares of all samples, not of those that get there."
                )


def _meaning(of_an_exit: bool) -> str:
    return "the share of all samples that " + ("leaves there" if of_an_exit else "takes its true branch")
