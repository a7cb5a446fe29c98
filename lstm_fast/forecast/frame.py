"""Checks of the long frame (`unique_id`, `ds`, `y`) that the forecasters take."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries import offsets
from pandas.tseries.frequencies import to_offset

COLUMNS = ("unique_id", "ds", "y")
FILLS = ("linear", "previous", "zero")

# Rows that show a frequency: with fewer, five weekdays in a row would pass for every day.
_STRETCH = 6
# Between the first timestamp and the last, of all series: 200 years of minutes.
_MOST_STAMPS = 100_000_000


def check_frame(
    df: pd.DataFrame,
    freq: str | None = None,
    fill: str | None = None,
    covariates: Sequence[str] = (),
    positive: bool = False,
    held_out: int = 0,
) -> tuple[pd.DataFrame, str]:
    """A sorted copy of `df` with the columns that are used, and the frequency of its timestamps.

    Args:
        df: long frame; ``ds`` may be anything that `pandas.to_datetime` reads, or periods, taken
            as their first days.
        freq: pandas frequency alias; inferred from the longest series where it is None.
        fill: what to do about missing timestamps and values: None refuses them, ``"linear"`` draws
            a line between the neighbours (beyond the first and the last value it repeats these),
            ``"previous"`` repeats the value before, ``"zero"`` takes 0.
        covariates: further columns of numbers.
        positive: whether `y` must have a logarithm.
        held_out: last rows of each series that need none.

    Raises:
        ValueError: naming the series and the row, if a column is missing, a value is missing,
            infinite, not a number or (with `positive`) not above 0, a timestamp is repeated or far
            from all others, or timestamps are not regular. Rows are named as the index of `df`
            names them.
    """
    numbers = ["y", *covariates]
    columns = ["unique_id", "ds", *numbers]
    check_columns(df, columns)
    check_fill(fill)
    frame = _read(df, numbers)
    for column in columns:
        _reject_missing(df, frame, column, fillable=fill is not None and column in numbers)
    frame, position, freq = _in_order(df, frame, freq)
    if fill is None:
        _reject_irregular(df, frame, position, freq)
    else:
        _reject_off_grid(df, frame, position, freq)
    if positive:
        last = frame.assign(at=position).groupby("unique_id")["at"].transform("max").to_numpy()
        known = frame[last - position >= held_out]
        _reject_without_logarithm(known, lambda row: f"({_place(df, row.name)})")
    if fill is not None:
        frame = _fill(frame, position, freq, fill, numbers)
        if positive and fill == "zero":  # others make nothing that values beside a gap are not
            known = without_last(frame, held_out)
            _reject_without_logarithm(known, lambda _: f"from fill={fill!r}")
    return frame.reset_index(drop=True), freq


def on_grid(
    df: pd.DataFrame, freq: str | None = None
) -> tuple[pd.DataFrame, NDArray[np.int64], str]:
    """A sorted copy of ``unique_id``, ``ds`` and ``y`` of a frame that may have gaps, the place of
    each row on the grid of timestamps ([rows]), and the frequency of that.

    ``y`` is NaN where it is missing or no number.

    Raises:
        ValueError: as `check_frame`, for all but the values of ``y`` and missing rows.
    """
    check_columns(df, COLUMNS)
    frame = _read(df, ["y"])
    for column in ("unique_id", "ds"):
        _reject_missing(df, frame, column, fillable=False)
    frame, position, freq = _in_order(df, frame, freq)
    _reject_off_grid(df, frame, position, freq)
    return frame, position, freq


def _read(df: pd.DataFrame, numbers: Sequence[str]) -> pd.DataFrame:
    """The columns that are used, each of the type that it is worked with."""
    ids = df["unique_id"]
    if isinstance(ids.dtype, pd.CategoricalDtype):
        ids = ids.astype(object)  # categories without a row are no series
    ids = ids.infer_objects()  # as they are when a saved forecaster is loaded
    if pd.api.types.infer_dtype(ids).startswith("mixed"):
        bad = ids.map(pd.api.types.is_list_like).to_numpy()
        if bad.any():
            k = int(bad.argmax())
            raise ValueError(
                "df['unique_id'] must hold single values, such as text. "
                f"Got {ids.iloc[k]!r} ({_place(df, ids.index[k])})"
            )
    columns = ["unique_id", "ds", *numbers]
    frame = without_index_names(df[columns]).assign(unique_id=ids, ds=_timestamps(df))
    for name in numbers:
        frame[name] = as_numbers(df[name])
    return frame


def _in_order(
    df: pd.DataFrame, frame: pd.DataFrame, freq: str | None
) -> tuple[pd.DataFrame, NDArray[np.int64], str]:
    """The frame sorted by series and time, the place of each row on the grid, -1 for none, and the
    frequency."""
    duplicated = frame.duplicated(["unique_id", "ds"])
    if duplicated.any():
        row = frame[duplicated].iloc[0]
        raise ValueError(
            f"{_series(row)} has {row['ds']} more than once in ds ({_place(df, row.name)})"
        )
    frame = frame.sort_values(["unique_id", "ds"])
    freq = checked_freq(freq or _infer_freq(frame))
    _reject_far(df, frame, freq)
    return frame, grid_positions(frame["ds"], freq), freq


def without_index_names(df: pd.DataFrame) -> pd.DataFrame:
    """An index may have the name of a column, which would not tell them apart."""
    return df.rename_axis(index=lambda _: None)


def as_numbers(values: pd.Series) -> pd.Series:
    """`values` as float64; not-a-number for what is none, as times are, though pandas would take
    them for nanoseconds."""
    if values.dtype.kind in "mMc":
        return pd.Series(np.nan, index=values.index)
    return pd.to_numeric(values, errors="coerce").astype("float64")


def check_fill(fill: str | None) -> None:
    if fill is not None and fill not in FILLS:
        raise ValueError(f"fill must be None or one of {', '.join(FILLS)}. Got {fill!r}")


def check_covariates(names: Iterable[str], argument: str = "futr_exog_list") -> list[str]:
    """`names`, if they can be those of further columns of a frame.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{argument} must be a sequence of names. Got {names!r}")
    found = [plain(name) for name in names]
    for k, name in enumerate(found):
        if name in COLUMNS or name in found[:k]:
            raise ValueError(
                f"{argument} must name columns beside {', '.join(COLUMNS)}, each once. Got {name!r}"
            )
    return found


