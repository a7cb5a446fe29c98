"""Rolling-origin forecasts of other methods, over the same windows as `cross_validation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lstm_fast.forecast.forecaster import seasonal_naive
from lstm_fast.forecast.frame import check_frame, check_windows

STATISTICAL = ("AutoETS", "AutoARIMA")


def cross_validate_naive(
    df: pd.DataFrame, h: int, season_length: int, n_windows: int, step_size: int
) -> pd.DataFrame:
    """The seasonal naive from the origins of `Forecaster.cross_validation`, without intervals."""
    frame, freq = check_frame(df)
    check_windows(frame, h, n_windows, step_size)
    from_end = frame.groupby("unique_id", sort=False).cumcount(ascending=False)
    windows = []
    for held_out in range(h + (n_windows - 1) * step_size, h - 1, -step_size):
        known = frame[from_end >= held_out]
        cutoff = known.groupby("unique_id", as_index=False).agg(cutoff=("ds", "last"))
        forecast = seasonal_naive(known, h, season_length, freq).merge(cutoff, on="unique_id")
        windows.append(forecast.merge(frame, on=["unique_id", "ds"], validate="one_to_one"))
    result = pd.concat(windows, ignore_index=True)
    return result[["unique_id", "ds", "cutoff", "y", "y_hat"]]


def cross_validate_statistical(
    df: pd.DataFrame,
    method: str,
    h: int,
    season_length: int,
    n_windows: int,
    step_size: int,
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
        raise ImportError(
            f"{method} needs statsforecast: pip install --no-build-isolation '.[backtest]'"
        ) from error
    frame, freq = check_frame(df)
    check_windows(frame, h, n_windows, step_size)
    model = getattr(models, method)(season_length=season_length, alias="y_hat")
    percents: Any = list(levels)  # the annotation there says whole numbers, the code takes any
    result = StatsForecast(models=[model], freq=freq).cross_validation(
        h=h, df=frame, n_windows=n_windows, step_size=step_size, level=percents
    )
    bounds = {
        f"y_hat-{side}-{level:g}": f"{side}-{level:g}" for level in levels for side in ("lo", "hi")
    }
    return result.rename(columns=bounds)[
        ["unique_id", "ds", "cutoff", "y", "y_hat", *bounds.values()]
    ]
