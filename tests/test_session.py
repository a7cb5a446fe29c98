"""`InferenceSession` against the module that it was made of."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import lstm_fast
from tests.processes import check_in_child

_State = tuple[Tensor, Tensor]


def run(
    session: lstm_fast.InferenceSession, x: Tensor, hx: _State | None = None
) -> tuple[Tensor, _State]:
    state = None if hx is None else (hx[0].numpy(), hx[1].numpy())
    output, (h, c) = session.run(x.numpy(), state)
    return torch.from_numpy(output), (torch.from_numpy(h), torch.from_numpy(c))


def assert_same(got: tuple[Tensor, _State], expected: tuple[Tensor, _State], exact: bool) -> None:
    for g, e in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        if exact:
            torch.testing.assert_close(g, e, rtol=0, atol=0)
        else:
            torch.testing.assert_close(g, e)


def compare(module: torch.nn.LSTM, x: Tensor, hx: _State | None, exact: bool) -> None:
    session = lstm_fast.InferenceSession(module)
    with torch.no_grad():
        expected = module(x, hx)
    for _ in range(2):  # packs, and has packed
        assert_same(run(session, x, hx), expected, exact)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("input", "hidden", "options"),
    [
        ((1, 1, 3), 20, {}),
        ((1, 50, 3), 33, {"num_layers": 2}),
        ((9, 1, 40), 70, {"num_layers": 2}),
        ((20, 4, 5), 200, {"num_layers": 3, "bias": False}),
        ((7, 33, 2), 25, {"bidirectional": True, "num_layers": 2}),
        ((5, 40, 8), 64, {"proj_size": 9, "bidirectional": True}),
        ((3, 700, 8), 32, {}),
    ],
)
def test_is_the_module(
    input: tuple[int, int, int],
    hidden: int,
    options: dict[str, Any],
    dtype: torch.dtype,
    threads: int,
):
    torch.set_num_threads(threads)
    module = lstm_fast.LSTM(input[-1], hidden, dtype=dtype, **options)
    runs, (T, B, _) = module.num_layers * (1 + module.bidirectional), input
    x = torch.randn(*input, dtype=dtype)
    h = torch.randn(runs, B, module.proj_size or hidden, dtype=dtype)
    c = torch.randn(runs, B, hidden, dtype=dtype)
    # Of single steps, and of a few, a session packs the weights where a call would not.
    compare(module, x, None, exact=T > 1)
    compare(module, x, (h, c), exact=T > 1)


@pytest.mark.parametrize("batch_first", [False, True])
def test_axes(batch_first: bool):
    module = lstm_fast.LSTM(3, 20, num_layers=2, batch_first=batch_first)
    x, state = torch.randn(4, 17, 3), (torch.randn(2, 20), torch.randn(2, 20))
    compare(module, x, None, exact=True)
    compare(module, x.transpose(0, 1), None, exact=True)
    compare(module, torch.randn(4, 17, 6)[..., ::2], None, exact=True)
    compare(module, x[0], None, exact=True)
    compare(module, x[0], state, exact=True)
    compare(module, x[:0] if batch_first else x[:, :0], None, exact=True)


def test_any_batch_and_length_in_turn():
    module = lstm_fast.LSTM(8, 64, num_layers=2)
    session = lstm_fast.InferenceSession(module)
    for T, B in ((3, 2), (50, 40), (1, 1), (2, 300), (1, 64), (50, 1)):
        x = torch.randn(T, B, 8)
        with torch.no_grad():
            assert_same(run(session, x), module(x), exact=False)


@pytest.mark.usefixtures("deterministic")
def test_bits_depend_on_neither_rows_nor_threads():
    module = torch.nn.LSTM(4, 70, num_layers=2)
    session = lstm_fast.InferenceSession(module)
    x = torch.randn(7, 150, 4)
    together = run(session, x)[0]
    torch.set_num_threads(2)
    assert torch.equal(run(session, x)[0], together)
    assert torch.equal(run(session, x[:, 17:18])[0], together[:, 17:18])


@pytest.mark.parametrize("T", [1, 7])
def test_the_weights_are_those_of_its_making(T: int):
    module = torch.nn.LSTM(4, 70)
    x = torch.randn(T, 3, 4)
    session = lstm_fast.InferenceSession(module)
    with torch.no_grad():
        expected = module(x)
        for p in module.parameters():
            p.mul_(2)
    assert_same(run(session, x), expected, exact=False)
    del module
    assert_same(run(session, x), expected, exact=False)


def test_dropout_and_gradients_are_left_out():
    module = lstm_fast.LSTM(3, 20, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    got = run(lstm_fast.InferenceSession(module), x)
    with torch.no_grad():
        assert_same(got, module.eval()(x), exact=True)


def test_numbers_too_large_for_a_matrix_unit():
    module = torch.nn.LSTM(64, 70)
    x = torch.randn(7, 80, 64)
    x[2, 10, 3], x[4, 20, 1] = 1e30, torch.nan
    with torch.no_grad():
        for _ in range(2):
            output, _ = run(lstm_fast.InferenceSession(module), x)
            torch.testing.assert_close(output, module(x)[0], equal_nan=True)
            module.get_parameter("weight_hh_l0")[0, 0] = 1e30


def test_python_threads_share_a_session():
    module = lstm_fast.LSTM(8, 64, num_layers=2)
    session = lstm_fast.InferenceSession(module)
    inputs = [torch.randn(20, B, 8) for B in (1, 2, 30, 40, 50, 60, 70, 200)] * 3
    expected = [run(session, x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, e in zip(pool.map(lambda x: run(session, x), inputs), expected, strict=True):
            assert_same(got, e, exact=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_computes():
    torch.set_num_threads(2)
    session = lstm_fast.InferenceSession(lstm_fast.LSTM(8, 64))
    x = numpy.ones((50, 200, 8), "float32")
    expected, _ = session.run(x)
    check_in_child(lambda: assert_allclose(session.run(x)[0], expected, 1e-5, 1e-8))


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (torch.nn.GRU(2, 3), TypeError, "module must be a torch.nn.LSTM, got GRU"),
        (torch.nn.LSTM(2, 3, dtype=torch.bfloat16), ValueError, "float32 or float64"),
        (torch.nn.LSTM(2, 3, device="meta"), ValueError, "on the CPU"),
        (lstm_fast.LSTM(2, 3, zoneout=0.1), ValueError, "no options beyond .* zoneout"),
    ],
)
def test_what_has_no_session(module: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        lstm_fast.InferenceSession(module)


def test_wrong_arguments():
    session = lstm_fast.InferenceSession(torch.nn.LSTM(2, 3, num_layers=2))
    x, h = numpy.zeros((5, 4, 2), "float32"), numpy.zeros((2, 4, 3), "float32")
    calls: list[tuple[Any, Any, type[Exception], str]] = [
        (
            x.astype("float64"),
            None,
            TypeError,
            "input must be a NumPy array of float32, got one of",
        ),
        (torch.zeros(5, 4, 2), None, TypeError, "input must be a NumPy array of .* got Tensor"),
        (x, (h, h.tolist()), TypeError, r"hx\[1\] must be a NumPy array of float32, got list"),
        (x, h, TypeError, "hx must be a pair of arrays"),
        (x, (h, h, h), TypeError, "hx must be a pair of arrays"),
        (x[0, 0], None, ValueError, "Expected input to be 2D or 3D, got 1D"),
        (x[..., :1], None, RuntimeError, "input_size. Expected 2, got 1"),
        (x[:0], None, RuntimeError, "Expected sequence length to be larger than 0"),
        (x, (h, h[:1]), RuntimeError, r"hidden\[1\] size \[2, 4, 3\], got \[1, 4, 3\]"),
        (x, (h[0], h[0]), RuntimeError, "hx and cx should also be 3-D but got"),
        (x[0], (h, h), RuntimeError, "hx and cx should also be 2-D but got"),
    ]
    for input, hx, error, message in calls:
        with pytest.raises(error, match=message):
            session.run(input, hx)
    assert session.run(x, (h, h))[0].shape == (5, 4, 3)


def test_an_input_beyond_memory():
    session = lstm_fast.InferenceSession(torch.nn.LSTM(2, 3))
    with pytest.raises(MemoryError):
        session.run(numpy.broadcast_to(numpy.zeros(2, "float32"), (2**20, 2**20, 2)))
