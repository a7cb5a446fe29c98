"""The ops: contract with PyTorch, values and gradients against the reference, and what holds for
every call: rows are independent, states of the process are left alone."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lstm_fast import LSTM, LSTMCell, freeze, ops, reference
from tests.sample_inputs import (
    CONFIGS,
    DTYPES,
    Config,
    assert_all_close,
    assert_close,
    named,
    requiring_grad,
    tensors_of,
    with_gaps,
)

all_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
EXACT = {name: replace(config, dtype=torch.float64) for name, config in CONFIGS.items()}


def op_arguments(config: Config) -> tuple[Any, ...]:
    """The arguments of `ops.lstm`; a packed sequence comes with states."""
    return replace(config, with_hx=config.with_hx or config.lengths is not None).op_arguments()


def to_float64(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def convert(t: Tensor) -> Tensor:
        return t.detach().double() if t.is_floating_point() else t

    return torch.utils._pytree.tree_map_only(Tensor, convert, args)


def backward_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    *results, saved = torch.ops.lstm_fast.lstm(*args, True)
    return (*[torch.randn_like(result) for result in results], *args, results[0], saved)


@all_dtypes
@all_configs
def test_values_and_gradients(config: Config, dtype: torch.dtype):
    config = replace(config, dtype=dtype)
    args = op_arguments(config)
    exact = to_float64(args)
    leaves, exact_leaves = requiring_grad(args), requiring_grad(exact)
    got, expected = ops.lstm(*args), reference.lstm(*exact)
    assert_close(named(got), named(expected), config)
    coefficients = [torch.randn_like(result) for result in got]
    grads = torch.autograd.grad(got, leaves, coefficients)
    exact_grads = torch.autograd.grad(expected, exact_leaves, [c.double() for c in coefficients])
    assert_close(named(grads), named(exact_grads), config)
    with torch.no_grad():
        torch.testing.assert_close(ops.lstm(*args), tuple(got), rtol=0, atol=0)


# No autograd is registered for the ops: it lies around them, in a Function. So autograd
# registration is checked on arguments that require grad, and all else on ones that do not.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("plain", torch.float32),
        ("no_hx", torch.float64),
        ("deep_projected", torch.float16),
        ("packed", torch.float32),
        ("packed_deep", torch.bfloat16),
    ],
)
def test_opcheck(name: str, dtype: torch.dtype):
    args = op_arguments(replace(CONFIGS[name], dtype=dtype))
    forward, backward = torch.ops.lstm_fast.lstm.default, torch.ops.lstm_fast.lstm_backward.default
    for save in (False, True):
        torch.library.opcheck(forward, (*args, save))
    back = backward_arguments(args)
    torch.library.opcheck(backward, (*back, True, True, True))
    torch.library.opcheck(backward, (None, *back[1:], False, False, True))
    torch.library.opcheck(backward, (*back[:1], None, None, *back[3:], True, True, False))
    requiring_grad(args)
    registration = "test_autograd_registration"
    torch.library.opcheck(forward, (*args, True), test_utils=registration)
    torch.library.opcheck(backward, (*back, True, True, True), test_utils=registration)


@pytest.mark.parametrize(
    "config",
    [
        replace(EXACT["deep_projected"], T=2, B=2, hidden_size=4),
        replace(EXACT["packed_deep"], B=2, lengths=(1, 2), hidden_size=3),
        replace(EXACT["no_hx"], bias=False),
    ],
)
def test_gradcheck_and_gradgradcheck(config: Config):
    args = op_arguments(config)
    spec = torch.utils._pytree.tree_flatten(args)[1]

    def run(*leaves: Any) -> tuple[Tensor, ...]:
        return ops.lstm(*torch.utils._pytree.tree_unflatten(leaves, spec))

    requiring_grad(args)
    leaves = torch.utils._pytree.tree_leaves(args)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_third_derivative():
    args = op_arguments(replace(EXACT["deep"], num_layers=2, T=2))
    leaves = requiring_grad(args)

    def derivative(run: Any, order: int) -> tuple[Tensor, ...]:
        value = run(*args)[0].sin().sum()
        for _ in range(order):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(value, leaves)

    for order in (1, 2):
        torch.testing.assert_close(derivative(ops.lstm, order), derivative(reference.lstm, order))


class Spy:
    """Calls an op and keeps the arguments of the calls."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((*args, *kwargs.values()))
        return self.op(*args, **kwargs)


@pytest.fixture
def forward_spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(ops._forward)
    monkeypatch.setattr(ops, "_forward", spy)
    return spy


@pytest.fixture
def backward_spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(ops._backward)
    monkeypatch.setattr(ops, "_backward", spy)
    return spy


def test_nothing_is_saved_without_need(forward_spy: Spy):
    args = op_arguments(CONFIGS["plain"])
    ops.lstm(*args)
    requiring_grad(args)
    with torch.no_grad():
        ops.lstm(*args)
    with torch.inference_mode():
        ops.lstm(*args)
    ops.lstm(*args)
    assert [call[8] for call in forward_spy.calls] == [False, False, False, True]


