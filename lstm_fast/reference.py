"""The LSTM in plain torch: what the kernels compute, as formulas that autograd can differentiate.

It serves as documentation, as the oracle of the tests, and as the path that double backward,
`torch.func.vmap` over many and forward-mode differentiation take. It is written for reading, not
for speed, and is differentiable to any order.

T steps, B batch rows, I input size, H hidden size, P = proj_size (H without a projection),
L layers, D directions, G = 4H gate rows in the order i, f, g, o, N = T * B rows (or the sum of
the batch sizes).

One step of one direction of one layer, for x_t [B, I], h_(t-1) [B, P] and c_(t-1) [B, H]:

    i, f, g, o = x_t W_ih^T + b_ih + h_(t-1) W_hh^T + b_hh        [B, G], four blocks of H columns
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c_t = f * c_(t-1) + i * g                                     [B, H]
    m_t = o * tanh(c_t)                                           [B, H]
    h_t = m_t W_hr^T with a projection, m_t without               [B, P]

A packed sequence has rows(t) rows at step t, never more than at step t - 1. The state keeps all B
rows at every step and a step replaces the first rows(t) of them. Hence a sequence that has ended
keeps its final state in the forward direction, and one that has not yet begun keeps its initial
state in the reverse direction.

float16 and bfloat16 are computed in float32 from end to end; only the results are rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

HALVES = frozenset((torch.float16, torch.bfloat16))

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class Weights(NamedTuple):
    """The weights of one direction of one layer, in the order of `nn.LSTM._flat_weights`."""

    ih: Tensor  # [G, I], or [G, D * P] above the first layer
    hh: Tensor  # [G, P]
    b_ih: Tensor | None  # [G]
    b_hh: Tensor | None  # [G]
    hr: Tensor | None  # [P, H]


class Step(NamedTuple):
    """What one step keeps for the backward pass; `rows` is the number of rows alive."""

    gates: tuple[
        Tensor, Tensor, Tensor, Tensor
    ]  # i, f, g, o after their nonlinearity, each [rows, H]
    h_prev: Tensor  # [rows, P]
    c_prev: Tensor  # [rows, H]
    tanh_c: Tensor  # [rows, H]
    m: Tensor  # [rows, H], h before the projection
    h: Tensor  # [rows, P]


class Direction(NamedTuple):
    """One direction of one layer, run over the whole sequence."""

    steps: list[Step]  # in the order of time, for either direction
    h_n: Tensor  # [B, P]
    c_n: Tensor  # [B, H]

    @property
    def output(self) -> Tensor:
        """[N, P]"""
        return torch.cat([step.h for step in self.steps])


def split_params(
    params: Sequence[Tensor], has_biases: bool, num_layers: int, bidirectional: bool
) -> list[Weights]:
    """Group `_flat_weights` into its L * D layers and directions, directions running fastest."""
    count = len(params) // (num_layers * (2 if bidirectional else 1))
    projected = count % 2 == 1
    groups = []
    for start in range(0, len(params), count):
        group = params[start : start + count]
        b_ih, b_hh = group[2:4] if has_biases else (None, None)
        groups.append(Weights(group[0], group[1], b_ih, b_hh, group[-1] if projected else None))
    return groups


def _state_after(first_rows: Tensor, state: Tensor) -> Tensor:
    """The [B, ...] state in which the first rows are replaced and the others stay."""
    rows = first_rows.shape[0]
    return first_rows if rows == state.shape[0] else torch.cat([first_rows, state[rows:]])


def _in_time(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _run_direction(
    x: Tensor, rows: list[int], h: Tensor, c: Tensor, weights: Weights, reverse: bool
) -> Direction:
    """Run over all steps: x [N, I], rows[t] alive at step t, initial h [B, P] and c [B, H]."""
    from_input = torch.nn.functional.linear(x, weights.ih, weights.b_ih).split(rows)
    steps: dict[int, Step] = {}
    for t in _in_time(len(rows), reverse):
        h_prev, c_prev = h[: rows[t]], c[: rows[t]]
        gates = from_input[t] + torch.nn.functional.linear(h_prev, weights.hh, weights.b_hh)
        i, f, g, o = gates.chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_t = f * c_prev + i * g
        tanh_c = c_t.tanh()
        m = o * tanh_c
        h_t = m if weights.hr is None else m @ weights.hr.mT
        steps[t] = Step((i, f, g, o), h_prev, c_prev, tanh_c, m, h_t)
        h, c = _state_after(h_t, h), _state_after(c_t, c)
    return Direction([steps[t] for t in range(len(rows))], h, c)


def _back_through_direction(
    run: Direction,
    x: Tensor,
    weights: Weights,
    grad_output: Tensor,
    dh: Tensor,
    dc: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of one direction of one layer.

    Args: x [N, I]; grad_output [N, P]; dh [B, P] and dc [B, H], the gradients of h_n and c_n.
    Returns: dx [N, I], dh_0 [B, P], dc_0 [B, H] and the gradients of the weights in their order.

    Steps are taken against the order in which they were run. With dh, dc the gradients of h_t and
    c_t that come from the steps run after t, and from h_n and c_n:

        dh     = dh + grad_output_t
        dm     = dh W_hr                        (dm = dh without a projection)
        dc     = dc + dm * o * (1 - tanh(c_t)^2)
        da_i   = dc * g * i * (1 - i)           a: the gates before their nonlinearity
        da_f   = dc * c_(t-1) * f * (1 - f)
        da_g   = dc * i * (1 - g^2)
        da_o   = dm * tanh(c_t) * o * (1 - o)
        dc     = dc * f                         for step t - 1
        dh     = da W_hh                        for step t - 1

    and with all rows of all steps below each other, da [N, G]:

        dx = da W_ih        dW_ih = da^T x      dW_hh = da^T h_prev     dW_hr = dh^T m
        db_ih = db_hh = sum of da
    """
    sigmoid_backward = torch.ops.aten.sigmoid_backward.default  # (d, s): d * s * (1 - s)
    tanh_backward = torch.ops.aten.tanh_backward.default  # (d, t): d * (1 - t^2)
    rows = [step.h.shape[0] for step in run.steps]
    from_output = grad_output.split(rows)
    da_steps, dh_steps = [dh] * len(rows), [dh] * len(rows)
    for t in _in_time(len(rows), not reverse):
        step = run.steps[t]
        i, f, g, o = step.gates
        dh_t = dh[: rows[t]] + from_output[t]
        dm = dh_t if weights.hr is None else dh_t @ weights.hr
        dc_t = dc[: rows[t]] + tanh_backward(dm * o, step.tanh_c)
        da = torch.cat(
            [
                sigmoid_backward(dc_t * g, i),
                sigmoid_backward(dc_t * step.c_prev, f),
                tanh_backward(dc_t * i, g),
                sigmoid_backward(dm * step.tanh_c, o),
            ],
            dim=-1,
        )
        da_steps[t], dh_steps[t] = da, dh_t
        dh, dc = _state_after(da @ weights.hh, dh), _state_after(dc_t * f, dc)

    da = torch.cat(da_steps)
    grads = [da.mT @ x, da.mT @ torch.cat([step.h_prev for step in run.steps])]
    if weights.b_ih is not None:
        grads += [da.sum(0), da.sum(0)]
    if weights.hr is not None:
        grads.append(torch.cat(dh_steps).mT @ torch.cat([step.m for step in run.steps]))
    return da @ weights.ih, dh, dc, grads


