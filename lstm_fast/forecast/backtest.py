"""Rolling-origin forecasts of other methods, over the same windows as `cross_validation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from lstm_fast._load import install_extra
from lstm_fast.forecast.forecaster import Forecaster, seasonal_naive
from lstm_fast.forecast.frame import check_frame, rolling_origins

STATISTICAL = ("AutoETS", "AutoARIMA")


def cross_validate_naive(
    df: pd.DataFrame,
    h: int,
    season_length: int,
    n_windows: int,
    step_size: int,
    freq: str | None = None,
    fill: str | None = None,
) -> pd.DataFrame:
    """The seasonal naive from the origins of `Forecaster.cross_validation`, without intervals."""

    def forecast(known: pd.DataFrame, freq: str) -> pd.DataFrame:
        return seasonal_naive(known, h, season_length, freq)

    return _cross_validate(forecast, df, h, n_windows, step_size, freq, fill)


def cross_validate_statistical(
    df: pd.DataFrame,
    method: str,
    h: int,
    season_length: int,
    n_windows: int,
    step_size: int,
    freq: str | None = None,
    fill: str | None = None,
    levels: Sequence[float] = (80, 95),
) -> pd.DataFrame:
    """A method out of `STATISTICAL`, of the package statsforecast, fitted anew at each origin.

    Returns:
        A frame as that of `Forecaster.cross_validation`.

    Raises:
        ImportError: if statsforecast is not installed.
        ValueError: for another method.
    """
    if method not in STATISTICAL:
        raise ValueError(f"method must be one of {', '.join(STATISTICAL)}. Got {method!r}")
    try:
        from statsforecast import StatsForecast, models
    except ImportError as error:
        raise ImportError(f"{method} needs statsforecast: {install_extra('backtest')}") from error
    model = getattr(models, method)(season_length=season_length, alias="y_hat")
    percents: Any = list(levels)  # the annotation there says whole numbers, the code takes any
    bounds = {
        f"y_hat-{side}-{level}": f"{side}-{level:g}" for level in levels for side in ("lo", "hi")
    }

    def forecast(known: pd.DataFrame, freq: str) -> pd.DataFrame:
        # Rows are counted for it: times of a zone it would count on without changes of the clock.
        counted = known.assign(ds=known.groupby("unique_id", sort=False).cumcount())
        result = StatsForecast(models=[model], freq=1).forecast(df=counted, h=h, level=percents)
        future = Forecaster(h=h, freq=freq).future_rows(known)
        return future.join(result.rename(columns=bounds)[["y_hat", *bounds.values()]])

    return _cross_validate(forecast, df, h, n_windows, step_size, freq, fill)


def _cross_validate(
    forecast: Callable[[pd.DataFrame, str], pd.DataFrame],
    df: pd.DataFrame,
    h: int,
    n_windows: int,
    step_size: int,
    freq: str | None,
    fill: str | None,
) -> pd.DataFrame:
    """Of a method that forecasts from what is known, and its frequency."""
    frame, freq = check_frame(df, freq, fill)
    windows = []
    for known, _, actual in rolling_origins(frame, df, fill, h, n_windows, step_size):
        found = forecast(known, freq)
        windows.append(actual.merge(found, "left", ["unique_id", "ds"], validate="one_to_one"))
    return pd.concat(windows, ignore_index=True)