@pytest.mark.parametrize(("precision", "parts"), [("highest", 3), ("high", 2), ("medium", 1)])
def test_precision_of_products_is_torchs_setting(
    precision: str, parts: int, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []

    def noting(*args: Any) -> Any:
        asked.append(args[-1])

    monkeypatch.setattr(ops._direct, "direct_forward", noting)
    args = op_arguments(CONFIGS["plain"])
    torch.set_float32_matmul_precision(precision)
    ops.lstm(*args)
    assert asked == [parts]


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_keep_to_one_order(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(ops._direct, "direct_forward", lambda *args: asked.append(args[-1]))
    ops.lstm(*op_arguments(CONFIGS["plain"]))
    assert asked == [0]


@pytest.mark.parametrize("config", ["wide", "packed_deep"])
def test_past_the_dispatcher_is_the_op(config: str):
    input, batch_sizes, h0, c0, params, *options = op_arguments(CONFIGS[config])
    args = input, batch_sizes, h0, c0, list(params), *options
    results = torch.ops.lstm_fast.lstm(*args, True, 3)
    direct = ops._direct.direct_forward(*args, True, 3)
    assert all(map(torch.equal, direct, results))
    *inferred, nothing = ops._direct.direct_forward(*args, False, 3)
    assert nothing is None
    assert all(map(torch.equal, inferred, results))

    output, _, c_n, saved = results
    grads = torch.rand_like(output), None, torch.rand_like(c_n)
    rest = *args, output, saved, True, True, True, 3
    *of_args, of_params = torch.ops.lstm_fast.lstm_backward(*grads, *rest)
    direct = ops._direct.direct_backward(*grads, *rest)
    assert len(direct) == 3 + len(params)
    assert all(map(torch.equal, direct, (*of_args, *of_params)))
    unwanted = ops._direct.direct_backward(*grads, *rest[:-4], False, False, False, 3)
    assert unwanted == (None,) * (3 + len(params))


def test_the_way_past_the_dispatcher_is_for_the_cpu_alone(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any) -> None:
        raise AssertionError

    for name in ("direct_forward", "direct_backward"):
        monkeypatch.setattr(ops._direct, name, refuse)
    input, batch_sizes, h0, c0, params, *options = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.to("meta"), op_arguments(CONFIGS["plain"])
    )
    args = input, batch_sizes, h0, c0, list(params), *options
    output, _, _, saved = ops._forward(*args, True, 3)
    assert output.shape[:2] == input.shape[:2]
    grad_input, *_ = ops._backward(output, None, None, *args, output, saved, True, True, True, 3)
    assert grad_input is not None
    assert grad_input.shape == input.shape
    x = input[0].requires_grad_()
    h, _ = ops._Cell.apply(None, x, h0[0], c0[0], True, 3, *params)
    assert torch.autograd.grad(h.sum(), x)[0].shape == x.shape


def attempt(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    results = ops.attempt(*args)
    assert results is not None
    return results


@pytest.mark.parametrize("recompute_gates", [False, True])
@all_configs
def test_attempt_is_lstm_bit_for_bit(config: Config, recompute_gates: bool):
    args = *op_arguments(config), recompute_gates
    with torch.no_grad():
        assert all(map(torch.equal, attempt(*args), ops.lstm(*args)))
    leaves = requiring_grad(args)
    got, expected = attempt(*args), ops.lstm(*args)
    assert all(map(torch.equal, got, expected))
    coefficients = [torch.randn_like(result) for result in got]
    grads = [torch.autograd.grad(results, leaves, coefficients) for results in (got, expected)]
    assert all(map(torch.equal, *grads))


def test_attempt_leaves_to_lstm_what_is_not_common():
    args = *op_arguments(CONFIGS["deep"]), False
    params = args[4]
    assert ops.attempt(*args) is None  # no gradient is wanted
    params[-1].requires_grad_()  # of the last layer alone
    assert ops.attempt(*args) is None
    params[0].requires_grad_()
    attempt(*args)
    assert ops.attempt(args[0][..., 1:], *args[1:]) is None
    for wrong in ([None, *params[1:]], []):
        changed: Any = (*args[:4], wrong, *args[5:])
        assert ops.attempt(*changed) is None
    with forward_ad.dual_level():
        assert ops.attempt(*args) is None

    def transformed(input: Tensor) -> Tensor:
        assert ops.attempt(input, *args[1:]) is None
        return input.sum()

    torch.func.grad(transformed)(args[0])


def test_attempt_saves_nothing_without_need(monkeypatch: pytest.MonkeyPatch):
    spy = Spy(ops._direct.direct_forward)
    monkeypatch.setattr(ops._direct, "direct_forward", spy)
    args = *op_arguments(CONFIGS["plain"]), False
    requiring_grad(args)
    with torch.no_grad():
        attempt(*args)
    attempt(*args)
    assert [call[8] for call in spy.calls] == [False, True]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"batch_first": True, "num_layers": 2, "bidirectional": True, "dropout": 0.5},
        {"bias": False, "proj_size": 3},
        {"batch_first": True, "dtype": torch.float64},
        {"batch_first": True, "dtype": torch.bfloat16},
    ],
    ids=lambda options: "_".join(options) or "plain",
)
def test_infer_is_the_call_of_the_module(
    options: dict[str, Any], frozen: bool, monkeypatch: pytest.MonkeyPatch
):
    module = LSTM(5, 7, **options).eval()
    runs = module.num_layers * (1 + module.bidirectional)
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(4, 9, 5, dtype=dtype)
    B = 4 if module.batch_first else 9
    hx = (
        torch.randn(runs, B, module.proj_size or 7, dtype=dtype),
        torch.randn(runs, B, 7, dtype=dtype),
    )
    if frozen:
        freeze(module)
    with torch.no_grad():
        inferred = [ops.infer(module, x, state, cell=False) for state in (None, hx, list(hx))]
        monkeypatch.setattr(ops, "infer", lambda *args, **kwargs: None)
        called = [module(x, state) for state in (None, hx, hx)]
    for (output, state), (expected, expected_state) in zip(inferred, called, strict=True):
        assert output.stride() == expected.stride()
        assert all(map(torch.equal, (output, *state), (expected, *expected_state)))


