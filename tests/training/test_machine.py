"""Where training runs: what accelerate and torch say is asked, not guessed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chainfx.training import machine

CPU = torch.device("cpu")


def state(count=1, index=0, device=CPU):
    return SimpleNamespace(device=device, num_processes=count, process_index=index, is_main_process=index == 0)


@pytest.mark.parametrize(("avx512", "amx", "native"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_a_cpu_computes_bfloat16_with_either_of_two_instruction_sets(monkeypatch, avx512, amx, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert machine.computes_bfloat16(CPU) is native


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_does_not_count(monkeypatch, native):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or native)
    assert machine.computes_bfloat16(torch.device("cuda")) is native
    assert asked == [{"including_emulation": False}]


def test_another_device_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert not machine.computes_bfloat16(torch.device("meta"))


def test_the_first_process_reports_and_the_device_is_its_own(monkeypatch):
    monkeypatch.setattr(machine, "_state", lambda: state(2, 1, torch.device("meta")))
    assert not machine.is_first_process() and machine.this_device() == torch.device("meta")
    monkeypatch.setattr(machine, "_state", lambda: state(2, 0))
    assert machine.is_first_process() and machine.this_device() == CPU


def test_one_process_trains_the_model_itself_and_several_average_their_gradients(monkeypatch):
    model, made = nn.Linear(2, 2), []
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda *args, **options: made.append((args, options)))
    monkeypatch.setattr(machine, "_state", lambda: state(1))
    assert machine.shared(model, CPU) is model and made == []
    monkeypatch.setattr(machine, "_state", lambda: state(2))
    machine.shared(model, CPU)
    machine.shared(model, torch.device("cuda", 1))
    assert made == [((model,), {"device_ids": None}), ((model,), {"device_ids": [torch.device("cuda", 1)]})]


def test_several_processes_take_the_statistics_of_the_first(monkeypatch):
    model, sent = nn.BatchNorm1d(3), []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sent.append((tensor.shape, source)))
    monkeypatch.setattr(machine, "_state", lambda: state(1))
    machine.same_buffers(model)
    assert sent == []
    monkeypatch.setattr(machine, "_state", lambda: state(2))
    machine.same_buffers(model)
    assert sent == [(buffer.shape, 0) for buffer in model.buffers()] and len(sent) == 3


def test_what_several_processes_find_and_remember_is_that_of_all(monkeypatch):
    rows = torch.arange(6.0).view(3, 2)
    monkeypatch.setattr(machine, "_state", lambda: state(1))
    assert machine.gathered(rows) is rows and machine.averaged(rows) is rows and machine.all_have(True)

    def all_gather(found, mine):
        """The other process has one row, of sevens."""
        found[0].copy_(mine)
        found[1].copy_(torch.tensor(1) if mine.dim() == 0 else torch.full_like(mine, 7))

    def all_reduce(tensor, operation=torch.distributed.ReduceOp.SUM):
        """The other process found nothing."""
        return tensor.zero_() if operation == torch.distributed.ReduceOp.MIN else tensor.add_(1)

    monkeypatch.setattr(machine, "_state", lambda: state(2))
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert machine.gathered(rows).tolist() == [[0, 1], [2, 3], [4, 5], [7, 7]]
    assert machine.averaged(torch.tensor(2.0)) == 1.5
    assert not machine.all_have(True)


@pytest.mark.parametrize(
    ("told", "accelerator", "cpu"), [("1", True, True), ("0", True, False), ("0", False, True), ("1", False, True)]
)
def test_the_cpu_is_taken_where_it_is_asked_for_or_all_there_is(monkeypatch, told, accelerator, cpu):
    asked = []
    monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: asked.append(cpu) or state())
    assert machine.this_device() == CPU
    assert asked == [cpu]


def test_a_batch_goes_to_the_device_with_its_targets():
    inputs, targets = machine.placed(
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)), torch.zeros(2)), torch.device("meta")
    )
    assert [tuple(tensor.shape) for tensor in inputs] == [(2, 3, 4, 4), (2, 5)]
    assert all(tensor.is_meta for tensor in (*inputs, targets))


def test_nothing_waits_until_a_batch_is_on_the_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **options: asked.append(options) or tensor)
    machine.placed(((torch.zeros(2, 3),), torch.zeros(2)), CPU)
    assert [options["non_blocking"] for options in asked] == [True, True]
