"""Options of the modules, against torch's modules, single layers, and sequences run alone."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fast
from lstm_fast import LSTM, LSTMCell
from lstm_fast.options import Options, _dropped
from lstm_fast.reference import CELL_ACTIVATIONS, GATE_ACTIVATIONS

OPTIONS: dict[str, dict[str, Any]] = {
    "weight_dropout": {"weight_dropout": 0.5},
    "variational_dropout": {"variational_dropout": (0.3, 0.5)},
    "zoneout": {"zoneout": (0.3, 0.2)},
    "layer_norm": {"layer_norm": True},
    "learned_state": {"learned_state": True},
    "forget_bias": {"forget_bias": 1.0},
    "hard": {"gate_activation": "hard_sigmoid", "cell_activation": "hard_tanh"},
    "relu": {"cell_activation": "relu"},
    "return_cells": {"return_cells": True},
    "all": {
        "weight_dropout": 0.2,
        "variational_dropout": 0.2,
        "zoneout": 0.1,
        "layer_norm": True,
        "learned_state": True,
        "forget_bias": 1.0,
        "gate_activation": "hard_sigmoid",
        "return_cells": True,
    },
}
DRAWN = {"weight_dropout", "variational_dropout", "zoneout"}
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
I, H, T, B = 4, 6, 5, 3  # noqa: E741


def make(cls: Any = LSTM, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A module of which no parameter has the value that it begins with."""
    module = cls(I, H, dtype=dtype, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return module


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def parts(results: Any) -> list[Tensor]:
    """Output, h_n, c_n, and the cells where they are returned."""
    output, (h_n, c_n), *cells = results
    return [t.data if isinstance(t, PackedSequence) else t for t in (output, h_n, c_n, *cells)]


def seeded(run: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    return parts(run(*args, **kwargs))


# What a module computes.


def test_defaults_are_those_of_torch():
    plain, stock = LSTM(I, H), torch.nn.LSTM(I, H)
    assert vars(plain).keys() == vars(stock).keys()
    assert list(plain.state_dict()) == list(stock.state_dict())
    assert repr(plain) == repr(stock)
    assert vars(LSTMCell(I, H)).keys() == vars(torch.nn.LSTMCell(I, H)).keys()


@all_options
def test_construction_draws_what_torch_draws(options: dict[str, Any]):
    torch.manual_seed(3)
    stock = torch.nn.LSTM(I, H, **STACK)
    after = torch.rand(())
    torch.manual_seed(3)
    module = LSTM(I, H, **STACK, **options)
    assert torch.equal(torch.rand(()), after)
    for name, p in stock.named_parameters():
        if "forget_bias" not in options or not name.startswith("bias"):
            assert torch.equal(module.get_parameter(name), p), name


def test_first_values_of_what_options_add():
    module = LSTM(I, H, layer_norm=True, learned_state=True, forget_bias=2.0, **STACK)
    for again in (False, True):
        if again:
            module.reset_parameters()
        for name, p in module.named_parameters():
            if name.startswith("bias_"):
                assert (p[H : 2 * H] == (2 if name.startswith("bias_ih") else 0)).all()
            elif name.startswith(("norm_bias_", "initial_")):
                assert (p == 0).all(), name
            elif name.startswith("norm_"):
                assert (p == 1).all(), name
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["norm_ih_l1_reverse"] == shapes["norm_hh_l0"] == (4 * H,)
    assert shapes["norm_c_l1"] == shapes["norm_bias_c_l0_reverse"] == (H,)
    assert (shapes["initial_h"], shapes["initial_c"]) == ((4, 3), (4, H))


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, False) for name in OPTIONS]
    + [(name, True) for name, options in OPTIONS.items() if not DRAWN & options.keys()],
)
def test_a_stack_is_its_layers_one_by_one(name: str, training: bool):
    """In evaluation, and in training where no masks are drawn, whose order would be another."""
    options = OPTIONS[name]
    module = make(**STACK, **options).train(training)
    x, reset = draw(T, B, I), torch.rand(T, B) < 0.3
    got = parts(module(x, reset=reset))
    layer_input, h_n, c_n = x, [], []
    for layer in range(2):
        outputs, cells = [], []
        for d, suffix in enumerate(("", "_reverse")):
            k = 2 * layer + d
            single = LSTM(layer_input.shape[-1], H, proj_size=3, dtype=torch.float64, **options)
            state = {}
            for key in single.state_dict():
                if key.startswith("initial_"):
                    state[key] = module.get_parameter(key)[k : k + 1]
                else:
                    state[key] = module.get_parameter(key.replace("_l0", f"_l{layer}{suffix}"))
            single.load_state_dict(state)
            single.train(training)
            # The reverse direction is the forward one on the flipped sequence, whose episodes begin
            # one step after those of the sequence end.
            flip = (lambda t: t.flip(0)) if d else (lambda t: t)
            begins = torch.cat([reset[1:], torch.zeros(1, B, dtype=torch.bool)]) if d else reset
            output, h, c, *of_cells = parts(single(flip(layer_input), reset=flip(begins)))
            outputs.append(flip(output))
            cells += [flip(t) for t in of_cells]
            h_n.append(h)
            c_n.append(c)
        layer_input = torch.cat(outputs, dim=-1)
    expected = [layer_input, torch.cat(h_n), torch.cat(c_n)]
    if cells:
        expected.append(torch.cat(cells, dim=-1))
    torch.testing.assert_close(got, expected)


@all_options
@pytest.mark.parametrize("training", [False, True])
def test_layouts_agree(options: dict[str, Any], training: bool):
    """Time first, batch first, unbatched, packed in either order of the batch."""
    module = make(**STACK, **options).train(training)
    twin = make(batch_first=True, **STACK, **options).train(training)
    twin.load_state_dict(module.state_dict())
    x, reset = draw(T, B, I), torch.rand(T, B) < 0.3
    expected = seeded(module, x, reset=reset)
    got = seeded(twin, x.transpose(0, 1), reset=reset.transpose(0, 1))
    for i in (0, 3):
        if i < len(got):
            got[i] = got[i].transpose(0, 1)
    torch.testing.assert_close(got, expected)
    packed = pack_padded_sequence(x, [T] * B)
    rows = [t.reshape(-1, t.shape[-1]) if i % 3 == 0 else t for i, t in enumerate(expected)]
    torch.testing.assert_close(seeded(module, packed, reset=reset), rows)

    for single in (module, twin):
        one = seeded(single, x[:, 0], reset=reset[:, 0])
        alone = seeded(module, x[:, :1], reset=reset[:, :1])
        torch.testing.assert_close(one, [t.squeeze(1) for t in alone])


