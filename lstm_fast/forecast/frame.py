"""Checks of the long frame (`unique_id`, `ds`, `y`) that the forecasters take."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

COLUMNS = ("unique_id", "ds", "y")


def check_frame(df: pd.DataFrame, freq: str | None = None) -> tuple[pd.DataFrame, str]:
    """A sorted copy of `df` with its three columns, and the frequency of its timestamps.

    Args:
        df: long frame; ``ds`` may be anything that `pandas.to_datetime` reads.
        freq: pandas frequency alias; inferred from the first series where it is None.

    Raises:
        ValueError: naming the series and the row, if a column is missing, a value is missing,
            infinite or not a number, a timestamp is repeated, or timestamps are not regular.
    """
    missing = [column for column in COLUMNS if column not in df.columns]
    if missing:
        raise ValueError(f"df must have the columns {', '.join(COLUMNS)}. Missing: {missing}")
    if df.empty:
        raise ValueError("df must have rows. Got an empty frame")
    frame = df[list(COLUMNS)].assign(
        ds=_timestamps(df["ds"]), y=pd.to_numeric(df["y"], errors="coerce").astype("float64")
    )
    _reject_missing(df, frame)
    duplicated = frame.duplicated(["unique_id", "ds"])
    if duplicated.any():
        row = frame[duplicated].iloc[0]
        raise ValueError(f"series {row['unique_id']!r} has {row['ds']} more than once in ds")
    frame = frame.sort_values(["unique_id", "ds"], ignore_index=True)
    for unique_id, series in each_series(frame):
        ds = pd.DatetimeIndex(series["ds"])
        freq = freq or _infer_freq(unique_id, ds)
        _reject_irregular(unique_id, ds, freq)
    assert freq is not None
    return frame, freq


def each_series(frame: pd.DataFrame) -> Iterator[tuple[Hashable, pd.DataFrame]]:
    """The series of a checked frame, one after the other, with their ids."""
    return iter(frame.groupby("unique_id", sort=False, observed=True))


def _timestamps(ds: pd.Series) -> pd.Series:
    try:
        return pd.to_datetime(ds)
    except (ValueError, TypeError) as error:
        raise ValueError(f"df['ds'] must hold timestamps: {error}") from error


def _reject_missing(df: pd.DataFrame, frame: pd.DataFrame) -> None:
    for column in COLUMNS:
        bad = frame[column].isna()
        if column == "y":
            bad |= np.isinf(frame[column])
        if bad.any():
            row = frame[bad].iloc[0]
            raise ValueError(
                f"series {row['unique_id']!r} must have a finite {column} in every row. "
                f"Got {df[column][bad].iloc[0]!r} at ds {row['ds']}; fill or drop it first"
            )


def _infer_freq(unique_id: object, ds: pd.DatetimeIndex) -> str:
    if len(ds) < 3:
        raise ValueError(f"series {unique_id!r} has {len(ds)} rows: give freq, or 3 rows or more")
    with warnings.catch_warnings():
        # pandas 4 will return an offset in place of its alias; `to_offset` takes either.
        warnings.simplefilter("ignore", DeprecationWarning)
        freq = pd.infer_freq(ds)
    if freq is None:
        steps = np.diff(ds.to_numpy()).astype("timedelta64[s]").astype(np.float64)
        k = int(np.abs(steps - np.median(steps)).argmax())
        raise ValueError(
            f"series {unique_id!r} must have regular timestamps. {ds[k]} is followed by "
            f"{ds[k + 1]}; fill the gap, or give freq if it is none"
        )
    return to_offset(freq).freqstr


def _reject_irregular(unique_id: object, ds: pd.DatetimeIndex, freq: str) -> None:
    expected = pd.date_range(ds[0], periods=len(ds), freq=freq)
    wrong = ds.to_numpy() != expected.to_numpy()
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(
            f"series {unique_id!r} must have regular timestamps of frequency {freq}. "
            f"Expected {expected[k]}, got {ds[k]}"
        )


def future_timestamps(last: pd.Timestamp, h: int, freq: str) -> pd.DatetimeIndex:
    """The `h` timestamps that follow `last`."""
    return pd.date_range(last, periods=h + 1, freq=freq)[1:]
