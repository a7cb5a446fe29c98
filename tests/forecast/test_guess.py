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
    assert input_size_for(12, 12, 100) == 36
    assert input_size_for(12, 12, 64) == 28
    assert input_size_for(12, 12, 48) == 12
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
    options = {"freq": "MS", "input_size": 20, "log": False, "nonnegative": True}
    settings = guess_settings(monthly(120), 6, options, season_length=4)
    assert settings.guesses == []
    assert settings.options == {**options, "h": 6, "season_length": 4, "fill": None}


def test_values_at_or_below_0_and_filled_rows():
    df = monthly(120).assign(y=np.arange(120.0))
    settings = guess_settings(df.drop(index=[50, 51]), 6, {"fill": "linear"})
    assert settings.options["log"] is False
    assert "2 missing rows are filled (linear)" in settings.guesses
    assert settings.frame["y"].tolist() == df["y"].tolist()


def test_that_forecasts_do_not_fall_below_0_is_told_where_it_matters():
    told = "series that were never below 0 are not forecast below 0"
    zero, below = (monthly(120).assign(y=np.arange(120.0) - k) for k in (0, 1))
    both = pd.concat([below, zero.assign(unique_id="bb")])
    for df, is_told in ((monthly(120), False), (zero, True), (below, False), (both, True)):
        assert (told in guess_settings(df, 6, {}).guesses) is is_told
        assert told not in guess_settings(df, 6, {"nonnegative": False}).guesses


def test_values_of_a_backtest_have_no_part_in_the_guess():
    df = pd.concat([monthly(120), monthly(60, "bb")])
    for row, log in ((113, False), (114, True)):
        zero = df.assign(y=df["y"].where((df.index != row) | (df["unique_id"] != "a"), 0.0))
        assert guess_settings(zero, 6, {}, test_size=6).options["log"] is log


def test_rows_of_a_backtest_are_not_counted_on():
    assert guess_settings(monthly(120), 12, {}, test_size=66).options["input_size"] == 18


def test_series_too_short_for_a_season_have_none():
    df = monthly(100).assign(ds=pd.date_range("2020-01-05", periods=100, freq="W"))
    settings = guess_settings(df, 24, {}, test_size=1)
    assert "too short for seasons of 52 rows: none" in settings.guesses
    assert settings.options["season_length"] == 1
    Forecaster(**settings.options, max_steps=1, n_models=1).fit(settings.frame)
    assert guess_settings(df, 24, {}).options["season_length"] == 52
    assert guess_settings(df, 24, {"levels": []}, test_size=1).options["season_length"] == 52
    assert guess_settings(df, 24, {}, val_size=1).options["season_length"] == 1
    assert guess_settings(df, 24, {}, season_length=52).options["season_length"] == 52
    assert guess_settings(df, 24, {"season_length": 52}).options["season_length"] == 52


@pytest.mark.parametrize(
    ("h", "rows", "reads", "calibrate"),
    [(12, 36, 12, 12), (12, 48, 12, 12), (12, 60, 24, 12), (12, 84, 36, 12), (12, 100, 36, 28),
     (6, 24, 12, 6), (6, 36, 18, 6), (6, 48, 30, 6), (6, 64, 36, 10)],
)  # fmt: skip
def test_calibration_gives_way_before_the_season_and_the_window_do(h, rows, reads, calibrate):
    settings = guess_settings(monthly(rows), h, {})
    options = settings.options
    assert (options["season_length"], options["input_size"]) == (12, reads)
    assert options["calibration_size"] == calibrate
    assert f"the last {calibrate} rows calibrate intervals" in settings.guesses
    Forecaster(**options, max_steps=1, n_models=1).fit(settings.frame)


def test_calibration_is_as_long_as_it_is_said_to_be():
    assert guess_settings(monthly(48), 6, {"calibration_size": 7}).options["calibration_size"] == 7
    assert "calibration_size" not in guess_settings(monthly(48), 6, {"levels": []}).options
    assert "calibration_size" not in guess_settings(monthly(48), 6, {"input_size": 12}).options
    shorter = guess_settings(monthly(47), 6, {"input_size": 12})
    assert shorter.options["calibration_size"] == 17


def test_series_that_are_too_short_are_left_out():
    df = pd.concat([monthly(84, "a"), monthly(26, "new"), monthly(84, "bb"), monthly(50, "c")])
    settings = guess_settings(df, 6, {})
    alone = guess_settings(df[df["unique_id"].isin(["a", "bb"])], 6, {})
    assert settings.left_out.to_dict() == {"new": 26}
    assert settings.needed == 48
    assert settings.given["unique_id"].unique().tolist() == ["a", "bb", "c"]
    assert len(settings.frame) == len(settings.given) == 84 + 84 + 50
    assert settings.options["season_length"] == alone.options["season_length"] == 12
    assert settings.options["input_size"] == alone.options["input_size"] == 36
    assert settings.options["calibration_size"] == 6
    Forecaster(**settings.options, max_steps=1, n_models=1).fit(settings.frame)
    tested = guess_settings(df, 6, {}, test_size=6)
    assert tested.left_out.to_dict() == {"c": 50, "new": 26}
    assert tested.needed == 54
    assert set(guess_settings(df, 6, {"input_size": 12}).left_out) == set()


def test_series_of_which_all_are_too_short_end_in_an_error_that_says_so():
    df = pd.concat([monthly(25, "a"), monthly(30, "bb")])
    message = r"'bb' is too short.* 12 rows .* \(--season\), 12 .* make 36. Got 30"
    with pytest.raises(ValueError, match=message):
        guess_settings(df, 12, {})
    with pytest.raises(ValueError, match=r"'bb' is too short.* make 32 beside the last 3. Got 27"):
        guess_settings(df, 6, {}, season_length=20, test_size=3)
