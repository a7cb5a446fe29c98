"""What `torch.utils.flop_counter` counts for the ops: their products, as for torch's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_Shape = Sequence[int]


def _products(rows: _Shape, weights: Sequence[_Shape]) -> int:
    """Of all rows with all matrices among the weights."""
    return 2 * math.prod(rows) * sum(math.prod(w) for w in weights if len(w) == 2)


@register_flop_formula([torch.ops.lstm_fast.lstm, torch.ops.lstm_fast.variant])
def _forward(
    input: _Shape, batch_sizes: Any, h0: Any, c0: Any, params: Any, *_: Any, **__: Any
) -> int:
    return _products(input[:-1], params)


def _backward(
    input: _Shape,
    params: Sequence[_Shape],
    of_first: Sequence[_Shape],
    need_input: bool,
    need_params: bool,
) -> int:
    rows = input[:-1]
    states = _products(rows, params) - (0 if need_input else _products(rows, of_first))
    return states + (_products(rows, params) if need_params else 0)


@register_flop_formula(torch.ops.lstm_fast.lstm_backward)
def _lstm_backward(*args: Any, **_: Any) -> int:
    input, params, num_layers, bidirectional = args[3], args[7], args[9], args[10]
    need_input, need_hx, need_params = args[13:16]
    per_run = len(params) // (num_layers * (2 if bidirectional else 1))
    of_first = params[: 1 + per_run * bidirectional : per_run]
    count = _backward(input, params, of_first, need_input, need_params)
    # Before the first step, a state's gradient is of use to nobody. A packed sequence has no shape
    # that tells its rows.
    if not need_hx and len(input) == 3:
        count -= _products(input[1:2], params[1::per_run])
    return count


@register_flop_formula(torch.ops.lstm_fast.variant_backward)
def _variant_backward(*args: Any, **_: Any) -> int:
    return _backward(args[4], args[8], args[8][:1], args[22], args[23])