def is_whole(value: Any) -> bool:
    """Whether it is a number to count with, as 3.0 is not."""
    return isinstance(value, Integral)


def check_positive(**numbers: Any) -> None:
    """Refuse numbers that count nothing, by their names.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in numbers.items():
        if not is_whole(value) or value <= 0:
            raise ValueError(f"{name} must be a whole number greater than 0. Got {value!r}")


def check_windows(frame: pd.DataFrame, h: int, n_windows: int, step_size: int) -> None:
    """Refuse a backtest that leaves a series of a checked frame no row before its first origin.

    Raises:
        ValueError: naming the argument that is not above 0, or the series.
    """
    check_positive(n_windows=n_windows, step_size=step_size)
    rows = frame["unique_id"].value_counts()
    held_out = h + (n_windows - 1) * step_size
    if rows.min() <= held_out:
        raise ValueError(
            f"series {plain(rows.idxmin())!r} is too short: n_windows={n_windows} of h={h} rows, "
            f"step_size={step_size} apart, forecast {held_out} rows and need some before these. "
            f"Got {rows.min()}"
        )


def rolling_origins(
    frame: pd.DataFrame,
    df: pd.DataFrame,
    fill: str | None,
    h: int,
    n_windows: int,
    step_size: int,
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """The rows that are known at each origin of a backtest, the `h` after them, and what is to be
    forecast of these: ``unique_id``, ``ds``, ``cutoff`` (the last row that is known) and ``y``, NaN
    where it was filled with anything but zero.

    Args:
        frame: `df`, as checked with `fill`. Nothing that follows an origin has a part in the `y`
            that is filled before it, and nothing that follows its `h` rows in the covariates.

    Raises:
        ValueError: as `check_windows`.
    """
    check_windows(frame, h, n_windows, step_size)
    from_end = frame.groupby("unique_id", sort=False).cumcount(ascending=False)
    covariates = [name for name in frame.columns if name not in COLUMNS]
    is_given = _is_given(frame, df, fill, ["y", *covariates])
    for held_out in range(h + (n_windows - 1) * step_size, h - 1, -step_size):
        known_ahead = frame[from_end >= held_out - h]
        for name in covariates:
            known_ahead = _without_later_values(known_ahead, name, is_given[name], fill)
        is_known = from_end[known_ahead.index] >= held_out
        known = _without_later_values(known_ahead[is_known], "y", is_given["y"], fill)
        later = known_ahead[~is_known]
        actual = later[["unique_id", "ds"]].assign(y=later["y"].where(is_given["y"]))
        cutoff = actual["unique_id"].map(known.groupby("unique_id")["ds"].last())
        actual.insert(2, "cutoff", cutoff)
        yield known, later, actual


def without_last(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Without the last `rows` of each series of a frame that is in order."""
    return frame[frame.groupby("unique_id", sort=False).cumcount(ascending=False) >= rows]


