import io
import re

import pytest
from rich.console import Console

import chainfx
from chainfx import demo
from chainfx.deploy.model import CompressedModel
from chainfx.passes.base import Epoch
from chainfx.progress import TerminalListener


def test_the_demo_runs_the_whole_chain_and_shows_every_number(monkeypatch):
    """As ``chainfx demo``, but with one epoch each and without torch.compile, which takes most of its time."""
    compiled, counted = [], []
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(demo, "_ROUNDS", 2)
    monkeypatch.setattr(CompressedModel, "compile", lambda self: compiled.append(self))  # noqa: PLW0108
    monkeypatch.setattr(chainfx, "count", lambda *_, **__: counted.append(1))
    output = io.StringIO()
    demo.run_demo(Console(file=output, width=200))
    text = output.getvalue()
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == len(compiled) == 5
    names = [re.match(r"│ ([\w-]+)", row)[1] for row in rows]
    assert names == ["original", "distill", "prune-channels", "quantize", "early-exit"]
    for row in rows:
        assert re.search(r"\d+\.\d\d% .* [\d,]+ .* \d+\.\dx .* KiB .* ms \(\d+\.\dx\) .*/s \(\d+\.\dx\)", row)
    assert not counted  # every convention is in the records
    assert "order: distill -> prune-channels -> quantize -> early-exit" in text
    assert "arXiv 2403.17447, sec. 3.1.4" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_nowhere_else(terminal):
    output = io.StringIO()
    listener = TerminalListener(Console(file=output, force_terminal=terminal, width=120))
    listener.begin(1, 2, "quantize(weights=4)")
    listener.epoch(Epoch(1, 2, 0.7, 0.875))
    listener.epoch(Epoch(2, 2, 0.6, 0.9))
    listener.close()
    shown = output.getvalue()
    if terminal:
        for word in ("stage 1/2 quantize(weights=4)", "epoch 2/2", "accuracy 90.00%", "0:00:0"):
            assert word in shown
    else:
        assert shown == ""
