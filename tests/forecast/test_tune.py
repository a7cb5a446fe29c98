"""The search for settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lstm_fast import LSTM
from lstm_fast.forecast import Forecaster
from lstm_fast.forecast.frame import check_frame
from tests.forecast.series import monthly

optuna = pytest.importorskip("optuna")
tune = pytest.importorskip("lstm_fast.forecast.tune")

OPTIONS = {"h": 6, "season_length": 12, "max_steps": 2}
SETUP = {**OPTIONS, "windows": 2}


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    """Settings as they are suggested, but of two steps and few units."""
    suggest = tune.suggest

    def small(*arguments):
        return {**suggest(*arguments), "max_steps": 2, "hidden_size": 4, "batch_size": 4}

    monkeypatch.setattr(tune, "suggest", small)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(path, df, n_trials, **more):
    study = tune.open_study(path, df, SETUP, seed=0)
    tune.search(study, df, OPTIONS, n_trials=n_trials, n_windows=2, **more)
    return study


@pytest.mark.parametrize("seed", [-5, 2**40])
def test_any_seed_of_a_forecaster_will_do(tmp_path, seed):
    study = tune.open_study(tmp_path / "study.db", monthly(120), SETUP, seed=seed)
    assert study.ask().suggest_float("x", 0, 1) < 1


def test_best_options_make_a_forecaster(tmp_path):
    study = run(tmp_path / "study.db", monthly(120), 3)
    options = tune.best_options(study, 12)
    model = Forecaster(h=6, season_length=12, **options)
    assert model.input_size % 12 == 0
    assert model.hidden_size == study.best_params["hidden_size"]
    assert set(options) == {
        "input_size", "hidden_size", "num_layers", "dense_size", "activation", "dropout",
        "learning_rate", "batch_size", "max_steps", "log",
    }  # fmt: skip


def test_whether_logarithms_are_forecast_is_searched_unless_stated(tmp_path, monkeypatch):
    tried = []
    fit = Forecaster.fit

    def spy(model, df, val_size=0):
        tried.append(model.log)
        return fit(model, df, val_size)

    monkeypatch.setattr(Forecaster, "fit", spy)
    study = run(tmp_path / "study.db", monthly(120), 6)
    assert set(tried) == {True, False}
    for log in (True, False):
        tried.clear()
        stated = {**OPTIONS, "log": log}
        study = tune.open_study(tmp_path / f"{log}.db", monthly(120), stated, seed=0)
        tune.search(study, monthly(120), stated, n_trials=3, n_windows=1)
        assert tried == 3 * [log]
        assert "log" not in tune.best_options(study, 12)


@pytest.mark.parametrize(
    ("more", "rows_less", "needed"),
    [({}, 6 + 18, 30), ({"calibration_size": 24}, 6 + 24, 36), ({"levels": ()}, 6 + 12, 18)],
)
def test_one_window_leaves_the_rows_that_calibrate_a_forecast(
    tmp_path, monkeypatch, more, rows_less, needed
):
    suggest, longest = tune.suggest, []

    def watched(trial, season_length, longest_input):
        longest.append(longest_input)
        return suggest(trial, season_length, longest_input)

    monkeypatch.setattr(tune, "suggest", watched)
    df, options = monthly(60), {**OPTIONS, **more}
    study = tune.open_study(tmp_path / "study.db", df, options, seed=0)
    tune.search(study, df, options, n_trials=1, n_windows=1)
    Forecaster(**options, input_size=longest[0]).fit(df)
    assert longest == [60 - rows_less]
    study = tune.open_study(tmp_path / "short.db", df, options, seed=0)
    with pytest.raises(ValueError, match=f"needs {needed} rows before .* has {needed - 1}"):
        tune.search(study, df[: needed + 5], options, n_trials=1, n_windows=1)


def test_a_search_goes_on_in_another_process(tmp_path):
    path = tmp_path / "study.db"
    first = run(path, monthly(120), 2)
    study = run(path, monthly(120), 2)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert study.trials[0].params == first.trials[0].params
    assert study.trials[2].params != study.trials[0].params


def test_a_study_of_something_else_is_refused(tmp_path):
    path = tmp_path / "study.db"
    run(path, monthly(120), 1)
    with pytest.raises(ValueError, match=r"study.db holds a study of other data"):
        tune.open_study(path, monthly(119), SETUP, seed=0)
    with pytest.raises(ValueError, match="a study of another setup, with other h: choose"):
        tune.open_study(path, monthly(120), {**SETUP, "h": 7}, seed=0)


def test_losses_of_other_windows_are_not_compared(tmp_path):
    path = tmp_path / "study.db"
    study = run(path, monthly(120), 1)
    with pytest.raises(ValueError, match=r"n_windows must be 2, as in the study so far. Got 3"):
        tune.search(study, monthly(120), OPTIONS, n_trials=1, n_windows=3)
    assert len(run(path, monthly(120), 1).trials) == 2


def test_a_setup_may_hold_what_a_forecaster_takes(tmp_path):
    path = tmp_path / "study.db"
    setup = {"h": np.int64(6), "dropout": np.float64(0.5), "lstm_class": torch.nn.LSTM}
    study = tune.open_study(path, monthly(120), setup, seed=0)
    tune.search(study, monthly(120), {**OPTIONS, **setup}, n_trials=1, n_windows=1)
    same = {**setup, "h": 6, "dropout": 0.5}
    assert len(tune.open_study(path, monthly(120), same, seed=0).trials) == 1
    with pytest.raises(ValueError, match="another setup, with other lstm_class"):
        tune.open_study(path, monthly(120), {**same, "lstm_class": LSTM}, seed=0)
    with pytest.raises(ValueError, match=r"setup must hold what JSON can hold.* Got \{6\}"):
        tune.open_study(path, monthly(120), {"h": {6}}, seed=0)


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "text.db").write_text("precious" * 100)
    for path in (tmp_path / "text.db", tmp_path / "nowhere" / "study.db"):
        with pytest.raises(ValueError, match=r"db cannot be used for a search: .*\)[^\n]*\Z"):
            tune.open_study(path, monthly(120), SETUP, seed=0)
    assert (tmp_path / "text.db").read_text() == "precious" * 100


def test_a_study_may_have_any_name(tmp_path):
    path = tmp_path / "what?100%20#{x} é.db"
    run(path, monthly(120), 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(run(path, monthly(120), 1).trials) == 2


def test_bad_trials_are_cut_off(tmp_path, monkeypatch):
    """After five trials, one that does ten times worse stops at its first window."""
    windows = []
    forecast = Forecaster.cross_validation

    def worse_and_worse(self, df, n_windows):
        result = forecast(self, df, n_windows)
        windows.append(1)
        return result.assign(y_hat=result["y"] + 10.0 ** len(study.trials))

    monkeypatch.setattr(Forecaster, "cross_validation", worse_and_worse)
    study = tune.open_study(tmp_path / "study.db", monthly(120), SETUP, seed=0)
    tune.search(study, monthly(120), OPTIONS, n_trials=7, n_windows=2)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 2
    assert len(windows) == 5 * 2 + 2


def test_the_loss_is_the_scaled_error_of_the_last_windows(tmp_path, monkeypatch):
    df = monthly(120)
    monkeypatch.setattr(
        Forecaster, "cross_validation",
        lambda self, known, n_windows: known[-6:].assign(y_hat=lambda w: w["y"] + 3),
    )  # fmt: skip
    study = run(tmp_path / "study.db", df, 1)
    before = df["y"][:108]
    assert study.best_value == pytest.approx(3 / before.diff(12).abs().mean())


def test_a_trial_sees_nothing_of_later_rows_in_a_filled_gap(tmp_path, monkeypatch):
    fitted = []
    fit = Forecaster.fit

    def watched(self, df, *arguments):
        fitted.append(df)
        return fit(self, df, *arguments)

    monkeypatch.setattr(Forecaster, "fit", watched)
    df = monthly(120).drop(index=[107, 108, 109])  # the first of two origins is before row 108
    study = tune.open_study(tmp_path / "study.db", df, SETUP, seed=0)
    tune.search(study, df, {**OPTIONS, "fill": "linear"}, n_trials=1, n_windows=2)
    assert [len(known) for known in fitted] == [108, 114]
    assert fitted[0]["y"].iloc[-1] == df["y"][106]
    assert df["y"][106] < fitted[1]["y"].iloc[107] < df["y"][110]


def test_a_training_that_diverged_fails_its_trial_alone(tmp_path, monkeypatch):
    def diverge(self, *arguments):
        raise FloatingPointError

    with monkeypatch.context() as broken:
        broken.setattr(Forecaster, "predict", diverge)
        study = run(tmp_path / "study.db", monthly(120), 2)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert len(run(tmp_path / "study.db", monthly(120), 1).trials) == 3


def test_no_search_has_no_best(tmp_path):
    study = run(tmp_path / "study.db", monthly(120), 5, timeout=0)
    with pytest.raises(ValueError, match="no trial of the search has come to its end"):
        tune.best_options(study, 12)


def test_filled_rows_are_not_scored(tmp_path, monkeypatch):
    settings: dict[str, Any] = {"max_steps": 2, "hidden_size": 4, "input_size": 12}
    monkeypatch.setattr(tune, "suggest", lambda *_: settings)
    gap = monthly(120).drop(index=117)
    filled, _ = check_frame(gap, fill="linear")
    ratios = []
    for df, options in ((gap, {**OPTIONS, "fill": "linear"}), (filled, OPTIONS)):
        study = tune.open_study(tmp_path / f"{len(df)}.db", df, options, seed=0)
        tune.search(study, df, options, n_trials=1, n_windows=1)
        model = Forecaster(**{**options, **settings}, levels=(), n_models=1)
        window = model.cross_validation(df)
        error = (window["y"] - window["y_hat"]).abs()
        assert error.count() == len(df) - 114
        ratios.append(study.best_value / error.mean())
    assert ratios[0] == pytest.approx(ratios[1])  # one over the seasonal difference


def test_a_window_that_was_filled_entirely_counts_for_nothing(tmp_path, monkeypatch):
    settings: dict[str, Any] = {"max_steps": 2, "hidden_size": 4, "input_size": 12}
    monkeypatch.setattr(tune, "suggest", lambda *_: settings)
    df, options = monthly(120), {**OPTIONS, "fill": "linear"}
    gap = df.drop(index=range(108, 114))  # the first of two windows
    study = tune.open_study(tmp_path / "gap.db", gap, options, seed=0)
    tune.search(study, gap, options, n_trials=1, n_windows=2)
    window = Forecaster(**{**options, **settings}, levels=(), n_models=1).cross_validation(gap)
    error = (window["y"] - window["y_hat"]).abs().mean()
    assert study.best_value == pytest.approx(error / df["y"][:108].diff(12).abs().mean())
    unknown = df.assign(y=df["y"].where(df.index < 114))
    study = tune.open_study(tmp_path / "unknown.db", unknown, options, seed=0)
    with pytest.raises(ValueError, match="last 6 rows, which n_windows=1 of h=6 forecast"):
        tune.search(study, unknown, options, n_trials=1, n_windows=1)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"checkpoint_dir": "state"}, {}, "options must not have checkpoint_dir"),
        ({"h": None}, {}, r"options must have h and season_length. Missing: \['h'\]"),
        ({"season_length": None}, {}, r"Missing: \['season_length'\]"),
        ({"h": 0}, {}, "h must be a whole number greater than 0. Got 0"),
        (
            {"season_length": 2.5},
            {},
            "season_length must be a whole number greater than 0. Got 2.5",
        ),
        ({"dropout": 2}, {}, r"dropout must lie in \[0, 1\)"),
        ({}, {"n_trials": 0}, "n_trials must be a whole number greater than 0. Got 0"),
        ({}, {"n_trials": -1}, "n_trials must be a whole number greater than 0. Got -1"),
        ({}, {"n_windows": 0}, "n_windows must be a whole number greater than 0. Got 0"),
    ],
)
def test_what_cannot_be_searched_is_said_before_a_trial(tmp_path, options, arguments, message):
    df = monthly(120)
    given = {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}
    study = tune.open_study(tmp_path / "study.db", df, SETUP, seed=0)
    with pytest.raises(ValueError, match=message):
        tune.search(study, df, given, **{"n_trials": 1, "n_windows": 2, **arguments})
    assert not study.trials


def test_values_without_a_logarithm_are_named_before_a_trial(tmp_path):
    df = monthly(120)
    df.loc[100, "y"] = 0.0
    study = tune.open_study(tmp_path / "study.db", df, SETUP, seed=0)
    with pytest.raises(
        ValueError, match=r"series 'a' must be above 0.* \(row 100\); use log=False"
    ):
        tune.search(study, df, OPTIONS, n_trials=1, n_windows=2)
    assert not study.trials
    df.loc[[100, 118], "y"] = [1.0, 0.0]  # one of the last `h` is never trained on
    tune.search(study, df, {**OPTIONS, "h": 6.0}, n_trials=1, n_windows=2)
    assert len(study.trials) == 1
