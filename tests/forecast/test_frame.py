"""Bad input is refused with a message that says where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lstm_fast.forecast.frame import check_frame, grid, rolling_origins
from tests.forecast.series import monthly


def with_value(row: int, column: str, value: Any) -> pd.DataFrame:
    df = monthly()
    df[column] = df[column].astype(object)
    df.loc[row, column] = value
    return df


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (monthly().drop(columns="y"), r"Missing: \['y'\]"),
        (monthly(0), "empty frame"),
        (with_value(5, "y", np.nan), r"series 'a' .* finite y .* Got nan at ds 2000-06-01"),
        (with_value(5, "y", np.inf), r"finite y .* Got inf at ds 2000-06-01"),
        (with_value(5, "y", "many"), r"finite y .* Got 'many' at ds 2000-06-01"),
        (with_value(5, "ds", pd.NaT), "finite ds"),
        (with_value(5, "ds", "someday"), r"df\['ds'\] must hold timestamps.*'someday' \(row 5\)"),
        (with_value(5, "unique_id", None), "finite unique_id"),
        (pd.concat([monthly(), monthly()[4:5]]), "series 'a' has 2000-05-01 .* more than once"),
        (
            monthly().drop(index=9),
            r"frequency MS. Expected 2000-10-01 .*, got 2000-11-01 .* \(row 10\); give fill",
        ),
        (monthly(2), "has 2 rows: give freq"),
        (monthly().assign(ds=range(1940, 2012)), "timestamps, which numbers such as 1940 are not"),
        (
            pd.concat(
                [
                    monthly().assign(unique_id=1),
                    monthly(9).assign(unique_id=3, ds=lambda df: df["ds"] + pd.Timedelta(days=9)),
                ]
            ),
            r"series 3 has 2000-01-10 .*\(row 0\), which is no timestamp of frequency MS",
        ),
        (pd.concat([monthly(), monthly()[["y"]]], axis=1), "df must have one column y"),
        (
            pd.concat([monthly(), monthly(9, "bb").drop(index=4)]),
            "series 'bb' .* frequency MS. Expected 2000-05-01 .*, got 2000-06-01",
        ),
    ],
)
def test_bad_frames(df, message):
    with pytest.raises(ValueError, match=message):
        check_frame(df)


def test_rows_in_any_order_and_dates_as_text(series):
    shuffled = series.sample(frac=1, random_state=0)
    frame, freq = check_frame(shuffled.assign(ds=shuffled["ds"].dt.strftime("%Y-%m-%d")))
    assert freq == "MS"
    pd.testing.assert_frame_equal(frame, series, check_dtype=False)


def test_freq_is_taken_where_it_is_given():
    assert check_frame(monthly(2), freq="MS")[1] == "MS"
    with pytest.raises(ValueError, match=r"frequency D. Expected 2000-01-02 .*, got 2000-02-01"):
        check_frame(monthly(), freq="D")
    wrong: Any
    for wrong in ("often", 1, True, pd.NaT, ["MS"], pd.DateOffset(months=1)):
        message = f"freq must be a frequency of pandas, .* Got {wrong!r}"
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            check_frame(monthly(), freq=wrong)
    holidays: Any = pd.offsets.CustomBusinessDay(holidays=["2000-01-03"])
    with pytest.raises(ValueError, match="freq must be no more than its name in pandas says, C"):
        check_frame(monthly(), freq=holidays)
    for freq in ("0D", "-1MS"):
        with pytest.raises(ValueError, match=f"freq must go forwards. Got '{freq}'"):
            check_frame(monthly(), freq=freq)
    with pytest.raises(ValueError, match=r"freq must be a frequency of pandas, .* Got 'often'"):
        check_frame(monthly(), freq="often")


@pytest.mark.skipif(pd.__version__ >= "3", reason="pandas has forgotten the name")
@pytest.mark.filterwarnings("error")
def test_an_older_name_of_a_frequency_gives_no_warning():
    df = monthly().assign(ds=lambda df: df["ds"] + pd.offsets.MonthEnd(0))
    assert check_frame(df, freq="M")[1] == "ME"


@pytest.mark.filterwarnings("ignore:In a future version of pandas")
def test_timestamps_are_of_one_time_zone():
    ds = ["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00", "2024-03-31T04:00+02:00"]
    with pytest.raises(ValueError, match=r"must hold timestamps( of one time|: Mixed timez)"):
        check_frame(monthly(3).assign(ds=ds))


@pytest.mark.parametrize("zone", ["", ", tz=Europe/Berlin"])
def test_timestamps_may_be_those_of_arrow(series, zone):
    pytest.importorskip("pyarrow")
    expected = series.assign(ds=series["ds"].dt.tz_localize(zone[5:] or None))
    df = expected.astype(
        {
            "unique_id": "string[pyarrow]",
            "ds": f"timestamp[{expected['ds'].dt.unit}{zone}][pyarrow]",
            "y": "double[pyarrow]",
        }
    )
    pd.testing.assert_series_equal(check_frame(df)[0]["ds"], check_frame(expected)[0]["ds"])


@pytest.mark.parametrize(("period", "freq"), [("M", "MS"), ("Q", "QS"), ("W", "W")])
def test_periods_are_their_first_days(series, period, freq):
    periods = pd.period_range("2020-01-01", periods=len(series), freq=period)
    for ds in (periods, periods.astype(object)):
        frame, found = check_frame(series.assign(ds=ds))
        assert frame["ds"].tolist() == [*periods.to_timestamp()]
        assert found.split("-")[0] == freq


def test_days_within_months_have_no_frequency_to_give(series):
    late = series.assign(ds=series["ds"] + pd.Timedelta(days=14))
    with pytest.raises(ValueError, match=r"2000-01-15 .*; move dates to the first of the month"):
        check_frame(late)
    irregular = series[:4].assign(ds=pd.to_datetime(["2000-01", "2000-02", "2000-05", "2000-06"]))
    with pytest.raises(ValueError, match="give freq"):
        check_frame(irregular)


def test_an_index_may_be_named_as_a_column(series):
    frame, _ = check_frame(series.set_index(pd.Index(series["ds"], name="ds")), fill="linear")
    pd.testing.assert_frame_equal(frame, series, check_dtype=False)


def test_labels_of_rows_may_be_repeated():
    parts = [monthly(20, "a"), monthly(20, "b")]
    frame, _ = check_frame(pd.concat(parts), fill="linear")
    pd.testing.assert_frame_equal(frame, pd.concat(parts, ignore_index=True), check_dtype=False)


def test_an_index_of_several_levels_may_be_named_as_columns(series):
    frame, _ = check_frame(series.set_index(["unique_id", "ds"], drop=False))
    pd.testing.assert_frame_equal(frame, series, check_dtype=False)


@pytest.mark.parametrize(
    "convert", [pd.to_datetime, lambda y: pd.to_timedelta(y, unit="s"), lambda y: y + 1j]
)
@pytest.mark.parametrize("fill", [None, "linear"])
def test_times_and_complex_numbers_are_no_values(series, convert, fill):
    with pytest.raises(ValueError, match="finite y in every row"):
        check_frame(series.assign(y=convert(series["y"])), fill=fill)


@pytest.mark.parametrize("wrong", [("a", 1), ["a"], {"a"}])
def test_ids_are_single_values(wrong):
    df = monthly().astype({"unique_id": object})
    for rows in ([3], df.index):
        ids = [wrong if k in rows else "a" for k in df.index]
        message = rf"df\['unique_id'\] must hold single values.* \(row {rows[0]}\)"
        with pytest.raises(ValueError, match=message):
            check_frame(df.assign(unique_id=pd.Series(ids, dtype=object)))
    assert len(check_frame(df.assign(unique_id=1))[0]) == len(df)


@pytest.mark.parametrize("name", ["cutoff", "_at", "self", 0])
def test_covariates_may_have_any_other_name(series, name):
    price = np.arange(72.0)
    df = series.copy()
    df[name] = price
    frame, _ = check_frame(df.drop(index=df.index[30]), "MS", "linear", covariates=[name])
    np.testing.assert_array_equal(frame[name], price)
    for known, later, _ in rolling_origins(frame, df, "linear", 6, 2, 6):
        at = len(known)
        np.testing.assert_array_equal(later[name], price[at : at + 6])


def test_the_given_frame_is_left_alone(series):
    before = series.copy()
    check_frame(series)
    pd.testing.assert_frame_equal(series, before)


def test_rows_are_named_as_the_index_names_them():
    df = with_value(5, "y", "many")
    df.index = pd.RangeIndex(2, len(df) + 2, name="line")
    with pytest.raises(ValueError, match=r"Got 'many' at ds 2000-06-01 .*\(line 7\)"):
        check_frame(df)


def test_what_has_no_logarithm_is_named():
    df = with_value(5, "y", -1.0)
    assert (check_frame(df)[0]["y"] == df["y"]).all()
    with pytest.raises(ValueError, match=r"above 0 .* Got -1.0 at ds 2000-06-01 .*\(row 5\)"):
        check_frame(df, positive=True)
    gap = monthly().drop(index=5)
    assert (check_frame(gap, fill="linear", positive=True)[0]["y"] > 0).all()
    with pytest.raises(ValueError, match=r"Got 0.0 at ds 2000-06-01 .* from fill='zero'"):
        check_frame(gap, fill="zero", positive=True)


@pytest.mark.parametrize("fill", [None, "linear"])
def test_rows_that_are_held_out_need_no_logarithm(fill):
    df = pd.concat([with_value(66, "y", 0.0), monthly(50, "bb")])
    for rows in (df, df.drop(index=[68, 69])[::-1]) if fill else (df,):
        assert len(check_frame(rows, fill=fill, positive=True, held_out=6)[0]) == len(df)
        with pytest.raises(ValueError, match=r"Got 0.0 at ds 2005-07-01 .*\(row 66\)"):
            check_frame(rows, fill=fill, positive=True, held_out=5)
    zero: dict[str, Any] = {"fill": "zero", "positive": True}
    gap = df.drop(index=67)
    assert (check_frame(gap, **zero, held_out=6)[0]["y"] == 0).sum() == 2
    with pytest.raises(ValueError, match=r"Got 0.0 .* from fill='zero'"):
        check_frame(gap[gap["y"] != 0], **zero, held_out=4)


@pytest.mark.parametrize(
    ("fill", "expected"), [("linear", [4.0, 5.0]), ("previous", [3.0, 3.0]), ("zero", [0.0, 0.0])]
)
def test_fill_closes_gaps_and_missing_values(fill, expected):
    df = pd.concat([monthly(30), monthly(30, "bb")], ignore_index=True)
    df["y"] = np.arange(60.0)
    df.loc[4, "y"] = np.nan
    frame, freq = check_frame(df.drop(index=5), fill=fill)
    assert freq == "MS"
    assert frame["y"].tolist()[:3] == [0, 1, 2]
    assert frame["y"].tolist()[4:6] == expected
    assert frame["ds"].tolist() == df["ds"].tolist()
    assert frame["unique_id"].tolist() == df["unique_id"].tolist()
    assert frame["y"].tolist()[30:] == df["y"].tolist()[30:]


@pytest.mark.parametrize("fill", ["linear", "previous", "zero"])
def test_series_are_filled_as_each_by_itself(fill):
    rng = np.random.default_rng(0)
    parts = []
    for k in range(20):
        df = monthly(int(rng.integers(5, 40)), f"{k:02}", f"20{k:02}-03-01")
        df = df.assign(price=rng.normal(size=len(df)))
        for name in ("y", "price"):
            df.loc[(rng.random(len(df)) < 0.4) & (df.index > 0), name] = np.nan
        parts.append(df[(rng.random(len(df)) < 0.7) | (df.index == 0)])
    frame, _ = check_frame(pd.concat(parts).sample(frac=1), "MS", fill, ["price"])
    expected = []
    for df in parts:
        every = df.set_index("ds").asfreq("MS")
        every["unique_id"] = df["unique_id"].iloc[0]
        values = every[["y", "price"]]
        if fill == "linear":
            values = values.interpolate(limit_direction="both")
        else:
            values = values.ffill() if fill == "previous" else values.fillna(0.0)
        expected.append(every.assign(**values).reset_index())
    pd.testing.assert_frame_equal(
        frame, pd.concat(expected, ignore_index=True)[frame.columns], check_exact=True
    )


@pytest.mark.parametrize("name", ["price", "self", 0])
def test_a_gap_of_a_covariate_shows_nothing_beyond_the_horizon(name):
    df = pd.concat([monthly(40, "a"), monthly(36, "bb")], ignore_index=True)
    df[name] = np.arange(76.0) ** 2
    df[name] = df[name].mask(df.index.isin([20, 21, 28, 29, 34, 35, 64, 65, 70]))
    for fill in ("linear", "previous"):
        frame, _ = check_frame(df, fill=fill, covariates=[name])
        for k, (known, later, _) in enumerate(rolling_origins(frame, df, fill, 6, 3, 5)):
            held_out = 6 + 5 * (2 - k)
            from_end = df.groupby("unique_id").cumcount(ascending=False)
            seen = df[from_end >= held_out - 6]
            expected, _ = check_frame(seen, fill=fill, covariates=[name])
            shown = pd.concat([known, later])
            for unique_id in ("a", "bb"):
                np.testing.assert_array_equal(
                    shown[name][shown["unique_id"] == unique_id],
                    expected[name][expected["unique_id"] == unique_id],
                )


def test_a_covariate_must_have_a_value_up_to_the_horizon():
    df = monthly(40).assign(price=1.0)
    df["price"] = df["price"].where(df.index == 39)
    frame, _ = check_frame(df, fill="linear", covariates=["price"])
    with pytest.raises(ValueError, match="series 'a' has no price up to 2003-03-01"):
        list(rolling_origins(frame, df, "linear", 6, 2, 1))


def test_a_series_without_values_is_not_filled_from_another():
    df = pd.concat([monthly(9, k) for k in ("a", "bb", "cc")], ignore_index=True)
    df.loc[df["unique_id"] == "bb", "y"] = np.nan
    for fill in ("linear", "previous"):
        with pytest.raises(ValueError, match=f"series 'bb' has no value that fill='{fill}'"):
            check_frame(df, fill=fill)
    df.loc[12, "y"] = 5.0
    filled = check_frame(df, fill="linear")[0]
    assert (filled["y"][filled["unique_id"] == "bb"] == 5).all()


def test_fill_takes_neither_text_nor_infinity_nor_stamps_between_the_others():
    for bad, message in ((np.inf, "Got inf"), ("many", "Got 'many'")):
        with pytest.raises(ValueError, match=message):
            check_frame(with_value(5, "y", bad), fill="linear")
    df = monthly()
    df.loc[7, "ds"] = pd.Timestamp("2000-08-09")
    with pytest.raises(ValueError, match=r"2000-08-09 .*\(row 7\), which is no timestamp of .* MS"):
        check_frame(df, fill="linear")


def test_fill_needs_a_value_to_start_from():
    frame, _ = check_frame(with_value(0, "y", np.nan), fill="linear")
    assert frame["y"].iloc[0] == frame["y"].iloc[1]
    with pytest.raises(ValueError, match="series 'a' has no value that fill='previous' could use"):
        check_frame(with_value(0, "y", np.nan), fill="previous")


@pytest.mark.parametrize("freq", ["D", "B", "W-SUN", "15min"])
def test_a_frequency_is_found_in_spite_of_gaps(freq):
    df = monthly(60).assign(ds=pd.date_range("2020-01-01", periods=60, freq=freq))
    frame, found = check_frame(df.drop(index=[17, 18, 40]), fill="linear")
    assert found == freq
    assert frame["ds"].tolist() == df["ds"].tolist()


def test_a_year_that_is_mistyped_is_told_before_memory_runs_out():
    for k, year in ((59, 2200), (0, 1700)):
        ds = pd.Series(pd.date_range("2020-01-01", periods=60, freq="s"))
        ds[k] = ds[k].replace(year=year)
        df = monthly(60).assign(ds=ds)
        df.index = pd.Index([7] * 60, name="line")  # labels need not differ
        with pytest.raises(ValueError, match=rf"series 'a' has {year}-.* \(line 7\), too far"):
            check_frame(df, fill="linear")


@pytest.mark.parametrize(
    ("zone", "day"),
    [("America/Sao_Paulo", "2017-10-15"), ("America/Havana", "2020-11-01")],
    ids=["left out", "repeated"],
)
def test_a_midnight_that_the_clock_leaves_out_or_repeats(zone, day):
    days = pd.date_range(end=day, periods=40)
    first_of_both = np.ones(40, dtype=bool)
    ds = days.tz_localize(zone, nonexistent="shift_forward", ambiguous=first_of_both)
    df = monthly(40).assign(ds=ds)
    for rows in (df, df[:-1], df[:-2]):
        frame, freq = check_frame(rows)
        assert freq == "D"
        assert frame["ds"].tolist() == rows["ds"].tolist()
        assert grid(frame["ds"], "D", beyond=40 - len(rows)).tolist() == ds.tolist()
    filled, _ = check_frame(df.drop(index=20), fill="linear")
    assert filled["ds"].tolist() == ds.tolist()
    next_day = (days[-1] + pd.Timedelta(days=1)).tz_localize(zone)
    assert grid(df["ds"], "D", beyond=1)[-1] == next_day
    later = pd.date_range(day, periods=40).tz_localize(
        zone, nonexistent="shift_forward", ambiguous=first_of_both
    )
    frame, freq = check_frame(monthly(40).assign(ds=later))
    assert freq == "D"
    assert grid(frame["ds"], "D", beyond=1)[:-1].tolist() == later.tolist()


def test_covariates_that_are_missing_may_have_any_name(series):
    with pytest.raises(ValueError, match=r"the columns unique_id, ds, y, 5. Missing: \[5\]"):
        check_frame(series, covariates=[5])  # type: ignore[list-item]


def test_covariates_must_be_there_and_finite():
    df = monthly().assign(price=1.0)
    assert "price" in check_frame(df, covariates=["price"])[0]
    assert "price" not in check_frame(df)[0]
    with pytest.raises(ValueError, match=r"Missing: \['cost'\]"):
        check_frame(df, covariates=["cost"])
    df.loc[3, "price"] = np.nan
    with pytest.raises(ValueError, match=r"finite price in every row. Got nan .*\(row 3\)"):
        check_frame(df, covariates=["price"])
