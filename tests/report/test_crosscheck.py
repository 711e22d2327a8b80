"""The text of a cross-check."""

from fractions import Fraction

from chainfx.bitops import CrossCheck, Difference, ToolCheck, Uncounted


def test_differences_are_summed_up_by_operator_and_reason():
    differences = tuple(Difference(f"layer.{index}", "bias", 0, index, "because") for index in range(1, 6))
    once = (Difference("a", "norm", 0, 15, "so"), Difference("b", "matmul", 15, 0, "no handle"))
    check = CrossCheck(
        1000,
        (
            ToolCheck("one", "1.0", 1015, differences),
            ToolCheck("two", "2.0", 1000, once),
            ToolCheck("three", "3.0", 1000),
            ToolCheck("four", "", None, note="not installed"),
        ),
    )
    assert str(check).splitlines() == [
        "MACs of one sample (1 MAC = 2 FLOPs): chainfx 1,000",
        "one 1.0: 1,015 (+15)",
        "               +15  bias in layer.1, layer.2, layer.3 and 2 more: because",
        "two 2.0: equal in total, by differences that cancel",
        "               +15  norm in a: so",
        "               -15  matmul in b: no handle",
        "three 3.0: equal",
        "four: not installed",
    ]


def test_a_share_that_is_not_whole_and_what_chainfx_cannot_count():
    tool = ToolCheck("one", "1.0", Fraction(67, 2), (Difference("", "mul", 0, Fraction(27, 2), "so"),))
    check = CrossCheck(20, (tool,), (Uncounted("node", "fft", "", "operator without a formula"),))
    assert str(check).splitlines() == [
        "MACs of one sample (1 MAC = 2 FLOPs): chainfx 20",
        "NOT COUNTED by chainfx: node (fft, operator without a formula)",
        "one 1.0: 33.5 (+13.5)",
        "             +13.5  mul: so",
    ]
