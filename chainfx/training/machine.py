"""Where training runs: device, native precision and processes, as accelerate sets them up."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from chainfx.ir.graph import ordinary
from chainfx.training.data import Batch

__all__ = [
    "all_have",
    "averaged",
    "computes_bfloat16",
    "free_memory",
    "gathered",
    "is_first_process",
    "own_places",
    "own_share",
    "placed",
    "process_count",
    "process_index",
    "processes",
    "same_buffers",
    "same_gradients",
    "shared",
    "this_device",
]


def this_device() -> torch.device:
    """The device of this process, as accelerate chooses it."""
    device: torch.device = _state().device
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is native: emulated on a CPU it is ten times slower than float32, not twice as fast."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; images in channels-last memory where that is faster and safe, which a CPU is not.

    oneDNN 3.12 (torch 2.14.1) writes past its workspace in the backward pass of a channels-last 1x1 convolution with
    stride 2 and fewer channels than a block (oneDNN issue 6035), which pruned networks have: on AVX2
    ``Conv2d(6, 12, 1, 2)`` on (64, 6, 8, 8) crashes.
    """
    inputs, targets = batch
    images_last = torch.channels_last if device.type == "cuda" else torch.preserve_format
    layouts = [images_last if tensor.dim() == 4 else torch.preserve_format for tensor in inputs]
    moved = (
        tensor.to(device, memory_format=layout, non_blocking=True)
        for tensor, layout in zip(inputs, layouts, strict=True)
    )
    there = tree_map_only(Tensor, lambda tensor: ordinary(tensor.to(device, non_blocking=True)), targets)
    return tuple(map(ordinary, moved)), there


def _state() -> Any:
    """accelerate's view of this process; one object however often it is asked for.

    On its own it takes several processes for a group only where there is an accelerator, or when told to use the CPU.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def is_first_process() -> bool:
    """Whether this process is the one that reports."""
    return bool(_state().is_main_process)


def process_count() -> int:
    """How many processes share each batch."""
    return int(_state().num_processes)


def process_index() -> int:
    """Which of the processes this is, from 0."""
    return int(_state().process_index)


def processes() -> tuple[int, int]:
    """Which of the processes this is, and how many there are."""
    return process_index(), process_count()


def free_memory(device: torch.device) -> int | None:
    """The bytes that are free on a GPU; ``None`` elsewhere."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def shared(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as it is in one process; in several, wrapped so that their gradients are averaged."""
    if process_count() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def own_share(batch: Batch) -> Batch:
    """Every n-th sample of a batch in one of n processes; a batch of fewer than n samples stays whole everywhere."""
    index, count = processes()
    inputs, targets = batch
    if len(inputs[0]) < count:
        return batch
    mine = slice(index, None, count)
    return tuple(tensor[mine] for tensor in inputs), tree_map_only(Tensor, lambda tensor: tensor[mine], targets)


def own_places(places: Tensor) -> Tensor:
    """Of the places of a batch those that are this process's, as :func:`own_share` has it."""
    index, count = processes()
    return places if len(places) < count else places[index::count]


def all_have(found: bool) -> bool:
    """Whether every process found something, so that all of them go the same way."""
    if process_count() == 1:
        return found
    answer = torch.tensor(int(found), device=this_device())
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN)
    return bool(answer)


def averaged(value: Tensor) -> Tensor:
    """The mean over all processes of a tensor, in place."""
    if process_count() > 1:
        torch.distributed.all_reduce(value)
        value /= process_count()
    return value


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; they may have different numbers of them."""
    count = process_count()
    if count == 1:
        return rows
    sizes = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(count)]
    torch.distributed.all_gather(sizes, torch.tensor(len(rows), device=rows.device))
    numbers = torch.stack(sizes).tolist()
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]))
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in range(count)]
    torch.distributed.all_gather(found, padded)
    return torch.cat([each[:number] for each, number in zip(found, numbers, strict=True)])


def same_gradients(model: nn.Module) -> None:
    """Average the gradients of a module that no wrapper averages, over all processes."""
    if process_count() > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                averaged(parameter.grad)


def same_buffers(model: nn.Module) -> None:
    """Give every process the BatchNorm statistics of the first, so that all measure the same accuracy."""
    if process_count() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