@pytest.mark.parametrize("bias", [False, True])
def test_infer_is_the_call_of_the_cell(bias: bool, monkeypatch: pytest.MonkeyPatch):
    cell = LSTMCell(5, 7, bias)
    x, hx = torch.randn(4, 5), (torch.randn(4, 7), torch.randn(4, 7))
    with torch.no_grad():
        inferred = [ops.infer(cell, x, state, cell=True) for state in (None, hx)]
        monkeypatch.setattr(ops, "infer", lambda *args, **kwargs: None)
        called = [cell(x), cell(x, hx)]
    for results, expected in zip(inferred, called, strict=True):
        assert type(results) is tuple
        assert all(map(torch.equal, results, expected))


def test_infer_leaves_to_the_module_what_is_not_common():
    module, x = LSTM(5, 7, num_layers=2, dropout=0.5, batch_first=True).eval(), torch.randn(4, 9, 5)
    state = torch.zeros(2, 4, 7)

    def infer(input: Any = x, hx: Any = None, module: Any = module) -> Any:
        return ops.infer(module, input, hx, cell=isinstance(module, LSTMCell))

    assert infer() is None  # gradients are recorded
    with torch.no_grad():
        assert infer() is not None
        assert infer(hx=(state, state)) is not None
        for input in (x[0], x[..., 1:], x.double(), x.to("meta"), x[None], None, x.numpy()):
            assert infer(input) is None
        for hx in ((state,), (state, None), state, (state, state[..., 1:]), (state, state, state)):
            assert infer(hx=hx) is None
        packed = pack_padded_sequence(x, [9] * 4, batch_first=True)
        assert infer(packed) is None
        with torch.autocast("cpu"):
            assert infer() is None
        with forward_ad.dual_level():
            assert infer() is None
        assert infer(module=module.train()) is None
        module.eval().input_size = 6
        assert infer() is None
        module.input_size = 5
        module._parameters["weight_ih_l0"] = torch.nn.Parameter(torch.zeros(28, 5))
        assert infer() is None  # the list that the module keeps of them is old
        cell = LSTMCell(5, 7)
        assert infer(x[0], module=cell) is not None
        assert infer(x, module=cell) is None
        torch.nn.utils.parametrizations.weight_norm(cell, "weight_hh")
        assert infer(x[0], module=cell) is None


class Told(LSTM):
    """Has a property in the place of an attribute."""

    batch_first = property(lambda self: True, lambda self, value: None)


def test_infer_takes_no_attribute_for_what_it_is_not():
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        told = Told(5, 7)
        assert ops.infer(told, x, None, cell=False) is None
        assert told(x)[1][0].shape == (1, 4, 7)
        for name in ("batch_first", "bidirectional", "bias", "training", "dropout", "num_layers"):
            module = LSTM(5, 7, num_layers=2, dropout=0.5)
            module.__dict__[name] = np.array([1, 2])  # which is neither true nor false
            assert ops.infer(module, x, None, cell=False) is None
            del module.__dict__[name]
            assert ops.infer(module, x, None, cell=False) is None
        module = LSTM(5, 7)
        module.input_size = 2**70
        with pytest.raises(RuntimeError, match="input_size"):
            module(x)

    class Doubled(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return 2 * super().__getitem__(name)

    cell, twin = LSTMCell(5, 7), torch.nn.LSTMCell(5, 7)
    twin.load_state_dict(cell.state_dict())
    for either in (cell, twin):
        either.__dict__["_parameters"] = Doubled(either._parameters)
    with torch.no_grad():
        torch.testing.assert_close(cell(x[0]), twin(x[0]))


@pytest.mark.parametrize("freezes", [False, True])
def test_a_bias_that_is_missing(freezes: bool):
    module, cell, twin = LSTM(5, 7), LSTMCell(5, 7), torch.nn.LSTMCell(5, 7)
    twin.load_state_dict(cell.state_dict())
    if freezes:
        freeze(module), freeze(cell)
    module.bias_hh_l0 = cell.bias_hh = twin.bias_hh = None  # type: ignore[assignment]
    x = torch.randn(3, 5)
    with torch.no_grad():
        with pytest.raises(TypeError):
            module(x[None])
        torch.testing.assert_close(cell(x), twin(x))


def test_a_later_weight_on_another_device():
    module = LSTM(5, 7, num_layers=2)
    module.weight_ih_l1 = torch.nn.Parameter(torch.empty(28, 7, device="meta"))
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, NotImplementedError)):
            module(torch.randn(4, 3, 5))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [LSTM, LSTMCell])
