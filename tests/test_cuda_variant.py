"""The CUDA kernels of layers with options, emulated on the CPU, below the op and the modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.ops.load_library(str(emulation.ops_library(tmp_path_factory.mktemp("ops"))))
    return torch.ops.lstm_fast_cuda_emulation


@pytest.fixture
def calls(library: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts the ops over the emulated kernels in the place of the CPU's; the calls of forward."""
    made: list[Any] = []

    def forward(*args: Any) -> Any:
        made.append(args)
        return library.variant.default(*args)

    monkeypatch.setattr(variant_module, "_variant", forward)
    monkeypatch.setattr(variant_module, "_variant_backward", library.variant_backward.default)
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
