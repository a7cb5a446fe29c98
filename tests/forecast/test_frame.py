"""Bad input is refused with a message that says where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lstm_fast.forecast.frame import check_frame
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
        (with_value(5, "ds", "someday"), r"df\['ds'\] must hold timestamps.*someday"),
        (with_value(5, "unique_id", None), "finite unique_id"),
        (pd.concat([monthly(), monthly()[4:5]]), "series 'a' has 2000-05-01 .* more than once"),
        (monthly().drop(index=9), "regular timestamps. 2000-09-01 .* is followed by 2000-11-01"),
        (monthly(2), "has 2 rows: give freq"),
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


def test_the_given_frame_is_left_alone(series):
    before = series.copy()
    check_frame(series)
    pd.testing.assert_frame_equal(series, before)
