"""Tables as plain text."""

import pytest

from chainfx.report.text_tables import amount, lines_of, plain_table, size, stage_table, text_of, times


def example():
    table = plain_table("a heading", ("name", "kind", "size"), texts=2)
    table.add_row("a" * 70, "[bold]x[/bold]", "1,000")
    table.add_row("b" * 70, ":smile:", "1")
    return table


def test_texts_stand_left_and_numbers_right_below_the_heading():
    heading, blank, columns, rule, first, second, last = lines_of(example())
    assert (heading, blank, last) == ("a heading", "", "")
    assert columns.split() == ["name", "kind", "size"] and set(rule.strip()) == {"─"}
    assert first.split() == ["a" * 70, "[bold]x[/bold]", "1,000"]
    assert second.split() == ["b" * 70, ":smile:", "1"]
    assert len(first) == len(second) <= 120


def test_a_long_text_is_folded_and_a_number_is_not():
    table = plain_table("", ("name", "size"), texts=1)
    table.add_row("a" * 150, "1,000,000")
    lines = lines_of(table)
    assert max(map(len, lines)) <= 120
    assert sum(line.count("a") for line in lines[1:]) == 151  # and that of "name"
    assert sum(line.endswith("1,000,000") for line in lines) == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (999_999, "999,999"), (1_000_000, "1 M"), (1_648_256, "1.65 M"), (25_557_032, "25.6 M")),
        *((999_499_999, "999 M"), (999_500_000, "1 G"), (4_089_184_256, "4.09 G"), (10**13, "10 T")),
    ],
)
def test_an_amount_is_whole_below_a_million_and_has_three_digits_above(number, text):
    assert amount(number) == text


def test_sizes_and_ratios():
    assert [size(bits) for bits in (0, 4096, 2**13 * 999, 2**23, 2**23 * 97.54, 2**33 * 5000)] == [
        *("0.0 KiB", "0.5 KiB", "999.0 KiB", "1.0 MiB", "97.5 MiB", "5,000.0 GiB")
    ]
    assert [times(ratio) for ratio in (0.26, 1, 99.94, 99.95, 997.6, 1234.5)] == [
        *("0.3x", "1.0x", "99.9x", "100x", "998x", "1,234x")
    ]


def test_a_table_of_stages_folds_the_stage_alone():
    table = stage_table("a heading", ("stage", "storage"))
    table.add_row("a" * 100, "12.5 KiB")
    assert text_of(table, width=80).splitlines() == [
        "a heading",
        f"{'stage':70}{'storage':>10}",
        "─" * 80,
        f"{'a' * 70}{'12.5 KiB':>10}",
        f"{'a' * 30}{'':50}",
    ]


def test_tables_and_lines_stand_below_each_other():
    text = text_of(example(), "a line of [text]", "b" * 25, width=20)
    assert text.splitlines()[-3:] == ["a line of [text]", "b" * 20, "b" * 5]


def test_a_heading_is_not_wrapped_in_the_width_of_a_narrow_table():
    heading = "a heading that is wider than its table"
    table = plain_table(heading, ["name"], texts=1)
    table.add_row("a")
    assert text_of(table, width=80).splitlines()[0] == heading
    assert table.title == heading, "the table is left as it was"
