"""Random numbers that a seed and a purpose determine, apart from everybody else's."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["derived_generator", "seeded"]


def derived_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that the seed and the purpose alone determine; the global random state is neither read nor moved.

    Different purposes give independent numbers, so that one more draw in one place changes nothing in another.

    >>> derived_generator(0, "exit1").initial_seed() == derived_generator(0, "exit1").initial_seed()
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """The global generators of the CPU and of some CUDA devices start at a seed, and are given back as they were.

    Those of other devices are neither read nor moved: ``torch.manual_seed`` would seed every device, of which
    ``fork_rng`` gives back none but the named ones, and on a machine without a GPU it notes the whole call stack each
    time, for a GPU that may come. Devices that are no CUDA devices are passed over.

    >>> torch.manual_seed(1).initial_seed()
    1
    >>> with seeded(0):
    ...     torch.initial_seed()
    0
    >>> torch.initial_seed()
    1
    """
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
