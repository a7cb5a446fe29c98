"""Accuracy of point forecasts.

MASE and the seasonal-naive benchmark follow Hyndman and Koehler, "Another look at measures of
forecast accuracy" (International Journal of Forecasting 22, 2006); sMAPE is the M4 competition's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lstm_fast.forecast.frame import (
    as_numbers,
    check_columns,
    check_fill,
    check_frame,
    check_positive,
    grid_positions,
    in_zone_of,
    on_grid,
    plain,
    spans_of_series,
)


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
    return float(200 * _relative_error(*_pair(y, y_hat)).mean())


def _relative_error(
    actual: NDArray[np.float64], forecast: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Over the sum of both sizes; 0/0 counts as 0."""
    error, size = np.abs(actual - forecast), np.abs(actual) + np.abs(forecast)
    return np.divide(error, size, out=np.zeros_like(error), where=size != 0)


def mase(y: ArrayLike, y_hat: ArrayLike, y_train: ArrayLike, season_length: int = 1) -> float:
    """Mean absolute error over that of the seasonal-naive forecast inside the training part.

    Args:
        y_train: in order and without gaps; `evaluate` takes frames that have some.

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
    """All four metrics of the forecast of one series; frames are matched by ``ds``.

    Args:
        train: in order and without gaps, as in `mase`.
    """
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
    them; NaN without such rows.

    Raises:
        ValueError: if there are no rows at all, or a column is missing or holds what is no number;
            the message says which.
    """
    bounds = _bounds([level])
    check_columns(forecast, ("y", *bounds), "forecast")
    y, low, high = (_numbers(forecast, name, "forecast") for name in ("y", *bounds))
    within = ((low <= y) & (y <= high))[~np.isnan(y)]
    return float(100 * within.mean()) if len(within) else np.nan


def levels_of(forecast: pd.DataFrame) -> list[float]:
    """The levels of the intervals in a forecast, ascending.

    Raises:
        ValueError: naming a column that begins as a bound does, but names no level.
    """
    levels = []
    for name in forecast.columns:
        if str(name).startswith("lo-"):
            try:
                level = float(str(name)[3:])
            except ValueError:
                level = np.nan
            if not 0 < level < 100:
                raise ValueError(f"a column lo-... must name a level, as lo-80 does. Got {name!r}")
            levels.append(level)
    return sorted(levels)


def evaluate(
    forecasts: pd.DataFrame,
    df: pd.DataFrame,
    season_length: int,
    freq: str | None = None,
    fill: str | None = None,
) -> pd.DataFrame:
    """The accuracy of a cross-validation, one row a series.

    Errors of all windows and leads of a series count alike, but for rows whose ``y`` is NaN, as it
    is where it was filled with anything but zero: these count for nothing. MASE is scaled by what
    came before the first cutoff of the series, so that no forecast row has a part in it. Each row
    is compared with the one a season before it in time; pairs of which a row or a value is missing
    count for nothing.

    Args:
        forecasts: what `Forecaster.cross_validation` returns.
        df: the frame that it was given, with its gaps if it has some.
        season_length: steps of `freq` in a season; 1 for none.
        freq: pandas alias of the frequency of `df`; inferred from the longest series where it is
            None.
        fill: that of the forecaster. With ``"zero"``, what is missing in `df` is 0 in the scale of
            MASE, as it is in the ``y`` of `forecasts`; other values change nothing.

    Returns:
        A frame with the columns ``unique_id``, ``MAE``, ``RMSE``, ``sMAPE`` and ``MASE``, and
        ``coverage-80`` and so on for each level, in per cent. MASE is NaN for a series that
        repeats itself exactly, or has no two values that are a season apart; all is NaN for one
        without a ``y``.

    Raises:
        TypeError: an argument is not a frame.
        ValueError: it has no rows, or lacks a column or a series, or a column holds what it
            cannot; `df` has repeated timestamps, or ones of no one frequency; a series is no
            longer than a season before its first cutoff. The message says which.
    """
    check_positive(season_length=season_length)
    check_columns(forecasts, ("unique_id", "ds", "cutoff", "y", "y_hat"), "forecasts")
    levels = levels_of(forecasts)
    check_columns(forecasts, _bounds(levels), "forecasts")
    check_fill(fill)
    if fill == "zero":
        frame, freq = check_frame(df, freq, fill)
        position = grid_positions(frame["ds"], freq)
    else:
        frame, position, _ = on_grid(df, freq)
    number, ids = pd.factorize(forecasts["unique_id"])
    if not len(ids):
        raise ValueError("forecasts['unique_id'] must name series. Got none")
    cutoff = in_zone_of(frame["ds"], forecasts, "forecasts", "cutoff")["cutoff"]
    first_cutoff = cutoff.groupby(number).min().reindex(range(len(ids)))
    scale = _seasonal_errors(frame, position, pd.Index(ids), first_cutoff, season_length)

    y = _numbers(forecasts, "y")
    known = np.flatnonzero((number >= 0) & ~np.isnan(y))
    known = known[np.argsort(number[known], kind="stable")]
    ends = np.searchsorted(number[known], np.arange(len(ids) + 1))
    y, y_hat = y[known], _numbers(forecasts, "y_hat")[known]
    error = np.abs(y - y_hat)
    mean_error = _means(error, ends)
    scores = {
        "MAE": mean_error,
        "RMSE": np.sqrt(_means(np.square(error), ends)),
        "sMAPE": 200 * _means(_relative_error(y, y_hat), ends),
        "MASE": mean_error / np.where(scale > 0, scale, np.nan),
    }
    for level in levels:
        low, high = (_numbers(forecasts, name)[known] for name in _bounds([level]))
        scores[f"coverage-{level:g}"] = 100 * _means((low <= y) & (y <= high), ends)
    return pd.DataFrame({"unique_id": list(ids), **scores})


