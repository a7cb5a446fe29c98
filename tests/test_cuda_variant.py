"""The CUDA kernels of layers with options, emulated on the CPU, below the op and the modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lstm_fast import LSTM, reference
from lstm_fast import variant as variant_module
from lstm_fast.variant import variant
from tests.cuda import emulation
from tests.test_options import OPTIONS, STACK, B, H, I, T, draw, make, parts
from tests.test_variant import (
    CASES,
    Case,
    all_cases,
    assert_close,
    expected_results,
    leaves_of,
    tolerance,
)


@pytest.fixture
def calls(emulated_ops: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts the ops over the emulated kernels in the place of the CPU's; the calls of forward."""
    made: list[Any] = []

    def forward(*args: Any) -> Any:
        made.append(args)
        return emulated_ops.variant.default(*args)

    monkeypatch.setattr(variant_module, "_variant", forward)
    monkeypatch.setattr(variant_module, "_variant_backward", emulated_ops.variant_backward.default)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@all_cases
def test_values_and_gradients(case: Case, dtype: torch.dtype, calls: list[Any]):
    case = replace(case, dtype=dtype)
    args = case.arguments()
    results, coefficients, grads = expected_results(args)
    with torch.no_grad():
        inferred = variant(*args)
    leaves = [t.requires_grad_() for t in leaves_of(args)]
    got = variant(*args)
    assert len(calls) == 2
    torch.testing.assert_close(inferred, tuple(got), rtol=0, atol=0)
    got_grads = torch.autograd.grad(
        got, leaves, [c.to(dtype) for c in coefficients], materialize_grads=True
    )
    assert_close([t.detach() for t in (*got, *got_grads)], [*results, *grads], tolerance(case))


@pytest.mark.parametrize("options", [OPTIONS["layer_norm"], OPTIONS["all"]])
def test_modules(options: dict[str, Any], calls: list[Any]):
    module = make(**STACK, **options).eval()
    x, reset = draw(T, B, I), torch.rand(T, B) < 0.3
    leaves = [x.requires_grad_(), *module.parameters()]
    got = parts(module(x, reset=reset))
    grads = torch.autograd.grad(got, leaves, [torch.ones_like(t) for t in got])
    assert len(calls) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variant_module, "_variant", torch.ops.lstm_fast.variant.default)
        backward = torch.ops.lstm_fast.variant_backward.default
        patch.setattr(variant_module, "_variant_backward", backward)
        expected = parts(module(x, reset=reset))
        torch.testing.assert_close(got, expected)
        ones = [torch.ones_like(t) for t in expected]
        torch.testing.assert_close(grads, torch.autograd.grad(expected, leaves, ones))


def test_zero_batch(calls: list[Any]):
    args = replace(CASES["norm_projected"], B=0).arguments()
    leaves = [t.requires_grad_() for t in leaves_of(args)]
    output = variant(*args)[0]
    assert output.shape == (5, 0, 3)
    for grad in torch.autograd.grad(output.sum(), leaves, materialize_grads=True):
        assert not grad.any()
    assert calls


def test_unneeded_gradients(calls: list[Any]):
    args = CASES["all"].arguments()
    leaf = args[0].requires_grad_()
    (grad,) = torch.autograd.grad(variant(*args)[0].sum(), leaf)
    expected = torch.autograd.grad(reference.variant(*args)[0].sum(), leaf)
    torch.testing.assert_close((grad,), expected)
    assert calls


def test_plain_layers_are_not_affected(calls: list[Any]):
    LSTM(I, H)(torch.randn(T, B, I))
    assert not calls


def run_emulated(
    program: Path, case: Case, seed: int = 0, multiprocessors: int = 4
) -> tuple[list[Tensor], list[Tensor]]:
    """What the program computes, of which the last is y without saving; and the reference."""
    args = case.arguments()
    results, coefficients, grads = expected_results(args)
    x, batch_sizes, _, _, _, _, biases, reverse, gate, cell, *masks = args
    zone = masks[-1]
    header = [
        *(case.dtype is torch.float64, case.T, case.B, case.I, case.H, case.P or case.H),
        *(bool(case.P), biases, batch_sizes is not None, reverse, case.norm, gate, cell),
        *(case.reset, case.first, case.drop, 0 if zone is None else len(zone), multiprocessors),
    ]
    given = torch.utils._pytree.tree_leaves((batch_sizes, x, args[2:6], masks, coefficients))
    arrays = [np.array(header), *(t.detach().numpy() for t in given if t is not None)]
    numbers = torch.from_numpy(emulation.run_program(program, arrays, seed).copy())
    expected = [*results, *grads, results[0]]
    return list(numbers.split([e.numel() for e in expected])), expected


# The lengths of a packed case say how many steps there are.
CHANGES: dict[str, dict[str, Any]] = {
    "norm_projected": {"B": 5},
    "reset_first": {},
    "all": {"T": 7},
}
SANITIZED = {
    name: replace(CASES[name], dtype=torch.float32, **changes) for name, changes in CHANGES.items()
}
# Gradients of 64 columns are cut into twice as many parts as those of 65, with one multiprocessor.
SANITIZED["two parts"] = Case(T=2, B=256, I=64, H=1, biases=False, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers_find_nothing(sanitizer: str, tmp_path: Path):
    program = emulation.program(tmp_path, sanitizer, name="run_variant")
    for seed, case in enumerate(SANITIZED.values()):
        got, expected = run_emulated(program, case, seed, multiprocessors=1)
        assert_close(got, expected, tolerance(case))


def test_tiles_and_order_of_threads_change_no_bit(tmp_path: Path):
    program = emulation.program(tmp_path, "none", name="run_variant")
    case = replace(SANITIZED["norm_projected"], B=70)
    torch.manual_seed(0)
    first, _ = run_emulated(program, case)
    torch.testing.assert_close(first[-1], first[0], rtol=0, atol=0)
    for seed, multiprocessors in ((1, 4), (2, 1)):
        torch.manual_seed(0)
        again, _ = run_emulated(program, case, seed, multiprocessors)
        # Sums for weights are cut into parts by the number of multiprocessors.
        for a, b in zip(first[:9], again[:9], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