@all_options
def test_packed_sequences_are_run_alone(options: dict[str, Any]):
    module, lengths = make(**STACK, **options).eval(), [2, 5, 3]
    x, reset = draw(T, B, I), torch.rand(T, B) < 0.4
    hx = draw(4, B, 3), draw(4, B, H)
    for state in (None, hx):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, (h_n, c_n), *cells = module(packed, state, reset=reset)
        rows = [pad_packed_sequence(t)[0] for t in (output, *cells)]
        for b, length in enumerate(lengths):
            of_row = None if state is None else (hx[0][:, b : b + 1], hx[1][:, b : b + 1])
            alone = module(x[:length, b : b + 1], of_row, reset=reset[:length, b : b + 1])
            y, h, c, *of_cells = parts(alone)
            torch.testing.assert_close(
                [t[:length, b] for t in rows], [y[:, 0]] + [t[:, 0] for t in of_cells]
            )
            torch.testing.assert_close((h_n[:, b], c_n[:, b]), (h[:, 0], c[:, 0]))


@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_of_a_packed_batch_that_was_padded_further(batch_first: bool):
    module = make(batch_first=batch_first, **STACK)
    reset = torch.rand(T + 2, B) < 0.4
    packed = pack_padded_sequence(draw(T + 2, B, I), [2, T, 3], enforce_sorted=False)
    turn = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    got = parts(module(packed, reset=turn(reset)))
    torch.testing.assert_close(got, parts(module(packed, reset=turn(reset[:T]))))
    for wrong in (reset[: T - 1], reset[:, 1:]):
        found = tuple(turn(wrong).shape)
        with pytest.raises(ValueError, match=re.escape(f"got {found}")):
            module(packed, reset=turn(wrong))


def test_all_cells():
    stock = make(torch.nn.LSTM)
    module = LSTM(I, H, dtype=torch.float64, return_cells=True)
    module.load_state_dict(stock.state_dict())
    x = draw(T, B, I)
    output, (_, c_n), cells = module(x)
    torch.testing.assert_close(output, stock(x)[0])
    state, expected = None, []
    for step in x:
        state = stock(step[None], state)[1]
        expected.append(state[1][0])
    torch.testing.assert_close(cells, torch.stack(expected))
    torch.testing.assert_close(cells[-1], c_n[0])


def test_weight_dropout_is_torch_with_dropped_weights():
    module = make(weight_dropout=0.5, num_layers=2)
    stock = torch.nn.LSTM(I, H, 2, dtype=torch.float64)
    torch.manual_seed(1)
    state = {
        name: torch.nn.functional.dropout(p, 0.5) if name.startswith("weight_hh") else p
        for name, p in module.state_dict().items()
    }
    stock.load_state_dict(state)
    x = draw(T, B, I)
    torch.testing.assert_close(seeded(module, x), parts(stock(x)))
    stock.load_state_dict(module.state_dict())
    torch.testing.assert_close(parts(module.eval()(x)), parts(stock(x)))


def test_variational_dropout_of_everything_leaves_the_rest():
    """Without inputs, those of zeros; without recurrent inputs, no recurrent weights."""
    x = draw(T, B, I)
    for rates, kind in (((1.0, 0.0), "weight_ih"), ((0.0, 1.0), "weight_hh")):
        module = make(num_layers=2, variational_dropout=rates)
        stock = torch.nn.LSTM(I, H, 2, dtype=torch.float64)
        state = module.state_dict()
        zeros = {name: torch.zeros_like(w) for name, w in state.items() if name.startswith(kind)}
        stock.load_state_dict(state | zeros)
        torch.testing.assert_close(parts(module(x)), parts(stock(x)))
        stock.load_state_dict(state)
        torch.testing.assert_close(parts(module.eval()(x)), parts(stock(x)))


def test_masks_of_dropout():
    mask = _dropped(torch.empty(0), 20, 30, 0.25)
    assert mask.unique().tolist() == [0, torch.tensor(1 / 0.75).item()]


def test_dropout_between_layers_beside_an_option():
    stock = make(torch.nn.LSTM, num_layers=3, dropout=0.4)
    module = LSTM(I, H, 3, dropout=0.4, return_cells=True, dtype=torch.float64)
    module.load_state_dict(stock.state_dict())
    x = draw(T, B, I)
    torch.testing.assert_close(seeded(module, x)[:3], seeded(stock, x))


def test_variational_masks_are_the_same_at_each_step():
    module = make(LSTM, variational_dropout=(0.5, 0.0))
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.bias_ih_l0[H : 2 * H] = -1e9  # nothing is carried from step to step
    x = draw(1, B, I)
    output = module(x.expand(T, B, I))[0]
    torch.testing.assert_close(output, output[:1].expand_as(output))
    packed = pack_padded_sequence(x.expand(T, B, I), [T, T, 2])
    padded, lengths = pad_packed_sequence(module(packed)[0])
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(padded[:length, b], padded[:1, b].expand(length, H))
    assert not torch.equal(module(x)[0], module(x)[0])


def test_zoneout_keeps_the_state():
    x, h0, c0 = draw(T, B, I), draw(1, B, H), draw(1, B, H)
    output, (h_n, c_n) = make(zoneout=1.0)(x, (h0, c0))
    torch.testing.assert_close(output, h0.expand(T, B, H))
    torch.testing.assert_close((h_n, c_n), (h0, c0))
    module = make(zoneout=(0.25, 0.75), return_cells=True)
    output, _, cells = module(draw(500, B, I))
    for values, rate in ((cells, 0.25), (output, 0.75)):
        kept = (values[1:] == values[:-1]).double().mean().item()
        # Four deviations of a share of so many draws.
        assert abs(kept - rate) < 4 * (rate * (1 - rate) / values[1:].numel()) ** 0.5


def test_zoneout_in_evaluation_is_the_expectation_of_a_step():
    module = make(zoneout=(0.3, 0.4)).eval()
    stock = torch.nn.LSTM(I, H, dtype=torch.float64)
    stock.load_state_dict(module.state_dict())
    x, h0, c0 = draw(1, B, I), draw(1, B, H), draw(1, B, H)
    h, (_, c) = stock(x, (h0, c0))
    output, (_, c_n) = module(x, (h0, c0))
    torch.testing.assert_close(output, 0.4 * h0 + 0.6 * h)
    torch.testing.assert_close(c_n, 0.3 * c0 + 0.7 * c)


