"""What the calendar alone says about a timestamp, so it is known for the future too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

_PERIODS = {
    "MS": "M", "ME": "M", "BMS": "M", "BME": "M",
    "QS": "Q", "QE": "Q", "BQS": "Q", "BQE": "Q",
}  # fmt: skip
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = {"M": 365.25 / 12, "Q": 365.25 / 4}
CYCLES = {"day": 1.0, "week": 7.0, "year": 365.2425}
"""Days of each cycle that people and the weather follow."""


def trading_days(ds: pd.DatetimeIndex, freq: str) -> NDArray[np.float64]:
    """How many Mondays, Tuesdays ... Sundays a period has, less the average: [rows, 7].

    The trading-day regressors of seasonal adjustment (Young, "Estimating trading-day variation in
    monthly economic time series", Bureau of the Census Technical Paper 12, 1965). Only months and
    quarters vary so; other frequencies get [rows, 0].
    """
    period = _PERIODS.get(freq.split("-")[0])
    if period is None:
        return np.empty((len(ds), 0))
    name = period
    if period == "Q":
        # A quarter that begins in February ends in April, and so does one of the year to April.
        offset: Any = to_offset(freq)
        last = offset.startingMonth + (2 if "QS" in freq else 0)
        name = f"Q-{_MONTHS[(last - 1) % 12]}"
    periods = ds.tz_localize(None).to_period(name)
    start = periods.start_time
    days = ((periods + 1).start_time - start).days.to_numpy()[:, None]
    first_weekday = start.day_of_week.to_numpy()[:, None]
    counts = (days + 6 - (np.arange(7) - first_weekday) % 7) // 7
    return counts - _DAYS[period] / 7


def season_phase(position: NDArray[np.int64], season_length: int) -> NDArray[np.float64]:
    """Sine and cosine of the place within the season: [rows, 2]."""
    return _circle((position % season_length) / season_length)


def useful_cycles(ds: pd.DatetimeIndex, season_length: int) -> list[str]:
    """Those of `CYCLES` that `ds` goes through twice, in steps, and that are not the season."""
    # In days; a difference of nanoseconds overflows after 292 years.
    span = (ds[-1].timestamp() - ds[0].timestamp()) / 86400
    step = span / max(1, len(ds) - 1)
    return [
        name
        for name, days in CYCLES.items()
        if 2 * step <= days <= span / 2 and abs(days / step - season_length) > 0.05 * season_length
    ]


def cycle_phases(ds: pd.DatetimeIndex, cycles: Sequence[str]) -> NDArray[np.float64]:
    """Sine and cosine of the place within each cycle: [rows, 2 * cycles]."""
    day = (ds.hour + (ds.minute + ds.second / 60) / 60).to_numpy() / 24
    place = {
        "day": day,
        "week": (ds.day_of_week.to_numpy() + day) / 7,
        "year": (ds.day_of_year.to_numpy() - 1 + day) / CYCLES["year"],
    }
    return np.concatenate([np.empty((len(ds), 0)), *(_circle(place[c]) for c in cycles)], axis=1)


def _circle(fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    angle = 2 * np.pi * fraction
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)
