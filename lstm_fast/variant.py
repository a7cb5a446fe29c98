"""The op `variant`, one direction of one layer with options, as a differentiable function.

With `ops.py`, the only Python files that call `torch.ops.lstm_fast`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fast import ops, reference

_variant: Any = torch.ops.lstm_fast.variant.default
_variant_backward: Any = torch.ops.lstm_fast.variant_backward.default

DTYPES = frozenset((torch.float32, torch.float64))
"""The dtypes of the kernels."""

_Results = tuple[Tensor, Tensor, Tensor, Tensor]


def variant(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    params: Sequence[Tensor],
    norms: Sequence[Tensor],
    has_biases: bool,
    reverse: bool,
    gate_activation: int,
    cell_activation: int,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    drop_h: Tensor | None,
    zone_h: Tensor | None,
    zone_c: Tensor | None,
    held_in: int = 0,
) -> _Results:
    """One direction of one layer, differentiable to any order; `reference.variant` defines it.

    The masks reset, drop_h, zone_h and zone_c get no gradient. If all are halves that were widened,
    `held_in` parts of bfloat16 hold one of them; else it is 0.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or device; the message names it.
    """
    masks = reset, drop_h, zone_h, zone_c
    options = has_biases, reverse, gate_activation, cell_activation
    if (
        ops._beyond_kernels()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or not ops.runs_on(input)
        or input.dtype not in DTYPES
    ):
        return reference.variant(
            *(input, batch_sizes, h0, c0, params, norms, *options),
            *(reset, reset_h, reset_c, drop_h, zone_h, zone_c),
        )
    tensors = [input, h0, c0, reset_h, reset_c, *params, *norms]
    call = masks, options, batch_sizes, len(params)
    parts = ops.parts_held(ops._parts(input), held_in)
    # In a graph, the op differentiates itself where that is run.
    if torch.compiler.is_compiling() or not ops.wants_grad(tensors):
        return ops.dispatched(_variant, *_arguments(*call, tensors), False, parts)[:4]
    return _Variant.apply(parts, *call, *tensors)


def _arguments(
    masks: tuple[Tensor | None, ...],
    options: tuple[bool, bool, int, int],
    batch_sizes: Tensor | None,
    params: int,
    tensors: Sequence[Any],
) -> tuple[Any, ...]:
    """Those of the op and of the reference."""
    input, h0, c0, reset_h, reset_c, *weights = tensors
    reset, drop_h, zone_h, zone_c = masks
    return (
        *(input, batch_sizes, h0, c0, weights[:params], weights[params:], *options),
        *(reset, reset_h, reset_c, drop_h, zone_h, zone_c),
    )


@ops.spares_hooks
class _Variant(torch.autograd.Function):
    """Kernel forward, kernel backward; the backward of the backward goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: int,
        masks: tuple[Tensor | None, ...],
        options: tuple[bool, bool, int, int],
        batch_sizes: Tensor | None,
        params: int,
        *tensors: Tensor | None,
    ) -> _Results:
        ctx.set_materialize_grads(False)
        args = _arguments(masks, options, batch_sizes, params, tensors)
        *results, saved = ops.dispatched(_variant, *args, True, parts)
        ctx.options, ctx.params, ctx.parts = options, params, parts
        ctx.save_for_backward(batch_sizes, *masks, results[3], saved, *tensors)
        output, h_n, c_n, cells = results
        return output, h_n, c_n, cells

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all([grad is None for grad in grads]):
            return (None,) * len(ctx.needs_input_grad)
        batch_sizes, *rest = ctx.saved_tensors
        masks, (cells, saved), tensors = tuple(rest[:4]), rest[4:6], rest[6:]
        needs = ctx.needs_input_grad[5:]
        shared = masks, ctx.options, batch_sizes, ctx.params
        if ops._is_differentiated(grads):

            def function(*tensors: Any) -> _Results:
                return reference.variant(*_arguments(*shared, tensors))

            results = ops.pull_back(function, tensors, needs, grads)
        else:
            args = _arguments(*shared, tensors)
            *states, params, norms = ops.dispatched(
                _variant_backward,
                *(*grads, *args, cells, saved, needs[0], any(needs[5:])),
                parts=ctx.parts,
            )
            results = [*states, *params, *norms] if params else [*states, *[None] * len(needs[5:])]
        return (
            *(None,) * 5,
            *(grad if needed else None for grad, needed in zip(results, needs, strict=True)),
        )


def _differentiable_variant(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `ops._differentiable_lstm`."""
    input, batch_sizes, h0, c0, params, norms = args[:6]
    options, (reset, reset_h, reset_c, *of_states) = args[6:10], args[10:16]
    save, *parts = args[16:]
    tensors = [input, h0, c0, reset_h, reset_c, *params, *norms]
    if not save and ops._beyond_kernels():
        results = reference.variant(*args[:16])
    elif not save and ops.wants_grad(tensors):
        call = (reset, *of_states), options, batch_sizes, len(params)
        results = _Variant.apply(parts[0] if parts else 0, *call, *tensors)
    else:
        return ops.below_autograd(_variant, *args)
    return *results, input.new_empty(0)


ops.library.impl("variant", _differentiable_variant, "Autograd")


def _autocast_variant(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `ops._autocast_lstm`, but in float32, the narrowest that the kernels have."""
    args = torch.utils._pytree.tree_map_only(Tensor, reference._wide, args)
    with torch._C._DisableAutocast():
        return _variant(*args)


ops.impl_autocast("variant", _autocast_variant)


@torch.library.register_fake("lstm_fast::variant")
def _variant_fake(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    params: Sequence[Tensor],
    norms: Sequence[Tensor],
    has_biases: bool,
    *rest: Any,  # up to save, and parts if they are not the default
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    H, P, save = c0.shape[-1], h0.shape[-1], rest[9]
    rows = input.shape[:-1]
    is_projected = len(params) == (5 if has_biases else 3)
    saved = 4 * H + P + (H if is_projected else 0) + (8 * H + 2 if norms else 0)
    return (
        input.new_empty((*rows, P)),
        input.new_empty(h0.shape),
        input.new_empty(c0.shape),
        input.new_empty((*rows, H)),
        input.new_empty(math.prod(rows) * saved if save else 0),
    )


@torch.library.register_fake("lstm_fast::variant_backward")
def _variant_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    params: Sequence[Tensor],
    norms: Sequence[Tensor],
    *rest: Any,  # from has_biases to need_params
    parts: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    reset_h, reset_c = rest[5:7]
    need_input, need_params = rest[12:14]
    return (
        input.new_empty(input.shape if need_input else 0),
        input.new_empty(h0.shape),
        input.new_empty(c0.shape),
        input.new_empty(0 if reset_h is None else h0.shape),
        input.new_empty(0 if reset_c is None else c0.shape),
        [input.new_empty(p.shape) for p in params] if need_params else [],
        [input.new_empty(p.shape) for p in norms] if need_params else [],
    )
