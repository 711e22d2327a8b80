"""What the driver of a study does for a thousand workers: how many cases a second, how much memory, how fast it lists.

Usage: .venv/bin/python benchmarks/bench_study_scheduling.py [--workers 1000] [--seeds 100]

Nothing is trained: a case "takes" a random time of a simulated clock, and the driver hands cases to whichever worker is
free next, as it does on a Ray cluster. Then as many records are written to a store, listed, found and analysed.
"""

import argparse
import heapq
import random
import resource
import tempfile
import time

from chainfx.study import CaseRecord, Design, Origin, Point, StudyStore, shipped_design, status_of
from chainfx.study.case_graph import CaseGraph


def scheduled(design: Design, workers: int) -> tuple[int, float, float]:
    """Cases handed out, seconds of the driver, and the share of the simulated time that workers were busy."""
    begin = time.perf_counter()
    graph, rng = CaseGraph(design.all_cases()), random.Random(0)
    free, running, clock, count, busy = workers, [], 0.0, 0, 0.0
    while True:
        while free and (case := graph.take()) is not None:
            seconds = rng.uniform(0.5, 2.0) * design.tuning.epochs
            heapq.heappush(running, (clock + seconds, count, case))
            free, count, busy = free - 1, count + 1, busy + seconds
        if not running:
            return count, time.perf_counter() - begin, busy / (clock * workers)
        clock, _, case = heapq.heappop(running)
        graph.finish(case)
        free += 1


def listed(design: Design, folder: str) -> dict[str, float]:
    """Seconds to write, list and find the records of all cases, and to say how far the study is."""
    store, origin = StudyStore.create(folder, design, "subject"), Origin("net", "x86_64 cpu", "0", "2")
    point, cases = Point(None, 0.9, 0.9, {"mac_bw_ba": 1e6, "strict": 1e6}), list(design.all_cases())
    found = {"records": float(len(cases))}

    def timed(name, work):
        begin = time.perf_counter()
        work()
        found[name] = time.perf_counter() - begin

    records = [CaseRecord.of(case, origin, stage="s", points=(point,), storage_bits=8, seconds=1.0) for case in cases]
    timed("write", lambda: [store.keep(record) for record in records])
    timed("list", store.records)
    timed("find", lambda: [store.find(case, origin) for case in cases[:1000]])
    timed("status", lambda: status_of(store))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    design = shipped_design("pairwise", seeds=options.seeds)
    count, seconds, busy = scheduled(design, options.workers)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{count} cases for {options.workers} workers: {count / seconds:,.0f} cases a second of the driver, ", end="")
    print(f"{memory:.0f} MiB more of memory, workers busy {busy:.0%} of the time")
    with tempfile.TemporaryDirectory() as folder:
        found = listed(design, folder)
    each = " ".join(f"{name} {value:.2f} s;" for name, value in found.items() if name != "records")
    print(f"a store of {found['records']:.0f} records: {each} (find: of 1,000)")


if __name__ == "__main__":
    main()