class _Stack(NamedTuple):
    """All layers and directions, run over the whole sequence."""

    layer_inputs: list[Tensor]  # L times [N, I or D * P], and the output [N, D * P] last
    runs: list[Direction]  # L * D
    weights: list[Weights]  # L * D


def _wide(tensor: Tensor) -> Tensor:
    """Halves are computed in float32."""
    return tensor.float() if tensor.dtype in HALVES else tensor


def _run_stack(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> _Stack:
    weights = split_params([_wide(p) for p in params], has_biases, num_layers, bidirectional)
    rows = [input.shape[1]] * input.shape[0] if batch_sizes is None else batch_sizes.tolist()
    x = _wide(input).reshape(-1, input.shape[-1])
    H, P = weights[0].ih.shape[0] // 4, weights[0].hh.shape[1]
    h0 = x.new_zeros(len(weights), rows[0], P) if h0 is None else _wide(h0)
    c0 = x.new_zeros(len(weights), rows[0], H) if c0 is None else _wide(c0)

    layer_inputs, runs = [x], []
    directions = len(weights) // num_layers
    for layer in range(num_layers):
        of_layer = range(layer * directions, (layer + 1) * directions)
        runs += [
            _run_direction(x, rows, h0[k], c0[k], weights[k], reverse=k % directions == 1)
            for k in of_layer
        ]
        x = torch.cat([runs[k].output for k in of_layer], dim=-1)
        layer_inputs.append(x)
    return _Stack(layer_inputs, runs, weights)


def _without_autocast(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    @functools.wraps(function)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


@_without_autocast
def lstm(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of the op `lstm`.

    Args:
        input: [T, B, I], or the data [N, I] of a packed sequence.
        batch_sizes: None, or [T] int64, not increasing, with the sum N.
        h0: [L * D, B, P] or None for zeros.
        c0: [L * D, B, H] or None for zeros.
        params: in the order of `nn.LSTM._flat_weights`: for each layer and direction weight_ih,
            weight_hh, bias_ih and bias_hh if `has_biases`, weight_hr if there is a projection.

    Returns:
        output [T, B, D * P] (or [N, D * P]), h_n [L * D, B, P] and c_n [L * D, B, H], of the
        dtype of input.
    """
    stack = _run_stack(input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional)
    output = stack.layer_inputs[-1]
    output = output.reshape(*input.shape[:-1], output.shape[-1])
    h_n = torch.stack([run.h_n for run in stack.runs])
    c_n = torch.stack([run.c_n for run in stack.runs])
    return output.to(input.dtype), h_n.to(input.dtype), c_n.to(input.dtype)


@_without_autocast
def lstm_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    need_input: bool = True,
    need_hx: bool = True,
    need_params: bool = True,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The twin of the op `lstm_backward`; runs the forward pass again, where that takes `saved`.

    Args: the gradients of the results of `lstm` (None for zeros), then the arguments of `lstm`.
    Returns: the gradients of input, h0, c0 and params, of the dtype of input. What is not needed
    is a tensor of no elements, or an empty list for params.
    """
    stack = _run_stack(input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional)
    output = stack.layer_inputs[-1]
    if grad_output is None:
        grad = torch.zeros_like(output)
    else:
        grad = _wide(grad_output).reshape(output.shape)

    directions = len(stack.runs) // num_layers
    grad_h0: list[Tensor] = []
    grad_c0: list[Tensor] = []
    grad_params: list[Tensor] = []
    for layer in reversed(range(num_layers)):
        x = stack.layer_inputs[layer]
        dx = torch.zeros_like(x)
        of_directions = grad.chunk(directions, dim=-1)
        for direction in reversed(range(directions)):
            k = layer * directions + direction
            run = stack.runs[k]
            dh = torch.zeros_like(run.h_n) if grad_h_n is None else _wide(grad_h_n[k])
            dc = torch.zeros_like(run.c_n) if grad_c_n is None else _wide(grad_c_n[k])
            dx_k, dh0, dc0, dweights = _back_through_direction(
                run, x, stack.weights[k], of_directions[direction], dh, dc, reverse=direction == 1
            )
            dx = dx + dx_k
            grad_h0.insert(0, dh0)
            grad_c0.insert(0, dc0)
            grad_params = dweights + grad_params
        grad = dx

    dtype, unneeded = input.dtype, input.new_empty
    return (
        grad.reshape(input.shape).to(dtype) if need_input else unneeded(0),
        torch.stack(grad_h0).to(dtype) if need_hx else unneeded(0),
        torch.stack(grad_c0).to(dtype) if need_hx else unneeded(0),
        [grad_param.to(dtype) for grad_param in grad_params] if need_params else [],
    )


def _hard_sigmoid(x: Tensor) -> Tensor:
    # The gradient of torch's own has the precision of float32 in float64 too.
    return torch.nn.functional.hardtanh(x + 3, 0.0, 6.0) / 6


GATE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": _hard_sigmoid,
}
"""Of i, f and o; the op takes the position here. hard_sigmoid(x) = min(max(x + 3, 0), 6) / 6."""

CELL_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "hard_tanh": torch.nn.functional.hardtanh,
}
"""Of g and of the cell; the op takes the position here. hard_tanh(x) = min(max(x, -1), 1)."""


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)