def test_layer_norm_of_one_step():
    module = make(layer_norm=True)
    p, norm = module.get_parameter, torch.nn.functional.layer_norm
    x, h0, c0 = draw(1, B, I), draw(1, B, H), draw(1, B, H)
    z = norm(x[0] @ p("weight_ih_l0").T, (4 * H,), p("norm_ih_l0"), p("bias_ih_l0"))
    z = z + norm(h0[0] @ p("weight_hh_l0").T, (4 * H,), p("norm_hh_l0"), p("bias_hh_l0"))
    i, f, g, o = z.chunk(4, dim=-1)
    c = f.sigmoid() * c0[0] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * norm(c, (H,), p("norm_c_l0"), p("norm_bias_c_l0")).tanh()
    output, (_, c_n) = module(x, (h0, c0))
    torch.testing.assert_close((output[0], c_n[0]), (h, c))


@pytest.mark.parametrize("gate", GATE_ACTIVATIONS)
@pytest.mark.parametrize("cell", CELL_ACTIVATIONS)
def test_activations_of_one_step(gate: str, cell: str):
    module = make(gate_activation=gate, cell_activation=cell)
    cells: dict[str, Any] = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "hard_tanh": torch.nn.Hardtanh(),
    }
    s = torch.sigmoid if gate == "sigmoid" else torch.nn.Hardsigmoid()
    a = cells[cell]
    x, h0, c0 = 3 * draw(1, B, I), draw(1, B, H), draw(1, B, H)
    z = torch.nn.functional.linear(x[0], module.weight_ih_l0, module.bias_ih_l0)
    z = z + torch.nn.functional.linear(h0[0], module.weight_hh_l0, module.bias_hh_l0)
    i, f, g, o = z.chunk(4, dim=-1)
    c = s(f) * c0[0] + s(i) * a(g)
    output, (_, c_n) = module(x, (h0, c0))
    torch.testing.assert_close((output[0], c_n[0]), (s(o) * a(c), c))


def test_learned_state():
    module = make(learned_state=True, **STACK)
    x = draw(T, B, I)
    hx = tuple(p.unsqueeze(1).expand(-1, B, -1) for p in (module.initial_h, module.initial_c))
    torch.testing.assert_close(parts(module(x)), parts(module(x, hx)))
    module(x)[0].sum().backward()
    assert module.initial_h.grad.abs().min() > 0
    assert module.initial_c.grad.abs().min() > 0


def test_options_that_need_no_kernel_of_their_own(fused: list[None]):
    """Those computed by the kernels of the plain layer."""
    x = draw(T, B, I)
    for name in ("weight_dropout", "learned_state", "forget_bias"):
        make(**OPTIONS[name])(x)
    make(zoneout=0.1, variational_dropout=0.1)(x)
    assert len(fused) == 3
    make(variational_dropout=0.1).eval()(x)
    assert len(fused) == 4


# Resets and lengths, which any module takes.


@all_options
def test_reset_begins_a_new_sequence(options: dict[str, Any]):
    """Episodes of a sequence, run at once and each alone, in both directions and all layers."""
    module = make(**STACK, **options).eval()
    x, hx = draw(T, 1, I), (draw(4, 1, 3), draw(4, 1, H))
    reset = torch.tensor([False, False, True, True, False]).unsqueeze(1)
    output, h_n, c_n, *cells = parts(module(x, hx, reset=reset))
    episodes = [(0, 2), (2, 3), (3, 5)]
    first_h, first_c = torch.zeros(4, 1, 3), torch.zeros(4, 1, H)
    if options.get("learned_state"):
        first_h, first_c = module.initial_h.unsqueeze(1), module.initial_c.unsqueeze(1)
    forward, backward = slice(0, None, 2), slice(1, None, 2)
    for begin, end in episodes:
        # hx is the state before the first step of the forward, and the last of the reverse one.
        h, c = first_h.double().clone(), first_c.double().clone()
        if begin == 0:
            h[forward], c[forward] = hx[0][forward], hx[1][forward]
        if end == T:
            h[backward], c[backward] = hx[0][backward], hx[1][backward]
        y, h_end, c_end, *of_cells = parts(module(x[begin:end], (h, c)))
        torch.testing.assert_close([t[begin:end] for t in (output, *cells)], [y, *of_cells])
        if end == T:
            torch.testing.assert_close(
                (h_n[forward], c_n[forward]), (h_end[forward], c_end[forward])
            )
        if begin == 0:
            torch.testing.assert_close(
                (h_n[backward], c_n[backward]), (h_end[backward], c_end[backward])
            )


def test_states_can_be_detached_in_place():
    x = torch.randn(5, 2, 3)
    reset = torch.zeros(5, 2, dtype=torch.bool)
    for layer in (LSTM(3, 4, layer_norm=True), LSTM(3, 4), LSTM(3, 4, 2)):
        for state in layer(x, reset=reset)[1]:
            assert not state.detach_().requires_grad
    for state in LSTMCell(3, 4, layer_norm=True)(x[0]):
        assert not state.detach_().requires_grad


def test_reset_at_the_first_step_discards_hx():
    module = make()
    x, hx = draw(T, B, I), (draw(1, B, H), draw(1, B, H))
    reset = torch.zeros(T, B, dtype=torch.bool)
    torch.testing.assert_close(parts(module(x, hx, reset=reset)), parts(module(x, hx)))
    reset[0, 1] = True
    got, fresh = module(x, hx, reset=reset)[0], module(x)[0]
    torch.testing.assert_close(got[:, 1], fresh[:, 1])
    torch.testing.assert_close(got[:, 0], module(x, hx)[0][:, 0])


