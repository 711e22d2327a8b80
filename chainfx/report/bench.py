"""Times of networks side by side: percentiles, throughput, and how many times faster than the last one."""

from chainfx.deploy import BenchReport
from chainfx.report.text_tables import lines_of, plain_table

__all__ = ["bench_text"]

_HEADINGS = ("batch", "network", "p50 ms", "95 % interval", "p90 ms", "p99 ms", "samples/s", "faster")


def bench_text(report: BenchReport) -> str:
    """One row for each batch size and network; the last column compares medians with those of the last network."""
    heading = ", ".join(f"{name}: {fact}" for name, fact in report.facts.items())
    table = plain_table(heading, _HEADINGS, texts=2)
    for each in sorted(report.latencies, key=lambda latency: latency.batch):
        table.add_row(
            *(str(each.batch), each.network, _milliseconds(each.p50)),
            f"{_milliseconds(each.low)} to {_milliseconds(each.high)}",
            *(_milliseconds(each.p90), _milliseconds(each.p99), f"{each.throughput:,.0f}"),
            f"{report.speedup(each.network, each.batch):.2f}x",
        )
    return "\n".join(lines_of(table)).strip("\n")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"
