"""Progress as a user sees it: on a terminal (a pseudo-terminal here), in a pipe, and when something fails."""

import io
import os
import pty
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import chainfx
from chainfx.errors import PassError, TuningError
from chainfx.passes import Epoch, Metric, PruneChannels
from chainfx.progress import TerminalListener
from tests.fresh import fresh
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor

ON_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[2], os.O_RDWR | os.O_NOCTTY)
for number in range(3):
    os.dup2(terminal, number)
os.environ |= {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "40"}
"""

PROGRAM = """
import sys, chainfx
from chainfx.passes import PruneChannels
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer
x = images(8)
failure = {"none": None, "trainer": ValueError("the trainer broke"), "interrupt": KeyboardInterrupt()}[sys.argv[1]]
trainer = FakeTrainer(x, fail_at=2 if failure else 0, failure=failure)
chainfx.compile(
    small_resnet((1, 1)), [PruneChannels(0.5), PruneChannels(0.25)], example_inputs=x, trainer=trainer, order="given"
)
print("done")
"""


def on_a_terminal(failure):
    """The exit status of the program and all that it wrote on a terminal of 200 columns."""
    terminal, end = pty.openpty()
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(all_of, terminal)
        ended = fresh(ON_TERMINAL + PROGRAM, failure, os.ttyname(end), check=False)
        os.close(end)
    os.close(terminal)
    return ended.status, shown.result().decode()


def all_of(terminal):
    """What comes from a terminal until nobody has its other end."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            return shown
        shown += part


