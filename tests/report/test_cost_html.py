"""Reports in a notebook: self-contained, well formed, escaped, and folding without scripts."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from chainfx.bitops import Uncounted, count
from chainfx.report.cost_report import branch_cells, report_headings, report_totals
from chainfx.report.cost_tree import tree_of
from tests.report.values import everything, resnet_report

VOID = {"br", "img", "link", "meta", "input"}
EVIL = "<script>alert('&')</script>"


class Page(HTMLParser):
    """The tags, attributes and texts of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.attributes, self.lines, self.texts = [], [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        assert tag not in VOID
        self.stack.append(tag)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if ("class", "line") in attrs or ("class", "line head") in attrs:
            self.lines.append([])
        if tag == "span":
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.stack[-1] == "span":
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def report():
    return resnet_report()


def test_every_module_and_node_is_a_line_with_the_cells_of_the_table(report):
    page = Page(report._repr_html_())
    branches = everything(tree_of(report))[1:]  # without the root
    assert page.lines == [report_headings(report), *(branch_cells(branch, report, folded=True) for branch in branches)]
    assert "\n".join(report_totals(report)) in page.texts


def test_modules_fold_and_the_deepest_that_do_not_fit_are_closed():
    report = resnet_report((16, 16, 16))
    page = Page(report._repr_html_())
    modules = [branch for branch in everything(tree_of(report))[1:] if branch.children]
    assert page.tags.count("details") == page.tags.count("summary") == len(modules)
    opened = [name for tag, name, _ in page.attributes if tag == "details" and name == "open"]
    assert 0 < len(opened) < len(modules)


def test_there_is_nothing_to_run_or_to_fetch(report):
    for text in (report._repr_html_(), report.diff(report.reprice(widths={"*": (4, 8)}))._repr_html_()):
        page = Page(text)
        assert set(page.tags) <= {"div", "style", "p", "pre", "span", "details", "summary"}
        assert {name for _, name, _ in page.attributes} <= {"class", "style", "open"}
        assert "http" not in text and "url(" not in text and "@import" not in text


def test_names_are_escaped(report):
    row = replace(report.rows[0], node=EVIL, module=EVIL, operator=EVIL)
    evil = replace(report, rows=(row, *report.rows[1:]), uncounted=(Uncounted(EVIL, EVIL, "", EVIL),), convention=EVIL)
    other = replace(evil, rows=report.rows)
    for text in (evil._repr_html_(), evil.diff(other)._repr_html_()):
        assert "<script" not in text and EVIL in "".join(Page(text).texts)


def test_a_diff_shows_every_node_that_changed(report):
    diff = report.diff(report.reprice(widths={"*": (4, 8)}))
    head, *lines = Page(diff._repr_html_()).lines
    assert len(head) == 8
    assert [line[0] for line in lines] == [change.node for change in diff.changed]
    assert all(line[2] == "32x32 -> 4x8" for line in lines)


def test_an_empty_network():
    report = count(torch.fx.symbolic_trace(nn.Identity()), (torch.zeros(1, 4),))
    assert len(Page(report._repr_html_()).lines) == 1
