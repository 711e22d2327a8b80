"""Count operators and whole networks with chainfx and with other tools, and put the tables into docs/counting.md.

Usage: .venv/bin/python tools/counting_table.py            the table of operators (seconds)
       .venv/bin/python tools/counting_table.py --models   also the table of torchvision's networks (minutes)

The other tools come with `pip install -e '.[peers]'`.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from chainfx.bitops.crosscheck import CrossCheck, ToolCheck, cross_check

PAGE = Path(__file__).parent.parent / "docs" / "counting.md"
INITIALISERS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")


class Function(nn.Module):
    """A function of the input and of one weight."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(*inputs, self.weight)


class SelfAttention(nn.Module):
    """Multi-head attention of an input to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """What the attention gives, without its weights."""
        return self.attention(x, x, x, need_weights=False)[0]


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """A product by the function that ptflops puts its own in place of."""
    return torch.matmul(x, weight)


@dataclass(frozen=True)
class Case:
    """An operator: as the table names it, its MACs as a formula, and the smallest network that uses it."""

    name: str
    formula: str
    model: nn.Module
    shapes: tuple[tuple[int, ...], ...]


def attend(x: Tensor, weight: Tensor) -> Tensor:
    """Attention of queries to keys that are a parameter."""
    return F.scaled_dot_product_attention(x, weight, weight)


def table_times_weight(x: Tensor, weight: Tensor) -> Tensor:
    """A product with something that no input changes."""
    return torch.matmul(x, torch.matmul(weight, weight))


PRODUCT = "outputs x summed length"
CASES = [
    Case("`nn.Conv1d`, `2d`, `3d`", "outputs x C_in / groups x kernel", nn.Conv2d(4, 6, 3, groups=2), ((1, 4, 9, 9),)),
    Case("`F.conv2d`", "the same", Function(F.conv2d, 6, 4, 3, 3), ((1, 4, 9, 9),)),
    Case(
        "`nn.ConvTranspose1d`, `2d`, `3d`",
        "inputs x C_out / groups x kernel",
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        ((1, 4, 5, 5),),
    ),
    Case("`nn.Linear`", "outputs x in", nn.Linear(7, 5), ((1, 7),)),
    Case("`F.linear`", "the same", Function(F.linear, 5, 7), ((1, 7),)),
    Case("`nn.Bilinear`", "outputs x (in1 x in2 + in2)", nn.Bilinear(3, 4, 5), ((1, 3), (1, 4))),
    Case("`torch.matmul`, `mm`, `bmm`", PRODUCT, Function(multiply, 4, 5), ((1, 3, 4),)),
    Case("`a @ b`", PRODUCT, Function(lambda x, w: x @ w, 4, 5), ((1, 3, 4),)),
    Case("product with a vector", PRODUCT, Function(torch.mv, 4), ((1, 4),)),
    Case("`torch.baddbmm`", PRODUCT, Function(lambda x, w: torch.baddbmm(x, x, w), 1, 4, 4), ((1, 4, 4),)),
    Case("`torch.einsum`", PRODUCT, Function(lambda x, w: torch.einsum("bij,jk->bik", x, w), 4, 5), ((1, 3, 4),)),
    Case("`einsum` without a sum", "0", Function(lambda x, w: torch.einsum("bi,j->bij", x, w), 4), ((1, 4),)),
    Case("`scaled_dot_product_attention`", "L x S x (E + E_v)", Function(attend, 1, 2, 7, 4), ((1, 2, 5, 4),)),
    Case(
        "`nn.MultiheadAttention`",
        "its projections and products",
        SelfAttention(),
        ((1, 5, 8),),
    ),
    Case("`nn.LSTM`, `GRU`, `RNN`", "steps x weights", nn.GRU(5, 4, batch_first=True), ((1, 6, 5),)),
    Case("`nn.LSTMCell`, `GRUCell`", "weights", nn.GRUCell(5, 4), ((1, 5),)),
    Case("`nn.BatchNorm2d`", "0 (element-wise)", nn.BatchNorm2d(4), ((1, 4, 5, 5),)),
    Case("`nn.LayerNorm`", "0 (element-wise)", nn.LayerNorm(4), ((1, 5, 4),)),
    Case("`nn.ReLU`, `GELU`", "0 (element-wise)", nn.ReLU(), ((1, 4, 5, 5),)),
    Case("`nn.AdaptiveAvgPool2d`", "0 (element-wise)", nn.AdaptiveAvgPool2d(1), ((1, 4, 5, 5),)),
    Case("`nn.Upsample`", "0 (element-wise)", nn.Upsample(scale_factor=2), ((1, 4, 5, 5),)),
    Case("what no input changes", "0 (done once)", Function(table_times_weight, 4, 4), ((1, 4),)),
    Case("a module used twice", "each time it runs", nn.Sequential(*[nn.Linear(4, 4, bias=False)] * 2), ((1, 4),)),
]


def operators() -> str:
    """The table of operators, and the reasons that its notes refer to."""
    checks = [cross_check(case.model.eval(), tuple(torch.randn(shape) for shape in case.shapes)) for case in CASES]
    notes: dict[str, int] = {}
    tools = [f"{tool.tool} {tool.version}".strip() for tool in checks[0].tools]
    lines = [_row("operator", "MACs in chainfx", "here", *tools), _row("---", "---", "--:", *["--:"] * len(tools))]
    for case, check in zip(CASES, checks, strict=True):
        cells = [_cell(tool, check, notes) for tool in check.tools]
        lines.append(_row(case.name, case.formula, f"{check.macs:,}", *cells))
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())])


def _cell(tool: ToolCheck, check: CrossCheck, notes: dict[str, int]) -> str:
    """The count of a tool, or ``=``, with the numbers of the reasons."""
    if tool.macs is None:
        return tool.note
    reasons = dict.fromkeys(difference.reason for difference in tool.differences)
    numbers = ", ".join(str(notes.setdefault(reason, len(notes) + 1)) for reason in reasons)
    return f"{'=' if tool.macs == check.macs else f'{tool.macs:,}'}{f' ({numbers})' if numbers else ''}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def networks() -> str:
    """The table of torchvision's networks: MACs of one sample, and what torch's counter makes of them."""
    lines = [
        _row("network", "input", "MACs", "torch's counter / 2", "difference"),
        _row("---", "---", "--:", "--:", "---"),
    ]
    reasons: dict[str, list[str]] = {}
    for name, model, example in _torchvision():
        check = cross_check(model, (example,))
        theirs, unknown = check.tools[0], len(check.uncounted)
        for difference in theirs.differences:
            reasons.setdefault(difference.reason, []).append(name)
        verdict = "none" if theirs.macs == check.macs else f"{theirs.macs - check.macs:+,}"  # type: ignore[operator]
        verdict += f", {unknown} uncounted" if unknown else ""
        size = " x ".join(map(str, example.shape[1:]))
        lines.append(_row(name, size, f"{check.macs:,}", f"{theirs.macs:,}", verdict))
        print(lines[-1], flush=True)
    return "\n".join([*lines, "", *(f"{', '.join(dict.fromkeys(named))}: {why}." for why, named in reasons.items())])


def _torchvision() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every classification, segmentation and video network, without data, and an input."""
    models = torchvision.models
    for module in (models, models.segmentation, models.video):
        for name in models.list_models(module=module):
            side = 299 if name == "inception_v3" else 112 if name.endswith(("r3d_18", "mc3_18", "2plus1d_18")) else 224
            shape = (1, 3, 16, side, side) if module is models.video else (1, 3, side, side)
            options = {"weights_backbone": None} if module is models.segmentation else {}
            options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            with _without_data(name):
                model = models.get_model(name, weights=None, **options)
            yield name, model.to("meta").eval(), torch.empty(shape, device="meta")


@contextlib.contextmanager
def _without_data(name: str) -> Iterator[None]:
    """On the meta device, but for RegNets, which compute their widths with tensors; nothing is initialised."""
    skip = mock.patch.multiple(nn.init, **{each: lambda tensor, *_, **__: tensor for each in INITIALISERS})
    with skip, torch.device("cpu" if name.startswith("regnet") else "meta"):
        yield


def _put(page: str, block: str, text: str) -> str:
    """The page with the text between the markers of a block replaced."""
    start, end = f"<!-- {block} -->\n", f"\n<!-- /{block} -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}{text}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Replace the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="store_true", help="also count every torchvision network (minutes)")
    chosen = parser.parse_args(arguments)
    PAGE.write_text(_put(PAGE.read_text(), "operators", operators()))
    if chosen.models:
        PAGE.write_text(_put(PAGE.read_text(), "networks", networks()))


if __name__ == "__main__":
    main()
