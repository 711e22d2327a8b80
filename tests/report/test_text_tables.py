"""Tables as plain text."""

from chainfx.report.text_tables import lines_of, plain_table, text_of


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


def test_tables_and_lines_stand_below_each_other():
    text = text_of(example(), "a line of [text]", "b" * 25, width=20)
    assert text.splitlines()[-3:] == ["a line of [text]", "b" * 20, "b" * 5]
