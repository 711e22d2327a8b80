import io
import re

from rich.console import Console

import chainfx
from chainfx import demo
from chainfx.deploy.model import CompressedModel
from tests.trainers import few_digits


def test_the_demo_runs_the_whole_chain_and_shows_every_number(monkeypatch):
    """As ``chainfx demo``, but with few images, one epoch each and no torch.compile, which takes most of its time."""
    compiled, counted = [], []
    monkeypatch.setattr(demo, "digits", lambda validation: few_digits())
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(demo, "_ROUNDS", 2)
    monkeypatch.setattr(CompressedModel, "compile", lambda self: compiled.append(self))  # noqa: PLW0108
    monkeypatch.setattr(chainfx, "count", lambda *_, **__: counted.append(1))
    output = io.StringIO()
    demo.run_demo(Console(file=output, width=80))
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("───")) + 1
    rows = lines[start : start + 5]
    assert [each.engine for each in compiled].count("float") == 5  # those in integers are compiled in float too
    names = [row.split()[0] for row in rows]
    assert names == ["original", "distill", "prune-channels", "quantize", "early-exit"]
    ratio = r"[\d,]+(\.\d)?x"
    for row in rows:
        assert re.search(rf"\d+\.\d\d% +[\d,.]+( M)?( +{ratio}){{3}} +\d+ KiB( +{ratio}){{2}}$", row)
    assert re.search(r"the original takes \d+\.\d\d ms for one image alone, and does [\d,]+", text)
    assert re.search(
        r"\ntest accuracy \d+\.\d% -> \d+\.\d%: [\d,.]+x fewer BitOps, [\d.]+x smaller, [\d.]+x faster\n", text
    )
    assert not counted  # every convention is in the records
    assert "order: distill -> prune-channels -> quantize -> early-exit" in text
    assert "arXiv 2403.17447, sec. 3.1.4" in " ".join(text.split())
