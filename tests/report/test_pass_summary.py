"""A pass as one entry of a list."""

from chainfx.passes import Fuse, PassSummary


def test_a_line_of_what_it_declares_its_purpose_and_its_options():
    purpose = "It does what it says. " * 5
    options = {"ratio": None, "names": ("a", "b"), "a_long_name": "x" * 40}
    summary = PassSummary("mine", "static", "layer", ("calibration", "training"), purpose, options, ("limit", "other"))
    assert str(summary).splitlines() == [
        "mine: static, layer; needs calibration, training",
        "  It does what it says. It does what it says. It does what it says. It does what",
        "  it says. It does what it says.",
        "  limit (required), other (required), ratio=None, names=('a', 'b'),",
        f"  a_long_name='{'x' * 40}'",
    ]


def test_a_pass_without_options_and_without_a_purpose():
    assert str(PassSummary.of(Fuse)).splitlines()[-1] == "  no options"
    assert str(PassSummary("mine", "static", "layer", (), "", {}, ())) == "mine: static, layer\n  no options"