def test_pre_dispatch_traces_have_the_op(kind: type[torch.nn.Module], grad: bool):
    module = kind(5, 7)

    def run(x: Tensor) -> Tensor:
        return module(x if kind is LSTM else x[0])[0]

    with torch.set_grad_enabled(grad):
        graph = make_fx(run, tracing_mode="real", pre_dispatch=True)(torch.randn(4, 3, 5))
        x = torch.randn(4, 3, 5)
        torch.testing.assert_close(graph(x), run(x))


@pytest.mark.parametrize("is_backward", [False, True])
def test_other_threads_run_during_a_long_call(is_backward: bool):
    module, x = LSTM(256, 256), torch.randn(32, 64, 256)
    args = x, None, None, None, list(module.parameters()), True, 1, False
    output, _, _, saved = ops._direct.direct_forward(*args, True, 3)
    turns, ends = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not ends.wait(1e-4):
            turns += 1

    counter = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the caller gives way by itself or not at all
    try:
        counter.start()
        before = turns
        if is_backward:
            ops._direct.direct_backward(
                *(torch.ones_like(output), None, None, *args, output, saved, True, True, True, 3)
            )
        else:
            ops._direct.direct_forward(*args, False, 3)
        during = turns - before
    finally:
        sys.setswitchinterval(interval)
        ends.set()
        counter.join()
    assert during > 0


def test_the_profiler_sees_the_op():
    with torch.profiler.profile() as profile:
        ops.lstm(*op_arguments(CONFIGS["plain"]))
    assert "lstm_fast::lstm" in {event.name for event in profile.events() or ()}


class Refuses(TorchFunctionMode):
    """Raises at a question that the direct calls ask."""

    def __init__(self, asked_before: int) -> None:
        super().__init__()
        self.left = asked_before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.is_neg:
            self.left -= 1
            if self.left < 0:
                raise ArithmeticError("refused")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("of_param", [False, True])
def test_what_a_mode_raises_reaches_the_caller(of_param: bool):
    args = op_arguments(CONFIGS["plain"])
    with pytest.raises(ArithmeticError, match="refused"), Refuses(3 if of_param else 0):
        ops.lstm(*args)
    of_backward = *backward_arguments(args), True, True, True, 0
    with pytest.raises(ArithmeticError, match="refused"), Refuses(8 if of_param else 0):
        ops._backward(*of_backward)


def test_inference_leaves_to_the_dispatcher_what_is_its_own():
    class Seen(TorchDispatchMode):
        names: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    args = op_arguments(CONFIGS["plain"])
    with torch.no_grad():
        expected = ops.lstm(*args)
        with Seen():
            ops.lstm(*args)
        negative = torch.complex(torch.zeros_like(args[0]), -args[0]).conj().imag
        assert negative.is_neg()
        got = ops.lstm(negative, *args[1:])
    assert "lstm_fast.lstm.default" in Seen.names
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("leaf", "needs"),
    [
        ("input", (True, False, False)),
        ("h0", (False, True, False)),
        ("c0", (False, True, False)),
        ("bias", (False, False, True)),
    ],
)
def test_gradients_only_of_what_requires_grad(
    leaf: str, needs: tuple[bool, bool, bool], backward_spy: Spy
):
    args = op_arguments(CONFIGS["deep"])
    tensor = {"input": args[0], "h0": args[2], "c0": args[3], "bias": args[4][2]}[leaf]
    tensor.requires_grad_()
    expected = torch.autograd.grad(reference.lstm(*args)[0].sum(), tensor)
    ops.lstm(*args)[0].sum().backward()
    assert backward_spy.calls[0][13:16] == needs
    torch.testing.assert_close((tensor.grad,), expected)
    assert all(t.grad is None for t in tensors_of(args) if t is not tensor)


