"""`torch.compile` of models that hold our layers: whole graphs, the numbers of eager."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_fast import LSTM, LSTMCell, _dynamo, accelerate
from tests.sample_inputs import CONFIGS, Config, assert_all_close, forward_and_gradients


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module: nn.Module, backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(module, backend=backend, fullgraph=True, **options)


def assert_equal(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def assert_compiled_is_eager(module: nn.LSTM, config: Config, **options: Any) -> None:
    """Outputs, and gradients of everything; without gradients too. To the bit: the kernels are
    the same, and what surrounds them only moves numbers."""
    function = compiled(module, **options)
    input, hx = config.input(), config.hx()

    def run(input: Any, hx: Any) -> Any:
        return function(input, hx)

    run.named_parameters = module.named_parameters  # type: ignore[attr-defined]
    got = forward_and_gradients(run, config, input, hx)  # type: ignore[arg-type]
    assert_equal(got, forward_and_gradients(module, config, input, hx))
    with torch.no_grad():
        packed = config.pack(input)
        assert_equal(function(packed, hx), module(packed, hx))


KINDS = CONFIGS | {"packed_no_hx": replace(CONFIGS["packed_deep"], with_hx=False)}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_every_kind(config: Config):
    assert_compiled_is_eager(config.module(LSTM), config)


def test_a_state_of_another_batch_than_the_packed_one_raises():
    packed = pack_padded_sequence(torch.randn(5, 3, 4), [5, 2, 1])
    state = torch.zeros(1, 2, 5)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \[1, 3, 5\]"):
        compiled(LSTM(4, 5))(packed, (state, state))


def test_no_steps_raise_as_torch_does():
    for module in (LSTM(4, 5), nn.LSTM(4, 5)):
        with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
            torch.compile(module, backend="aot_eager")(torch.randn(0, 3, 4))


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
def test_gradients_of_transforms(options: dict[str, Any]):
    """The graph is of the parameters that `functional_call` puts in the place of the module's."""
    module, x = LSTM(4, 5, **options), torch.randn(6, 3, 4)
    params = {name: 2 * p.detach() for name, p in module.named_parameters()}

    def gradients(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(module, params, (x,))[0].sum()

        return torch.func.grad(loss)(params)

    got = torch.compile(gradients, backend="aot_eager")(params)
    torch.testing.assert_close(got, gradients(params))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype):
    config = replace(CONFIGS["deep_projected"], dtype=dtype)
    assert_compiled_is_eager(config.module(LSTM), config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "bidirectional", "packed_no_hx"])
def test_inductor(name: str):
    config = KINDS[name]
    assert_compiled_is_eager(config.module(LSTM), config, backend="inductor")


