"""Swapping modules in the models of others: what changes, what stays, and the way back."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import threading
import time
import weakref
from abc import ABC
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lstm_fast
from lstm_fast import LSTM, LSTMCell, accelerate, patch, restore, swap
from tests.sample_inputs import CONFIGS, assert_all_close

X = torch.linspace(-1, 1, 24).reshape(3, 2, 4)


class Scaled(nn.LSTM):
    """A client's subclass: options, a method and a forward of its own."""

    def __init__(self, *args: Any, scale: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return self.scaled(output), state

    def scaled(self, output: Tensor) -> Tensor:
        return output * self.scale


class Computed(nn.LSTM):
    """Reads its weights anew at each call, as pyro's modules do."""

    @property
    def _flat_weights(self) -> Any:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Any) -> None:
        pass


class Recurrent(ABC, nn.RNNBase):
    """As pytorch-forecasting has it: a mixin below the layer."""

    def first(self, input: Tensor) -> Tensor:
        return self(input)[0][0]


class Mixed(Recurrent, nn.LSTM):
    pass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 5, num_layers=2, dropout=0.5)
        self.towers = nn.ModuleList([Scaled(5, 5, scale=3.0), Mixed(5, 5)])
        self.cell = nn.LSTMCell(5, 5)
        self.shared = self.encoder
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.encoder(x)
        for tower in self.towers:
            x, _ = tower(x)
        h, c = self.cell(x[-1])
        return self.head(h + c)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    torch.manual_seed(1)
    loss = model(X).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_training_goes_on_with_the_same_parameters(fused: list[None]):
    """Optimizer, its state, state_dict, tied modules and the mode survive; so do the numbers."""
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.Adam(twin.parameters())
    twin_optimizer.load_state_dict(optimizer.state_dict())
    before = dict(model.named_parameters())

    assert accelerate(model) is model
    assert all(after is before[name] for name, after in model.named_parameters())
    assert model.shared is model.encoder
    assert model.training
    assert model.state_dict().keys() == twin.state_dict().keys()
    kinds = [type(m) for m in (model.encoder, model.cell)]
    assert kinds == [LSTM, LSTMCell]
    for _ in range(3):
        got, expected = train_step(model, optimizer), train_step(twin, twin_optimizer)
        assert_all_close(got, expected, CONFIGS["deep"])
    # The encoder drops out between its layers and therefore runs each by itself.
    assert len(fused) == 3 * (2 + 2 + 1)
    model.eval()
    assert not model.encoder.training


def test_averages_go_on():
    """Of a moving average that was begun before the swap, and of one begun after it."""
    model, twin = Model().eval(), Model().eval()
    twin.load_state_dict(model.state_dict())
    averages = []
    for m in (model, twin):
        decay = get_ema_multi_avg_fn(0.5)
        early = AveragedModel(m, multi_avg_fn=decay)
        if m is model:
            accelerate(m)
            accelerate(early)
        late = AveragedModel(m, multi_avg_fn=decay)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(3):
            train_step(m, optimizer)
            early.update_parameters(m)
            late.update_parameters(m)
        averages.append((early, late))
    for got, expected in zip(*averages, strict=True):
        assert type(got.module.encoder) is LSTM
        assert_all_close(got(X), expected(X), CONFIGS["deep"])


def test_tied_weights_stay_tied(fused: list[None]):
    model: Any = nn.ModuleList([nn.LSTM(5, 5), nn.LSTM(5, 5)])
    first, second = model
    second.weight_hh_l0 = first.weight_hh_l0
    accelerate(model)
    assert second.weight_hh_l0 is first.weight_hh_l0
    assert len(list(model.parameters())) == 7
    second(first(torch.randn(3, 2, 5))[0])[0].sum().backward()
    tied = first.weight_hh_l0.grad
    with torch.no_grad():
        first.weight_hh_l0.zero_()
    x = torch.randn(3, 2, 5)
    assert_all_close(second(x), nn.LSTM.forward(second, x), CONFIGS["plain"])
    assert tied is not None
    assert len(fused) == 3