@pytest.mark.parametrize("name", ["deep", "packed_deep"])
def test_frozen_layers_below_the_others_are_not_run_back(
    name: str, forward_spy: Spy, backward_spy: Spy
):
    args = op_arguments(CONFIGS[name])
    params, L = args[4], args[6]
    trained = [p.requires_grad_() for p in params[len(params) // L * (L - 1) :]]
    expected = reference.lstm(*args)
    got = ops.lstm(*args)
    assert_close(named(got), named(expected), CONFIGS[name])
    grads = [torch.autograd.grad(r[0].sum() + r[2].sum(), trained) for r in (got, expected)]
    assert_close(named(grads[0]), named(grads[1]), CONFIGS[name])
    assert [(call[6], call[8]) for call in forward_spy.calls] == [(L - 1, False), (1, True)]
    (call,) = backward_spy.calls
    assert call[13:16] == (False, False, True)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_outputs_without_gradient_are_passed_as_none(used: int, backward_spy: Spy):
    args = op_arguments(CONFIGS["packed_deep"])
    leaves = requiring_grad(args)
    got = torch.autograd.grad(ops.lstm(*args)[used].sum(), leaves)
    assert [grad is None for grad in backward_spy.calls[0][:3]] == [i != used for i in range(3)]
    expected = torch.autograd.grad(reference.lstm(*args)[used].sum(), leaves)
    assert_close(named(got), named(expected), CONFIGS["packed_deep"])


def test_backward_twice():
    args = op_arguments(CONFIGS["deep"])
    leaves = requiring_grad(args)
    loss = ops.lstm(*args)[0].sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("which", ["input", "h0", "weight", "output"])
def test_changing_a_saved_tensor_raises(which: str):
    args = op_arguments(CONFIGS["plain"])
    leaves = requiring_grad(args)
    output, h_n, _ = ops.lstm(*args)
    changed = {"input": args[0], "h0": args[2], "weight": args[4][1], "output": output}[which]
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(h_n.sum(), leaves)


def test_saved_tensor_hooks_and_checkpoint():
    args = op_arguments(CONFIGS["deep"])
    leaves = requiring_grad(args)
    expected = torch.autograd.grad(ops.lstm(*args)[0].sum(), leaves)
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = ops.lstm(*args)[0]
    torch.testing.assert_close(torch.autograd.grad(output.sum(), leaves), expected)
    assert {t.data_ptr() for t in leaves} <= {t.data_ptr() for t in packed}
    output = checkpoint(lambda: ops.lstm(*args)[0], use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), leaves), expected)


@all_dtypes
@pytest.mark.parametrize("name", ["deep_projected", "packed_deep"])
def test_saved_tensor_hooks_that_give_other_strides(name: str, dtype: torch.dtype):
    args = op_arguments(replace(CONFIGS[name], dtype=dtype))
    leaves = requiring_grad(args)
    expected = torch.autograd.grad(ops.lstm(*args)[0].sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(with_gaps, lambda t: t):
        output = ops.lstm(*args)[0]
    torch.testing.assert_close(torch.autograd.grad(output.sum(), leaves), expected, rtol=0, atol=0)


def test_transforms():
    config = replace(EXACT["deep_projected"], T=2, B=2)
    input, _, h0, c0, params, *options = op_arguments(config)

    def loss(input: Tensor, params: list[Tensor]) -> Tensor:
        return ops.lstm(input, None, h0, c0, params, *options)[0].square().sum()

    def plain_grad(input: Tensor) -> list[Tensor]:
        leaves = [p.clone().requires_grad_() for p in params]
        return list(torch.autograd.grad(loss(input, leaves), leaves))

    inputs = torch.stack([input, input.flip(0)])
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=1), (0, None))(inputs, params)
    looped = [torch.stack(grads) for grads in zip(*map(plain_grad, inputs), strict=True)]
    assert_all_close(per_sample, looped, config)

    jacobian = torch.func.jacrev(loss)(input, params)
    ones = torch.ones_like(input)
    directional = torch.func.jvp(lambda x: loss(x, params), (input,), (ones,))[1]
    assert_all_close(jacobian.sum(), directional, config)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(input, ones), params)
        assert_all_close(forward_ad.unpack_dual(dual).tangent, directional, config)
        grads = torch.func.grad(loss)(forward_ad.make_dual(input, ones), params)
        tangent = forward_ad.unpack_dual(grads).tangent
    hessian = torch.func.hessian(loss)(input, params).flatten(input.dim())
    assert_all_close(tangent, hessian.sum(-1), config)
    hessian = torch.autograd.functional.hessian(lambda x: loss(x, params), input, vectorize=True)
    assert_all_close(hessian, torch.func.hessian(loss)(input, params), config)


