from chainfx.deploy import BenchReport, Latency


def test_times_stand_side_by_side_by_batch_size():
    latencies = tuple(
        Latency.of(name, batch, [seconds])
        for name, seconds in (("int8", 0.001), ("against compiled", 0.0025))
        for batch in (1, 64)
    )
    report = BenchReport({"instructions": "AVX2", "threads": "1"}, ("int8", "against compiled"), latencies)
    assert str(report).splitlines() == [
        "instructions: AVX2, threads: 1",
        "",
        " batch   network            p50 ms    95 % interval   p90 ms   p99 ms   samples/s   faster",
        " ─────────────────────────────────────────────────────────────────────────────────────────",
        " 1       int8                1.000   1.000 to 1.000    1.000    1.000       1,000    2.50x",
        " 1       against compiled    2.500   2.500 to 2.500    2.500    2.500         400    1.00x",
        " 64      int8                1.000   1.000 to 1.000    1.000    1.000      64,000    2.50x",
        " 64      against compiled    2.500   2.500 to 2.500    2.500    2.500      25,600    1.00x",
    ]