@pytest.mark.parametrize("batch_first", [None, False, True], ids=["cell", "layer", "batch_first"])
def test_reset_of_one_step_is_that_of_its_states(batch_first: bool | None):
    is_cell = batch_first is None
    layer: Any = LSTMCell(3, 5) if is_cell else LSTM(3, 5, 2, batch_first=bool(batch_first))
    time = 1 if batch_first else 0
    x, rows = torch.randn(4, 3), torch.tensor([True, False, True, False])
    states = [torch.randn(4, 5) if is_cell else torch.randn(2, 4, 5) for _ in range(2)]
    if not is_cell:
        x, mask = x.unsqueeze(time), rows.unsqueeze(time)
    else:
        mask = rows
    new = rows.unsqueeze(-1)
    kept = [state.masked_fill(new, 0).requires_grad_() for state in states]
    # Of an episode that has diverged.
    given = [state.masked_fill(new, torch.nan).requires_grad_() for state in states]
    expected, got = layer(x, tuple(kept)), layer(x, tuple(given), reset=mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    grads = [
        torch.autograd.grad(r[0].square().sum(), s) for r, s in ((expected, kept), (got, given))
    ]
    for grad, of_kept in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(grad, of_kept.masked_fill(new, 0), rtol=0, atol=0)
    none = layer(x, tuple(states), reset=torch.zeros_like(mask))
    torch.testing.assert_close(none, layer(x, tuple(states)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="Expected reset size"):
        layer(x, tuple(states), reset=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="reset must be a tensor of dtype bool"):
        layer(x, tuple(states), reset=torch.zeros_like(mask, dtype=torch.float))
    with pytest.raises(RuntimeError):  # states of a single row are not those of four
        layer(x, tuple(state[..., :1, :] for state in states), reset=mask)


def test_numbers_too_large_to_be_normed_give_no_number():
    """As those of `torch.nn.functional.layer_norm`, where a row of zeros would hide them."""
    layer, x = LSTM(4, 8, layer_norm=True), torch.rand(3, 2, 4) + 0.5
    x[1, 0] *= 1e20
    output = layer(x)[0]
    assert output[1:, 0].isnan().all()
    assert output[0].isfinite().all()
    assert output[:, 1].isfinite().all()


def test_no_gradient_crosses_a_reset():
    module = make(num_layers=2, bidirectional=True)
    x: Any = draw(T, B, I).requires_grad_()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3] = True
    module(x, reset=reset)[0][:3].sum().backward()
    assert (x.grad[3:] == 0).all()
    assert (x.grad[:3] != 0).all()


@all_options
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[3, 0, T], [0, 0, 0], [1, 2, 2]])
def test_lengths(options: dict[str, Any], batch_first: bool, lengths: list[int]):
    """Each sequence alone; one of no steps keeps the state that it begins from."""
    module = make(batch_first=batch_first, **STACK, **options).eval()
    x, hx, reset = draw(T, B, I), (draw(4, B, 3), draw(4, B, H)), torch.rand(T, B) < 0.3
    turn = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    for state in (None, hx):
        results = parts(module(turn(x), state, lengths=torch.tensor(lengths), reset=turn(reset)))
        for b, length in enumerate(lengths):
            of_row = None if state is None else (hx[0][:, b : b + 1], hx[1][:, b : b + 1])
            row = slice(b, b + 1)
            if length:
                alone = parts(
                    module(turn(x[:length, row]), of_row, reset=turn(reset[:length, row]))
                )
            else:
                begin = module._zeros(x, 1) if of_row is None else of_row
                if of_row is None and "learned_state" in options:
                    begin = module.initial_h.unsqueeze(1), module.initial_c.unsqueeze(1)
                alone = [turn(x[:0, row]), *begin, turn(x[:0, row])]
            for i, (got, expected) in enumerate(zip(results, alone, strict=False)):
                if i % 3:  # states
                    torch.testing.assert_close(got[:, row], expected)
                else:
                    assert (turn(got)[length:, b] == 0).all()
                    if length:
                        torch.testing.assert_close(turn(got)[:length, row], turn(expected))


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_of_an_empty_batch(batch_first: bool):
    module = make(batch_first=batch_first, **STACK)
    x, none = draw(0, T, I) if batch_first else draw(T, 0, I), torch.zeros(0, dtype=torch.int64)
    empty: list[int] = []
    for lengths in (none, empty):
        for got, expected in zip(parts(module(x, lengths=lengths)), parts(module(x)), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint64])
@pytest.mark.parametrize("compiles", [False, True])
def test_lengths_of_any_integers(dtype: torch.dtype, compiles: bool):
    torch._dynamo.reset()
    module = make()
    call = torch.compile(module, backend="eager", fullgraph=True) if compiles else module
    x, lengths = draw(T, B, I), torch.tensor([2, 0, T])
    expected = parts(module(x, lengths=lengths))
    torch.testing.assert_close(parts(call(x, lengths=lengths.to(dtype))), expected)