@pytest.mark.parametrize("config", [EXACT["deep_projected"], EXACT["packed_deep"]])
@pytest.mark.parametrize("cell", [False, True])
def test_first_order_is_of_the_kernels_under_every_way_to_ask_for_more(
    monkeypatch: pytest.MonkeyPatch, config: Config, cell: bool
):
    if cell:
        tensors: Any = op_arguments(EXACT["plain"])
        x, h, c = (tensors[i][0] for i in (0, 2, 3))
        params = tensors[4]

        def run(params: list[Tensor]) -> tuple[Tensor, ...]:
            return ops.cell(x, h, c, params, True, 0)
    else:
        input, batch_sizes, h0, c0, params, *options = op_arguments(config)

        def run(params: list[Tensor]) -> tuple[Tensor, ...]:
            return ops.lstm(input, batch_sizes, h0, c0, params, *options)

    def loss(params: list[Tensor]) -> Tensor:
        return torch.stack([result.sin().sum() for result in run(params)]).sum()

    leaves = [p.clone().requires_grad_() for p in params]
    expected = torch.autograd.grad(loss(leaves), leaves)

    def size(grads: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([grad.square().sum() for grad in grads]).sum()

    of_order_two = torch.func.grad(lambda params: size(tuple(torch.func.grad(loss)(params))))
    grads = torch.autograd.grad(loss(leaves), leaves, create_graph=True)
    second = torch.autograd.grad(size(grads), leaves)
    torch.testing.assert_close(of_order_two(params), list(second))

    def refuse(*args: Any) -> None:
        raise AssertionError("computed by the reference")

    monkeypatch.setattr(reference, "lstm", refuse)
    monkeypatch.setattr(reference, "lstm_backward", refuse)
    created = torch.autograd.grad(loss(leaves), leaves, create_graph=True)
    torch.testing.assert_close(created, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.func.grad(loss)(params), list(expected), rtol=0, atol=0)
    transformed: Any = torch.func.vjp(loss, params)
    (pulled,) = transformed[1](torch.ones_like(transformed[0]))
    torch.testing.assert_close(pulled, list(expected), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="by the reference"):
        of_order_two(params)


MAPPED: dict[str, Any] = {
    "forward": lambda f, params, xs: torch.func.vmap(f, (None, 0))(params, xs),
    "forward_of_params": lambda f, params, xs: torch.func.vmap(f, (0, None))(
        [torch.stack([p, 2 * p]) for p in params], xs[0]
    ),
    "twice": lambda f, params, xs: torch.func.vmap(torch.func.vmap(f, (None, 0)), (0, None))(
        [torch.stack([p, 2 * p]) for p in params], xs
    ),
    "per_sample": lambda f, params, xs: torch.func.vmap(torch.func.grad(f), (None, 0))(params, xs),
    "of_ensemble": lambda f, params, xs: torch.func.grad(
        lambda ps: torch.func.vmap(f, (0, None))(ps, xs[0]).sum()
    )([torch.stack([p, 2 * p]) for p in params]),
    "jacobian": lambda f, params, xs: torch.func.jacrev(f, argnums=1)(params, xs[0]),
    "second": lambda f, params, xs: torch.func.jacrev(torch.func.jacrev(f, argnums=1), argnums=1)(
        params, xs[0]
    ),
    # Both functions are called when the transforms that they are of are over.
    "pulled_twice": lambda f, params, xs: pulled(
        lambda x: pulled(lambda x: f(params, x), x), xs[0]
    ),
}


def pulled(function: Any, x: Tensor) -> Any:
    results: Any = torch.func.vjp(function, x)
    return results[1](torch.ones_like(results[0]))[0]


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("config", [EXACT["deep_projected"], EXACT["packed_deep"]])
@pytest.mark.parametrize("few", [False, True])
def test_kernels_compute_what_is_mapped_over_few(
    monkeypatch: pytest.MonkeyPatch, forward_spy: Spy, name: str, config: Config, few: bool
):
    input, batch_sizes, h0, c0, params, *options = op_arguments(config)
    if not few:
        monkeypatch.setattr(ops, "_are_for_kernels", lambda *args, **kwargs: False)
    xs = torch.stack([input, input.flip(0), 2 * input])

    def run(of: Any) -> Any:
        def loss(params: list[Tensor], x: Tensor) -> Tensor:
            results = of(x, batch_sizes, h0, c0, params, *options)
            return torch.stack([result.sin().sum() for result in results]).sum()

        return MAPPED[name](loss, params, xs)

    got = run(ops.lstm)
    assert bool(forward_spy.calls) == few
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (got, run(reference.lstm))), strict=True)
    for result, expected in pairs:
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_what_is_mapped_over_many_is_computed_at_once(forward_spy: Spy):
    layer, x = LSTM(3, 5), torch.randn(20, 4, 1, 3)
    mapped = torch.func.vmap(lambda x: layer(x)[0])
    with torch.no_grad():
        torch.testing.assert_close(mapped(x), torch.stack([layer(each)[0] for each in x]))
        forward_spy.calls.clear()
        mapped(x)
        assert not forward_spy.calls
        mapped(x[:4])
        assert len(forward_spy.calls) == 4


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("has_leaves", [False, True])
def test_gradients_of_weights_that_nobody_asks_for_are_not_computed(
    monkeypatch: pytest.MonkeyPatch, cell: bool, has_leaves: bool
):
    spy = Spy(ops._direct.direct_backward)
    monkeypatch.setattr(ops._direct, "direct_backward", spy)
    kind: Any = torch.nn.LSTMCell if cell else torch.nn.LSTM
    stock = kind(64, 64)
    leaves = [p.detach().clone().requires_grad_() for p in stock.parameters()]
    params = leaves if has_leaves else [leaf * 1 for leaf in leaves]
    x = torch.randn(4, 64, 64).requires_grad_()

    def loss() -> Tensor:
        if not cell:
            return ops.lstm(x, None, None, None, params, True, 1, False)[0].sin().sum()
        h, c = ops.cell(x[0], None, None, params, True, 0)
        return ops.cell(x[1], h, c, params, True, 0)[0].sin().sum()

    loss().backward(retain_graph=True)
    expected = [x.grad, *[leaf.grad for leaf in leaves]]
    wanted = [x, *leaves]
    for indices in ([0], [0, 1], [3], [0, 1, 2, 3, 4]):
        asked = [wanted[i] for i in indices]
        for got in (torch.autograd.grad(loss(), asked, retain_graph=True), None):
            if got is None:
                for leaf in wanted:
                    leaf.grad = None
                loss().backward(inputs=asked, retain_graph=True)
                got = tuple(leaf.grad for leaf in asked)
            for grad, i in zip(got, indices, strict=True):
                torch.testing.assert_close(grad, expected[i])
            steps = 2 if cell else 1
            assert [call[15] for call in spy.calls[-steps:]] == [indices != [0]] * steps


