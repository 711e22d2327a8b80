from chainfx.deploy import Lowered, Lowering


def test_each_operation_has_its_engine_and_reason():
    rows = (
        Lowered("conv1", "conv2d", "int8", "with BatchNorm2d, ReLU"),
        Lowered("pool", "AdaptiveAvgPool2d", "float", "it has no integer form"),
    )
    assert [line.rstrip() for line in str(Lowering("AVX2", rows)).splitlines()] == [
        "runs on int8 (AVX2)",
        "",
        " operation   operator            engine   reason",
        " ───────────────────────────────────────────────────────────────",
        " conv1       conv2d              int8     with BatchNorm2d, ReLU",
        " pool        AdaptiveAvgPool2d   float    it has no integer form",
    ]
    assert Lowering("AVX2", rows).engine == "int8" and Lowering("AVX2", rows[1:]).engine == "float"
    assert Lowering("AVX2", rows).to_dict()["rows"][1]["reason"] == "it has no integer form"
