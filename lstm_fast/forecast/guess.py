"""Settings of a forecaster that the series themselves suggest."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd
from pandas.tseries import offsets
from pandas.tseries.frequencies import to_offset

from lstm_fast.forecast.frame import (
    as_numbers,
    check_covariates,
    check_frame,
    never_negative,
    plain,
    without_last,
)

_SEASONS = {"M": 12, "Q": 4, "W": 52, "B": 5}


@dataclass(frozen=True)
class Settings:
    given: pd.DataFrame
    """As given, without the series that are left out."""
    frame: pd.DataFrame
    """The same, checked, sorted and filled."""
    options: dict[str, Any]
    """Arguments of `Forecaster`."""
    guesses: list[str]
    """One sentence for each thing that was guessed."""
    left_out: pd.Series
    """Rows of each series that is too short, by its name."""
    needed: int
    """Rows that a series must have."""


def guess_settings(
    df: pd.DataFrame,
    h: int,
    options: dict[str, Any],
    season_length: int | None = None,
    test_size: int = 0,
    val_size: int = 0,
) -> Settings:
    """Frequency, season, window, rows that calibrate and logarithms, as far as `options` does not
    state them. That forecasts do not fall below 0 is told, too.

    Season and window are what half of the series are long enough for. Those that are not are left
    out, as one short series would take the season from all. Calibration gives way to both.

    Args:
        test_size: last rows of each series that will not be there to train on, and whose values
            have no part in what is guessed.
        val_size: further rows that will not be there to train on.

    Raises:
        ValueError: as `check_frame`; if all series are too short, though each has some rows.
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
    held_out = test_size + val_size
    rows = frame["unique_id"].value_counts() - held_out
    usual = int(rows.quantile(0.5, interpolation="higher"))  # half of the series have as many
    calibrates = bool(options.get("levels", True))
    if season_length is None:
        season_length = season_of(freq)
        # Rows too few for both are refused rather than forecast badly without a season.
        if season_length > 1 and 1 + 4 * h <= usual < season_length + (1 + calibrates) * h:
            guesses.append(f"too short for seasons of {season_length} rows: none")
            season_length = 1
        else:
            guesses.append(f"a season has {season_length} rows")
    if not isinstance(season_length, Real) or season_length < 1:
        raise ValueError(f"season_length must be a number greater than 0. Got {season_length!r}")
    found = {**options, "h": h, "freq": freq, "season_length": season_length, "fill": None}
    if "input_size" not in found:
        found["input_size"] = input_size_for(season_length, h, usual)
        guesses.append(f"the network reads {_counted(found['input_size'])}")
    stated = options.get("calibration_size")
    # At least. What is no number, the forecaster refuses.
    reads, calibrate = (
        value if isinstance(value, Real) else 0
        for value in (found["input_size"], h * calibrates if stated is None else stated)
    )
    needed = reads + h + calibrate
    is_short = rows < needed
    # A series that has no row at all is named by who holds so many out.
    if is_short.all() and rows.min() > 0:
        beside = f" beside the last {held_out}" if held_out else ""
        raise ValueError(
            f"series {plain(rows.idxmax())!r} is too short, as all are: {reads} rows to read "
            f"(--season), {h} to forecast (--horizon) and {calibrate} to calibrate intervals with "
            f"make {needed}{beside}. Got {rows.max()}"
        )
    left_out = rows[is_short & ~is_short.all()] + held_out
    df, frame = (part[~part["unique_id"].isin(left_out.index)] for part in (df, frame))
    frame = frame.reset_index(drop=True)
    if calibrates and stated is None:
        room = int(rows.drop(left_out.index).min()) - reads - 3 * h
        if room < 3 * h:
            found["calibration_size"] = max(h, room)
            guesses.append(f"the last {_counted(found['calibration_size'])} calibrate intervals")
    known = without_last(frame, test_size)
    if "log" not in found:
        found["log"] = bool((known["y"] > 0).all())
        guesses.append("logarithms are forecast" if found["log"] else "not all values are above 0")
    if not found["log"] and "nonnegative" not in found and never_negative(known).any():
        guesses.append("series that were never below 0 are not forecast below 0")
    return Settings(df, frame, found, guesses, left_out, needed + held_out)


def _counted(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"


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


def input_size_for(season_length: int, h: int, rows: int) -> int:
    """Three seasons, or two horizons if that is more, as far as series of so many rows allow.

    The rest of them must hold the horizon, as many rows that calibrate and some to train on. More
    of these matter less to a forecast than a longer window.
    """
    wanted = max(3 * season_length, 2 * h, 12)
    return max(season_length, min(wanted, rows - 3 * h))