def plain(text):
    """The text without what moves the cursor or colours it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_a_bar_for_the_running_stage_and_a_line_for_each_that_is_finished():
    status, shown = on_a_terminal("none")
    assert status == 0
    text = plain(shown)
    for word in ("stage 1/2 prune-channels(ratio=0.5)", "stage 2/2 prune-channels(ratio=0.25)", "epoch 1/1, accuracy "):
        assert word in text
    lines = [line.strip() for line in text.splitlines()]
    for label in ("original", r"prune-channels\(ratio=0.5\)", r"prune-channels\(ratio=0.25\)"):
        assert any(re.fullmatch(rf"{label}: accuracy \d+\.\d\d% \(\d+\.\d s\)", line) for line in lines), lines
    assert shown.count(HIDE) == shown.count(SHOW) == 2
    assert lines[-1] == "done"


@pytest.mark.parametrize("failure", ["trainer", "interrupt"])
def test_after_a_failure_the_bar_is_gone_and_the_cursor_is_back(failure):
    status, shown = on_a_terminal(failure)
    assert status != 0
    assert shown.count(HIDE) == shown.count(SHOW) == 2
    assert "stage 2/2" not in plain(shown[shown.rindex(SHOW) :])


def test_in_a_pipe_plain_lines_go_to_standard_error():
    ended = fresh(PROGRAM, "none")
    assert ended.out == "done\n"
    numbers = re.sub(r"\d+\.\d\d%", "N%", re.sub(r"\(\d+\.\d s\)", "(T s)", ended.err))
    assert numbers.splitlines() == [
        "original: accuracy N% (T s)",
        "stage 1/2 prune-channels(ratio=0.5)",
        "stage 1/2 prune-channels(ratio=0.5) | epoch 1/1, accuracy N%",
        "prune-channels(ratio=0.5): accuracy N% (T s)",
        "stage 2/2 prune-channels(ratio=0.25)",
        "stage 2/2 prune-channels(ratio=0.25) | epoch 1/1, accuracy N%",
        "prune-channels(ratio=0.25): accuracy N% (T s)",
    ]


def told_in_a_pipe(*epochs, rounds=()):
    """The lines below that of the stage."""
    output = io.StringIO()
    listener = TerminalListener(Console(file=output, width=20))
    listener.begin(1, 1, "a [long] label")
    for one in rounds:
        listener.round(*one)
    for epoch in epochs:
        listener.epoch(epoch)
    first, *lines = output.getvalue().splitlines()
    assert first == "stage 1/1 a [long] label"
    return [line.removeprefix(first) for line in lines]


@pytest.mark.parametrize(
    ("total", "told"), [(3, [1, 2, 3]), (10, [*range(1, 11)]), (11, [2, 4, 6, 8, 10, 11]), (25, [*range(3, 25, 3), 25])]
)
def test_plain_lines_tell_of_at_most_ten_epochs_and_of_the_last(total, told):
    lines = told_in_a_pipe(*(Epoch(index, total, 0.5, 0.875) for index in range(1, total + 1)))
    assert lines == [f" | epoch {index}/{total}, accuracy 87.50%" for index in told]


def test_another_metric_is_shown_by_its_name_and_in_its_form():
    output = io.StringIO()
    listener = TerminalListener(Console(file=output), Metric("perplexity", higher_is_better=False, form=".1f"))
    listener.start("mine")
    listener.epoch(Epoch(1, 1, 0.5, 12.34))
    assert output.getvalue().splitlines() == ["mine", "mine | epoch 1/1, perplexity 12.3"]


def test_plain_lines_leave_out_parts_of_an_epoch_and_name_the_round():
    assert told_in_a_pipe(Epoch(1, 1, 0.5, None, 0.25), Epoch(1, 1, 0.5, None)) == [" | epoch 1/1"]
    assert told_in_a_pipe(Epoch(1, 1, 0.5, None), rounds=[(2, 3)]) == [" (round 2/3) | epoch 1/1"]


def test_the_bar_moves_within_an_epoch():
    listener = TerminalListener(Console(file=io.StringIO(), force_terminal=True, width=120))
    listener.begin(1, 1, "mine")
    (task,) = listener._progress.tasks
    seen = []
    for epoch in (Epoch(1, 2, 0.7, None, 0.5), Epoch(1, 2, 0.6, 0.875), Epoch(2, 2, 0.5, None, 0.25)):
        listener.epoch(epoch)
        seen.append((task.completed, task.total, task.description))
    listener.round(2, 2)
    seen.append((task.completed, task.description))
    listener.close()
    assert seen == [
        (0.5, 2, "stage 1/1 mine | epoch 1/2"),
        (1.0, 2, "stage 1/1 mine | epoch 1/2, accuracy 87.50%"),
        (1.25, 2, "stage 1/1 mine | epoch 2/2, accuracy 87.50%"),
        (0, "stage 1/1 mine (round 2/2)"),
    ]


@pytest.mark.parametrize(
    "failure", [TuningError("the loss is nan."), KeyboardInterrupt(), ValueError("the trainer broke")], ids=repr
)
def test_the_listener_is_closed_on_every_error(monkeypatch, failure):
    told = []

    class Told(chainfx.compiler.TerminalListener):
        def begin(self, index, total, label):
            told.append(f"begin {index}")

        def close(self):
            told.append("close")

    monkeypatch.setattr(chainfx.compiler, "TerminalListener", Told)
    x = images(8)
    with pytest.raises(type(failure)):
        chainfx.compile(
            small_resnet((1, 1)),
            [PruneChannels(0.5)],
            example_inputs=x,
            trainer=FakeTrainer(x, fail_at=1, failure=failure),
        )
    assert told == ["close", "begin 1", "close"]  # at the end of the original network, then of the run
    told.clear()
    with pytest.raises(PassError):
        chainfx.compile(torch.nn.Linear(3, 2), [chainfx.passes.EarlyExit()], example_inputs=torch.randn(2, 3))
    assert told == ["close"]


def test_a_finished_stage_is_told_in_one_colour():
    output = io.StringIO()
    listener = TerminalListener(Console(file=output, force_terminal=True, color_system="standard"))
    record = SimpleNamespace(label="prune-channels(ratio=0.5)", metric=None, seconds=1.0)
    listener.end(SimpleNamespace(record=record, resumed=False))
    assert output.getvalue() == "prune-channels(ratio=0.5): (1.0 s)\n"
