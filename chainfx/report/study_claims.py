"""Claims about orders as text: the verdict on each, and below it every test with what it says."""

from chainfx.study import Claim, ClaimTest

__all__ = ["claim_text"]


_MANY = 12  # tests, of which those that decide nothing are left out


def claim_text(claim: Claim) -> str:
    """The claim with its verdict in the first line, then one line for each test; of many, those that say something."""
    counts = {says: sum(test.says == says for test in claim.tests) for says in ("for", "against", "nothing")}
    said = f" ({counts['for']} for, {counts['against']} against, {counts['nothing']} undecided)" if claim.tests else ""
    places = list(dict.fromkeys(test.where for test in claim.tests))
    where = f" of {places[0]}" if len(places) == 1 else ""
    shown = [test for test in claim.tests if len(claim.tests) <= _MANY or test.says != "nothing"]
    lines = [f"  {_line(test)}" + ("" if where else f" of {test.where}") for test in shown]
    return "\n".join([f"{claim.name}: {claim.outcome}{said}{where}", *lines])


def _line(test: ClaimTest) -> str:
    says = {"for": "for", "against": "against", "nothing": "undecided"}[test.says]
    return f"{says}: {test.what}: {test.size} (confidence {test.confidence:.3f}, {test.seeds} seeds)"