def test_client_classes_keep_their_methods(fused: list[None]):
    scaled: Any
    mixed: Any
    scaled, mixed = accelerate(Model()).towers
    assert isinstance(scaled, Scaled)
    assert isinstance(scaled, LSTM)
    assert (scaled.scale, type(scaled).__name__, type(scaled).__module__) == (
        3.0,
        "Scaled",
        __name__,
    )
    x = torch.randn(3, 2, 5)
    assert_all_close(scaled(x)[0], 3 * nn.LSTM.forward(scaled, x)[0], CONFIGS["plain"])
    assert isinstance(mixed, Recurrent)
    assert_all_close(mixed.first(x), restore(copy.copy(mixed))(x)[0][0], CONFIGS["plain"])
    assert len(fused) == 2


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        copy.copy,
        saved_and_loaded,
        *(lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in range(6)),
    ],
)
def test_swapped_models_are_copied(duplicate: Any):
    model = accelerate(Model()).eval()
    twin = duplicate(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(twin(X), model(X), rtol=0, atol=0)


def test_a_property_may_have_the_weights(fused: list[None]):
    layer = accelerate(Computed(4, 3, 2))
    stock = nn.LSTM(4, 3, 2)
    stock.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(X)[0], stock(X)[0])
    with torch.no_grad():
        torch.testing.assert_close(layer(X)[0], stock(X)[0])
    assert len(fused) == 2


def test_restore(fused: list[None]):
    model = Model().eval()
    kinds = [type(m) for m in model.modules()]
    expected = model(X)
    assert restore(accelerate(model)) is model
    assert [type(m) for m in model.modules()] == kinds
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)
    assert not fused
    assert b"lstm_fast" not in pickle.dumps(model)
    assert type(restore(LSTM(4, 5))) is nn.LSTM
    assert type(restore(LSTMCell(4, 5))) is nn.LSTMCell


def test_restore_refuses_a_class_that_needs_us():
    class Ours(LSTM):
        pass

    model = nn.Sequential(LSTM(4, 5), Ours(5, 5))
    with pytest.raises(TypeError, match="Ours derives from lstm_fast itself"):
        restore(model)
    assert type(model[0]) is LSTM


REGISTRY: dict[str, type] = {}


class Registered(nn.LSTM):
    """A client's class that keeps a list of those derived from it, with an argument for each."""

    def __init_subclass__(cls, *, tag: str) -> None:
        super().__init_subclass__()
        assert tag not in REGISTRY
        REGISTRY[tag] = cls


class Tagged(Registered, tag="tagged"):
    pass


@pytest.mark.parametrize("by", ["accelerate", "patch"])
def test_the_clients_registries_do_not_hear_of_our_classes(by: str, fused: list[None]):
    if by == "patch":
        with patch():
            module: Any = Tagged(4, 5)
    else:
        module = accelerate(Tagged(4, 5))
    assert type(module) is not Tagged
    assert isinstance(module, LSTM)
    module(X)
    assert len(fused) == 1
    assert list(REGISTRY.values()) == [Tagged]
    assert type(pickle.loads(pickle.dumps(module))) is type(module)
    restored: Any = restore(module)
    assert type(restored) is Tagged


class Lazy(nn.modules.lazy.LazyModuleMixin, nn.LSTM):
    """A client's class that learns its input size from the first call."""

    cls_to_become = nn.LSTM

    def __init__(self, hidden_size: int) -> None:
        super().__init__(1, hidden_size)
        self.weight_ih_l0 = nn.UninitializedParameter()

    def initialize_parameters(self, input: Tensor) -> None:
        if self.has_uninitialized_params():
            self.input_size = input.shape[-1]
            self.weight_ih_l0.materialize((4 * self.hidden_size, self.input_size))
            self.reset_parameters()


@pytest.mark.parametrize("by", ["accelerate", "patch"])
def test_lazy_modules_become_ours(by: str, fused: list[None]):
    if by == "patch":
        with patch():
            module: Any = Lazy(5)
    else:
        module = accelerate(Lazy(5))
    got = module(X)
    assert type(module) is LSTM
    assert len(fused) == 1
    assert_all_close(got, nn.LSTM.forward(module, X), CONFIGS["plain"])
    assert type(restore(accelerate(Lazy(5)))) is Lazy


