"""Training: early stopping, going on after a kill, several processes, precision."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from lstm_fast.forecast import Forecaster, History, training
from lstm_fast.forecast.training import TrainingBatches, outputs_of
from lstm_fast.forecast.windows import Batch, tilted

ROOT = Path(__file__).parents[2]

# A script of a user: a training long enough to be killed in the middle.
SCRIPT = """
import os
import sys
import torch
from lstm_fast.forecast import Forecaster
from tests.forecast.series import monthly

torch.set_num_threads(1)
options = {"h": 6, "input_size": 24, "hidden_size": 5, "dense_size": 4, "batch_size": 8}
model = Forecaster(n_models=1, calibration_size=12, **options, **eval(sys.argv[2]))
model.fit(monthly()).predict().to_pickle(sys.argv[1])

# Threads of torch.distributed may ask for the interpreter while it shuts down, which aborts.
os._exit(0)
"""


class KilledError(Exception):
    pass


class KillAt(Callback):
    """Ends training in the middle of a step, as a kill would: nothing is put in order."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise KilledError


@pytest.mark.parametrize("val_size", [0, 6])
@pytest.mark.parametrize("killed_at", [3, 10, 11])
@pytest.mark.parametrize("trainer_options", [{}, {"accumulate_grad_batches": 3}])
def test_a_training_that_was_cut_off_ends_with_the_same_weights(
    small, series, tmp_path, killed_at, val_size, trainer_options
):
    options = {
        "levels": (),
        "max_steps": 18,
        "dropout": 0.3,
        "n_models": 2,
        "checkpoint_steps": 5,
        "val_check_steps": 5,
    }
    whole = small(**options, trainer_options=trainer_options).fit(series, val_size)
    options["checkpoint_dir"] = tmp_path / "state"
    killed = {**trainer_options, "callbacks": [KillAt(killed_at)]}
    with pytest.raises(KilledError):
        small(**options, trainer_options=killed).fit(series, val_size)
    resumed = small(**options, trainer_options=trainer_options).fit(series, val_size)
    weights = resumed._networks.state_dict()
    for name, weight in whole._networks.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_batches_of_a_step_have_dropout_of_their_own_and_steps_are_counted(small, series):
    seeds: list[int] = []
    checks: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_) -> None:
            seeds.append(torch.initial_seed())

        def on_validation_end(self, trainer, *_) -> None:
            checks.append(trainer.global_step)

    options = {"accumulate_grad_batches": 2, "callbacks": [Watch()]}
    small(levels=(), max_steps=4, val_check_steps=2, trainer_options=options).fit(series, 6)
    assert len(set(seeds)) == len(seeds) == 8
    assert checks == [2, 4]


def test_the_learning_rate_falls_to_0_on_half_a_cosine(small, series):
    rates: list[float] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

        def on_train_end(self, trainer, *_) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    options = {"callbacks": [Watch()]}
    small(levels=(), max_steps=4, learning_rate=0.1, trainer_options=options).fit(series)
    assert rates == pytest.approx(0.05 * (1 + np.cos(np.pi * np.arange(5) / 4)))


def test_a_state_is_not_saved_within_a_step(small, series, tmp_path):
    options: dict[str, Any] = {"levels": (), "max_steps": 9, "checkpoint_steps": 1}
    trainer_options = {"accumulate_grad_batches": 2, "val_check_interval": 3}
    whole = small(**options, trainer_options=trainer_options).fit(series, 6)
    options["checkpoint_dir"] = tmp_path
    killed = {**trainer_options, "callbacks": [KillAt(5)]}
    with pytest.raises(KilledError):
        small(**options, trainer_options=killed).fit(series, 6)
    assert (tmp_path / "final.ckpt").exists()
    resumed = small(**options, trainer_options=trainer_options).fit(series, 6)
    pd.testing.assert_frame_equal(resumed.predict(), whole.predict(), check_exact=True)