def _bounds(levels: Sequence[float]) -> list[str]:
    """The columns of the intervals."""
    return [f"{side}-{level:g}" for level in levels for side in ("lo", "hi")]


def _numbers(df: pd.DataFrame, column: str, name: str = "forecasts") -> NDArray[np.float64]:
    numbers = as_numbers(df[column])
    bad = numbers.isna() & df[column].notna()
    if bad.any():
        raise ValueError(
            f"{name}[{column!r}] must hold numbers. Got {plain(df[column][bad].iloc[0])!r}"
        )
    return numbers.to_numpy()


def _means(values: NDArray[Any], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """[series], the mean of `values` from each of `ends` [series + 1] to the next; NaN of none.

    Each is a sum of its own, so that it is that of the series alone to the last bit.
    """
    spans = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return np.array([values[a:b].mean() if b > a else np.nan for a, b in spans])


def _seasonal_errors(
    frame: pd.DataFrame,
    position: NDArray[np.int64],
    ids: pd.Index,
    cutoff: pd.Series,
    season_length: int,
) -> NDArray[np.float64]:
    """[ids], the mean absolute error of the seasonal-naive forecast up to the cutoff of each id;
    NaN where no two values are a season apart.

    Args:
        frame, position: as `on_grid` gives them.
    """
    start, length = spans_of_series(frame)
    place = pd.Index(frame["unique_id"].iloc[start]).get_indexer(ids)
    if (place < 0).any():
        missing = plain(ids[place < 0][0])
        raise ValueError(f"df must have each series of forecasts. Missing: {missing!r}")
    series = np.repeat(np.arange(len(start)), length)
    last = cutoff.set_axis(place).reindex(series).set_axis(frame.index)
    is_before = (frame["ds"] <= last).to_numpy()
    series, position = series[is_before], position[is_before]
    y = frame["y"].to_numpy()[is_before]

    ends = np.searchsorted(series, np.arange(len(start) + 1))
    rows = [0 if a == b else position[b - 1] - position[a] + 1 for a, b in pairwise(ends)]
    short = np.array(rows)[place] <= season_length
    if short.any():
        raise ValueError(
            f"series {plain(ids[short][0])!r} must be longer than {season_length} rows, a season, "
            f"before its first cutoff. Got {rows[place[short][0]]}"
        )
    # Counted on through all series, with a season between them that belongs to none.
    at = series * (position.max() + 1 + season_length) + position
    before = np.searchsorted(at, at - season_length)
    error = np.abs(y - y[before])
    paired = (at[before] == at - season_length) & ~np.isnan(error)
    ends = np.searchsorted(series[paired], np.arange(len(start) + 1))
    return _means(error[paired], ends)[place]
