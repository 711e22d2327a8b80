import pytest
import torch

from chainfx.deploy import Machine
from chainfx.deploy.integers.machine import _found

WIDE = Machine("AVX-512 VNNI", kernels=True, saturates=False)
NARROW = Machine("AVX2", kernels=True, saturates=True)


@pytest.mark.parametrize(
    ("greatest_input", "greatest_weight", "fits"),
    [(255, 63, True), (255, 64, True), (255, 65, False), (127, 127, True), (254, 127, False), (128, 127, True)],
)
def test_two_products_must_fit_into_16_bits_without_vnni(greatest_input, greatest_weight, fits):
    assert (NARROW.obstacle(greatest_input, greatest_weight) == "") is fits
    assert WIDE.obstacle(greatest_input, greatest_weight) == ""


def test_the_reason_names_the_alternatives():
    assert NARROW.obstacle(255, 127) == (
        "sums of two products of input codes up to 255 and weight codes up to 127 do not fit into 16 bits, which AVX2 "
        "without VNNI adds them in; quantize its input to 7 bits, or its weight to 7 bits with scheme='uniform'"
    )
    assert Machine("NEON", kernels=False, saturates=True).obstacle(1, 1) == (
        "this machine (NEON) has no integer kernels of oneDNN"
    )


@pytest.mark.parametrize(
    ("capability", "vnni", "expected"),
    [
        ("AVX2", True, ("AVX2", True, True, False)),
        ("AVX512", False, ("AVX-512", True, True, False)),
        ("AVX512", True, ("AVX-512 VNNI", True, False, False)),
        ("DEFAULT", True, ("DEFAULT", False, True, False)),
    ],
)
def test_the_processor_is_read_from_what_torch_says(capability, vnni, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": vnni}, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert _found.__wrapped__() == expected


def test_a_processor_whose_torch_cannot_say_counts_as_one_without_vnni(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    assert _found.__wrapped__() == ("AVX-512", True, True, True)