class Forecaster(nn.Module):
    """Torch's layers around ours, which the compiler may fuse; a state carried over a step."""

    def __init__(self, lstm: type[nn.LSTM], cell: type[nn.LSTMCell]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.lstm = lstm(4, 5, num_layers=2, batch_first=True)
        self.cell = cell(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, (h_n, c_n) = self.lstm(self.norm(x).relu())
        h, _ = self.cell(output[:, -1], (h_n[-1], c_n[-1]))
        return self.head(torch.tanh(h) + output.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_serves_all_lengths(dynamic: bool | None):
    """A second length makes the graph dynamic; a third compiles nothing anew."""
    model = Forecaster(LSTM, LSTMCell)
    theirs = Forecaster(nn.LSTM, nn.LSTMCell)
    theirs.load_state_dict(model.state_dict())
    function = compiled(model, "inductor", dynamic=dynamic)
    for index, (B, T) in enumerate([(3, 5), (2, 7), (6, 4), (5, 9)]):
        if index == 2:
            torch.compiler.set_stance("fail_on_recompile")
        x = torch.randn(B, T, 4)
        try:
            got = torch.autograd.grad(function(x).square().sum(), tuple(model.parameters()))
        finally:
            torch.compiler.set_stance("default")
        expected = torch.autograd.grad(theirs(x).square().sum(), tuple(theirs.parameters()))
        assert_all_close(got, expected, Config(T=9, B=6, num_layers=3))


def test_dropout_of_training():
    module = LSTM(4, 5, num_layers=3, dropout=0.5)
    function = compiled(module)
    x = torch.randn(6, 2, 4)
    torch.manual_seed(1)
    got = function(x)[0]
    torch.manual_seed(1)
    assert_equal(got, module(x)[0])
    module.eval()
    assert_equal(function(x), module(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype):
    module = LSTM(4, 5)
    x = torch.randn(3, 2, 4)
    with torch.autocast("cpu", dtype):
        got, expected = compiled(module)(x), module(x)
    assert got[0].dtype == dtype
    assert_equal(got, expected)


@pytest.mark.parametrize("batched", [False, True])
def test_cell(batched: bool):
    cell = LSTMCell(4, 5)
    shape = (3,) if batched else ()
    x, hx = torch.randn(*shape, 4), (torch.randn(*shape, 5), torch.randn(*shape, 5))
    function = compiled(cell)
    for state in (None, hx):
        assert_equal(function(x, state), cell(x, state))
        with torch.autocast("cpu", torch.bfloat16):
            assert_equal(function(x, state), cell(x, state))


def test_frozen_layers():
    module = LSTM(4, 5, num_layers=3)
    for name, p in module.named_parameters():
        p.requires_grad_(name.endswith("_l2"))
    trained = [p for p in module.parameters() if p.requires_grad]
    x = torch.randn(6, 3, 4)
    got, expected = compiled(module)(x), module(x)
    assert_equal(got, expected)
    grads = [torch.autograd.grad(r[0].sum(), trained) for r in (got, expected)]
    assert_equal(grads[0], grads[1])


def test_unbatched():
    module = LSTM(4, 5)
    x = torch.randn(3, 4)
    assert_equal(compiled(module)(x), module(x))


def test_tensors_given_twice():
    """One state as h0 and c0; both layers with the same weights."""
    module = LSTM(5, 5, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    state, x = torch.randn(2, 2, 5, requires_grad=True), torch.randn(3, 2, 5)
    got, expected = compiled(module)(x, (state, state)), module(x, (state, state))
    assert_equal(got, expected)
    leaves = (state, *module.parameters())
    got, expected = (torch.autograd.grad(result[0].sum(), leaves) for result in (got, expected))
    assert_equal(got, expected)


class Client(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output.relu(), state


def test_swapped_classes():
    module: Any = accelerate(nn.Sequential(Client(4, 5)))
    x = torch.randn(3, 2, 4)
    assert_equal(compiled(module)(x), module(x))


def test_changed_weights_are_seen():
    module: Any = LSTM(4, 5)
    function = compiled(module)
    x = torch.randn(3, 2, 4)
    before = function(x)[0]
    module.weight_hh_l0.data.mul_(3)
    assert_equal(function(x), module(x))
    module.weight_hh_l0 = nn.Parameter(torch.randn(20, 5))
    assert_equal(function(x), module(x))
    assert not torch.equal(function(x)[0], before)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch's own pad_packed_sequence does not compile",
)
def test_packed_sequences_made_inside():
    """Packing needs the lengths as numbers and breaks the graph, with nn.LSTM and ours alike."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = LSTM(4, 5)

        def forward(self, packed: PackedSequence) -> torch.Tensor:
            return pad_packed_sequence(self.lstm(packed)[0])[0]

    model, config = Model(), CONFIGS["packed"]
    packed = config.pack(config.input())
    function = torch.compile(model, backend="aot_eager")
    assert_equal(function(packed), model(packed))


def test_a_bad_input_raises_as_in_eager():
    module = LSTM(4, 5)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        compiled(module)(torch.randn(3, 2, 7))


def test_stock_modules_and_settings_stay_as_they_are():
    compiled(LSTM(4, 5))(torch.randn(3, 2, 4))
    assert torch._dynamo.config.allow_rnn is False
    for stock in (nn.LSTM(4, 5), nn.GRU(4, 5), nn.RNN(4, 5)):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
            compiled(nn.Sequential(stock))(torch.randn(3, 2, 4))


@pytest.mark.parametrize("first", ["torch._dynamo", "lstm_fast"])
def test_whichever_is_imported_first(first: str):
    code = f"""
import sys, torch, {first}
import lstm_fast
model = torch.nn.Sequential(lstm_fast.LSTM(4, 5))
model(torch.randn(3, 2, 4))[0].sum().backward()
assert ("torch._dynamo" in sys.modules) == {first == "torch._dynamo"}
torch.compile(model, backend="eager", fullgraph=True)(torch.randn(3, 2, 4))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_constant_is_one_as_torch_marks_it():
    ours, torchs = _dynamo.constant(lambda: 0), torch.compiler.assume_constant_result(lambda: 0)
    assert vars(ours) == vars(torchs)


def test_copies_of_a_compiled_model():
    model = nn.Sequential(LSTM(4, 5))
    x = torch.randn(3, 2, 4)
    compiled(model)(x)
    twin = copy.deepcopy(model)
    assert_equal(compiled(twin)(x), model(x))


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_onnx_has_torchs_layers(cls: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch):
    module, x = cls(4, 5), torch.randn(3, 4)

    def operators() -> str:
        return str(torch.export.export(module, (x,)).graph)

    assert "lstm_fast" in operators()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert "lstm_fast" not in operators()