@_without_autocast
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The twin of the op `variant`: one direction of one layer, with what `nn.LSTM` lacks.

    One step, with s and a the activations of gates and cells, h and c the state before it:

        h, c = reset_h, reset_c             in the rows where reset_t is true (zeros if None)
        u = x_t W_ih^T      v = (drop_h * h) W_hh^T
        z = u + v + b_ih + b_hh, or
        z = LN(u; norm_ih) + b_ih + LN(v; norm_hh) + b_hh
        i, f, g, o = s(z_i), s(z_f), a(z_g), s(z_o)
        fresh = f * c + i * g
        m = o * a(fresh), or o * a(LN(fresh; norm_c) + norm_bias_c)
        new = m W_hr^T with a projection, m without
        c_t = zone_c * c + (1 - zone_c) * fresh
        h_t = zone_h * h + (1 - zone_h) * new

    LN(x; w) = w * (x - mean(x)) / sqrt(var(x) + 1e-5), over all G numbers of u and v and all H of
    the cell (Ba, Kiros and Hinton 2016, "Layer normalization", equations 20 to 22; their two
    shifts of the gates are the layer's biases). drop_h is the mask of variational dropout (Gal and
    Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks"), zone_h and zone_c are those of zoneout (Krueger et al. 2017, "Zoneout: regularizing
    RNNs by randomly preserving hidden activations", where m takes fresh too, not c_t).

    Args:
        input: [T, B, I], or the data [N, I] of a packed sequence.
        batch_sizes: as in `lstm`.
        h0: [B, P].
        c0: [B, H].
        params: weight_ih, weight_hh, bias_ih and bias_hh if `has_biases`, weight_hr if there is a
            projection.
        norms: none, or norm_ih [G], norm_hh [G], norm_c [H] and, if `has_biases`, norm_bias_c [H].
        reverse: whether the last step comes first.
        gate_activation: position in `GATE_ACTIVATIONS`; cell_activation: in `CELL_ACTIVATIONS`.
        reset: [N] bool or None.
        reset_h: [B, P] or None for zeros; reset_c: [B, H] or None for zeros.
        drop_h: [B, P] or None for ones.
        zone_h: [N, P], [1, P] for all rows, or None for zeros; zone_c: likewise with H.

    Returns:
        output [T, B, P] (or [N, P]), h_n [B, P], c_n [B, H], and the cells of all steps
        [T, B, H] (or [N, H]).
    """
    (weights,) = split_params(params, has_biases, 1, False)
    rows = [input.shape[1]] * input.shape[0] if batch_sizes is None else batch_sizes.tolist()
    s = list(GATE_ACTIVATIONS.values())[gate_activation]
    a = list(CELL_ACTIVATIONS.values())[cell_activation]
    linear = torch.nn.functional.linear
    norm_ih, norm_hh, norm_c, norm_bias_c = [*norms, None, None, None, None][:4]

    from_input = linear(input.reshape(-1, input.shape[-1]), weights.ih)
    if norm_ih is not None:
        from_input = _norm(from_input, norm_ih)
    if weights.b_ih is not None and weights.b_hh is not None:
        from_input = from_input + (weights.b_ih + weights.b_hh)

    def by_step(per_row: Tensor | None) -> Sequence[Tensor | None]:
        if per_row is None or per_row.shape[0] != sum(rows):
            return [per_row] * len(rows)
        return per_row.split(rows)

    z_steps = from_input.split(rows)
    resets, zones_h, zones_c = by_step(reset), by_step(zone_h), by_step(zone_c)
    h, c = h0, c0
    outputs, cells = [z_steps[0]] * len(rows), [z_steps[0]] * len(rows)
    for t in _in_time(len(rows), reverse):
        h_prev, c_prev = h[: rows[t]], c[: rows[t]]
        if (is_new := resets[t]) is not None:
            first_h = torch.zeros_like(h_prev) if reset_h is None else reset_h[: rows[t]]
            first_c = torch.zeros_like(c_prev) if reset_c is None else reset_c[: rows[t]]
            h_prev = torch.where(is_new.unsqueeze(-1), first_h, h_prev)
            c_prev = torch.where(is_new.unsqueeze(-1), first_c, c_prev)
        v = linear(h_prev if drop_h is None else h_prev * drop_h[: rows[t]], weights.hh)
        z_i, z_f, z_g, z_o = (z_steps[t] + (v if norm_hh is None else _norm(v, norm_hh))).chunk(
            4, dim=-1
        )
        fresh = s(z_f) * c_prev + s(z_i) * a(z_g)
        m = s(z_o) * a(fresh if norm_c is None else _norm(fresh, norm_c, norm_bias_c))
        h_t = m if weights.hr is None else m @ weights.hr.mT
        c_t = fresh
        if (zone := zones_c[t]) is not None:
            c_t = zone * c_prev + (1 - zone) * fresh
        if (zone := zones_h[t]) is not None:
            h_t = zone * h_prev + (1 - zone) * h_t
        outputs[t], cells[t] = h_t, c_t
        h, c = _state_after(h_t, h), _state_after(c_t, c)
    shape = input.shape[:-1]
    return (
        torch.cat(outputs).reshape(*shape, h.shape[-1]),
        h,
        c,
        torch.cat(cells).reshape(*shape, c.shape[-1]),
    )