def _is_given(
    frame: pd.DataFrame, df: pd.DataFrame, fill: str | None, numbers: list[str]
) -> dict[str, pd.Series]:
    """Of each column, whether it stands in `df`, row for row of the frame that was checked with
    `fill`; with ``"zero"``, what does not stand there is said to be 0."""
    if fill in (None, "zero"):
        return dict.fromkeys(numbers, pd.Series(True, index=frame.index))
    rows = without_index_names(df[["unique_id", "ds"]])
    rows = rows.assign(ds=_timestamps(rows)).astype(frame[["unique_id", "ds"]].dtypes.to_dict())
    found = {}
    for name in numbers:
        given = rows[as_numbers(df[name]).notna().to_numpy()]
        merged = frame[["unique_id", "ds"]].merge(given, how="left", indicator=True)["_merge"]
        found[name] = (merged == "both").set_axis(frame.index)
    return found


def _without_later_values(
    frame: pd.DataFrame, name: str, is_given: pd.Series, fill: str | None
) -> pd.DataFrame:
    """The first rows of a frame that was checked with `fill`, of which ``"linear"`` may have drawn
    the last ones of a column towards values that come later. These repeat the last value given.

    Raises:
        ValueError: for a series in which all values given come later.
    """
    if fill != "linear":
        return frame
    place = pd.Series(np.arange(len(frame)), index=frame.index)
    series = frame["unique_id"]
    last = place.where(is_given).groupby(series, sort=False).transform("max")
    if last.isna().any():
        row = frame[last.isna()].iloc[-1]
        what = "value" if name == "y" else name
        raise ValueError(
            f"{_series(row)} has no {what} up to {row['ds']} that fill={fill!r} could use"
        )
    shown = frame.copy()
    shown[name] = frame[name].mask(place > last).groupby(series, sort=False).ffill()
    return shown


def check_future(
    futr_df: pd.DataFrame,
    unique_id: pd.Series,
    ds: pd.Series,
    covariates: Sequence[str],
    name: str = "futr_df",
) -> pd.DataFrame:
    """The covariates of the rows that are to be forecast, in their order.

    Args:
        name: what errors call `futr_df`.

    Raises:
        ValueError: if a column, a row or a value is missing, or times are of a zone in one of both
            alone.
    """
    check_columns(futr_df, ["unique_id", "ds", *covariates], name)
    columns = without_index_names(futr_df[["unique_id", "ds", *covariates]])
    given = in_zone_of(ds, columns, name)
    wanted = pd.DataFrame({"unique_id": unique_id.to_numpy(), "ds": ds.to_numpy()})
    try:
        wanted = wanted.astype({"ds": given["ds"].dtype})
        keys = given[["unique_id", "ds"]].assign(row=np.arange(len(given)))
        place = wanted.merge(keys, how="left")
    except ValueError as error:
        raise ValueError(
            f"{name}['unique_id'] must hold ids such as {plain(unique_id.iloc[0])!r}. "
            f"Got {plain(given['unique_id'].iloc[0])!r}"
        ) from error
    for bad, got in (
        (place.duplicated(["unique_id", "ds"]), "several"),
        (place["row"].isna(), "none"),
    ):
        if bad.any():
            row = place[bad].iloc[0]
            raise ValueError(
                f"{name} must have one row for {_series(row)} at {row['ds']}. Got {got}"
            )
    found = wanted
    for column in covariates:
        found[column] = as_numbers(given[column]).to_numpy()[place["row"].to_numpy(np.intp)]
        bad = ~np.isfinite(found[column])
        if bad.any():
            row = found[bad].iloc[0]
            raise ValueError(
                f"{name} must give a finite {column} for {_series(row)} at {row['ds']}"
            )
    return found