def test_fake_and_meta_tensors():
    args = op_arguments(CONFIGS["deep_projected"])
    expected = ops.lstm(*args)
    meta = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), args)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, args)
        leaves = requiring_grad(fake)
        faked = ops.lstm(*fake)
        grads = torch.autograd.grad(faked[0].sum(), leaves)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    for results in (faked, ops.lstm(*meta)):
        for result, real in zip(results, expected, strict=True):
            assert (result.shape, result.stride(), result.dtype) == (
                real.shape,
                real.stride(),
                real.dtype,
            )


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(5, 3, 2), r"weight_ih_l0"),
        (0, torch.zeros(5, 3), r"input must have 3 dimensions"),
        (0, torch.zeros(0, 3, 4), r"Expected sequence length to be larger than 0"),
        (0, torch.zeros(5, 3, 4, dtype=torch.float64), r"dtype"),
        (1, torch.tensor([3, 2]), r"input must have 2 dimensions"),
        (2, torch.zeros(1, 2, 5), r"hidden\[0\]"),
        (3, torch.zeros(1, 3, 4), r"hidden\[1\]"),
        (3, torch.zeros(1, 3, 5, dtype=torch.float64), r"c0"),
        (4, [torch.zeros(20, 4)] * 3, r"params"),
        (4, [torch.zeros(20, 4), *[torch.zeros(20)] * 3], r"weight_hh_l0"),
        (4, [torch.zeros(20, 4), torch.zeros(20, 5), *[torch.zeros(19)] * 2], r"bias_ih_l0"),
        (6, 2, r"params"),
    ],
)
def test_errors_name_the_argument(index: int, value: Any, message: str):
    args = list(op_arguments(CONFIGS["plain"]))
    args[index] = value
    with pytest.raises(RuntimeError, match=message):
        ops.lstm(*args)


@pytest.mark.parametrize("sizes", [[3, 4, 1], [3, 4], [3, 3], [3, 3, 2, 0]])
def test_bad_batch_sizes(sizes: list[int]):
    args = list(op_arguments(CONFIGS["packed"]))
    args[1] = torch.tensor(sizes, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="batch_sizes"):
        ops.lstm(*args)


