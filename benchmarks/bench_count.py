"""From ``nn.Module`` to report, side by side with fvcore, ptflops and calflops: ``make bench-count``.

All tools count the same network in the same process on one thread, in turn, ``--repetitions`` times after a round that
does not count; the median is what stands in the table. Each is called as its documentation says, silently. A ratio
above 1 is how many times longer a tool takes than chainfx; ``fastest`` is the quickest of the others on that network,
either backend of ptflops included (``pytorch`` is its default). What the imports of all five left on the heap is
frozen (:func:`gc.freeze`), and the garbage of one is collected before the next one's turn, so each pays for its own
alone; the collector itself stays on. Memory is what the first count in a fresh process adds at its peak to what the
process with the network in it holds, imports of the counter included.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import chainfx

NETWORKS = ("resnet50", "vit_b_16", "vit_l_16", "convnext_base", "swin_b", "densenet201", "mobilenet_v2")
SHAPE = (1, 3, 224, 224)

Counter = Callable[[nn.Module], float]


def network(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()  # type: ignore[no-any-return]


def counters() -> dict[str, Counter]:
    """MACs of a network by each tool."""
    image = torch.zeros(SHAPE)
    return {
        "chainfx": lambda model: chainfx.count(model, image).macs,
        "fvcore": _fvcore(image),
        "ptflops": _ptflops("pytorch"),
        "ptflops aten": _ptflops("aten"),
        "calflops": _calflops(),
    }


def _fvcore(image: torch.Tensor) -> Counter:
    from fvcore.nn import FlopCountAnalysis

    def count(model: nn.Module) -> float:
        analysis = FlopCountAnalysis(model, image)
        return float(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())

    return count


def _ptflops(backend: str) -> Counter:
    from ptflops import get_model_complexity_info

    def count(model: nn.Module) -> float:
        options = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
        return float(get_model_complexity_info(model, SHAPE[1:], backend=backend, **options)[0])

    return count


def _calflops() -> Counter:
    """Without the package's ``__init__``, which wants ``transformers`` for another function than this one."""
    specification = importlib.util.find_spec("calflops")
    if specification is None:
        raise ModuleNotFoundError("calflops is not installed; run `make bench-count` in the project's environment.")
    sys.modules.setdefault("calflops", importlib.util.module_from_spec(specification))
    from calflops.flops_counter import calculate_flops

    def count(model: nn.Module) -> float:
        return float(calculate_flops(model, SHAPE, output_as_string=False, print_results=False)[1])

    return count


def seconds_of(model: nn.Module, tools: dict[str, Counter], repetitions: int) -> dict[str, float]:
    """Median seconds by tool; the tools take turns."""
    taken: dict[str, list[float]] = {name: [] for name in tools}
    gc.collect()
    gc.freeze()
    for _ in range(repetitions + 1):
        for name, count in tools.items():
            gc.collect()
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                count(model)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def added_memory(name: str) -> float:
    """MB that the first count adds at its peak, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_added_memory(name: str) -> None:
    model, image = network(name), torch.zeros(SHAPE)
    before = _memory("VmRSS")
    chainfx.count(model, image)
    print((_memory("VmHWM") - before) / 1000)


def _memory(what: str) -> int:
    """kB that this process holds (VmRSS), or held at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0])


def table(networks: list[str], repetitions: int) -> None:
    """Print a line for each network, and the geometric means."""
    tools = counters()
    others = [name for name in tools if name != "chainfx"]
    columns = [*(f"{name} / x" for name in others), "fastest"]
    print(f"{'network':<15}{'chainfx':>10}" + "".join(f"{column:>20}" for column in columns) + f"{'added MB':>10}")
    ratios: dict[str, list[float]] = {name: [] for name in (*others, "fastest")}
    for each in networks:
        seconds = seconds_of(network(each), tools, repetitions)
        own = seconds["chainfx"]
        line = f"{each:<15}{own * 1000:>7.1f} ms"
        for name in others:
            ratios[name].append(seconds[name] / own)
            line += f"{seconds[name] * 1000:>9.0f} ms {ratios[name][-1]:>6.1f}x"
        ratios["fastest"].append(min(seconds[name] for name in others) / own)
        print(f"{line}{ratios['fastest'][-1]:>19.1f}x{added_memory(each):>10.0f}", flush=True)
    means = [math.exp(statistics.fmean(map(math.log, ratios[name]))) for name in (*others, "fastest")]
    print(f"{'geometric mean':<25}" + "".join(f"{mean:>19.1f}x" for mean in means))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of counting, side by side with other tools.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="names in torchvision.models")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory-of", metavar="NETWORK", help="only print the MB that counting this network adds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.memory_of:
        _print_added_memory(options.memory_of)
    else:
        table(options.networks, options.repetitions)


if __name__ == "__main__":
    main()