def in_zone_of(fitted: pd.Series, df: pd.DataFrame, name: str, column: str = "ds") -> pd.DataFrame:
    """`df` with the timestamps of a column in the time zone of those that were fitted.

    Raises:
        ValueError: if one of both has no time zone.
    """
    check_columns(df, [column], name)
    ds, zone = _timestamps(df, name, column), fitted.dt.tz
    if (ds.dt.tz is None) != (zone is None):
        wanted = "no time zone" if zone is None else f"the time zone {zone}, or another"
        raise ValueError(
            f"{name}[{column!r}] must have {wanted}, as the frame that was fitted has. "
            f"Got {ds.iloc[0]}"
        )
    return df.assign(**{column: ds if zone is None else ds.dt.tz_convert(zone)})


def spans_of_series(frame: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[series], the first row of each series of a frame that is in order, and its rows."""
    start = np.flatnonzero(~frame["unique_id"].duplicated().to_numpy())
    return start, np.diff(start, append=len(frame))


def never_negative(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """[series], whether no `y` is below 0, of a frame that is in order."""
    start, _ = spans_of_series(frame)
    return np.minimum.reduceat(frame["y"].to_numpy(), start) >= 0


def grid(ds: pd.Series, freq: str, beyond: int = 0) -> pd.DatetimeIndex:
    """All timestamps from the first of `ds` to its last, and `beyond` more."""
    first = ds.min()
    known = len(stamps(first, freq, end=ds.max()))
    return stamps(first, freq, periods=known + beyond)


def stamps(
    start: pd.Timestamp, freq: str, end: pd.Timestamp | None = None, periods: int | None = None
) -> pd.DatetimeIndex:
    """`pandas.date_range`, which refuses a day whose first hour the clock leaves out or repeats:
    the day begins with the next hour, or with the first of both.
    """
    step = to_offset(freq)
    of_hours = isinstance(step, offsets.Tick) and not isinstance(step, offsets.Day)
    zone = None if of_hours else start.tz
    if zone is not None:
        # A first day that begins late is counted from its midnight, as the days after it are.
        midnight = start.tz_localize(None).normalize()
        late = midnight.tz_localize(zone, nonexistent="shift_forward", ambiguous=True) == start
        start, end = midnight if late else start.tz_localize(None), end and end.tz_localize(None)
    limits: dict[str, Any] = {"end": end, "periods": periods, "freq": freq}
    found = pd.date_range(start, **limits)
    if zone is None:
        return found
    first_of_both = np.ones(len(found), dtype=bool)
    return found.tz_localize(zone, nonexistent="shift_forward", ambiguous=first_of_both)


def grid_positions(ds: pd.Series, freq: str) -> NDArray[np.int64]:
    """The place of each timestamp in `grid(ds, freq)`; -1 for none."""
    return np.asarray(grid(ds, freq).get_indexer(pd.DatetimeIndex(ds)), dtype=np.int64)


def _place(df: pd.DataFrame, label: Any) -> str:
    return f"{df.index.name or 'row'} {label}"


def _series(row: pd.Series) -> str:
    return f"series {plain(row['unique_id'])!r}"


def plain(value: Any) -> Any:
    """Without numpy's type, which a reader of a message has no use for."""
    return value.item() if isinstance(value, np.generic) else value


def check_columns(df: pd.DataFrame, columns: Sequence[str], name: str = "df") -> None:
    """Raises what `check_frame` raises where a frame has no rows, or not each of these columns."""
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"{name} must be a pandas.DataFrame, got {type(df).__name__}")
    found = Counter(df.columns)
    missing = [column for column in columns if not found[column]]
    if missing:
        wanted = ", ".join(map(str, columns))
        raise ValueError(f"{name} must have the columns {wanted}. Missing: {missing}")
    for column in columns:
        if found[column] > 1:
            raise ValueError(f"{name} must have one column {column}. Got several")
    if df.empty:
        raise ValueError(f"{name} must have rows. Got an empty frame")