def test_classes_are_freed():
    class Client(nn.LSTM):
        pass

    module = accelerate(Client(4, 5))
    kinds = weakref.ref(Client), weakref.ref(type(module))
    assert type(accelerate(Client(4, 5))) is type(module)
    del Client, module
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]


def test_scripted_models_are_accelerated_again():
    model = nn.ModuleDict({"lstm": LSTM(4, 5), "cell": LSTMCell(4, 5)})
    before = dict(model.named_parameters())
    torch.jit.script(copy.deepcopy(model))
    assert [type(m) for m in model.values()] == [LSTM, LSTMCell]
    torch.jit.script(model)
    accelerate(model)
    assert [type(m) for m in model.values()] == [LSTM, LSTMCell]
    assert all(after is before[name] for name, after in model.named_parameters())


def test_hooks_stay():
    lstm = nn.LSTM(4, 5)
    seen: list[str] = []
    lstm.register_forward_pre_hook(lambda *_: seen.append("before"))
    lstm.register_forward_hook(lambda *_: seen.append("after"))
    lstm.register_full_backward_hook(lambda *_: seen.append("backward"))
    accelerate(lstm)(X)[0].sum().backward()
    assert seen == ["before", "after", "backward"]


@pytest.mark.parametrize("kind", [nn.LSTM, Scaled])
@pytest.mark.parametrize("parametrized_first", [False, True])
def test_parametrizations_stay(kind: type[nn.LSTM], parametrized_first: bool, fused: list[None]):
    lstm: Any = kind(4, 5)
    expected = lstm(X)
    if parametrized_first:
        parametrizations.weight_norm(lstm, "weight_hh_l0")
        accelerate(lstm)
    else:
        parametrizations.weight_norm(accelerate(lstm), "weight_hh_l0")
    assert parametrize.is_parametrized(lstm, "weight_hh_l0")
    assert_all_close(lstm(X), expected, CONFIGS["plain"])
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.allclose(lstm(X)[0], expected[0])
    got = lstm(X)
    assert len(fused) == 3
    assert_all_close(got, restore(lstm)(X), CONFIGS["plain"])
    accelerate(lstm)
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert isinstance(lstm, LSTM)
    assert type(restore(lstm)) is kind


@pytest.mark.parametrize("sharded_first", [False, True])
def test_sharded_modules_are_swapped(sharded_first: bool, tmp_path: Path, fused: list[None]):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        module: Any = nn.LSTM(4, 5)
        expected = module(X)[0].detach()
        steps = [accelerate, lambda m: fully_shard(m, mesh=mesh)]
        for step in reversed(steps) if sharded_first else steps:
            step(module)
        torch.testing.assert_close(module(X)[0], expected)
        assert len(fused) == 1
        assert not isinstance(restore(module), LSTM)
        torch.testing.assert_close(module(X)[0], expected)
        assert len(fused) == 1
    finally:
        torch.distributed.destroy_process_group()


def test_what_was_done_is_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lstm_fast")
    model = accelerate(Model())
    accelerate(model)
    restore(model)
    accelerate(nn.LSTM(1, 1))
    with patch():
        nn.LSTM(1, 1)
    assert caplog.messages == [
        "accelerated 4 modules of Model: encoder, towers.0, towers.1, cell",
        "accelerated 0 modules of Model: there are none",
        "restored 4 modules of Model: encoder, towers.0, towers.1, cell",
        "accelerated 1 modules of LSTM: the model itself",
        "patched: torch.nn.LSTM and LSTMCell are constructed as lstm_fast's",
        "patch undone; 1 modules were constructed as lstm_fast's",
    ]


@pytest.mark.parametrize("function", [accelerate, restore])
def test_what_is_no_module_is_refused(function: Any):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        function([nn.LSTM(1, 1)])


EARLY = nn.LSTM  # as `from torch.nn import LSTM` before the patch