def test_lengths_have_gradients():
    module = make(num_layers=2)
    x, h0, c0 = draw(T, B, I), draw(2, B, H), draw(2, B, H)

    def run(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        return tuple(parts(module(x, (h0, c0), lengths=[2, 0, T])))

    leaves = [t.requires_grad_() for t in (x, h0, c0)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@all_options
def test_lengths_under_transforms(options: dict[str, Any]):
    module = make(**options).eval()
    params = {name: p.detach() for name, p in module.named_parameters()}
    x, lengths = draw(T, B, I), torch.tensor([2, 0, T])

    def loss(params: dict[str, Tensor]) -> Tensor:
        kwargs = {"lengths": lengths}
        return torch.func.functional_call(module, params, (x,), kwargs)[0].square().sum()

    got = torch.func.grad(loss)(params)
    loss(dict(module.named_parameters())).backward()
    torch.testing.assert_close(got, {name: p.grad for name, p in module.named_parameters()})


@pytest.mark.parametrize("compiles", [False, True])
def test_gradients_of_each_of_several_sequences_of_their_own_lengths(compiles: bool):
    torch._dynamo.reset()
    module = make(bidirectional=True, layer_norm=True)
    params = {name: p.detach() for name, p in module.named_parameters()}
    x, lengths = draw(B, T, I), torch.tensor([2, 0, T])

    def loss(params: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
        kwargs = {"lengths": length.unsqueeze(0)}
        results = torch.func.functional_call(module, params, (x.unsqueeze(1),), kwargs)
        return results[0].square().sum()

    grad = torch.func.grad(loss)
    each: Any = torch.func.vmap(grad, in_dims=(None, 0, 0))
    if compiles:
        each = torch.compile(each, backend="eager", fullgraph=True)
    got = each(params, x, lengths)
    for b in range(B):
        of_row = {name: grads[b] for name, grads in got.items()}
        torch.testing.assert_close(of_row, grad(params, x[b], lengths[b]))
    if not compiles:
        for wrong in (lengths + 1, lengths - 1):
            with pytest.raises(RuntimeError, match="lengths must be from 0 to the steps of input"):
                each(params, x, wrong)
        with pytest.raises(ValueError, match="lengths must be 1 integers"):
            each(params, x, lengths.double())


def test_lengths_of_fake_tensors():
    module = make(bidirectional=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output, (h_n, _) = module(torch.empty(T, B, I, dtype=torch.float64), lengths=[2, 0, T])
    assert (output.shape, h_n.shape) == ((T, B, 2 * H), (2, B, H))


@pytest.mark.filterwarnings("ignore:.*jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_lengths_of_a_trace():
    """It takes others than those that it was made with."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = make(bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            output: Tensor = self.lstm(x, lengths=lengths)[0]
            return output

    model, x = Model(), draw(T, B, I)
    traced = torch.jit.trace(model, (x, torch.tensor([2, 0, T])))
    other = torch.tensor([T, 1, 3])
    torch.testing.assert_close(traced(x, other), model(x, other))


# Gradients, dtypes, torch's machinery.


@all_options
@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(options: dict[str, Any], training: bool):
    module = make(**(STACK | {"num_layers": 1 + training}), **options).train(training)
    names, params = zip(*module.named_parameters(), strict=True)
    reset = torch.tensor([[False, False], [True, False]])

    def run(x: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        given = dict(zip(names, params, strict=True))
        results = torch.func.functional_call(module, given, (x,), {"reset": reset})
        return tuple(parts(results))

    inputs = (draw(2, 2, I).requires_grad_(), *params)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@all_options
def test_float32_is_close_to_float64(options: dict[str, Any]):
    exact = make(**STACK, **options)
    module = copy.deepcopy(exact).float()
    x, reset = draw(T, B, I), torch.rand(T, B) < 0.3
    exact.eval()
    module.eval()
    for got, expected in zip(
        parts(module(x.float(), reset=reset)), parts(exact(x, reset=reset)), strict=True
    ):
        # Some hundred roundings, of numbers that a norm has divided by a tenth at least.
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e3 * 2**-24)


def test_gradients_of_norms_over_many_rows():
    """A sum of a million rows, one after the other, would lose three digits."""
    exact = LSTM(1, 3, layer_norm=True, dtype=torch.float64)
    layer = copy.deepcopy(exact).float()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 200_000, 1)
    layer(x)[0].sum().backward()
    exact(x.double())[0].sum().backward()
    grads: list[list[Any]] = [[p.grad for p in m.parameters()] for m in (layer, exact)]
    for got, expected in zip(*grads, strict=True):
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


@all_options
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(options: dict[str, Any], dtype: torch.dtype):
    module = make(dtype=torch.float32, **STACK, **options).to(dtype).eval()
    wide = copy.deepcopy(module).float()
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.3
    half = x.to(dtype)
    expected = [t.to(dtype) for t in parts(wide(half.float(), reset=reset))]
    torch.testing.assert_close(parts(module(half, reset=reset)), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype):
        results = parts(wide(x, reset=reset))
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


@all_options
def test_copies(options: dict[str, Any]):
    module = make(**STACK, **options)
    x = draw(T, B, I)
    expected = seeded(module, x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = LSTM(I, H, dtype=torch.float64, **STACK, **options)
    loaded.load_state_dict(module.state_dict())
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
        loaded,
    ):
        torch.testing.assert_close(seeded(twin, x), expected, rtol=0, atol=0)
        assert repr(twin) == repr(module)


@all_options
def test_masks_come_from_torchs_generator(options: dict[str, Any]):
    module = make(**STACK, **options)
    x = draw(T, B, I)
    first = seeded(module, x)
    assert torch.equal(module(x)[0], first[0]) is not bool(DRAWN & options.keys())
    torch.testing.assert_close(seeded(module, x), first, rtol=0, atol=0)
    torch.testing.assert_close(parts(module.eval()(x)), parts(module(x)), rtol=0, atol=0)


@all_options
def test_compile(options: dict[str, Any]):
    torch._dynamo.reset()
    module = make(dtype=torch.float32, bidirectional=True, **options).eval()
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.3
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(parts(compiled(x, reset=reset)), parts(module(x, reset=reset)))
    module.train()
    compiled(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_compile_of_packed_sequences():
    torch._dynamo.reset()
    module = make(dtype=torch.float32, bidirectional=True, **OPTIONS["all"]).eval()
    compiled = torch.compile(module, backend="aot_eager")
    packed = pack_padded_sequence(torch.randn(T, B, I), [2, T, 1], enforce_sorted=False)
    torch.testing.assert_close(parts(compiled(packed)), parts(module(packed)))


@pytest.mark.parametrize(
    ("options", "batch_first"),
    [*((options, False) for options in OPTIONS.values()), (OPTIONS["all"], True)],
    ids=[*OPTIONS, "all, batch_first"],
)
def test_compile_of_lengths(options: dict[str, Any], batch_first: bool):
    """One graph for all lengths; what lies past an end, NaN included, has no effect."""
    torch._dynamo.reset()
    L = 2 if options is OPTIONS["all"] else 1  # a layer more takes seconds more
    module = make(batch_first=batch_first, **{**STACK, "num_layers": L}, **options).eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    turn = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    hx, reset = (draw(2 * L, B, 3), draw(2 * L, B, H)), torch.rand(T, B) < 0.3

    def run(call: Any, x: Tensor, lengths: Tensor, *rest: Any, **kwargs: Any) -> Any:
        x = x.clone().requires_grad_()
        results = parts(call(turn(x), *rest, lengths=lengths, **kwargs))
        loss = sum(((i + 1) * t.square().sum() for i, t in enumerate(results)), torch.zeros(()))
        return results, torch.autograd.grad(loss, (x, *module.parameters()), allow_unused=True)

    for stance, lengths in (("default", [2, 0, T]), ("fail_on_recompile", [T, T, 1])):
        ends, x = torch.tensor(lengths), draw(T, B, I)
        beyond = x.masked_fill((torch.arange(T).unsqueeze(1) >= ends).unsqueeze(-1), float("nan"))
        with torch.compiler.set_stance(stance):
            for arguments in ((), (hx,)):
                got = run(compiled, beyond, ends, *arguments, reset=turn(reset))
                expected = run(module, x, ends, *arguments, reset=turn(reset))
                torch.testing.assert_close(got, expected)
            torch.testing.assert_close(run(compiled, beyond, ends), run(module, x, ends))


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_lengths(strict: bool):
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = LSTM(I, H, **STACK)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.lstm(x, lengths=lengths)

    model, dynamic = Model().eval(), torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model,
        (torch.randn(T, B, I), torch.tensor([2, 0, T])),
        dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic}),
        strict=strict,
    )
    x, lengths = torch.randn(2 * T, 4, I), torch.tensor([2, 0, 2 * T, 1])
    torch.testing.assert_close(program.module()(x, lengths), model(x, lengths))
    with pytest.raises(RuntimeError, match="lengths must be from 0 to the steps of input"):
        program.module()(x, lengths + T)


def test_compile_of_wrong_lengths():
    torch._dynamo.reset()
    compiled = torch.compile(make(), backend="aot_eager", fullgraph=True)
    x = draw(T, B, I)
    torch.testing.assert_close(
        parts(compiled(x, lengths=[1, 2, T])), parts(compiled(x, lengths=torch.tensor([1, 2, T])))
    )
    for lengths in ([1, 2, T + 1], [1, -2, 3]):
        with pytest.raises(RuntimeError, match="lengths must be from 0 to the steps of input"):
            compiled(x, lengths=torch.tensor(lengths))


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    module = make(dtype=torch.float32, layer_norm=True, variational_dropout=0.1)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(T, B, I)
    compiled(x)[0].sum().backward()
    assert module.norm_ih_l0.grad.any()


def test_export_and_compile_with_any_size():
    torch._dynamo.reset()
    module = make(dtype=torch.float32, bidirectional=True, layer_norm=True, zoneout=0.1).eval()
    x, larger = torch.randn(T, B, I), torch.randn(2 * T, B + 2, I)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=False)
    torch.testing.assert_close(parts(program.module()(larger)), parts(module(larger)))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for inputs in (x, larger):
        reset = torch.rand(inputs.shape[:2]) < 0.3
        lengths = torch.randint(1 + inputs.shape[0], inputs.shape[1:2])
        for kwargs in ({"reset": reset}, {"reset": reset, "lengths": lengths}):
            results = compiled(inputs, **kwargs)
            torch.testing.assert_close(parts(results), parts(module(inputs, **kwargs)))


def test_transforms_and_tracing():
    module = make(layer_norm=True, zoneout=0.2, num_layers=2).eval()
    x = draw(3, T, B, I)
    mapped = torch.func.vmap(lambda x: module(x)[0])(x)
    torch.testing.assert_close(mapped, torch.stack([module(x)[0] for x in x]))
    traced = torch.jit.trace(module, x[0])
    torch.testing.assert_close(parts(traced(x[1])), parts(module(x[1])))


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_fx(cls: Any):
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.options = cls(I, I), cls(I, H, learned_state=True)

        def forward(self, x: Tensor, reset: Tensor) -> Tensor:
            x = self.plain(x)[0]
            h = self.options(x, reset=reset)[0]
            result: Tensor = h if cls is LSTM else self.options(x, (h, h))[0]
            return result

    model = Model()
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.5
    inputs = (x, reset) if cls is LSTM else (x[0], reset[0])
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)
    with pytest.raises(torch.fx.proxy.TraceError):  # as of torch's
        torch.fx.symbolic_trace(cls(I, H))


def test_devices_without_kernels():
    module = LSTM(I, H, device="meta", **STACK, **OPTIONS["all"])
    output, (h_n, c_n), cells = module(torch.empty(T, B, I, device="meta"))
    assert (output.shape, cells.shape) == ((T, B, 6), (T, B, 2 * H))
    assert (h_n.shape, c_n.shape) == ((4, B, 3), (4, B, H))


def test_explain():
    x = torch.randn(T, B, I)
    isa = lstm_fast.build_info()["isa"]
    said = lstm_fast.explain(LSTM(I, H, zoneout=0.1), x)
    assert said == f"CPU kernels, {isa}, packed weights, step by step"
    assert lstm_fast.explain(LSTM(I, H, learned_state=True), x) == lstm_fast.explain(LSTM(I, H), x)


CHANGES: dict[str, Any] = {
    "weight_dropout": 0.4,
    "variational_dropout": 0.4,
    "zoneout": (0.4, 0.1),
    "gate_activation": "hard_sigmoid",
    "cell_activation": "relu",
    "return_cells": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_takes_effect(name: str):
    """As a module that was built with it, in graphs that were made before, too; and back."""
    torch._dynamo.reset()
    module = make(**STACK, learned_state=True)
    state, x, value = module.state_dict(), draw(T, B, I), CHANGES[name]
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    before, of_graph = seeded(module, x), seeded(compiled, x)
    setattr(module, name, value)
    built = make(**STACK, learned_state=True, **{name: value})
    built.load_state_dict(state)
    for changed in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert getattr(changed, name) == getattr(built, name)
        assert repr(changed) == repr(built)
        torch.testing.assert_close(seeded(changed, x), seeded(built, x), rtol=0, atol=0)
    torch.testing.assert_close(seeded(compiled, x), seeded(built, x))
    setattr(module, name, getattr(Options(), name))
    torch.testing.assert_close(seeded(module, x), before, rtol=0, atol=0)
    torch.testing.assert_close(seeded(compiled, x), of_graph)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_options_are_attributes(cls: Any):
    module = cls(I, H, zoneout=0.1)
    assert module.zoneout == (0.1, 0.1)
    assert (module.layer_norm, module.learned_state) == (False, False)
    assert hasattr(module, "return_cells") is (cls is LSTM)
    with pytest.raises(ValueError, match="zoneout must be a probability, from 0 to 1, got 2"):
        module.zoneout = 2
    with pytest.raises(ValueError, match="cell_activation must be one of"):
        module.cell_activation = "gelu"
    for name in ("layer_norm", "learned_state"):
        setattr(module, name, False)
        with pytest.raises(AttributeError, match=f"{name} cannot change, as its parameters"):
            setattr(module, name, True)
    assert repr(module) == repr(cls(I, H, zoneout=0.1))
    module.zoneout = 0.0
    x = torch.randn(B, I) if cls is LSTMCell else torch.randn(T, B, I)
    expected = module(x)
    stock = lstm_fast.restore(module)
    assert vars(stock).keys() == vars(type(stock)(I, H)).keys()
    torch.testing.assert_close(stock(x), expected)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_numbers_of_numpy(cls: Any):
    torch._dynamo.reset()
    module = cls(I, H, zoneout=np.float64(0.25), forget_bias=np.float32(2))
    assert repr(module) == repr(cls(I, H, zoneout=0.25, forget_bias=2.0))
    compiled = torch.compile(module.eval(), backend="eager", fullgraph=True)
    x = torch.randn(B, I) if cls is LSTMCell else torch.randn(T, B, I)
    torch.testing.assert_close(compiled(x), module(x))
    module.reset_parameters()
    assert (
        dict(module.named_parameters())["bias_ih" + "_l0" * (cls is LSTM)][H : 2 * H] == 2
    ).all()


def test_skip_init():
    module = torch.nn.utils.skip_init(LSTM, I, H, layer_norm=True)
    assert module.norm_c_l0.shape == (H,)
    assert not module.norm_c_l0.is_meta


# Other people's models.


def test_swapped_modules_have_no_options_and_take_resets():
    model = torch.nn.Sequential(torch.nn.LSTM(I, H, dtype=torch.float64))
    lstm_fast.accelerate(model)
    x, reset = draw(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    torch.testing.assert_close(parts(model[0](x, reset=reset)), parts(model[0](x)))
    assert type(lstm_fast.restore(model)[0]) is torch.nn.LSTM


def test_attributes_of_a_clients_subclass_stay_its_own():
    class Theirs(torch.nn.LSTM):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.layer_norm = torch.nn.LayerNorm(H)
            self.zoneout = 0.5
            self.norm_scale = torch.nn.Parameter(torch.full((), 3.0))

        def forward(self, x: Any, hx: Any = None) -> Any:
            return self.layer_norm(super().forward(x, hx)[0])

    module: Any = lstm_fast.accelerate(Theirs())
    module.reset_parameters()
    assert module.norm_scale != 1
    assert module(torch.randn(T, B, I)).shape == (T, B, H)
    module.zoneout = module.gate_activation = "theirs"
    assert (module.zoneout, module.gate_activation) == ("theirs", "theirs")

    class OfOurs(LSTM):
        def zoneout(self) -> str:
            return "theirs"

    module = OfOurs(I, H, cell_activation="relu", dtype=torch.float64)
    assert module.zoneout() == "theirs"
    module.layer_norm = torch.nn.LayerNorm(H, dtype=torch.float64)
    assert module.layer_norm(module(draw(T, B, I))[0]).shape == (T, B, H)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_restore_and_script_refuse_what_torch_lacks(cls: Any):
    model = torch.nn.Sequential(torch.nn.Identity(), cls(I, H), cls(I, H, zoneout=0.1))
    with pytest.raises(TypeError, match=r"^2 cannot be restored.*zoneout=\(0.1, 0.1\)"):
        lstm_fast.restore(model)
    assert type(model[1]) is cls
    with pytest.raises(RuntimeError, match="zoneout"):
        torch.jit.script(model[2])
    only_begins = cls(I, H, forget_bias=1.0)
    assert type(lstm_fast.restore(only_begins)) in (torch.nn.LSTM, torch.nn.LSTMCell)


@pytest.mark.parametrize("name", ["weight_dropout", "variational_dropout"])
def test_options_of_training_alone_are_none_in_evaluation(name: str):
    module, stock = make(**OPTIONS[name]).eval(), torch.nn.LSTM(I, H, dtype=torch.float64)
    stock.load_state_dict(module.state_dict())
    x = draw(T, B, I)
    expected = stock(x)[0]
    session = lstm_fast.InferenceSession(module)
    torch.testing.assert_close(torch.from_numpy(session.run(x.numpy())[0]), expected)
    stream = lstm_fast.Stream(module, B)
    steps = [torch.from_numpy(stream.step(step.numpy()).copy()) for step in x]
    torch.testing.assert_close(torch.stack(steps), expected)
    traced = torch.jit.trace(module, x[:2])  # of any number of steps then
    torch.testing.assert_close(traced(x)[0], expected)
    loads = "its state_dict loads into a torch.nn.LSTM, which computes the same in evaluation"
    with pytest.raises(TypeError, match=loads):
        lstm_fast.restore(module)
    with pytest.raises(RuntimeError, match=loads):
        torch.jit.script(module)
    for refuse in (lstm_fast.InferenceSession, lstm_fast.Stream):
        with pytest.raises(ValueError, match=r"has zoneout=\(0.1, 0.1\)$"):
            refuse(make(zoneout=0.1, **OPTIONS[name]))


def test_onnx_has_no_options_but_those_of_training_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    x, reset = draw(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    module = make(weight_dropout=0.5)
    assert "lstm_fast" not in str(torch.export.export(module.eval(), (x,)).graph)
    for wrong, kwargs, lacking in (
        (make(zoneout=0.1), {}, "zoneout="),
        (make(weight_dropout=0.5), {}, "weight_dropout=0.5"),
        (make(), {"reset": reset}, "reset"),
        (LSTMCell(I, H, layer_norm=True), {}, "layer_norm=True"),
    ):
        args = (x[0].float(),) if isinstance(wrong, LSTMCell) else (x,)
        with pytest.raises(RuntimeError, match=f"what torch lacks.*{lacking}"):
            torch.export.export(wrong, args, kwargs)


def test_repr():
    assert repr(LSTM(I, H, zoneout=0.1, forget_bias=1.0, cell_activation="relu")) == (
        "LSTM(4, 6, forget_bias=1.0, zoneout=(0.1, 0.1), cell_activation='relu')"
    )
    assert repr(LSTMCell(I, H, layer_norm=True)) == "LSTMCell(4, 6, layer_norm=True)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoneout": 1.5}, "zoneout must be a probability"),
        ({"zoneout": (0.1, 0.2, 0.3)}, "zoneout must be a number or a pair"),
        ({"variational_dropout": -0.1}, "variational_dropout"),
        ({"weight_dropout": True}, "weight_dropout"),
        ({"gate_activation": "tanh"}, "gate_activation must be one of sigmoid, hard_sigmoid"),
        ({"cell_activation": "gelu"}, "cell_activation must be one of"),
        ({"forget_bias": 1.0, "bias": False}, "forget_bias needs bias=True"),
        ({"forget_bias": "1"}, "forget_bias must be None or a finite number, got '1'"),
        ({"forget_bias": float("nan")}, "forget_bias must be None or a finite number, got nan"),
        ({"weight_dropout": "x"}, "weight_dropout must be a probability, from 0 to 1, got 'x'"),
        ({"zoneout": None}, "zoneout must be a probability, from 0 to 1, got None"),
        ({"zoneout": (0.1, "x")}, "zoneout must be a probability, from 0 to 1, got 'x'"),
        ({"layer_norm": "False"}, "layer_norm must be True or False, got 'False'"),
        ({"recompute_gates": "x"}, "recompute_gates must be True or False, got 'x'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        LSTM(I, H, **options)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reset": torch.zeros(T, B)}, "reset must be a tensor of dtype bool"),
        ({"reset": [[True]]}, "reset must be a tensor of dtype bool, got list"),
        ({"reset": torch.zeros(B, T, dtype=torch.bool)}, "Expected reset size"),
        ({"lengths": [1, 2]}, "lengths must be 3 integers"),
        ({"lengths": torch.ones(3)}, "lengths must be 3 integers"),
        ({"lengths": torch.ones(3)}, r"got a tensor of torch.float32 and shape \(3,\)"),
        ({"lengths": "abc"}, "lengths must be 3 integers, one for each sequence, got 'abc'"),
        ({"lengths": [[1], [2, 3]]}, "lengths must be 3 integers"),
        ({"lengths": [1, 2, T + 1]}, "lengths must be from 0 to 5"),
        ({"lengths": [1, -2, 3]}, "lengths must be from 0 to 5"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make()(draw(T, B, I), **kwargs)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_wrong_reset_of_unbatched_input(batch_first: bool):
    with pytest.raises(ValueError, match=r"Expected reset size \(5,\), got \(6,\)"):
        make(batch_first=batch_first)(draw(T, I), reset=torch.zeros(T + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Expected reset size \(\), got \(2,\)"):
        LSTMCell(I, H)(torch.randn(I), reset=torch.zeros(2, dtype=torch.bool))


def test_wrong_inputs_raise_as_in_torch():
    module, stock = make(layer_norm=True), make(torch.nn.LSTM)
    h, c = draw(1, B, H), draw(1, B, H)
    cases: list[tuple[Any, ...]] = [
        (draw(T, B, I + 1),),
        (draw(T, B, I).float(),),
        (draw(0, B, I),),
        (draw(T),),
        (draw(T, B, I), (h[:, :2], c)),
        (draw(T, B, I), (h, c[..., :2])),
        (draw(T, B, I), (h, c, c)),
        (draw(T, B, I), (h[0], c[0])),
        (draw(T, I), (h[:, :1], c[:, :1])),
        (pack_padded_sequence(draw(T, B, I), [T] * B), (h, c, c)),
    ]
    for args in cases:
        with pytest.raises(Exception) as expected:  # noqa: PT011
            stock(*args)
        with pytest.raises(expected.type) as got:
            module(*args)
        assert str(got.value) == str(expected.value)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        module(draw(T, B, I), (h, c, c), lengths=[1, 2, 3])
    packed = pack_padded_sequence(draw(T, B, I), [T] * B)
    with pytest.raises(ValueError, match="lengths must be None for a PackedSequence"):
        module(packed, lengths=[1, 2, 3])
    with pytest.raises(ValueError, match="lengths must be None for unbatched"):
        module(draw(T, I), lengths=[1])


# Cells.

OF_CELLS = {"zoneout", "layer_norm", "learned_state", "forget_bias"}
OF_CELLS |= {"gate_activation", "cell_activation"}
CELL_OPTIONS = {name: options for name, options in OPTIONS.items() if options.keys() <= OF_CELLS}


@pytest.mark.parametrize("options", CELL_OPTIONS.values(), ids=CELL_OPTIONS)
def test_a_cell_is_a_step_of_a_layer(options: dict[str, Any]):
    layer = make(**options).eval()
    cell = LSTMCell(I, H, dtype=torch.float64, **options).eval()
    state = {name.removesuffix("_l0"): p for name, p in layer.state_dict().items()}
    for name in ("initial_h", "initial_c"):
        if name in state:
            state[name] = state[name][0]
    cell.load_state_dict(state)
    x, hx = draw(1, B, I), (draw(1, B, H), draw(1, B, H))
    reset = torch.tensor([[True, False, False]])
    for given in (None, hx):
        for mask in (None, reset):
            _, (h, c) = layer(x, given, reset=mask)
            of_cell = None if given is None else (given[0][0], given[1][0])
            got = cell(x[0], of_cell, reset=None if mask is None else mask[0])
            torch.testing.assert_close(got, (h[0], c[0]))
    alone = cell(x[0, 0], (hx[0][0, 0], hx[1][0, 0]), reset=reset[0, 0])
    expected = cell(x[0], (hx[0][0], hx[1][0]), reset=reset[0])
    torch.testing.assert_close(alone, (expected[0][0], expected[1][0]))
    twin = pickle.loads(pickle.dumps(cell))
    torch.testing.assert_close(twin(x[0]), cell(x[0]))
    cell.train()
    results = torch.stack(cell(x[0], reset=reset[0]))
    results.sum().backward()
    assert all(p.grad is not None for p in cell.parameters())


def test_wrong_arguments_of_a_cell():
    cell = LSTMCell(I, H, layer_norm=True)
    with pytest.raises(RuntimeError, match="input has inconsistent input_size"):
        cell(torch.randn(B, I + 1))
    x, h, c = torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)
    for states in ((h[:, :-1], c), (h, c[:, :-1]), (h[:1], c), (h[:1], c[:1]), (h,), (h, c, c)):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            torch.nn.LSTMCell(I, H)(x, states)
        with pytest.raises(expected.type) as got:
            cell(x, states)
        assert str(got.value) == str(expected.value)
    for state in (h[None], h[:, None], h[:, 0]):
        with pytest.raises(RuntimeError, match=r"hidden0 (batch|has)"):
            cell(x, (state, c))
    for wrong, args in {
        "input": (x.half(),),
        "h0": (x, (h.half(), c.half())),
        "c0": (x, (h, c.double())),
    }.items():
        with pytest.raises(RuntimeError, match=f"{wrong} must have the dtype of weight_ih"):
            cell(*args)
    weights = dict(cell.named_parameters())
    with pytest.raises(RuntimeError, match="doesn't match hidden0 batch size 1"):
        torch.func.grad(
            lambda w: torch.func.functional_call(cell, w, (x, (h[:1], c[:1])))[0].sum()
        )(weights)
    with pytest.raises(ValueError, match="reset must be a tensor of dtype bool"):
        cell(torch.randn(B, I), reset=torch.zeros(B))
    with pytest.raises(ValueError, match=r"Expected reset size \(3,\), got \(4,\)"):
        cell(torch.randn(B, I), reset=torch.zeros(B + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D"):
        cell(torch.randn(1, B, I))
    with pytest.raises(TypeError, match="variational_dropout"):
        LSTMCell(I, H, variational_dropout=0.1)  # type: ignore[call-arg]


def test_the_plain_path_is_the_kernels_own(monkeypatch: pytest.MonkeyPatch):
    """A module without options never enters the code of the options."""
    from lstm_fast import options

    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(options, "forward", fail)
    LSTM(I, H)(torch.randn(T, B, I))
    LSTM(I, H, forget_bias=1.0)(pack_padded_sequence(torch.randn(T, B, I), [T] * B))
    with pytest.raises(AssertionError):
        LSTM(I, H, learned_state=True)(torch.randn(T, B, I))


def test_the_document():
    """Its snippets are run in order, and its formulas are of all options."""
    text = (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    snippets = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 1 + text.count("\n## ")
    for snippet in snippets:
        exec(snippet, names)
    for field in dataclasses.fields(Options):
        assert f"{field.name}=" in text or f"`{field.name}`" in text