def _timestamps(df: pd.DataFrame, name: str = "df", column: str = "ds") -> pd.Series:
    given, name = df[column], f"{name}[{column!r}]"
    kind = pd.api.types.infer_dtype(given)
    if kind in ("integer", "floating", "decimal", "mixed-integer-float"):
        raise ValueError(
            f"{name} must hold timestamps, which numbers such as {given.iloc[0]} are not. "
            f"Of years, pandas.to_datetime({name}, format='%Y') makes some"
        )
    try:
        if kind == "period":
            given = pd.Series(pd.PeriodIndex(given).to_timestamp(), index=given.index)
        found = pd.to_datetime(given)
    except (ValueError, TypeError) as error:
        for label, value in given.items():
            if pd.isna(pd.to_datetime(value, errors="coerce")) and not pd.isna(value):
                raise ValueError(
                    f"{name} must hold timestamps. Got {value!r} ({_place(df, label)})"
                ) from error
        raise ValueError(f"{name} must hold timestamps: {error}") from error
    if isinstance(found.dtype, pd.ArrowDtype):
        found = pd.Series(pd.DatetimeIndex(found), index=found.index)
    if not pd.api.types.is_datetime64_any_dtype(found):  # each of an offset of its own
        raise ValueError(
            f"{name} must hold timestamps of one time zone, as "
            f"pandas.to_datetime({name}, utc=True) makes them"
        )
    return found


def _reject_missing(df: pd.DataFrame, frame: pd.DataFrame, column: str, fillable: bool) -> None:
    bad = frame[column].isna()
    if fillable:  # what is missing can be filled, text and infinity cannot
        bad &= df[column].notna()
    if column not in ("unique_id", "ds"):
        bad |= np.isinf(frame[column])
    if bad.any():
        row = frame[bad].iloc[0]
        # What is missing can be filled, where that was not asked for yet.
        can_be_filled = column not in ("unique_id", "ds") and pd.isna(df[column][bad].iloc[0])
        hint = ", or give fill" if can_be_filled else ""
        raise ValueError(
            f"{_series(row)} must have a finite {column} in every row. "
            f"Got {plain(df[column][bad].iloc[0])!r} at ds {row['ds']} ({_place(df, row.name)}); "
            f"fill or drop it first{hint}"
        )


def _reject_without_logarithm(frame: pd.DataFrame, place: Callable[[pd.Series], str]) -> None:
    bad = frame["y"] <= 0
    if bad.any():
        row = frame[bad].iloc[0]
        raise ValueError(
            f"{_series(row)} must be above 0 for its logarithm. "
            f"Got {row['y']} at ds {row['ds']} {place(row)}; use log=False (--no-log)"
        )


