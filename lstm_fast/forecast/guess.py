"""Settings of a forecaster that the series themselves suggest."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import pandas as pd
from pandas.tseries import offsets
from pandas.tseries.frequencies import to_offset

from lstm_fast.forecast.frame import as_numbers, check_covariates, check_frame, without_last

_SEASONS = {"M": 12, "Q": 4, "W": 52, "B": 5}


@dataclass(frozen=True)
class Settings:
    frame: pd.DataFrame
    """Checked, sorted and filled."""
    options: dict[str, Any]
    """Arguments of `Forecaster`."""
    guesses: list[str] = field(default_factory=list)
    """One sentence for each thing that was guessed."""


def guess_settings(
    df: pd.DataFrame,
    h: int,
    options: dict[str, Any],
    season_length: int | None = None,
    test_size: int = 0,
) -> Settings:
    """Frequency, season, window and logarithms, as far as `options` does not state them.

    Args:
        test_size: last rows of each series that will not be there to train on, and whose values
            have no part in what is guessed.

    Raises:
        ValueError: as `check_frame`.
    """
    guesses = []
    check_covariates(options.get("futr_exog_list", ()))
    frame, freq = check_frame(
        df,
        options.get("freq"),
        options.get("fill"),
        options.get("futr_exog_list", ()),
        positive=options.get("log", False),
        held_out=test_size,
    )
    if "freq" not in options:
        guesses.append(f"timestamps have the frequency {freq}")
    if len(frame) > len(df):
        guesses.append(f"{len(frame) - len(df)} missing rows are filled ({options['fill']})")
    missing = int(as_numbers(df["y"]).isna().sum())
    if missing:
        guesses.append(f"{missing} missing values are filled ({options['fill']})")
    if season_length is None:
        season_length = options.get("season_length")
    shortest = int(frame["unique_id"].value_counts().min()) - test_size
    if season_length is None:
        season_length = season_of(freq)
        # A window of a season, and the rows ahead of it and those that calibrate by default.
        if season_length > 1 and shortest < season_length + 4 * h:
            guesses.append(f"too short for seasons of {season_length} rows: none")
            season_length = 1
        else:
            guesses.append(f"a season has {season_length} rows")
    if not isinstance(season_length, Real) or season_length < 1:
        raise ValueError(f"season_length must be a number greater than 0. Got {season_length!r}")
    found = {**options, "h": h, "freq": freq, "season_length": season_length, "fill": None}
    if "input_size" not in found:
        found["input_size"] = input_size_for(season_length, h, shortest)
        guesses.append(f"the network reads {found['input_size']} rows")
    if "log" not in found:
        found["log"] = bool((without_last(frame, test_size)["y"] > 0).all())
        guesses.append("logarithms are forecast" if found["log"] else "not all values are above 0")
    return Settings(frame, found, guesses)


def season_of(freq: str) -> int:
    """Rows of the season that is usual for a frequency: a day, a week or a year; 1 for none."""
    offset = to_offset(freq)
    days = isinstance(offset, offsets.Day)  # which pandas 3 gives no fixed length either
    try:
        step = pd.Timedelta(days=offset.n) if days else pd.Timedelta(offset)  # type: ignore[arg-type]
    except ValueError:  # months and quarters have no fixed length
        name = freq.split("-")[0].lstrip("0123456789")
        name = name.removeprefix("B").removesuffix("S").removesuffix("E")
        season = _SEASONS.get(name or "B", 1)
    else:
        day = pd.Timedelta(days=1)
        if step < day:
            return round(day / step)
        return {day: 7, 7 * day: 52}.get(step, 1)
    return season // offset.n if season % offset.n == 0 else 1


def input_size_for(season_length: int, h: int, shortest: int) -> int:
    """Three seasons, or two horizons if that is more, as far as the shortest series allows.

    The rest of it must hold the horizon, the rows that calibrate and some to train on.
    """
    wanted = max(3 * season_length, 2 * h, 12)
    return max(season_length, min(wanted, shortest - 6 * h))
