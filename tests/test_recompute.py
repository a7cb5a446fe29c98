"""`recompute_gates`: less is kept for backward, and nothing else is different."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lstm_fast import LSTM, accelerate, ops, options, patch, restore
from tests.sample_inputs import (
    CONFIGS,
    DTYPES,
    Config,
    assert_close,
    forward_and_gradients,
    in_float64,
    requiring_grad,
)
from tests.test_ops import EXACT, Spy, op_arguments

all_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
X = torch.linspace(-1, 1, 6 * 3 * 4).view(6, 3, 4)


def pair(config: Config) -> tuple[Any, Any]:
    """The layer of a configuration, and the same that recomputes its gates."""
    kept, recomputing = config.module(LSTM), config.module(LSTM)
    recomputing.load_state_dict(kept.state_dict())
    recomputing.recompute_gates = True
    return kept, recomputing


def gradients(module: Any, x: Tensor = X) -> list[Tensor]:
    """Of all parameters and the input."""
    x = x.clone().requires_grad_()
    output, (_, c_n) = module(x)
    return list(torch.autograd.grad((output * c_n.sum()).sum(), [x, *module.parameters()]))


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def numbers_kept(args: tuple[Any, ...], recompute_gates: bool) -> int:
    """Of the tensors that autograd keeps of a call of `ops.lstm`, but for its arguments."""
    given = {t.data_ptr() for t in requiring_grad(args)}
    if args[1] is not None:
        given.add(args[1].data_ptr())
    kept: dict[int, int] = {}
    call: Any = ops.lstm

    def note(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        results = call(*args, recompute_gates=recompute_gates)
    assert results[0].grad_fn is not None
    return sum(numel for at, numel in kept.items() if at not in given)


@pytest.mark.usefixtures("deterministic")
@all_dtypes
@all_configs
def test_no_bit_is_different(config: Config, dtype: torch.dtype):
    config = replace(config, dtype=dtype)
    input, hx = config.input(), config.hx()
    kept, recomputed = (forward_and_gradients(m, config, input, hx) for m in pair(config))
    assert kept.keys() == recomputed.keys()
    for name, result in kept.items():
        assert torch.equal(result, recomputed[name]), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "config",
    [
        Config(40, 50, T=6, B=35, num_layers=2, bidirectional=True),
        Config(70, 128, T=200, B=32, with_hx=False),
        Config(9, 64, T=20, B=40, num_layers=2, proj_size=40, lengths=(20,) * 17 + (9,) * 23),
        Config(30, 100, T=1, B=40),
        # So few steps that no weights would be packed, were their gates kept.
        Config(3, 17, T=2, B=1),
        Config(64, 256, T=4, B=1),
    ],
    ids=["bidirectional", "long", "packed projected", "one step", "two steps", "a few steps"],
)
def test_large_layers(config: Config, threads: int):
    """Where there is a matrix unit, sums may have another order than they had in forward."""
    torch.set_num_threads(threads)
    module, input, hx = pair(config)[1], config.input(), config.hx()
    got = forward_and_gradients(module, config, input, hx)
    assert_close(got, in_float64(forward_and_gradients, module, config, input, hx), config)


@all_configs
def test_outputs_and_cells_are_kept(config: Config):
    H, runs = config.hidden_size, config.runs
    directions, P = runs // config.num_layers, config.proj_size or H
    N = sum(config.lengths) if config.lengths else config.T * config.B
    args = op_arguments(config)
    outputs = config.num_layers * N * directions * P
    assert numbers_kept(args, recompute_gates=True) == outputs + N * runs * H
    gates_and_cells = (6 if config.proj_size else 5) * N * runs * H
    assert numbers_kept(args, recompute_gates=False) == outputs + gates_and_cells


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("plain", torch.float32),
        ("single", torch.float32),
        ("no_hx", torch.float64),
        ("deep_projected", torch.float16),
        ("packed_deep", torch.bfloat16),
    ],
)
def test_opcheck(name: str, dtype: torch.dtype):
    args = op_arguments(replace(CONFIGS[name], dtype=dtype))
    forward, backward = torch.ops.lstm_fast.lstm.default, torch.ops.lstm_fast.lstm_backward.default
    torch.library.opcheck(forward, (*args, True), {"recompute_gates": True})
    *results, saved = forward(*args, True, recompute_gates=True)
    grads = [torch.randn_like(result) for result in results]
    back = (*grads, *args, results[0], saved, True, True, True)
    torch.library.opcheck(backward, back, {"recompute_gates": True})
    with pytest.raises(RuntimeError, match="saved must be what the forward op returned"):
        backward(*back)


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
        call: Any = ops.lstm
        args = torch.utils._pytree.tree_unflatten(leaves, spec)
        return call(*args, recompute_gates=True)

    requiring_grad(args)
    leaves = torch.utils._pytree.tree_leaves(args)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_backward_twice():
    """What is kept is not used up, and how it is laid out goes with it."""
    _, module = pair(Config(num_layers=2))
    output, _ = module(X)
    module.recompute_gates = False
    first, second = (
        torch.autograd.grad(output.sum(), list(module.parameters()), retain_graph=True)
        for _ in range(2)
    )
    assert_equal(list(first), list(second))


@pytest.mark.parametrize("shape", [(5, 0, 4), (5, 3, 4)])
@pytest.mark.parametrize("wanted", ["input", "parameters"])
def test_what_is_not_wanted(wanted: str, shape: tuple[int, ...]):
    for module in (modules := pair(Config(num_layers=2, proj_size=3))):
        module.requires_grad_(wanted == "parameters")
    results = []
    for module in modules:
        x = torch.linspace(-1, 1, 60)[: 5 * shape[1] * 4].view(shape)
        x.requires_grad_(wanted == "input")
        leaves = [x] if wanted == "input" else list(module.parameters())
        results.append(list(torch.autograd.grad(module(x)[0].sum(), leaves)))
    assert_equal(*results)


def test_frozen_layers():
    """Layers below the first trained one run by themselves."""
    for module in (modules := pair(Config(num_layers=3))):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.endswith("_l0"))
    kept, recomputed = (
        torch.autograd.grad(m(X)[0].sum(), [p for p in m.parameters() if p.requires_grad])
        for m in modules
    )
    assert_equal(list(recomputed), list(kept))


@pytest.mark.parametrize(
    "chosen",
    [
        {"num_layers": 2, "dropout": 0.5},
        {"weight_dropout": 0.3},
        {"learned_state": True},
        {"forget_bias": 1.0},
        {"zoneout": 0.2},
    ],
    ids=lambda chosen: [*chosen][-1],
)
def test_beside_other_options(chosen: dict[str, Any]):
    kept = LSTM(4, 5, **chosen)
    recomputing = LSTM(4, 5, **chosen, recompute_gates=True)
    recomputing.load_state_dict(kept.state_dict())
    results = []
    for module in (kept, recomputing):
        torch.manual_seed(1)
        output, _ = module(X)
        results.append(list(torch.autograd.grad(output.sum(), list(module.parameters()))))
    assert_equal(*results)


def test_lengths(monkeypatch: pytest.MonkeyPatch):
    kept, recomputing = pair(Config())
    spy = Spy(ops._forward)
    monkeypatch.setattr(ops, "_forward", spy)
    for module in (kept, recomputing):
        module(X, lengths=[6, 2, 4])[0].sum().backward()
    assert [call[-1] for call in spy.calls] == [False, True]
    assert_equal([p.grad for p in recomputing.parameters()], [p.grad for p in kept.parameters()])


def test_it_alone_leaves_a_call_as_it_is(monkeypatch: pytest.MonkeyPatch, fused: list[None]):
    monkeypatch.setattr(options, "forward", None)
    module = LSTM(4, 5, recompute_gates=True)
    output, _ = module(X)
    assert fused == [None]
    with torch.no_grad():
        assert torch.equal(module(X)[0], output)
    assert fused == [None] * 2


def test_the_attribute_goes_along():
    module = LSTM(4, 5, recompute_gates=True)
    expected = gradients(module)
    assert module.state_dict().keys() == LSTM(4, 5).state_dict().keys()
    assert repr(module) == "LSTM(4, 5, recompute_gates=True)"
    assert not LSTM(4, 5).recompute_gates
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert other.recompute_gates
        assert_equal(gradients(other), expected)


def test_swapped_modules():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer: Any = torch.nn.LSTM(4, 5)

    model = accelerate(Model())
    with patch():
        constructed: Any = torch.nn.LSTM(4, 5)
    for module in (model.layer, constructed):
        expected = gradients(module)
        assert not module.recompute_gates
        module.recompute_gates = True
        assert_equal(gradients(module), expected)
    expected = gradients(model.layer)
    assert type(restore(model).layer) is torch.nn.LSTM
    torch.testing.assert_close(gradients(model.layer), expected)
    assert accelerate(model).layer.recompute_gates


def test_torch_jit():
    module = LSTM(4, 5, recompute_gates=True)
    scripted = torch.jit.script(torch.nn.Sequential(module))
    traced = torch.jit.trace(module, (X,))
    for compiled in (scripted, traced):
        torch.testing.assert_close(compiled(X), module(X))


@pytest.mark.slow
def test_compile_and_export():
    module = LSTM(4, 5, num_layers=2, recompute_gates=True)
    expected = gradients(module)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = X.clone().requires_grad_()
    output, (_, c_n) = compiled(x)
    leaves = [x, *module.parameters()]
    got = torch.autograd.grad((output * c_n.sum()).sum(), leaves)
    torch.testing.assert_close(list(got), expected)
    exported = torch.export.export(module, (X,), strict=True)
    torch.testing.assert_close(exported.module()(X), module(X))


def test_autocast():
    kept, recomputing = pair(Config(num_layers=2, bidirectional=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [gradients(module) for module in (kept, recomputing)]
    assert_equal(*results)
