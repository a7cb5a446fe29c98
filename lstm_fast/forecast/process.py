"""What the whole process has once, which one at a time may change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of one thread as often as it likes, as a callback may train too.
_TURN = threading.RLock()


@contextmanager
def own_random_state() -> Iterator[None]:
    """The random state of the process is left as it was. Others of these, in other threads, wait:
    they would draw from it too, and put back what is not theirs.
    """
    with _TURN, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Within `own_random_state`: random numbers of another type would be other ones."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