def test_patch(fused: list[None]):
    stock = nn.LSTM(4, 5)
    constructor = nn.LSTM.__init__
    with patch() as patched:
        model = Model().eval()
        assert patched.swapped == 4
        assert type(model.encoder) is LSTM
        assert type(EARLY(4, 5)) is LSTM
        assert type(nn.LSTMCell(4, 5)) is LSTMCell
        assert type(LSTM(4, 5)) is LSTM
        assert isinstance(model.towers[0], Scaled)
        assert isinstance(stock, nn.LSTM)
        assert type(pickle.loads(pickle.dumps(stock))) is nn.LSTM

        class Late(nn.LSTM):
            pass

        late = Late(4, 5)
    assert nn.LSTM.__init__ is constructor
    assert type(nn.LSTM(4, 5)) is nn.LSTM
    assert type(Late(4, 5)) is Late
    assert isinstance(late, LSTM)
    model(X)
    assert len(fused) == 4
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(twin(X), model(X), rtol=0, atol=0)
    restore(late)
    assert type(late) is Late


def test_patched_construction_draws_the_numbers_of_torch():
    torch.manual_seed(2)
    expected = {**nn.LSTM(3, 4).state_dict(), "next": torch.rand(2)}
    torch.manual_seed(2)
    with patch():
        got = {**nn.LSTM(3, 4).state_dict(), "next": torch.rand(2)}
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_patches_nest_and_are_undone_in_any_order():
    constructor = nn.LSTM.__init__
    outer, inner = patch(), patch()
    outer.undo()
    outer.undo()
    assert type(nn.LSTM(1, 1)) is LSTM
    inner.undo()
    assert nn.LSTM.__init__ is constructor
    assert (outer.swapped, inner.swapped) == (0, 1)
    with pytest.raises(ValueError, match="proj_size"), patch():
        nn.LSTM(3, 4, proj_size=4)
    assert nn.LSTM.__init__ is constructor


def test_errors_of_a_patched_constructor_are_those_of_torch():
    with pytest.raises(TypeError) as expected:
        nn.LSTM(3)
    with patch(), pytest.raises(TypeError) as got:
        nn.LSTM(3)
    assert str(got.value) == str(expected.value)


def test_packed_and_stateful_calls_after_a_swap():
    theirs = nn.LSTM(4, 5, bidirectional=True)
    ours = accelerate(copy.deepcopy(theirs))
    packed = pack_padded_sequence(X, [1, 3], enforce_sorted=False)
    assert_all_close(ours(packed)[0].data, theirs(packed)[0].data, CONFIGS["packed"])
    state = (torch.randn(2, 2, 5), torch.randn(2, 2, 5))
    assert_all_close(ours(X, state), theirs(X, state), CONFIGS["packed"])


def test_swapping_in_many_threads(monkeypatch: pytest.MonkeyPatch):
    """Each client's class has one class of ours, however many threads ask for it."""
    derive = swap._derive

    def slowly(cls: type, fused: type) -> type:
        time.sleep(0.01)  # so that others run meanwhile
        return derive(cls, fused)

    monkeypatch.setattr(swap, "_derive", slowly)
    models = [Model() for _ in range(8)]
    threads = [threading.Thread(target=accelerate, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = {type(m.towers[0]) for m in models}
    assert issubclass(found, LSTM)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_callback(package: str):
    """Swaps before the module's own `setup`, and what that builds before training."""
    pl = pytest.importorskip(package)
    from lstm_fast.lightning import Accelerate

    class Late(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5)

        def setup(self, stage: str) -> None:
            assert type(self.lstm) is LSTM
            self.cell = nn.LSTMCell(5, 1)

        def training_step(self, batch: Tensor) -> Tensor:
            assert type(self.cell) is LSTMCell
            return self.cell(self.lstm(batch)[0][-1])[0].square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Late()
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[Accelerate()],
        logger=False,
        barebones=True,
    )
    trainer.fit(module, torch.utils.data.DataLoader([X], batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == 1


def test_public_names():
    assert {"accelerate", "restore", "patch"} <= set(lstm_fast.__all__)
