"""Large buffers of the CPU ops, which are kept from call to call."""

from __future__ import annotations

import ctypes
import sys
import weakref

import numpy as np
import pytest
import torch

import lstm_fast
from tests.processes import check_in_child, resident
from tests.source_tree import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20

# Torch's own way to make a tensor of memory that is given.
keeps_saved = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


def train(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters())))


@pytest.fixture(autouse=True)
def nothing_kept():
    lstm_fast.empty_cache()
    yield
    lstm_fast.empty_cache()


def test_is_kept_and_given_back():
    # Blocks of more than 32 MiB, which the C library gives back by itself.
    module, x = lstm_fast.LSTM(1, 128), torch.randn(200, 128, 1)
    saved, workspace = 200 * 128 * 5 * 128 * 4, 200 * 128 * 4 * 128 * 4
    kept = workspace + (saved if keeps_saved else 0)
    for _ in range(3):
        train(module, x)
    with_it = resident()
    lstm_fast.empty_cache()
    assert with_it - resident() > 0.9 * kept
    lstm_fast.empty_cache()  # of nothing


PAGE_FAULTS = """
import resource, sys, torch, lstm_fast
dtype, batch_first = getattr(torch, sys.argv[1]), sys.argv[2] == "True"
module = lstm_fast.LSTM(32, 32, proj_size=1, batch_first=batch_first, dtype=dtype)
x = torch.randn(30, 256, 32, dtype=dtype)
calls = 20
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with torch.no_grad():
    for _ in range(3):
        module(x)
    before = page_faults()
    for _ in range(calls):
        module(x)
assert page_faults() - before < calls, page_faults() - before
"""


@pytest.mark.skipif(not keeps_saved, reason="torch 2.10 cannot")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_no_page_is_asked_for_again(dtype, batch_first):
    """Of workspaces and of what is made of the arguments; the results have a few pages alone. In a
    process of its own, as what others leave in the C library's memory decides about these."""
    run = run_python("-c", PAGE_FAULTS, dtype, str(batch_first))
    assert run.returncode == 0, run.stderr


def test_no_more_than_so_much_is_kept():
    module, x = lstm_fast.LSTM(1, 256), torch.randn(1000, 60, 1)
    saved = 60_000 * 5 * 256 * 4
    assert saved > 256 * MIB
    before = resident()
    output = module(x)[0]
    with_it = resident()
    assert with_it - before > 0.9 * saved
    del output
    assert with_it - resident() > 0.9 * saved


def test_a_buffer_too_large_to_keep_drives_out_no_other():
    library = ctypes.CDLL(str(lstm_fast._load._OPS))
    take, give = library.lstm_fast_take_memory, library.lstm_fast_give_memory
    take.argtypes, take.restype = [ctypes.c_int64], ctypes.c_void_p
    give.argtypes = [ctypes.c_void_p]
    kept = take(64 * MIB)  # of which the C library would keep nothing
    ctypes.memset(kept, 7, 1)
    give(kept)
    give(take(257 * MIB))
    again = take(64 * MIB)
    assert ctypes.string_at(again, 1) == b"\7"
    give(again)


@pytest.mark.skipif(not keeps_saved, reason="torch 2.10 cannot")
def test_is_not_used_by_two_at_once():
    """What several calls save stays theirs until the last that refers to it is gone."""
    module = lstm_fast.LSTM(1, 128)
    inputs = [torch.randn(50, 64, 1) for _ in range(3)]
    expected = [train(module, x) for x in inputs]
    losses = [module(x)[0].square().sum() for x in inputs]
    for _ in range(2):
        for loss, grads in zip(losses, expected, strict=True):
            got = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
            for g, e in zip(got, grads, strict=True):
                assert torch.equal(g, e)


def test_is_given_back_with_the_graph():
    module, x = lstm_fast.LSTM(1, 128), torch.randn(50, 64, 1)
    output = module(x)[0]
    ended = weakref.ref(output)
    del output
    assert ended() is None
    before = resident()
    for _ in range(20):  # 33 MB each
        module(x)
    assert resident() - before < 100 * MIB


def test_in_a_forked_child():
    """Whose parent has several threads: nothing of torch's own may be large enough to need them."""
    module, x = lstm_fast.LSTM(1, 128), torch.randn(50, 64, 1)

    def train_by_state() -> list[np.ndarray]:
        grads = torch.autograd.grad(module(x)[1][0].sum(), list(module.parameters()))
        return [grad.numpy() for grad in grads]

    expected = train_by_state()

    def check() -> None:
        for got, e in zip(train_by_state(), expected, strict=True):
            np.testing.assert_allclose(got, e, rtol=1e-5, atol=1e-8)

    check_in_child(check)
