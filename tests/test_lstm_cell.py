"""`lstm_fast.LSTMCell` beside `torch.nn.LSTMCell`."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lstm_fast import LSTM, LSTMCell, ops
from tests import sample_inputs
from tests.sample_inputs import (
    DTYPES,
    ODD_SIZES,
    Config,
    assert_all_close,
    assert_close,
    assert_same_error,
)

CELL = Config(T=1)
twins = functools.partial(sample_inputs.twins, LSTMCell)


def forward_and_gradients(
    cell: torch.nn.LSTMCell, input: Tensor, hx: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    input = input.detach().requires_grad_()
    if hx is not None:
        hx = hx[0].detach().requires_grad_(), hx[1].detach().requires_grad_()
    h, c = cell(input, hx)
    grads = torch.autograd.grad((2 * h + c).sum(), [input, *(hx or ()), *cell.parameters()])
    return {"h": h, "c": c} | {f"grad {index}": grad for index, grad in enumerate(grads)}


@given(
    st.sampled_from(ODD_SIZES),
    st.sampled_from(ODD_SIZES),
    st.sampled_from((None, 1, 2, 17)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_values_and_gradients(
    input_size: int,
    hidden_size: int,
    batch: int | None,
    bias: bool,
    with_hx: bool,
    dtype: torch.dtype,
):
    torch.manual_seed(0)
    rows = () if batch is None else (batch,)
    cell = LSTMCell(input_size, hidden_size, bias, dtype=dtype)
    exact = torch.nn.LSTMCell(input_size, hidden_size, bias, dtype=torch.float64)
    exact.load_state_dict(cell.state_dict())
    input = torch.randn(*rows, input_size).to(dtype)
    state = torch.randn(2, *rows, hidden_size).to(dtype)
    hx = (state[0], state[1]) if with_hx else None
    got = forward_and_gradients(cell, input, hx)
    exact_hx = None if hx is None else (hx[0].double(), hx[1].double())
    expected = forward_and_gradients(exact, input.double(), exact_hx)
    config = replace(CELL, input_size=input_size, hidden_size=hidden_size, dtype=dtype)
    assert_close(got, expected, replace(config, B=batch or 1))
    assert all(result.dtype == dtype for result in got.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_a_step_of_the_lstm(dtype: torch.dtype, fused: list[None]):
    lstm, cell = LSTM(4, 5, dtype=dtype), LSTMCell(4, 5, dtype=dtype)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: getattr(lstm, f"{name}_l0") for name in names})
    x, h, c = (torch.randn(3, size).to(dtype).requires_grad_() for size in (4, 5, 5))
    _, (h_n, c_n) = lstm(x[None], (h[None], c[None]))
    expected = h_n[0], c_n[0]
    got = cell(x, (h, c))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert len(fused) == 2
    cell_grads, lstm_grads = (
        torch.autograd.grad((results[0] - 2 * results[1]).sum(), [x, h, c, *module.parameters()])
        for module, results in ((cell, got), (lstm, expected))
    )
    torch.testing.assert_close(cell_grads, lstm_grads, rtol=0, atol=0)


class Plain(TorchDispatchMode):
    """Leaves calls to the dispatcher as they are, where a direct call would go past it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [("input",), ("h",), ("c", "weight_hh"), ("bias_ih", "input")])
def test_backward_of_what_is_wanted(dtype: torch.dtype, trained: tuple[str, ...]):
    """Past the dispatcher, through it, and to be differentiated once more."""
    cell = LSTMCell(4, 5, dtype=dtype)
    named = {"input": torch.randn(3, 4), "h": torch.randn(3, 5), "c": torch.randn(3, 5)}
    named = {name: t.to(dtype) for name, t in named.items()} | dict(cell.named_parameters())
    # A step that is direct asks for a gradient of weight_ih at least.
    wanted = [named[name].requires_grad_() for name in ("weight_ih", *trained)]
    for name in {"weight_hh", "bias_ih", "bias_hh"} - set(trained):
        named[name].requires_grad_(False)
    h, c = cell(named["input"], (named["h"], named["c"]))
    assert "Cell" in h.grad_fn.name()
    for loss in (h.sum(), (h - c).sum()):
        direct = torch.autograd.grad(loss, wanted, retain_graph=True)
        with Plain():
            dispatched = torch.autograd.grad(loss, wanted, retain_graph=True)
        assert all(map(torch.equal, direct, dispatched))
        again = torch.autograd.grad(loss, wanted, retain_graph=True, create_graph=True)
        assert_all_close(direct, again, replace(CELL, dtype=dtype))


