"""Search for the settings of a forecaster with Optuna."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lstm_fast._load import install_extra
from lstm_fast.forecast.forecaster import Forecaster
from lstm_fast.forecast.frame import check_frame, check_positive, rolling_origins
from lstm_fast.forecast.model import ACTIVATIONS

try:
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import QueuePool
except ImportError as error:
    raise ImportError(f"tuning needs {error.name}: {install_extra('tune')}") from error

STUDY = "lstm-fast"


def suggest(trial: optuna.Trial, season_length: int, longest_input: int) -> dict[str, Any]:
    """Settings for one trial; the window is of one to four seasons, as long as it fits."""
    seasons = max(1, min(4, longest_input // season_length))
    return {
        "input_size": season_length * trial.suggest_int("input_seasons", 1, seasons)
        if season_length > 1
        else trial.suggest_int("input_size", min(8, longest_input), min(64, longest_input)),
        "hidden_size": trial.suggest_categorical("hidden_size", [16, 32, 64, 128]),
        "num_layers": trial.suggest_int("num_layers", 1, 2),
        "dense_size": trial.suggest_categorical("dense_size", [16, 32, 64]),
        "activation": trial.suggest_categorical("activation", sorted(ACTIVATIONS)),
        "dropout": trial.suggest_float("dropout", 0.0, 0.8),
        "learning_rate": trial.suggest_float("learning_rate", 2e-3, 3e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
        "max_steps": trial.suggest_int("max_steps", 50, 400, step=50),
    }


def open_study(storage: Path, df: pd.DataFrame, setup: dict[str, Any], seed: int) -> optuna.Study:
    """The study in the SQLite file, new or to be gone on with.

    Args:
        setup: what the losses of trials depend on, beside `df` and the `n_windows` of `search`;
            of what JSON can hold, NumPy's numbers and classes.

    Raises:
        ValueError: if the file cannot be opened, or holds a study of other data or another setup;
            for a setup of anything else.
    """
    rows = pd.util.hash_pandas_object(df, index=False).to_numpy().tobytes()
    told = json.dumps(setup, sort_keys=True, default=_told)
    claim = {"setup": told, "data": hashlib.sha256(rows).hexdigest()}
    # Versions of SQLAlchemy differ in what they read out of a path that is part of an address.
    connect = partial(sqlite3.connect, storage, check_same_thread=False)
    engine = {"creator": connect, "poolclass": QueuePool}
    try:
        study = optuna.create_study(
            study_name=STUDY,
            storage=optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine),
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error).partition("\n")[0]  # without the SQL and the address of its manual
        raise ValueError(f"{storage} cannot be used for a search: {reason}") from error
    if not study.get_trials(deepcopy=False):
        for name, value in claim.items():
            study.set_user_attr(name, value)
    found = study.user_attrs
    if found.get("data") != claim["data"]:
        raise ValueError(f"{storage} holds a study of other data: choose another file")
    if found.get("setup") != claim["setup"]:
        before, now = json.loads(found.get("setup", "{}")), json.loads(claim["setup"])
        other = [name for name in {**before, **now} if before.get(name, "") != now.get(name, "")]
        raise ValueError(
            f"{storage} holds a study of another setup, with other {', '.join(other)}: choose "
            "another file"
        )
    # The same random numbers again would only repeat the first trials.
    seed = (seed + len(study.trials)) % 2**32  # NumPy takes no others
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study


def search(
    study: optuna.Study,
    df: pd.DataFrame,
    options: dict[str, Any],
    *,
    n_trials: int,
    n_windows: int,
    timeout: float | None = None,
    on_trial: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None,
) -> None:
    """Run trials, each a rolling-origin backtest of one network, cut off where it does worse.

    The loss of a trial is the mean over its windows of the absolute error, over the mean absolute
    seasonal difference of the series. Windows are a horizon apart and lie at the end of `df`; rows
    that were filled, and windows of nothing else, count for nothing.

    Args:
        options: arguments of `Forecaster` that are not searched; `h` and `season_length` are among
            them, `checkpoint_dir` is not. Without `log`, whether logarithms are forecast is
            searched too.
        n_trials: further trials.
        n_windows: origins of the backtest, as many as in the trials that `study` has.
        timeout: seconds after which no further trial begins.

    Raises:
        ValueError: as `Forecaster` and `check_frame`, for `options` that lack `h` or
            `season_length` or have a `checkpoint_dir`, for numbers that count nothing, for
            another `n_windows`, if a series is too short, or if no
            row of any window was given.
    """
    missing = [name for name in ("h", "season_length") if name not in options]
    if missing:
        raise ValueError(f"options must have h and season_length. Missing: {missing}")
    if options.get("checkpoint_dir") is not None:
        raise ValueError(
            "options must not have checkpoint_dir: each trial trains other networks, whose states "
            "one folder cannot hold"
        )
    h, season = (_whole(options[name]) for name in ("h", "season_length"))
    check_positive(h=h, season_length=season, n_trials=n_trials, n_windows=n_windows)
    forecaster = Forecaster(**{**options, "input_size": season})
    fill = forecaster.fill
    frame, freq = check_frame(
        df, forecaster.freq, fill, forecaster.futr_exog_list, forecaster.log, held_out=h
    )
    origins = list(rolling_origins(frame, df, fill, h, n_windows, h))
    rows = int(frame["unique_id"].value_counts().min())
    shortest = rows - h * n_windows
    # A forecast with the best settings has the rows of the windows too, but some calibrate it.
    calibrating = forecaster.calibration_rows
    longest_input = min(shortest - 2 * h, rows - h - calibrating)
    needed = season + h if season > 1 else 2 * h + 1
    needed = max(needed, season + h + calibrating - h * n_windows)
    if shortest < needed:
        raise ValueError(
            f"a search of n_windows={n_windows}, h={h} and season_length={season} needs {needed} "
            f"rows before the first window. The shortest series has {shortest}"
        )
    before = study.user_attrs.get("n_windows", n_windows)
    if before != n_windows and study.get_trials(deepcopy=False):
        raise ValueError(f"n_windows must be {before}, as in the study so far. Got {n_windows}")
    scale = _seasonal_difference(origins[0][0], season)
    scored = [origin for origin in origins if origin[2]["y"].notna().any()]
    if not scored:
        raise ValueError(
            f"the last {h * n_windows} rows, which n_windows={n_windows} of h={h} forecast, were "
            f"all filled: fill={fill!r} leaves nothing to score"
        )
    study.set_user_attr("n_windows", int(n_windows))
    fixed = {**options, "freq": freq, "fill": None, "levels": (), "n_models": 1}

    def objective(trial: optuna.Trial) -> float:
        found = suggest(trial, season, longest_input)
        if "log" not in options:
            found["log"] = trial.suggest_categorical("log", [True, False])
        model = Forecaster(**{**fixed, **found})
        losses = []
        for k, (known, later, actual) in enumerate(scored):
            window = model.cross_validation(pd.concat([known, later[known.columns]]), n_windows=1)
            y = actual["y"].to_numpy()  # of the same rows, but for those that were filled
            error = (y - window["y_hat"]).abs().groupby(window["unique_id"]).mean()
            losses.append((error / scale).mean())
            trial.report(float(np.mean(losses)), k)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(losses))

    callbacks = [on_trial] if on_trial else []
    # A training that diverged fails its trial, not the search.
    study.optimize(
        objective,
        n_trials=n_trials,
        timeout=timeout,
        callbacks=callbacks,
        catch=FloatingPointError,
    )


def best_options(study: optuna.Study, season_length: int) -> dict[str, Any]:
    """Arguments of `Forecaster`, as the best trial had them.

    Raises:
        ValueError: if no trial has come to its end.
    """
    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        raise ValueError("no trial of the search has come to its end")
    options = dict(study.best_params)
    if "input_seasons" in options:
        options["input_size"] = season_length * options.pop("input_seasons")
    return options


def _whole(value: Any) -> Any:
    """As `Forecaster` takes it: 3.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told(value: Any) -> Any:
    """Of a setup, what JSON cannot hold by itself."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(
        f"setup must hold what JSON can hold, NumPy's numbers or classes. Got {value!r}"
    )


def _seasonal_difference(frame: pd.DataFrame, season_length: int) -> pd.Series:
    difference = frame.groupby("unique_id")["y"].diff(season_length).abs()
    scale = difference.groupby(frame["unique_id"]).mean()
    return scale.where(scale > 0, 1.0)
