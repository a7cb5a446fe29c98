"""The plain-torch twin: against `torch.nn.LSTM`, its formulas against autograd, its transforms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from lstm_fast import reference
from tests.sample_inputs import (
    CONFIGS,
    HALVES,
    Config,
    assert_all_close,
    assert_close,
    named,
    requiring_grad,
)

EXACT = {name: replace(config, dtype=torch.float64) for name, config in CONFIGS.items()}
SMALL = {name: replace(config, T=2, B=2, hidden_size=4) for name, config in EXACT.items()}
all_configs = pytest.mark.parametrize("config", EXACT.values(), ids=EXACT)


def randn_like(results: Any) -> Any:
    return [torch.randn_like(result) for result in results]


@all_configs
def test_forward_is_that_of_torch(config: Config):
    config = replace(config, batch_first=False)
    module, input, hx = config.module(), config.input(), config.hx()
    packed = config.pack(input)
    output, (h_n, c_n) = module(packed, hx)
    data, batch_sizes = input, None
    if isinstance(packed, PackedSequence):
        data, batch_sizes, order, _ = packed
        output, h_n, c_n = output.data, h_n[:, order], c_n[:, order]
        hx = None if hx is None else (hx[0][:, order], hx[1][:, order])
    h0, c0 = hx or (None, None)
    got = reference.lstm(
        data,
        batch_sizes,
        h0,
        c0,
        list(module.parameters()),
        config.bias,
        config.num_layers,
        config.bidirectional,
    )
    assert_close(named(got), named((output, h_n, c_n)), config)


@all_configs
def test_backward_is_that_of_autograd(config: Config):
    args = config.op_arguments()
    leaves = requiring_grad(args)
    results = reference.lstm(*args)
    coefficients = randn_like(results)
    expected = torch.autograd.grad(results, leaves, coefficients)
    grad_input, grad_h0, grad_c0, grad_params = reference.lstm_backward(*coefficients, *args)
    states = (grad_h0, grad_c0) if config.with_hx else ()
    assert_close(named((grad_input, *states, *grad_params)), named(expected), config)


def test_backward_takes_missing_gradients_for_zeros():
    args = EXACT["deep_projected"].op_arguments()
    zeros = tuple(torch.zeros_like(result) for result in reference.lstm(*args))
    h_n = torch.randn_like(zeros[1])
    sparse = reference.lstm_backward(None, h_n, None, *args)
    dense = reference.lstm_backward(zeros[0], h_n, zeros[2], *args)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=0)


def test_backward_leaves_out_what_is_not_needed():
    config = EXACT["plain"]
    args = config.op_arguments()
    grads = randn_like(reference.lstm(*args))
    nothing: Any = {"need_input": False, "need_hx": False, "need_params": False}
    input, h0, c0, params = reference.lstm_backward(*grads, *args, **nothing)
    assert (input.shape, h0.shape, c0.shape, params) == ((0,), (0,), (0,), [])
    only_hx = reference.lstm_backward(*grads, *args, **(nothing | {"need_hx": True}))
    assert (only_hx[0].shape, only_hx[1].shape) == ((0,), args[2].shape)


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_rounded_once(dtype: torch.dtype):
    args = replace(CONFIGS["packed_deep"], dtype=dtype).op_arguments()
    wide = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.float() if t.is_floating_point() else t, args
    )
    expected = tuple(result.to(dtype) for result in reference.lstm(*wide))
    torch.testing.assert_close(reference.lstm(*args), expected, rtol=0, atol=0)
    grads = randn_like(expected)
    got = reference.lstm_backward(*grads, *args)
    exact = reference.lstm_backward(*(g.float() for g in grads), *wide)
    rounded = torch.utils._pytree.tree_map(lambda t: t.to(dtype), exact)
    torch.testing.assert_close(got, rounded, rtol=0, atol=0)


def test_autocast_changes_nothing():
    args = CONFIGS["deep"].op_arguments()
    expected = reference.lstm(*args)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(reference.lstm(*args), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "lengths"), [("projected", None), ("bidirectional", (1, 2))])
def test_second_and_third_derivatives(name: str, lengths: tuple[int, ...] | None):
    """gradcheck of the explicit backward formulas differentiates them once and twice."""
    args = replace(SMALL[name], lengths=lengths).op_arguments()
    leaves = requiring_grad(args)
    grads = [grad.requires_grad_() for grad in randn_like(reference.lstm(*args))]

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        output, h_n, c_n, input, h0, c0, *params = tensors
        results = reference.lstm_backward(
            output, h_n, c_n, input, args[1], h0, c0, params, *args[5:]
        )
        return (*results[:3], *results[3])

    inputs = (*grads, *leaves)
    assert torch.autograd.gradcheck(backward, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(backward, inputs, fast_mode=True)


def test_transforms():
    """vmap is a loop, jvp agrees with the transposed product, jacrev with jacfwd."""
    config = EXACT["deep_projected"]
    input, _, h0, c0, *rest = config.op_arguments()

    def output(input: Tensor) -> Tensor:
        return reference.lstm(input, None, h0, c0, *rest)[0]

    inputs = torch.stack([input, input.flip(0), 2 * input])
    looped = torch.stack([output(x) for x in inputs])
    assert_all_close(torch.func.vmap(output)(inputs), looped, config)

    tangent, cotangent = torch.randn_like(input), torch.randn_like(looped[0])
    forward = torch.func.jvp(output, (input,), (tangent,))[1]
    (reverse,) = torch.func.vjp(output, input)[1](cotangent)
    assert_all_close((forward * cotangent).sum(), (reverse * tangent).sum(), config)
    with forward_ad.dual_level():
        dual = output(forward_ad.make_dual(input, tangent))
        assert_all_close(forward_ad.unpack_dual(dual).tangent, forward, config)

    assert_all_close(torch.func.jacrev(output)(input), torch.func.jacfwd(output)(input), config)
