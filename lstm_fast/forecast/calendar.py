"""What the calendar alone says about a timestamp, so it is known for the future too."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_PERIODS = {
    "MS": "M", "ME": "M", "BMS": "M", "BME": "M",
    "QS": "Q", "QE": "Q", "BQS": "Q", "BQE": "Q",
}  # fmt: skip
_DAYS = {"M": 365.25 / 12, "Q": 365.25 / 4}


def trading_days(ds: pd.DatetimeIndex, freq: str) -> NDArray[np.float64]:
    """How many Mondays, Tuesdays ... Sundays a period has, less the average: [rows, 7].

    The trading-day regressors of seasonal adjustment (Young, "Estimating trading-day variation in
    monthly economic time series", Bureau of the Census Technical Paper 12, 1965). Only months and
    quarters vary so; other frequencies get [rows, 0].
    """
    period = _PERIODS.get(freq.split("-")[0])
    if period is None:
        return np.empty((len(ds), 0))
    periods = ds.tz_localize(None).to_period("M" if period == "M" else "Q")
    start = periods.start_time
    days = ((periods + 1).start_time - start).days.to_numpy()[:, None]
    first_weekday = start.day_of_week.to_numpy()[:, None]
    counts = (days + 6 - (np.arange(7) - first_weekday) % 7) // 7
    return counts - _DAYS[period] / 7


def season_phase(position: NDArray[np.int64], season_length: int) -> NDArray[np.float64]:
    """Sine and cosine of the place within the season: [rows, 2]."""
    angle = 2 * np.pi * (position % season_length) / season_length
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)
