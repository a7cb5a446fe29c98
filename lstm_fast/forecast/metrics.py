"""Accuracy of point forecasts.

MASE and the seasonal-naive benchmark follow Hyndman and Koehler, "Another look at measures of
forecast accuracy" (International Journal of Forecasting 22, 2006); sMAPE is the M4 competition's.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lstm_fast.forecast.frame import as_numbers, check_columns, check_positive, without_index_names

# Of the columns of `evaluate`.
POINT_METRICS = ("MAE", "RMSE", "sMAPE", "MASE")


def _pair(y: ArrayLike, y_hat: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    actual, forecast = np.asarray(y, dtype=np.float64), np.asarray(y_hat, dtype=np.float64)
    if actual.shape != forecast.shape or actual.size == 0:
        raise ValueError(
            f"y and y_hat must have one non-empty shape. Got {actual.shape} and {forecast.shape}"
        )
    return actual, forecast


def mae(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean absolute error, in the unit of `y`."""
    actual, forecast = _pair(y, y_hat)
    return float(np.abs(actual - forecast).mean())


def rmse(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Root mean squared error, in the unit of `y`."""
    actual, forecast = _pair(y, y_hat)
    return float(np.sqrt(np.square(actual - forecast).mean()))


def smape(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Symmetric mean absolute percentage error, 0 to 200 %; 0/0 counts as 0."""
    actual, forecast = _pair(y, y_hat)
    error, size = np.abs(actual - forecast), np.abs(actual) + np.abs(forecast)
    ratio = np.divide(error, size, out=np.zeros_like(error), where=size != 0)
    return float(200 * ratio.mean())


def mase(y: ArrayLike, y_hat: ArrayLike, y_train: ArrayLike, season_length: int = 1) -> float:
    """Mean absolute error over that of the seasonal-naive forecast inside the training part.

    Raises:
        ValueError: if `y_train` is no longer than a season, or repeats itself exactly; if
            `season_length` counts nothing.
    """
    scale = _naive_error(np.asarray(y_train, dtype=np.float64), season_length)
    if scale == 0:
        raise ValueError("MASE is undefined: y_train repeats itself exactly every season")
    return mae(y, y_hat) / scale


def _naive_error(train: NDArray[np.float64], season_length: int) -> float:
    check_positive(season_length=season_length)
    if train.size <= season_length:
        raise ValueError(f"y_train must be longer than {season_length}. Got {train.size} values")
    return float(np.abs(train[season_length:] - train[:-season_length]).mean())


def accuracy(
    actual: pd.DataFrame, forecast: pd.DataFrame, train: pd.DataFrame, season_length: int
) -> dict[str, float]:
    """All four metrics of the forecast of one series; frames are matched by ``ds``."""
    both = actual[["ds", "y"]].merge(forecast[["ds", "y_hat"]], on="ds", validate="one_to_one")
    if len(both) != len(actual):
        raise ValueError(f"forecast covers {len(both)} of the {len(actual)} rows of actual")
    y, y_hat = both["y"].to_numpy(), both["y_hat"].to_numpy()
    return {
        "MAE": mae(y, y_hat),
        "RMSE": rmse(y, y_hat),
        "sMAPE": smape(y, y_hat),
        "MASE": mase(y, y_hat, train["y"].to_numpy(), season_length),
    }


def coverage(forecast: pd.DataFrame, level: float) -> float:
    """Per cent of the rows with a ``y`` in which it lies within the bounds of the level, or on
    them."""
    y, name = forecast["y"], f"{level:g}"
    within = y.between(forecast[f"lo-{name}"], forecast[f"hi-{name}"])
    return float(100 * within[y.notna()].mean())


def levels_of(forecast: pd.DataFrame) -> list[float]:
    """The levels of the intervals in a forecast, ascending."""
    return sorted(float(str(name)[3:]) for name in forecast.columns if str(name).startswith("lo-"))


def evaluate(forecasts: pd.DataFrame, df: pd.DataFrame, season_length: int) -> pd.DataFrame:
    """The accuracy of a cross-validation, one row a series.

    Errors of all windows and leads of a series count alike, but for rows whose ``y`` is NaN, as it
    is where it was filled with anything but zero: these count for nothing. MASE is scaled by what
    came before the first cutoff of the series, so that no forecast row has a part in it.

    Args:
        forecasts: what `Forecaster.cross_validation` returns.
        df: the frame that it was given, without gaps.

    Returns:
        A frame with the columns ``unique_id``, ``MAE``, ``RMSE``, ``sMAPE`` and ``MASE``, and
        ``coverage-80`` and so on for each level, in per cent. MASE is NaN for a series that
        repeats itself exactly, all is NaN for one without a ``y``.

    Raises:
        TypeError: an argument is not a frame.
        ValueError: it has no rows, or lacks a column or a series; the message says which.
    """
    check_columns(forecasts, ("unique_id", "ds", "cutoff", "y", "y_hat"), "forecasts")
    check_columns(df, ("unique_id", "ds", "y"))
    rows = []
    levels = levels_of(forecasts)
    read = {"ds": pd.to_datetime(df["ds"]), "y": as_numbers(df["y"])}
    in_order = without_index_names(df).assign(**read).sort_values("ds")
    series = dict(iter(in_order.groupby("unique_id", observed=True)))
    for unique_id, windows in forecasts.groupby("unique_id", sort=False, observed=True):
        if unique_id not in series:
            raise ValueError(f"df must have each series of forecasts. Missing: {unique_id!r}")
        of_series = series[unique_id]
        before = of_series.loc[of_series["ds"] <= windows["cutoff"].min(), "y"].to_numpy()
        scaled = _naive_error(before, season_length) > 0
        known = windows[windows["y"].notna()]
        y, y_hat = known["y"].to_numpy(), known["y_hat"].to_numpy()
        scores = dict.fromkeys(POINT_METRICS, math.nan)
        if len(known):
            scores |= {"MAE": mae(y, y_hat), "RMSE": rmse(y, y_hat), "sMAPE": smape(y, y_hat)}
            if scaled:
                scores["MASE"] = mase(y, y_hat, before, season_length)
        scores |= {f"coverage-{level:g}": coverage(known, level) for level in levels}
        rows.append({"unique_id": unique_id, **scores})
    return pd.DataFrame(rows)