@pytest.mark.parametrize("around", [Plain, torch.profiler.profile])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_checkpoint_is_run_again_under_another_mode(around: Any, frozen: bool):
    """Which compares what is saved in both runs."""
    cell = LSTMCell(4, 5).requires_grad_(not frozen)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cell(x)[0].sum(), x)
    for modes in ((contextlib.nullcontext, around), (around, contextlib.nullcontext)):
        with modes[0]():
            y = checkpoint(lambda: cell(x)[0], use_reentrant=False)
        with modes[1]():
            (got,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("cls", [LSTMCell, torch.nn.LSTMCell])
def test_results_may_change_before_backward(cls: type[torch.nn.LSTMCell]):
    cell = cls(4, 5)
    gradients = []
    for in_place in (False, True):
        h, c = cell(X)
        h, c = (h.mul_(3), c.mul_(2)) if in_place else (h * 3, c * 2)
        gradients.append(torch.autograd.grad((h + c).sum(), list(cell.parameters())))
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not ops.tells_saved_tensors_apart, reason="torch refuses any change")
@pytest.mark.parametrize("dispatched", [False, True])
@pytest.mark.parametrize(
    ("wanted", "may_change"),
    [
        (("weight_ih", "weight_hh"), ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        (("bias_hh",), ("input", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        (("input",), ("input", "h", "weight_hh", "bias_ih", "bias_hh")),
        (("h",), ("input", "h", "weight_ih", "bias_ih", "bias_hh")),
        (("c",), ("input", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        (("input", "h", "weight_ih"), ("h", "bias_ih", "bias_hh")),
    ],
)
def test_what_may_change_before_backward(
    wanted: tuple[str, ...], may_change: tuple[str, ...], dispatched: bool
):
    """A weight for which no gradient of what it multiplies is wanted, and the other way round."""
    mode = Plain if dispatched else contextlib.nullcontext
    for cell in twins():
        with mode():
            expected = gradients_after_change(cell, wanted, None)
            for name in may_change:
                got = gradients_after_change(cell, wanted, name)
                torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with mode(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients_after_change(twins()[0], wanted, may_change[-1], create_graph=True)
    for name in {"input", "h", "c", "weight_ih", "weight_hh"} - set(may_change):
        with mode(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients_after_change(twins()[0], wanted, name)


def gradients_after_change(
    cell: torch.nn.LSTMCell, wanted: tuple[str, ...], change: str | None, **options: Any
) -> Any:
    """Of the wanted tensors, one of all being changed before backward."""
    given = {"input": X.clone(), "h": H.clone(), "c": H.clone()}
    given |= {name: p.detach().clone() for name, p in cell.named_parameters()}
    for name in wanted:
        given[name].requires_grad_()
    params = {name: given[name] for name, _ in cell.named_parameters()}
    args = given["input"], (given["h"], given["c"])
    h, c = torch.func.functional_call(cell, params, args)
    loss = (h + c).sum()
    if change is not None:
        with torch.no_grad():
            given[change].fill_(float("nan"))
    return torch.autograd.grad(loss, [given[name] for name in wanted], **options)


def test_large_weights_under_autocast_are_left_to_torch(fused: list[None]):
    ours, theirs = twins(hidden_size=512)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(X), theirs(X), rtol=0, atol=0)
    assert not fused


def test_a_step_is_one_function_of_autograd():
    cell = LSTMCell(4, 5)
    h, c = cell(X)
    h, c = cell(X, (h, c))
    assert h.grad_fn is c.grad_fn
    before = {function for function, _ in h.grad_fn.next_functions if function is not None}
    accumulating = {f for f in before if f.name() == "torch::autograd::AccumulateGrad"}
    assert len(accumulating) == 4
    assert {f.name() for f in before - accumulating} == {h.grad_fn.name()}


def test_forms_of_arguments(fused: list[None]):
    ours, theirs = twins()
    x, row = torch.randn(4, 3).T, torch.randn(1, 5)
    state = row.expand(3, 5)
    for args in ((x,), (x, [state, state]), (x[0],), (x[0], (row[0], row[0])), (x[:0],)):
        assert_all_close(ours(*args), theirs(*args), CELL)
    assert_all_close(ours(input=x, hx=(state, state)), theirs(x, (state, state)), CELL)
    assert len(fused) == 6


def test_the_gradient_of_c_is_what_reaches_c_itself():
    """And not, as of torch's cells, what reaches it through h too."""
    h, c = LSTMCell(4, 5)(X)
    (grad,) = torch.autograd.grad(h.sum() + 2 * c.sum(), c)
    assert torch.equal(grad, torch.full_like(c, 2))


X = torch.linspace(-1, 1, 12).reshape(3, 4)
H = torch.linspace(-1, 1, 15).reshape(3, 5)
BAD_CALLS: dict[str, tuple[Any, ...]] = {
    "wrong input_size": (X[:, :3],),
    "three dimensions": (X[None],),
    "wrong dtype": (X.double(),),
    "integers": (X.long(),),
    "none": (None,),
    "not a tensor": (X.numpy(),),
    "another device": (X.to("meta"),),
    "hx of another size": (X, (H[:, :3], H)),
    "cx of another size": (X, (H, H[:, :3])),
    "hx of another batch": (X, (H[:1], H)),
    "cx of another batch": (X, (H, H[:1])),
    "hx of one dimension": (X, (H[0], H[0])),
    "hx of three dimensions": (X, (H[None], H[None])),
    "hx batched, input not": (X[0], (H, H)),
    "hx of another dtype": (X, (H.double(), H)),
    "three states": (X, (H, H, H)),
    "one state": (X, (H,)),
    "stacked states": (X, torch.stack([H, H])),
    "no states in the pair": (X, (None, None)),
}


@pytest.mark.parametrize("args", BAD_CALLS.values(), ids=BAD_CALLS)
def test_errors_are_those_of_torch(args: tuple[Any, ...]):
    assert_same_error(*twins(), *args)


@pytest.mark.parametrize("hx", [None, (torch.zeros(3, 0), torch.zeros(3, 0))])
def test_no_units(hx: tuple[Tensor, Tensor] | None):
    for cell in twins(hidden_size=0):
        h, c = cell(torch.randn(3, 4), hx)
        assert h.shape == c.shape == (3, 0)
        h.sum().backward()


def test_a_cell_state_of_another_dtype_is_promoted_as_in_torch():
    ours, theirs = twins()
    got, expected = ours(X, (H, H.double())), theirs(X, (H, H.double()))
    assert got[1].dtype == expected[1].dtype
    assert_all_close(got, expected, CELL)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_parameter_of_the_wrong_shape_raises(name: str):
    ours, theirs = twins()
    for cell in (ours, theirs):
        shape = [size + 1 for size in getattr(cell, name).shape]
        setattr(cell, name, torch.nn.Parameter(torch.ones(shape)))
        with pytest.raises(RuntimeError):
            cell(X)


def test_construction_and_copies():
    torch.manual_seed(3)
    ours = LSTMCell(4, 5)
    torch.manual_seed(3)
    theirs = torch.nn.LSTMCell(4, 5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert isinstance(ours, torch.nn.LSTMCell)
    assert repr(ours) == repr(theirs)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is LSTMCell
        torch.testing.assert_close(twin(X), ours(X), rtol=0, atol=0)


def test_changed_weights_are_seen(fused: list[None]):
    ours, theirs = twins()
    ours(X)
    for cell in (ours, theirs):
        cell.weight_hh.data.mul_(3)
        cell.bias_ih = torch.nn.Parameter(torch.ones(20))
        parametrizations.weight_norm(cell, "weight_ih")
    assert_all_close(ours(X, (H, H)), theirs(X, (H, H)), CELL)
    params = {name: p.detach() * 2 for name, p in ours.named_parameters()}
    got, expected = (torch.func.functional_call(c, params, (X,)) for c in (ours, theirs))
    assert_all_close(got, expected, CELL)
    assert len(fused) == 3


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_states", ["none", "float32", "dtype", "h", "c"])
def test_autocast(rows: int, dtype: torch.dtype, of_states: str, fused: list[None]):
    """States are of the dtype that torch gives them; what enters products may be rounded."""
    ours, theirs = twins(hidden_size=32)
    x, h, c = torch.randn(rows, 4), torch.randn(rows, 32), torch.randn(rows, 32)
    if of_states in ("dtype", "h"):
        h = h.to(dtype)
    if of_states in ("dtype", "c"):
        c = c.to(dtype)
    hx = None if of_states == "none" else (h, c)
    with torch.autocast("cpu", dtype):
        got = forward_and_gradients(ours, x, hx)
        low = ours(x.to(dtype), hx)
        types = [t.dtype for t in (*theirs(x, hx), *theirs(x.to(dtype), hx))]
        with torch.no_grad():
            inferred = ours(x, hx)
    assert len(fused) == 3
    assert [t.dtype for t in (got["h"], got["c"], *low)] == types
    assert all(map(torch.equal, inferred, (got["h"], got["c"])))
    exact = copy.deepcopy(theirs).double()
    expected = forward_and_gradients(exact, x.double(), hx and (h.double(), c.double()))
    # Weights and inputs are rounded by eps / 2 each, and by as much what is handed out.
    bound = 4 * torch.finfo(dtype).eps
    assert_close(got, expected, CELL, bound)


def test_autocast_to_any_dtype_that_is_set(fused: list[None]):
    ours, theirs = twins()
    before = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        torch.set_autocast_dtype("cpu", torch.float64)
        try:
            got, expected = ours(X), theirs(X)
        finally:
            torch.set_autocast_dtype("cpu", before)
    assert got[0].dtype is expected[0].dtype
    assert_all_close(got, expected, CELL)
    assert not fused


def test_gradcheck_through_steps():
    cell = LSTMCell(3, 2, dtype=torch.float64)
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    h, c = (torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def run(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> Any:
        named = dict(zip(dict(cell.named_parameters()), params, strict=True))
        for step in x:
            h, c = torch.func.functional_call(cell, named, (step, (h, c)))
        return h, c

    inputs = (x, h, c, *cell.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("cls", [LSTMCell, torch.nn.LSTMCell])
def test_truncated_backpropagation_in_place(cls: type[torch.nn.LSTMCell]):
    cell = cls(3, 4)
    state = None
    for x in torch.randn(6, 2, 3):
        state = cell(x, state)
        state[0].sum().backward()
        for of_state in state:
            of_state.detach_()
    assert cell.weight_hh.grad is not None


@pytest.mark.parametrize("cls", [LSTMCell, torch.nn.LSTMCell])
def test_a_traced_state_is_handed_on_whole(cls: type[torch.nn.LSTMCell]):
    class Steps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cls(3, 4)

        def forward(self, x: Tensor, state: Any) -> Any:
            return self.cell(x, self.cell(x, state))

    steps = Steps()
    traced = torch.fx.symbolic_trace(steps)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    x, state = torch.randn(2, 3), (torch.randn(2, 4), torch.randn(2, 4))
    assert_all_close(traced(x, state), steps(x, state), CELL)


def test_what_is_not_fused_falls_through(fused: list[None]):
    ours, theirs = twins()
    with torch.autocast("cpu", torch.bfloat16):
        for wrong in (X.double(), X.long()):
            assert_same_error(ours, theirs, wrong, (H, H))
    state = H.to_sparse(), H
    assert_all_close(ours(X, state), theirs(X, state), CELL)
    assert not fused
    traced = torch.jit.trace(ours, (X,))
    assert "lstm_fast::" not in str(traced.inlined_graph)
    scripted = torch.jit.script(twins()[0])
    assert scripted(X)[0].shape == (3, 5)