def checked_freq(freq: Any) -> str:
    """By the name that pandas has for it now: it warns of older ones, such as M for ME.

    Raises:
        ValueError: for what is no frequency, does not go forwards, or is more than its name says,
            as one with holidays is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            step = to_offset(freq)
            named = to_offset(step.freqstr)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"freq must be a frequency of pandas, such as MS. Got {freq!r}"
            ) from error
    if step.n < 1:
        raise ValueError(f"freq must go forwards. Got {freq!r}")
    if named != step:
        raise ValueError(
            f"freq must be no more than its name in pandas says, {step.freqstr}. Got {freq!r}"
        )
    return step.freqstr


def _infer_freq(frame: pd.DataFrame) -> str:
    unique_id = frame["unique_id"].value_counts().idxmax()
    ds = pd.DatetimeIndex(frame["ds"][frame["unique_id"] == unique_id])
    if len(ds) < 3:
        raise ValueError(
            f"series {plain(unique_id)!r} has {len(ds)} rows: give freq, or 3 rows or more"
        )
    freq = infer_freq(ds) or _most_common_freq(ds)
    if freq is None:
        # pandas has no frequency of them.
        remedy = "move dates to the first of the month" if are_of_one_day(ds) else "give freq"
        raise ValueError(
            f"series {plain(unique_id)!r} must have regular timestamps, but no frequency fits "
            f"{ds[0]}, {ds[1]}, {ds[2]} ...; {remedy}"
        )
    return freq


def are_of_one_day(ds: pd.DatetimeIndex) -> bool:
    """Whether dates are of one day of the month, not the first."""
    return bool(ds.is_normalized) and ds.day.nunique() == 1 and ds[0].day > 1


def infer_freq(ds: pd.DatetimeIndex) -> str | None:
    """The frequency that all of `ds` follows, if there is one."""
    if len(ds) < 3:
        return None
    with warnings.catch_warnings():
        # pandas 4 will return an offset in place of its alias; `to_offset` takes either.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pd.infer_freq(ds)


def _most_common_freq(ds: pd.DatetimeIndex) -> str | None:
    """What most stretches of a series with gaps follow."""
    starts = range(0, len(ds) - _STRETCH + 1, max(1, len(ds) // 100))
    votes = Counter(infer_freq(ds[start : start + _STRETCH]) for start in starts)
    del votes[None]
    return votes.most_common(1)[0][0] if votes else None


def _reject_far(df: pd.DataFrame, frame: pd.DataFrame, freq: str) -> None:
    """Rather than run out of memory: a year that is mistyped makes billions of seconds."""
    step = to_offset(freq)
    seconds = step.nanos / 1e9 if isinstance(step, offsets.Tick) else 86400.0
    # Differences of nanoseconds overflow after 292 years.
    if frame["ds"].max().timestamp() - frame["ds"].min().timestamp() <= _MOST_STAMPS * seconds:
        return
    in_order = frame.sort_values("ds")
    after = int(in_order["ds"].map(pd.Timestamp.timestamp).diff().argmax())
    few_come_after = 2 * after > len(in_order)
    row = in_order.iloc[after if few_come_after else after - 1]
    raise ValueError(
        f"{_series(row)} has {row['ds']} ({_place(df, row.name)}), too far from the "
        f"other timestamps for the frequency {freq}"
    )


def _reject_irregular(
    df: pd.DataFrame, frame: pd.DataFrame, position: NDArray[np.int64], freq: str
) -> None:
    first = ~frame["unique_id"].duplicated().to_numpy()
    wrong = (position < 0) | (~first & (np.diff(position, prepend=-1) != 1))
    if not wrong.any():
        return
    k = int(wrong.argmax())
    if first[k]:
        _reject_off_grid(df, frame, position, freq)
    row, before = frame.iloc[k], frame["ds"].iloc[k - 1]
    raise ValueError(
        f"{_series(row)} must have regular timestamps of frequency {freq}. "
        f"Expected {stamps(before, freq, periods=2)[1]}, got {row['ds']} "
        f"({_place(df, row.name)}); give fill to close gaps, or freq if there is none"
    )


def _reject_off_grid(
    df: pd.DataFrame, frame: pd.DataFrame, position: NDArray[np.int64], freq: str
) -> None:
    if (position < 0).any():
        row = frame.iloc[int((position < 0).argmax())]
        raise ValueError(
            f"{_series(row)} has {row['ds']} ({_place(df, row.name)}), which is no "
            f"timestamp of frequency {freq} counted from {frame['ds'].min()}"
        )


def _fill(
    frame: pd.DataFrame, position: NDArray[np.int64], freq: str, fill: str, numbers: list[str]
) -> pd.DataFrame:
    """The series without gaps; covariates are filled as values are."""
    ds = grid(frame["ds"], freq)
    start, rows = spans_of_series(frame)
    ids = frame["unique_id"].iloc[start]
    first = position[start]
    length = position[start + rows - 1] - first + 1
    offset = np.cumsum(length) - length
    series = np.repeat(np.arange(len(start)), length)
    to_row = offset - first  # from the grid to the rows that are made
    at = position + np.repeat(to_row, rows)
    every = np.arange(len(series)) - to_row[series]
    filled = pd.DataFrame({"unique_id": ids.repeat(length).to_numpy(), "ds": ds[every]})
    for name in numbers:
        values = np.full(len(series), np.nan)
        values[at] = frame[name]
        filled[name] = _filled(values, series, fill)
    missing = filled[numbers].isna().any(axis=1)
    if missing.any():
        row = filled[missing].iloc[0]
        raise ValueError(f"{_series(row)} has no value that fill={fill!r} could use")
    return filled


def _filled(
    values: NDArray[np.float64], series: NDArray[np.int64], fill: str
) -> NDArray[np.float64]:
    """[rows] of series that lie end to end, those that are NaN filled; NaN where nothing is known.

    Args:
        series: [rows], number of the series, ascending.
    """
    known = ~np.isnan(values)
    if fill == "zero":
        return np.where(known, values, 0.0)
    if not known.any():
        return values
    row = np.arange(len(values))
    before = np.maximum.accumulate(np.where(known, row, 0))
    has_before = known[before] & (series[before] == series)
    previous = np.where(has_before, values[before], np.nan)
    if fill == "previous":
        return previous
    last = len(values) - 1
    after = np.minimum.accumulate(np.where(known, row, last)[::-1])[::-1]
    has_after = known[after] & (series[after] == series)
    # A line from one series to the next is drawn as well, and not taken.
    line = np.interp(row, row[known], values[known])
    beyond = np.where(has_before, previous, np.where(has_after, values[after], np.nan))
    return np.where(known, values, np.where(has_before & has_after, line, beyond))
