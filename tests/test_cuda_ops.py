"""The ops that run on CUDA devices, over the emulated kernels: what lies between tensors and
kernels, which needs no GPU to be wrong."""

from __future__ import annotations

import ctypes
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lstm_fast import LSTM, LSTMCell, _load, ops
from tests.sample_inputs import (
    CONFIGS,
    DTYPES,
    HALVES,
    Config,
    assert_close,
    forward_and_gradients,
    in_float64,
    tolerance,
)


@pytest.fixture(autouse=True)
def calls(emulated_ops: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts the ops over the emulated kernels in the place of the CPU's; the calls of forward."""
    made: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return emulated_ops.lstm.default(*args, **kwargs)

    for name in ("direct_forward", "direct_backward"):
        monkeypatch.setattr(ops._direct, name, lambda *args: None)
    monkeypatch.setattr(ops, "_lstm", forward)
    monkeypatch.setattr(ops, "_lstm_backward", emulated_ops.lstm_backward.default)
    return made


def cuda_tolerance(config: Config) -> float:
    """Halves are rounded where they enter a product, too: h and the gradients of gates at each
    step, in random directions, so that a sum of them errs no more than its terms."""
    return tolerance(config) + (torch.finfo(config.dtype).eps if config.dtype in HALVES else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_values_and_gradients(config: Config, dtype: torch.dtype, calls: list[Any]):
    config = replace(config, dtype=dtype)
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    got = forward_and_gradients(module, config, input, hx)
    expected = in_float64(forward_and_gradients, module, config, input, hx)
    assert len(calls) == 1
    assert_close(got, expected, config, cuda_tolerance(config))
    assert all(result.dtype == dtype for result in got.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_recomputed_gates(config: Config, dtype: torch.dtype, calls: list[Any]):
    config = replace(config, dtype=dtype)
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    module.recompute_gates = True
    got = forward_and_gradients(module, config, input, hx)
    expected = in_float64(forward_and_gradients, module, config, input, hx)
    assert calls[0][-1] is True
    assert_close(got, expected, config, cuda_tolerance(config))


def test_cell():
    ours, theirs = LSTMCell(3, 5), torch.nn.LSTMCell(3, 5)
    theirs.load_state_dict(ours.state_dict())
    x, hx = torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 5))
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    torch.testing.assert_close(ours(x), theirs(x))


def test_parts_of_a_cell(monkeypatch: pytest.MonkeyPatch, calls: list[Any]):
    """Those of torch's cell, whatever those of an LSTM, forward and backward."""
    monkeypatch.setattr(ops, "_parts", lambda input, cell=False: 3 if cell else 2)
    backward, parts_of_backward = ops._lstm_backward, []

    def recorded(*args: Any) -> Any:
        parts_of_backward.append(args[16])
        return backward(*args)

    monkeypatch.setattr(ops, "_lstm_backward", recorded)
    ours, x = LSTMCell(3, 5), torch.randn(2, 3)
    ours(x)[0].sum().backward()
    ours.requires_grad_(False)(x)
    LSTM(3, 5)(x)
    assert [args[9] for args in calls] == [3, 3, 2]
    assert parts_of_backward == [3]


def test_out_of_memory_has_torchs_type(monkeypatch: pytest.MonkeyPatch):
    """Which those look for who try a smaller batch."""
    said = "CUDA out of memory. Tried to allocate 20.00 GiB."

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(said)

    module, x = LSTM(3, 5), torch.randn(4, 2, 3)
    loss = module(x)[0].sum()
    monkeypatch.setattr(ops, "_lstm_backward", fails)
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(said)):
        loss.backward()
    monkeypatch.setattr(ops, "_lstm", fails)
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(said)):
        module(x)
    said = "another error"
    with pytest.raises(RuntimeError, match=said) as raised:
        module(x)
    assert raised.type is RuntimeError


def test_the_capability_is_that_of_the_kernels(emulated_library: Path):
    why = ctypes.create_string_buffer(8)
    library = ctypes.CDLL(str(emulated_library))
    assert library.lstm_fast_cuda_capability(0, why, ctypes.c_size_t(8)) == 90
    assert not why.value


def test_a_device_that_runs_no_kernel_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    class Library:
        def __init__(self, path: str) -> None:
            pass

        def lstm_fast_cuda_capability(self, device: int, why: Any, size: Any) -> int:
            why.value = b"CUDA error: no kernel image"
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Library)
    _load.cuda_capability.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"on cuda:1, .* CUDA error: no kernel image"):
            assert not ops._runs_on_cuda(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not ops._runs_on_cuda(1)
    finally:
        _load.cuda_capability.cache_clear()


def test_strided_and_empty_inputs():
    ours, theirs = LSTM(4, 5, batch_first=True), torch.nn.LSTM(4, 5, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(6, 3, 8)[..., ::2], torch.randn(0, 3, 4)):
        results = []
        for module in (ours, theirs):
            leaf = x.clone().requires_grad_()
            output, state = module(leaf)
            grads = torch.autograd.grad(output.sum(), [leaf, *module.parameters()])
            results.append((output, state, grads))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("wanted", ["input", "hx", "weight_hh_l0"])
def test_gradients_of_single_arguments(wanted: str):
    config = replace(CONFIGS["packed_deep"], dtype=torch.float64)
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    assert hx is not None
    module.requires_grad_(wanted == "weight_hh_l0")
    leaf: Any = {"input": input, "hx": hx[0], "weight_hh_l0": module.weight_hh_l0}[wanted]
    leaf.requires_grad_()
    (grad,) = torch.autograd.grad(module(config.pack(input), hx)[1][1].sum(), leaf)
    theirs = torch.nn.LSTM(**config.options, dtype=config.dtype)
    theirs.load_state_dict(module.state_dict())
    leaf = theirs.weight_hh_l0 if wanted == "weight_hh_l0" else leaf
    (expected,) = torch.autograd.grad(theirs(config.pack(input), hx)[1][1].sum(), leaf)
    torch.testing.assert_close(grad, expected)


def test_wrong_arguments_are_named(emulated_ops: Any):
    args = list(CONFIGS["plain"].op_arguments())
    args[2] = args[2].double()
    with pytest.raises(RuntimeError, match="h0 must have the dtype of input"):
        emulated_ops.lstm(*args, False)
    args = list(CONFIGS["plain"].op_arguments())
    args[0] = args[0][..., :3]
    with pytest.raises(RuntimeError, match="Expected weight_ih_l0 size"):
        emulated_ops.lstm(*args, False)