def test_resuming_goes_on_where_it_was_and_finished_networks_are_read(small, series, tmp_path):
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, trainer, *_) -> None:
            steps.append(trainer.global_step)

    options = {"max_steps": 20, "checkpoint_steps": 5, "checkpoint_dir": tmp_path, "levels": ()}
    with pytest.raises(KilledError):
        small(trainer_options={"callbacks": [KillAt(12)]}, **options).fit(series)
    model = small(trainer_options={"callbacks": [Count()]}, **options)
    model.fit(series)
    assert steps == [*range(10, 20)]
    steps.clear()
    again = small(trainer_options={"callbacks": [Count()]}, **options).fit(series)
    assert steps == []
    pd.testing.assert_frame_equal(model.predict(), again.predict(), check_exact=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"training.json", "final.pt"}


STOPPED = """
import signal
import sys
from lightning.pytorch.callbacks import Callback
from lstm_fast.forecast import Forecaster
from tests.forecast.series import monthly

class Stop(Callback):
    def on_before_optimizer_step(self, *_):
        signal.raise_signal(int(sys.argv[1]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
options = {"h": 6, "max_steps": 3, "levels": (), "trainer_options": {"callbacks": [Stop()]}}
try:
    Forecaster(**options).fit(monthly())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_does_not_look_like_success(number):
    """In a process of its own: that of the tests may have handlers for these signals."""
    result = subprocess.run([sys.executable, "-c", STOPPED, str(int(number))], cwd=ROOT)
    assert result.returncode == 128 + number


@pytest.mark.slow
def test_a_killed_process_goes_on_when_it_is_started_again(small, series, tmp_path):
    """SIGKILL while a network trains; the same script then gives what it would have given."""
    options: dict[str, Any] = {"max_steps": 60, "checkpoint_steps": 20}
    expected = small(n_models=1, **options).fit(series).predict()
    options["checkpoint_dir"] = str(tmp_path / "state")
    process = _start_script(tmp_path / "killed.pkl", options)
    while process.poll() is None and not (tmp_path / "state" / "final.ckpt").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.pkl").exists()
    resumed = _run_script(tmp_path / "resumed.pkl", options)
    pd.testing.assert_frame_equal(resumed, expected, check_exact=True)


def test_checkpoints_of_another_training_are_refused(small, series, tmp_path):
    small(levels=(), checkpoint_dir=tmp_path).fit(series)
    with pytest.raises(ValueError, match="state of another training, with other max_steps"):
        small(levels=(), checkpoint_dir=tmp_path, max_steps=5).fit(series)
    with pytest.raises(ValueError, match="with other val_size"):
        small(levels=(), checkpoint_dir=tmp_path).fit(series, val_size=6)
    with pytest.raises(ValueError, match="with other data"):
        small(levels=(), checkpoint_dir=tmp_path).fit(series[:-1])
    options = {"gradient_clip_val": 0.1, "enable_progress_bar": False}
    with pytest.raises(ValueError, match="with other trainer_options"):
        small(levels=(), checkpoint_dir=tmp_path, trainer_options=options).fit(series)


@pytest.mark.parametrize("val_size", [0, 6])
def test_a_training_that_the_trainer_cut_short_is_not_finished(small, series, tmp_path, val_size):
    options = {"levels": (), "max_steps": 20, "checkpoint_steps": 5, "val_check_steps": 5}
    whole = small(**options).fit(series, val_size)
    options["checkpoint_dir"] = tmp_path
    for cut in (
        {"fast_dev_run": True},
        {"limit_train_batches": 7},
        {"max_time": {"seconds": 0}},
    ):
        small(**options, trainer_options=cut).fit(series, val_size)
        assert not (tmp_path / "final.pt").exists()
    resumed = small(**options).fit(series, val_size)
    pd.testing.assert_frame_equal(resumed.predict(), whole.predict(), check_exact=True)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "final.pt"}


@pytest.mark.parametrize("trainer_options", [{}, {"min_steps": 100}])
def test_a_training_that_stopped_early_is_finished(small, series, tmp_path, trainer_options):
    options = {"levels": (), "max_steps": 400, "learning_rate": 0.5, "val_check_steps": 4}
    options |= {"early_stop_patience": 2, "trainer_options": trainer_options}
    model = small(checkpoint_dir=tmp_path, **options)
    model.fit(series, val_size=12)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "final.pt"}


@pytest.mark.parametrize("name", ["training.json", "final.pt", "final.ckpt"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\x80\x02}q\x00.", None])
def test_a_damaged_checkpoint_is_named(small, series, tmp_path, name, content):
    options = {"max_steps": 20, "checkpoint_steps": 5, "checkpoint_dir": tmp_path, "levels": ()}
    if name == "final.ckpt":
        with pytest.raises(KilledError):
            small(trainer_options={"callbacks": [KillAt(12)]}, **options).fit(series)
    else:
        small(**options).fit(series)
    whole = (tmp_path / name).read_bytes()
    content = whole[: len(whole) // 2] if content is None else content
    assert len(whole) > len(content)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        small(**options).fit(series)


def test_early_stopping_keeps_the_best_weights(small, series):
    """With a learning rate that ruins the network, the weights of the first checks are kept."""
    losses: list[float] = []

    class Watch(Callback):
        def on_validation_end(self, trainer, *_) -> None:
            losses.append(trainer.callback_metrics["val_loss"].item())

    model = small(
        levels=(),
        n_models=1,
        max_steps=400,
        learning_rate=0.5,
        dropout=0.0,
        val_check_steps=4,
        early_stop_patience=3,
        trainer_options={"callbacks": [Watch()]},
    ).fit(series, val_size=12)
    assert len(losses) < 100
    assert int(np.argmin(losses)) == len(losses) - 1 - 3
    windows = model._panel(model._fitted).windows(24, model._scale, slice(-12, None))
    forecast = outputs_of(model._networks, windows)[0, ..., 0]
    kept = torch.nn.functional.l1_loss(forecast, windows.all().target)
    assert kept.item() == pytest.approx(min(losses), rel=1e-5)


def test_validation_rows_do_not_train(small, series):
    wild = series.copy()
    wild.loc[len(wild) - 6 :, "y"] *= 3
    options = {"levels": (), "n_models": 1, "max_steps": 4, "val_check_steps": 4}
    scale = np.ones(1)
    weights = []
    for df in (series, wild):
        model = small(**options).fit(df, val_size=6)
        networks = model._train("again", model._panel(model._fitted), scale, 0, 6)
        weights.append(networks.state_dict())
    assert all(map(torch.equal, *(w.values() for w in weights)))


def test_tilts_are_decided_by_the_step_and_differ_by_window(small, series):
    model = small(levels=(), n_models=2).fit(series)
    windows = model._panel(model._fitted).windows(24, model._scale, slice(None))

    def batches(slope: float, first: int) -> list[torch.Tensor]:
        trainer: Any = SimpleNamespace(
            global_step=first, global_rank=0, world_size=1, accumulate_grad_batches=1
        )
        options = model._training_options("")
        made = iter(TrainingBatches(windows, torch.tensor([slope]), options, trainer))
        return [next(made).values for _ in range(6 - first)]

    tilts = [a - b for a, b in zip(batches(2.0, 0), batches(0.0, 0), strict=True)]
    slopes = torch.stack(tilts).diff(dim=-1)[..., 0]
    assert len(slopes.flatten().unique()) == slopes.numel() == 6 * 2 * model.batch_size
    # The deviation of so many has a deviation of 2 / sqrt(2 n); five of these are far.
    assert slopes.std() == pytest.approx(2.0, abs=10 / (2 * slopes.numel()) ** 0.5)
    assert all(map(torch.equal, batches(2.0, 3), batches(2.0, 0)[3:]))


@pytest.mark.parametrize(("rank", "world", "of_step"), [(0, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("first", [0, 3, 9])
def test_batches_that_are_made_together_are_those_made_alone(
    small, series, monkeypatch, first, rank, world, of_step
):
    model = small(levels=(), input_size=25, batch_size=9).fit(series)
    windows = model._panel(model._fitted).windows(25, model._scale, slice(None))
    calls: list[int] = []

    def counted(batch: Batch, slope: torch.Tensor) -> Batch:
        calls.append(len(slope))
        return tilted(batch, slope)

    monkeypatch.setattr(training, "tilted", counted)

    def batches(gathered: int) -> list[Batch]:
        monkeypatch.setattr(training, "_GATHERED", gathered)
        trainer: Any = SimpleNamespace(
            global_step=first, global_rank=rank, world_size=world, accumulate_grad_batches=of_step
        )
        options = model._training_options("")
        made = iter(TrainingBatches(windows, torch.tensor([2.0]), options, trainer))
        calls.clear()
        return [next(made) for _ in range(17)]

    together = batches(training._GATHERED)
    assert len(calls) <= 4
    alone = batches(0)
    assert len(calls) == 17
    for of_many, of_one in zip(together, alone, strict=True):
        assert all(map(torch.equal, of_many, of_one))


def test_each_training_has_callbacks_of_its_own_and_one_history(small, series):
    class StopAt(Callback):
        left = 3
        lock: Any = None

        def on_train_batch_end(self, trainer, *_) -> None:
            self.left -= 1
            trainer.should_stop = self.left == 0

    for lock in (None, threading.Lock()):  # which cannot be copied
        history, stop = History(), StopAt()
        stop.lock = lock
        options = {"callbacks": [history, stop]}
        small(max_steps=9, trainer_options=options).fit(series)
        steps = history.frame().groupby("training")["step"].max().tolist()
        assert steps == ([3, 3] if lock is None else [3, 9])


def test_callbacks_are_those_that_a_trainer_takes(small, series):
    history = History()
    small(max_steps=3, trainer_options={"callbacks": history}).fit(series)
    assert history.frame()["step"].max() == 3
    forecast = small(trainer_options={"callbacks": None}).fit(series).predict()
    pd.testing.assert_frame_equal(forecast, small().fit(series).predict(), check_exact=True)


def test_early_stopping_of_a_user_beside_our_own(small, series):
    history = History()
    callbacks = [history, EarlyStopping("val_loss", stopping_threshold=1e9)]
    model = small(max_steps=9, val_check_steps=3, trainer_options={"callbacks": callbacks})
    model.fit(series, val_size=6)
    assert history.frame().groupby("training")["step"].max().tolist() == [3, 3]


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"limit_train_batches": 0}])
def test_a_training_without_a_step_is_refused(small, series, options):
    model = small(trainer_options=options)
    with pytest.raises(ValueError, match="trainer_options must leave a step of training"):
        model.fit(series)


def test_validation_rows_have_no_other_part_in_training(small, series, monkeypatch):
    """It is not stopped here, as there is one check, at its end."""
    train = Forecaster._train
    scales: dict[str, list[float]] = {}

    def watched(self, name, panel, scale, *arguments):
        scales.setdefault(name, []).append(scale.item())
        return train(self, name, panel, scale, *arguments)

    monkeypatch.setattr(Forecaster, "_train", watched)
    rows = np.arange(len(series))[::-1]
    other = [series.assign(y=series["y"].where(rows // 6 != k, 1.5 * series["y"])) for k in (0, 2)]
    models = [small().fit(df, val_size=6) for df in (series, *other)]
    final, calibration = scales["final"], scales["calibration"]
    assert final[0] == final[1] != final[2]
    assert calibration[0] == calibration[2]
    forecasts = [model.predict(series[:60], levels=())["y_hat"] for model in models]
    assert forecasts[0].equals(forecasts[1])
    assert not forecasts[0].equals(forecasts[2])


@pytest.mark.parametrize("val_size", [5, -6, 12.0, None])
def test_val_size_must_hold_a_horizon(small, series, val_size):
    message = f"val_size must be 0 or a whole number, at least h, 6. Got {val_size}"
    with pytest.raises(ValueError, match=message):
        small().fit(series, val_size=val_size)


def test_bfloat16(small, series):
    options = {"levels": (), "n_models": 1, "max_steps": 20, "dropout": 0.0}
    full = small(**options).fit(series)
    half = small(**options, trainer_options={"precision": "bf16-mixed"}).fit(series)
    a, b = full.predict()["y_hat"], half.predict()["y_hat"]
    assert not np.array_equal(a, b)
    # Rounding of 2**-9 in each of 20 steps, on values of deviation 0.1.
    assert np.allclose(a, b, rtol=0.01)


@pytest.mark.parametrize(
    ("precision", "coarser"),
    [("64-true", torch.float32), (64, torch.float32), ("bf16-true", torch.bfloat16)],
)
@pytest.mark.parametrize("val_size", [0, 6])
def test_networks_of_another_type_forecast_in_float32(
    small, series, tmp_path, precision, coarser, val_size
):
    steps = 10
    # The gradient of an absolute error is a sign, which one rounding may turn round.
    options: dict[str, Any] = {"dropout": 0.0, "max_steps": steps, "loss": "mse"}
    expected = small(**options).fit(series, val_size).predict()
    options["trainer_options"] = {"precision": precision}
    options["checkpoint_dir"] = tmp_path
    model = small(**options).fit(series, val_size)
    assert {p.dtype for p in model._networks.parameters()} == {torch.float32}
    forecast = model.predict()
    # A step rounds weights and outputs, of order one, by eps / 2 each. The forecast is the
    # exponential of the outputs times the scale of the series.
    rtol = steps * torch.finfo(coarser).eps * model._scale.item()
    np.testing.assert_allclose(forecast["y_hat"], expected["y_hat"], rtol=rtol)
    finished = small(**options).fit(series, val_size).predict()
    pd.testing.assert_frame_equal(finished, forecast, check_exact=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "x"}, "Precision 'x' is invalid"),
        ({"precision": "16-true"}, "precision must be another than 16-true"),
        ({"accelerator": "x"}, "invalid accelerator name"),
        ({"strategy": "x"}, "invalid strategy name"),
        ({"num_nodes": 0}, "`num_nodes` must be"),
        ({"callbacks": 3}, "callbacks must be those of Lightning. Got 3"),
        ({"callbacks": [3]}, r"callbacks must be those of Lightning. Got \[3\]"),
        ({"logger": "x"}, "logger must be one of Lightning's. Got 'x'"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be .* Got 0"),
    ],
)
def test_what_the_trainer_does_not_take_is_said(small, series, options, message):
    with pytest.raises(ValueError, match=f"trainer_options must suit lightning.*{message}"):
        small(trainer_options=options).fit(series)


def test_threads_train_what_one_does_and_leave_the_process_as_it_was(small, series, tmp_path):
    models = [small(seed=k, max_steps=20, dropout=0.5) for k in range(4)]
    alone = [model.fit(series).predict() for model in models]
    models[0].save(tmp_path / "model.pt")
    logger = logging.getLogger("lightning.pytorch")
    level, state = logger.level, torch.get_rng_state()

    def again(model):
        Forecaster.load(tmp_path / "model.pt")
        return model.fit(series).predict()

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(again, models))
    assert logger.level == level
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_progress_bar(small, series, capsys):
    small(levels=(), n_models=1).fit(series)
    quiet = capsys.readouterr()
    assert quiet.out + quiet.err == ""
    small(levels=(), n_models=1, trainer_options={"enable_progress_bar": True}).fit(series)
    shown = capsys.readouterr()
    assert "train_loss" in shown.out + shown.err


@pytest.mark.slow
def test_two_processes_train_what_one_does(small, series, tmp_path):
    """Each takes half of a batch; the mean of their gradients is that of the whole."""
    options: dict[str, Any] = {"max_steps": 6, "dropout": 0.0, "checkpoint_steps": 4, "loss": "mse"}
    one = small(n_models=1, **options).fit(series).predict()
    options["trainer_options"] = {"devices": 2, "strategy": "ddp"}
    options["checkpoint_dir"] = str(tmp_path / "state")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    two = _run_script(tmp_path / "two.pkl", options, launcher=launcher)
    names = ["y_hat", "lo-80", "hi-95"]
    # Sums of gradients in another order: float32 rounding over six steps. Gradients of "mae" are
    # signs, which it may turn round.
    np.testing.assert_allclose(two[names], one[names], rtol=1e-4)


def _start_script(out, options, launcher=()) -> subprocess.Popen[str]:
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(out), repr(options)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=out.parent,
    )


def _run_script(out, options, launcher=()) -> pd.DataFrame:
    process = _start_script(out, options, launcher)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return pd.read_pickle(out)