def all_results(args: tuple[Any, ...], coefficients: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a function of the output."""
    leaves = requiring_grad(args)
    results = ops.lstm(*args)
    return [*results, *torch.autograd.grad((results[0] * coefficients).sum(), leaves)]


@pytest.mark.parametrize("name", ["wide", "packed_deep", "deep_projected", "single"])
@pytest.mark.usefixtures("deterministic")
def test_bits_do_not_depend_on_threads(name: str):
    args = op_arguments(CONFIGS[name])
    coefficients = torch.randn_like(ops.lstm(*args)[0])
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(all_results(args, coefficients))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@all_dtypes
@pytest.mark.parametrize("rows", [slice(0, 1), slice(3, 10), slice(16, 17), slice(0, 16)])
@pytest.mark.usefixtures("deterministic")
def test_bits_do_not_depend_on_other_rows(rows: slice, dtype: torch.dtype):
    """Of outputs, states and their gradients; those of the weights are sums over all rows."""
    config = replace(CONFIGS["wide"], num_layers=2, bidirectional=True, dtype=dtype)
    input, _, h0, c0, *rest = op_arguments(config)
    coefficients = torch.randn_like(ops.lstm(input, None, h0, c0, *rest)[0])

    def per_row(rows: slice) -> list[Tensor]:
        part = (input[:, rows].detach(), None, h0[:, rows].detach(), c0[:, rows].detach(), *rest)
        return all_results(part, coefficients[:, rows])[:6]

    whole = [result[:, rows] for result in per_row(slice(None))]
    torch.testing.assert_close(per_row(rows), whole, rtol=0, atol=0)


@all_dtypes
@pytest.mark.usefixtures("deterministic")
def test_bits_do_not_depend_on_longer_rows_of_a_packed_batch(dtype: torch.dtype):
    config = replace(CONFIGS["wide"], num_layers=2, bidirectional=True, dtype=dtype)
    input, _, _, _, *rest = op_arguments(config)
    input = input.detach()

    def states(rows: slice, lengths: list[int]) -> list[Tensor]:
        packed = pack_padded_sequence(input[:, rows], lengths)
        _, h_n, c_n = ops.lstm(packed.data, packed.batch_sizes, None, None, *rest)
        return [h_n[:, -1], c_n[:, -1]]

    alone, beside_a_longer_one = states(slice(1, 2), [1]), states(slice(0, 2), [3, 1])
    torch.testing.assert_close(alone, beside_a_longer_one, rtol=0, atol=0)


@pytest.mark.usefixtures("deterministic")
def test_weight_gradients_of_many_rows():
    """The error of their sums does not grow with the number of terms."""
    module, x = torch.nn.LSTM(3, 4), torch.randn(40, 2000, 3)
    grads = []
    for dtype in (torch.float32, torch.float64):
        module, x = module.to(dtype), x.to(dtype)
        leaves = tuple(module.parameters())
        output, _, _ = ops.lstm(x, None, None, None, list(leaves), True, 1, False)
        grads.append(torch.autograd.grad(output.square().mean(), leaves))
    for got, expected in zip(*grads, strict=True):
        assert (got - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_propagate(value: float):
    config = CONFIGS["wide"]
    args = op_arguments(config)
    args[0][2, 1, 0] = value
    args[3][0, 4, 7] = value
    got, expected = ops.lstm(*args), reference.lstm(*args)
    for a, b in zip(got, expected, strict=True):
        assert_all_close(a, b, config)


def test_nan_in_a_gradient_propagates():
    args = op_arguments(CONFIGS["wide"])
    leaves = requiring_grad(args)
    coefficients = torch.ones_like(ops.lstm(*args)[0])
    coefficients[3, 2, 1] = float("nan")
    grads = torch.autograd.grad(ops.lstm(*args)[0], leaves, coefficients)
    expected = torch.autograd.grad(reference.lstm(*args)[0], leaves, coefficients)
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


def test_subnormal_numbers_are_as_before_the_call():
    small = torch.full((64,), torch.finfo(torch.float32).smallest_normal)
    torch.set_num_threads(2)
    args = op_arguments(CONFIGS["wide"])
    all_results(args, torch.ones(7, 17, 50))
    assert bool((small * 0.5 > 0).all())
    assert bool((torch.ones(1 << 20) * small[0] * 0.5 > 0).all()), "a thread of torch's pool"


@all_configs
def test_strides_of_arguments(config: Config):
    """Expanded, transposed and sliced arguments give what contiguous ones do."""
    args = op_arguments(config)
    plain = all_results(args, torch.ones(()))

    def scatter(t: Tensor) -> Tensor:
        return torch.stack([t, t], dim=-1).detach()[..., 0] if t.is_floating_point() else t

    strided = torch.utils._pytree.tree_map_only(Tensor, scatter, args)
    assert not any(t.is_contiguous() for t in tensors_of(strided) if t.numel() > 1)
    torch.testing.assert_close(all_results(strided, torch.ones(())), plain, rtol=0, atol=0)


def test_expanded_and_aliased_states():
    input, _, h0, _, *rest = op_arguments(CONFIGS["deep"])
    row = h0[:, :1].clone().requires_grad_()
    state = row.expand(3, 3, 5)
    (aliased,) = torch.autograd.grad(ops.lstm(input, None, state, state, *rest)[0].sum(), row)
    expected = reference.lstm(input, None, state, state, *rest)[0].sum()
    torch.testing.assert_close((aliased,), torch.autograd.grad(expected, row))


def test_zero_batch():
    args = op_arguments(replace(CONFIGS["deep_projected"], B=0))
    output, h_n, c_n, *grads = all_results(args, torch.ones(()))
    assert (output.shape, h_n.shape, c_n.shape) == ((5, 0, 6), (4, 0, 3), (4, 0, 5))
    assert all(not grad.any() for grad in grads)


def test_a_narrower_layer_needs_no_more_room():
    """More panels of its weights' gradients share a block of rows than of the first layer's."""
    ours = LSTM(257, 255, num_layers=2)
    theirs = torch.nn.LSTM(257, 255, num_layers=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 257)
    grads = [
        torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
        for module in (ours, theirs)
    ]
    torch.testing.assert_close(*grads)


def test_products_that_are_counted():
    """Of frozen weights with an option: forward, and the gradient of what goes in. Of a packed
    sequence: that of the weights too, and of each state, as no shape tells the first of them."""
    N, forward = 9, 2 * 9 * (20 * 4 + 20 * 5)
    for module, x, passes in (
        (LSTM(4, 5, layer_norm=True).requires_grad_(False), torch.randn(3, 3, 4), 2),
        (LSTM(4, 5), pack_padded_sequence(torch.randn(4, 3, 4), [4, 3, 2]), 3),
    ):
        data = x.data if isinstance(x, PackedSequence) else x
        assert data.numel() == N * 4
        data.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            output = module(x)[0]
            (output.data if isinstance(output, PackedSequence) else output).sum().backward()
        assert counter.get_total_flops() == passes * forward
