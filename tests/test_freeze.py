"""`freeze`: the same results from weights that are packed once, as long as they do not change."""

from __future__ import annotations

import copy
import gc
import io
import logging
import os
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import lstm_fast
from lstm_fast import LSTM, LSTMCell, freeze
from tests.processes import check_in_child
from tests.sample_inputs import CONFIGS, DTYPES, Config

X = torch.linspace(-1, 1, 6 * 3 * 4).view(6, 3, 4)


def output_of(module: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        output: Tensor = module(x)[0]
    return output


def is_kept(module: Any, x: Tensor = X) -> bool:
    """Whether a call uses what an earlier one has packed: of changes that torch does not count it
    hears nothing."""
    before = output_of(module, x)
    weight = next(module.parameters()).data
    weight.mul_(2)
    after = output_of(module, x)
    weight.div_(2)
    return torch.equal(before, after)


def unfrozen(module: Any) -> Any:
    twin = copy.deepcopy(module)
    twin._frozen_weights = None
    return twin


def assert_current(module: Any, x: Tensor = X) -> None:
    """That a call has the results of the weights as they are now."""
    for _ in range(2):
        torch.testing.assert_close(output_of(module, x), output_of(unfrozen(module), x))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_bits(config: Config, dtype: torch.dtype, threads: int):
    torch.set_num_threads(threads)
    module = config.module(LSTM).to(dtype)
    frozen = freeze(copy.deepcopy(module))
    x, hx = config.pack(config.input().to(dtype)), config.hx()
    hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
    with torch.no_grad():
        expected = module(x, hx)
        for _ in range(2):  # packs, and has packed
            got = frozen(x, hx)
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_same_bits_of_few_steps(dtype: torch.dtype):
    module = LSTM(64, 64, dtype=dtype)
    frozen = freeze(copy.deepcopy(module))
    for is_fixed, rows, steps in (
        (False, (1, 33, 100), (9,)),
        (True, (1, 2, 8, 9, 20, 32, 33, 100), (2, 8)),
    ):
        torch.use_deterministic_algorithms(is_fixed)
        try:
            for T, B in (*((1, B) for B in rows), *((T, 1) for T in steps)):
                x = torch.randn(T, B, 64, dtype=dtype)
                assert torch.equal(output_of(frozen, x), output_of(module, x))
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("I", [3, 40])
def test_any_batch_and_length_in_turn(I: int, dtype: torch.dtype):  # noqa: E741
    module = LSTM(I, 64, num_layers=2, dtype=dtype)
    frozen = freeze(copy.deepcopy(module))
    for T, B in ((3, 2), (50, 40), (1, 1), (1, 20), (1, 64), (2, 300), (1, 200), (50, 1)):
        x = torch.randn(T, B, I, dtype=dtype)
        torch.testing.assert_close(output_of(frozen, x), output_of(module, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_cells(dtype: torch.dtype):
    cell: Any = LSTMCell(8, 64, dtype=dtype)
    frozen = freeze(copy.deepcopy(cell))
    with torch.no_grad():
        for B in (1, 20, 64, 300):
            x, state = torch.randn(B, 8, dtype=dtype), None
            for _ in range(3):
                torch.testing.assert_close(frozen(x, state), cell(x, state))
                state = cell(x, state)
    assert is_kept(frozen, torch.randn(300, 8, dtype=dtype))


@pytest.mark.parametrize("parts", ["highest", "high", "medium"])
def test_precision_may_change_between_calls(parts: str):
    module = freeze(LSTM(64, 70))
    x = torch.randn(7, 80, 64)
    before = output_of(module, x)
    torch.set_float32_matmul_precision(parts)
    try:
        torch.testing.assert_close(output_of(module, x), output_of(unfrozen(module), x))
        torch.use_deterministic_algorithms(True)
        alone, row = output_of(module, x[:, :1]), output_of(module, x)[:, :1]
        assert torch.equal(alone, row)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(output_of(module, x), before)


def test_numbers_too_large_for_a_matrix_unit():
    module: Any = freeze(LSTM(64, 70))
    x = torch.randn(7, 80, 64)
    x[2, 10, 3] = 1e30
    for _ in range(2):
        assert_current(module, x)
        module.weight_hh_l0[0, 0] = 1e30


def test_weights_are_kept():
    module = LSTM(4, 5)
    assert not is_kept(module)
    assert is_kept(freeze(module))
    assert not any(p.requires_grad for p in module.parameters())
    with torch.inference_mode():
        assert is_kept(module)
    assert is_kept(module, X[0])  # unbatched
    assert is_kept(module, X[:1])
    assert not is_kept(module, X[:1, :1])  # a step of one row, from torch's weights


def replace(module: Any) -> None:
    module.bias_ih_l0 = torch.nn.Parameter(torch.ones(20), requires_grad=False)


def load(module: Any) -> None:
    module.load_state_dict(LSTM(4, 5).state_dict())


def assign(module: Any) -> None:
    module.load_state_dict(LSTM(4, 5).state_dict(), assign=True)


def in_place(module: Any) -> None:
    module.weight_hh_l0.mul_(3)


def in_inference_mode(module: Any) -> None:
    with torch.inference_mode():
        module.weight_hh_l0.mul_(3)


def data(module: Any) -> None:
    module.weight_hh_l0.data = torch.ones(20, 5)


def vector(module: Any) -> None:
    # Twice: the second vector may lie where the first memory of the weights was.
    for value in (1.0, 2.0):
        numbers = torch.full((20 * (4 + 5 + 2),), value)
        torch.nn.utils.vector_to_parameters(numbers, module.parameters())


def train(module: Any) -> None:
    """By an optimiser whose changes torch does not count."""
    module.requires_grad_()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    versions = [p._version for p in module.parameters()]
    module(X)[0].sum().backward()
    optimizer.step()
    assert versions == [p._version for p in module.parameters()]


def train_and_freeze(module: Any) -> None:
    train(module)
    module.requires_grad_(False)


def train_under_autocast(module: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        train(module)
    module.requires_grad_(False)


def train_some(module: Any) -> None:
    module.weight_hh_l0.requires_grad_()
    optimizer = torch.optim.SGD([module.weight_hh_l0], lr=0.1, fused=True)
    module(X)[0].sum().backward()
    optimizer.step()
    module.requires_grad_(False)


def to_double_and_back(module: Any) -> None:
    with torch.no_grad():
        module.double().weight_hh_l0.mul_(3)
        module.float()


def transpose(module: Any) -> None:
    """The same memory, in another order."""
    weight = module.weight_ih_l0
    weight.data = weight.data.as_strided((20, 4), (1, 20) if weight.is_contiguous() else (4, 1))


def share(module: Any) -> None:
    module.share_memory()
    in_place(module)


@pytest.mark.parametrize(
    "change",
    [
        replace,
        load,
        assign,
        in_place,
        in_inference_mode,
        data,
        vector,
        train,
        train_and_freeze,
        train_under_autocast,
        train_some,
        transpose,
        to_double_and_back,
        share,
    ],
)
def test_changes_are_noticed(change: Callable[[Any], None]):
    module = freeze(LSTM(4, 5))
    for _ in range(3):
        before = output_of(module)
        change(module)
        assert_current(module)
        if change is not replace and change is not data and change is not vector:
            assert not torch.equal(output_of(module), before)
    assert is_kept(module) == (change is not train)


def test_a_weight_that_is_to_be_negated():
    module: Any = freeze(LSTM(4, 5))
    before = output_of(module)
    weight = module.weight_hh_l0
    weight.data = torch._neg_view(weight.data)
    after = output_of(module)
    weight.data = weight.data.resolve_neg()
    torch.testing.assert_close(after, output_of(unfrozen(module)))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_training_of_any_kind_is_noticed(cls: Any):
    options = {"num_layers": 2, "dropout": 0.5} if cls is LSTM else {}
    module, x = freeze(cls(4, 70, **options)), torch.randn(*([7] * (cls is LSTM)), 40, 4)
    output_of(module, x)
    for weight in module.parameters():
        weight.requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        module.train()(x)[0].sum().backward()
        optimizer.step()
        module.eval().requires_grad_(False)
        assert_current(module, x)


def test_inputs_are_pruned():
    module: Any = freeze(LSTM(128, 16))
    assert is_kept(module, torch.randn(6, 20, 128))
    module.weight_ih_l0.data = module.weight_ih_l0.data[:, :64]
    module.input_size = 64
    assert_current(module, torch.randn(6, 20, 64))


def test_memory_of_inference_mode():
    """Torch tells a version of parameters that were moved to it, and counts no changes."""
    module: Any = LSTM(4, 5)
    with torch.inference_mode():
        freeze(module.double().float())
        assert_current(module)
        module.load_state_dict(LSTM(4, 5).state_dict())
        assert_current(module)
        module.weight_hh_l0.mul_(3)
        assert_current(module)


def test_a_module_that_a_weight_refers_to_is_collected():
    module: Any = freeze(LSTM(4, 5))
    module.weight_hh_l0.owner = module
    output_of(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def test_memory_that_is_handed_out_again():
    module = freeze(LSTM(4, 5))
    for value in range(20):
        output_of(module)
        module.weight_ih_l0.data = torch.full((20, 4), -1.0)  # what was there is free now
        module.weight_ih_l0.data = torch.full((20, 4), float(value))
        assert_current(module)


def test_weights_that_may_change_uncounted_are_not_kept():
    assert not is_kept(freeze(LSTM(4, 5)).requires_grad_())
    module = freeze(LSTM(4, 5))
    module.bias_hh_l0.requires_grad_()
    assert not is_kept(module)
    with torch.inference_mode():
        module = freeze(LSTM(4, 5))
        assert not is_kept(module)
        assert_current(module)
    module = freeze(torch.nn.utils.parametrizations.weight_norm(LSTM(4, 5), "weight_hh_l0"))
    assert_current(module)
    module.parametrizations.weight_hh_l0.original0.data.mul_(3)
    assert_current(module)


def test_gradients_are_recorded():
    """Of the input, which frozen weights do not keep from having one."""
    module = LSTM(4, 5)
    frozen = freeze(copy.deepcopy(module))
    assert is_kept(frozen)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    (got,) = torch.autograd.grad(frozen(x)[0].sum(), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_dropout_in_training():
    module = freeze(LSTM(4, 5, num_layers=2, dropout=0.5))
    assert is_kept(module.eval())
    assert_current(module)
    assert not torch.equal(output_of(module.train()), output_of(module))


def test_options_are_left_as_they_are():
    module = freeze(LSTM(4, 5, layer_norm=True, zoneout=0.1).eval())
    assert_current(module)


def test_autocast():
    module = freeze(LSTM(4, 5))
    assert is_kept(module)
    with torch.autocast("cpu", torch.bfloat16):
        assert_current(module)
        assert output_of(module).dtype is torch.bfloat16
    assert output_of(module).dtype is torch.float32


def test_compiled():
    module: Any = freeze(LSTM(4, 5))
    compiled = torch.compile(module)
    for _ in range(2):
        torch.testing.assert_close(output_of(compiled), output_of(module))
        module.weight_hh_l0.data.mul_(2)  # seen by a graph, which packs at each call
        module = freeze(module)


def load_whole(file: io.BytesIO) -> Any:
    classes: list[Any] = [LSTM, set]
    with torch.serialization.safe_globals(classes):
        return torch.load(file)


def test_copies_begin_anew():
    module = freeze(LSTM(4, 5))
    before = output_of(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        load_whole(file),
    ):
        assert is_kept(twin)
        in_place(twin)
        assert_current(twin)
        assert torch.equal(output_of(module), before)


def test_models_of_others(caplog: pytest.LogCaptureFixture):
    model: Any = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(4, 5), "head": torch.nn.Linear(5, 1)})
    with caplog.at_level(logging.INFO, "lstm_fast"):
        assert freeze(model) is model
    assert "froze 0 modules of ModuleDict: there are none" in caplog.text
    assert model.lstm.weight_ih_l0.requires_grad
    freeze(lstm_fast.accelerate(model))
    assert is_kept(model.lstm)
    assert model.head.weight.requires_grad
    # What depends on us no longer is no part of a pickle.
    lstm_fast.restore(model)
    assert b"lstm_fast" not in pickle.dumps(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        freeze(1)  # type: ignore[type-var]


def test_python_threads_share_a_module():
    module: Any = freeze(LSTM(8, 64, num_layers=2))
    inputs = [torch.randn(20, B, 8) for B in (1, 2, 30, 40, 50, 60, 70, 200)] * 3
    expected = [output_of(unfrozen(module), x) for x in inputs]
    for _ in range(10):
        module.weight_hh_l0.mul_(1)  # packed anew, by all of them at once
        with ThreadPoolExecutor(8) as pool:
            for got, e in zip(
                pool.map(lambda x: output_of(module, x), inputs), expected, strict=True
            ):
                assert torch.equal(got, e)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_computes():
    torch.set_num_threads(2)
    module = freeze(LSTM(8, 64))
    x = torch.ones(50, 200, 8)
    expected = output_of(module, x).numpy()
    # In it, large operations of torch's own would wait for its threads.
    check_in_child(lambda: assert_allclose(output_of(module, x).numpy(), expected, 1e-5, 1e-8))
