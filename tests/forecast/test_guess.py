"""Settings that the series suggest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lstm_fast.forecast import Forecaster
from lstm_fast.forecast.guess import guess_settings, input_size_for, season_of
from tests.forecast.series import monthly


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("MS", 12), ("ME", 12), ("BMS", 12), ("QS-OCT", 4), ("QE-DEC", 4), ("YS-JAN", 1),
        ("W-SUN", 52), ("D", 7), ("B", 5), ("h", 24), ("2h", 12), ("15min", 96), ("min", 1440),
        ("3MS", 4), ("7D", 52), ("2D", 1), ("5MS", 1),
    ],
)  # fmt: skip
def test_seasons(freq, season):
    assert season_of(freq) == season


def test_input_size_leaves_rows_to_train_on():
    assert input_size_for(12, 12, 325) == 36
    assert input_size_for(12, 12, 100) == 28
    assert input_size_for(12, 12, 50) == 12
    assert input_size_for(1, 30, 1000) == 60
    assert input_size_for(7, 30, 1000) == 60


def test_everything_is_guessed_and_told():
    settings = guess_settings(monthly(120), 12, {})
    assert settings.options == {
        "h": 12, "freq": "MS", "season_length": 12, "fill": None, "input_size": 36, "log": True,
    }  # fmt: skip
    assert len(settings.guesses) == 4
    Forecaster(**settings.options)


def test_what_is_stated_is_not_guessed():
    options = {"freq": "MS", "input_size": 20, "log": False}
    settings = guess_settings(monthly(120), 6, options, season_length=4)
    assert settings.guesses == []
    assert settings.options == {**options, "h": 6, "season_length": 4, "fill": None}


def test_values_at_or_below_0_and_filled_rows():
    df = monthly(120).assign(y=np.arange(120.0))
    settings = guess_settings(df.drop(index=[50, 51]), 6, {"fill": "linear"})
    assert settings.options["log"] is False
    assert "2 missing rows are filled (linear)" in settings.guesses
    assert settings.frame["y"].tolist() == df["y"].tolist()


def test_values_of_a_backtest_have_no_part_in_the_guess():
    df = pd.concat([monthly(120), monthly(60, "bb")])
    for row, log in ((113, False), (114, True)):
        zero = df.assign(y=df["y"].where((df.index != row) | (df["unique_id"] != "a"), 0.0))
        assert guess_settings(zero, 6, {}, test_size=6).options["log"] is log


def test_rows_of_a_backtest_are_not_counted_on():
    assert guess_settings(monthly(120), 12, {}, test_size=30).options["input_size"] == 18


def test_series_too_short_for_a_season_have_none():
    df = monthly(100).assign(ds=pd.date_range("2020-01-05", periods=100, freq="W"))
    settings = guess_settings(df, 13, {})
    assert "too short for seasons of 52 rows: none" in settings.guesses
    assert settings.options["season_length"] == 1
    Forecaster(**settings.options, max_steps=1, n_models=1).fit(settings.frame)
    assert guess_settings(df, 12, {}).options["season_length"] == 52
    assert guess_settings(df, 12, {}, test_size=12).options["season_length"] == 1
    assert guess_settings(df, 13, {}, season_length=52).options["season_length"] == 52
    assert guess_settings(df, 13, {"season_length": 52}).options["season_length"] == 52


def test_series_too_short_for_all_that_end_in_an_error_that_says_so():
    df = pd.concat([monthly(120), monthly(30, "bb")])
    settings = guess_settings(df, 12, {})
    with pytest.raises(ValueError, match=r"series 'bb' is too short.* Got 30; lower h, season_len"):
        Forecaster(**settings.options).fit(settings.frame)
