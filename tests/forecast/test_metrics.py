"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lstm_fast.forecast import (
    accuracy,
    coverage,
    evaluate,
    mae,
    mase,
    rmse,
    seasonal_naive,
    smape,
)
from tests.forecast.series import monthly

Y, Y_HAT = [100.0, 200.0, 400.0], [110.0, 180.0, 400.0]


def test_mae():
    assert mae(Y, Y_HAT) == pytest.approx(10)


def test_rmse():
    assert rmse(Y, Y_HAT) == pytest.approx(math.sqrt(500 / 3))


def test_smape():
    assert smape(Y, Y_HAT) == pytest.approx(200 / 3 * (10 / 210 + 20 / 380))


def test_smape_takes_nothing_over_nothing_for_0_and_is_at_most_200():
    assert smape([0.0, 0.0], [0.0, 5.0]) == pytest.approx(100)
    assert smape([3.0], [-3.0]) == pytest.approx(200)


def test_mase():
    # Seasonal differences of the training part: 4, 2, 3; their mean is 3.
    assert mase(Y, Y_HAT, [1.0, 2.0, 5.0, 4.0, 8.0], season_length=2) == pytest.approx(10 / 3)


@pytest.mark.parametrize(
    ("y_train", "message"),
    [([1.0, 2.0], r"longer than 2. Got 2"), ([1.0, 2.0, 1.0, 2.0], "repeats itself")],
)
def test_mase_names_a_training_part_that_gives_no_scale(y_train, message):
    with pytest.raises(ValueError, match=message):
        mase(Y, Y_HAT, y_train, season_length=2)


@pytest.mark.parametrize("season_length", [0, -2, 1.5, None])
def test_a_season_counts_rows(season_length):
    df = monthly(40)
    message = f"season_length must be a whole number greater than 0. Got {season_length}"
    with pytest.raises(ValueError, match=message):
        mase(Y, Y_HAT, [1.0, 2.0, 5.0, 4.0, 8.0], season_length)
    with pytest.raises(ValueError, match=message):
        seasonal_naive(df, 3, season_length)
    with pytest.raises(ValueError, match=r"h must be a whole number greater than 0\. Got 0"):
        seasonal_naive(df, 0, 12)


@pytest.mark.parametrize("metric", [mae, rmse, smape])
@pytest.mark.parametrize(("y", "y_hat"), [([1.0, 2.0], [1.0]), ([], [])])
def test_shapes_must_agree(metric, y, y_hat):
    with pytest.raises(ValueError, match="one non-empty shape"):
        metric(y, y_hat)


def test_accuracy_matches_rows_by_timestamp():
    df = monthly(36)
    train, test = df[:24], df[24:]
    forecast = test.rename(columns={"y": "y_hat"}).assign(y_hat=lambda f: f["y_hat"] + 2)
    scores = accuracy(test, forecast.iloc[::-1], train, 12)
    assert scores["MAE"] == pytest.approx(2)
    assert scores["RMSE"] == pytest.approx(2)
    with pytest.raises(ValueError, match="covers 11 of the 12"):
        accuracy(test, forecast[1:], train, 12)


def test_seasonal_naive_repeats_the_last_season_of_each_series():
    df = pd.concat([monthly(30, "a"), monthly(40, "bb")])
    forecast = seasonal_naive(df, h=15, season_length=12)
    assert list(forecast.columns) == ["unique_id", "ds", "y_hat"]
    for name, rows in (("a", 30), ("bb", 40)):
        last = df[df["unique_id"] == name]["y"].to_numpy()[-12:]
        one = forecast[forecast["unique_id"] == name]
        assert one["y_hat"].tolist() == [*last, *last[:3]]
        expected = pd.date_range("2000-01-01", periods=rows + 15, freq="MS")[rows:]
        assert one["ds"].tolist() == expected.tolist()


def test_seasonal_naive_needs_a_season():
    with pytest.raises(ValueError, match=r"needs 12 rows. Got 11"):
        seasonal_naive(monthly(11), h=1, season_length=12)


def test_rows_may_come_in_any_order():
    df = monthly(40)
    forecasts = df[30:].assign(y_hat=df["y"][30:] + 1, cutoff=df["ds"][29])
    shuffled = df.sample(frac=1, random_state=0)
    expected = evaluate(forecasts, df, 12)
    pd.testing.assert_frame_equal(evaluate(forecasts, shuffled, 12), expected)


def test_values_may_be_text():
    df = monthly(40)
    forecasts = df[30:].assign(y_hat=df["y"][30:] + 1, cutoff=df["ds"][29])
    text = df.assign(y=df["y"].map(repr), ds=df["ds"].astype(str))
    pd.testing.assert_frame_equal(evaluate(forecasts, text, 12), evaluate(forecasts, df, 12))


def test_what_is_no_number_has_no_error():
    assert math.isnan(smape([1, 2], [math.nan, 2]))


def test_a_series_that_repeats_itself_has_no_mase():
    ds = pd.date_range("2020-01-01", periods=6, freq="D")
    df = pd.concat(
        [
            pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0}),
            pd.DataFrame({"unique_id": "b", "ds": ds, "y": [1.0, 2, 4, 3, 5, 6]}),
        ]
    )
    last = df[df["ds"] == ds[5]].assign(cutoff=ds[4], y_hat=1.0)
    scores = evaluate(last, df, 1).set_index("unique_id")
    assert scores["MASE"].isna().tolist() == [True, False]
    assert scores.loc["b", "MASE"] == pytest.approx(5 / 1.5)


def test_evaluate_says_what_is_missing():
    ds = pd.date_range("2000-01-01", periods=4, freq="MS")
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [1.0, 2.0, 4.0, 3.0]})
    forecasts = df[2:].assign(y_hat=3.0, cutoff=ds[1])
    evaluate(forecasts, df, 1)
    with pytest.raises(
        ValueError, match=r"forecasts must have the columns .* Missing: \['cutoff'\]"
    ):
        evaluate(forecasts.drop(columns="cutoff"), df, 1)
    with pytest.raises(ValueError, match=r"df must have the columns .* Missing: \['y'\]"):
        evaluate(forecasts, df.drop(columns="y"), 1)
    with pytest.raises(ValueError, match="df must have each series of forecasts"):
        evaluate(forecasts.assign(unique_id="b"), df, 1)
    with pytest.raises(ValueError, match="df must have rows"):
        evaluate(forecasts, df[:0], 1)


def many_series(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Series of several lengths, and forecasts of their last rows from two origins."""
    parts, forecasts = [], []
    for k in range(25):
        df = monthly(int(rng.integers(40, 60)), f"{k:02}", f"20{k:02}-03-01")
        parts.append(df)
        for hidden in (9, 6):
            last = df[len(df) - hidden :][:6].assign(cutoff=df["ds"].iloc[-hidden - 1])
            last["y_hat"] = last["y"] + rng.normal(size=6)
            last["lo-80"], last["hi-80"] = last["y_hat"] - 1, last["y_hat"] + 1
            last["y"] = last["y"].where(rng.random(6) < 0.8)
            forecasts.append(last)
    return pd.concat(parts), pd.concat(forecasts)


def test_series_are_scored_as_each_by_itself():
    rng = np.random.default_rng(0)
    df, forecasts = many_series(rng)
    scores = evaluate(forecasts.sample(frac=1, random_state=0), df, 12).set_index("unique_id")
    assert len(scores) == 25
    for unique_id, one in forecasts.groupby("unique_id"):
        series = df[df["unique_id"] == unique_id]
        train = series["y"][series["ds"] <= one["cutoff"].min()]
        known = one[one["y"].notna()]
        expected = {
            "MAE": mae(known["y"], known["y_hat"]),
            "RMSE": rmse(known["y"], known["y_hat"]),
            "sMAPE": smape(known["y"], known["y_hat"]),
            "MASE": mase(known["y"], known["y_hat"], train, 12),
            "coverage-80": coverage(one, 80),
        }
        assert scores.loc[unique_id].to_dict() == pytest.approx(expected, rel=1e-14)


def test_a_value_on_a_bound_is_in_the_interval():
    df = monthly(40)
    forecasts = df[30:].assign(y_hat=df["y"][30:], cutoff=df["ds"][29])
    for low, high in ((0, 1), (1, 0)):
        bounds = forecasts.assign(**{"lo-80": df["y"] - low, "hi-80": df["y"] + high})
        assert coverage(bounds, 80) == evaluate(bounds, df, 12)["coverage-80"][0] == 100


def test_a_row_is_compared_with_the_one_a_season_before_it_in_time():
    ds = pd.date_range("2020-01-06", periods=22, freq="D")
    season, noise = np.array([0.0, 50, 10, 90, 20, 70, 40]), np.arange(22) % 3
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.resize(season, 22) + noise})
    forecasts = df[21:].assign(cutoff=ds[20], y_hat=df["y"][21] + 1)
    pairs = [(k, k - 7) for k in range(7, 21)]
    for holes in ([], [9], [3, 9, 10]):
        errors = [abs(noise[k] - noise[j]) for k, j in pairs if k not in holes and j not in holes]
        for gaps in (df.drop(index=holes), df.assign(y=df["y"].where(~df.index.isin(holes)))):
            assert evaluate(forecasts, gaps, 7)["MASE"][0] == pytest.approx(1 / np.mean(errors))


def test_what_is_missing_is_0_in_the_scale_where_it_is_in_the_actual_values():
    df = monthly(60)
    gaps = df.drop(index=range(10, 20)).assign(y=lambda rows: rows["y"].where(rows.index != 30))
    zeros = df.assign(y=df["y"].where(~df.index.isin([*range(10, 20), 30]), 0.0))
    forecasts = df[54:].assign(cutoff=df["ds"][53], y_hat=df["y"][54:] + 1)
    expected = evaluate(forecasts, zeros, 12)
    pd.testing.assert_frame_equal(evaluate(forecasts, gaps, 12, fill="zero"), expected)
    given = evaluate(forecasts, gaps, 12)
    assert given["MASE"][0] > expected["MASE"][0]
    for fill in ("linear", "previous"):
        pd.testing.assert_frame_equal(evaluate(forecasts, gaps, 12, fill=fill), given)
    with pytest.raises(ValueError, match=r"fill must be None or one of linear.* Got 'next'"):
        evaluate(forecasts, gaps, 12, fill="next")


def test_the_frequency_may_be_given_where_gaps_hide_it():
    ds = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-04", "2020-01-07", "2020-01-08"])
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [1.0, 3, 7, 20, 22]})
    forecasts = df[4:].assign(cutoff=ds[3], y_hat=23.0)
    with pytest.raises(ValueError, match="give freq"):
        evaluate(forecasts, df, 1)
    assert evaluate(forecasts, df, 1, freq="D")["MASE"][0] == pytest.approx(1 / 2)
    assert evaluate(forecasts, df, 4, freq="D")["MASE"].isna().all()
    with pytest.raises(ValueError, match=r"series 'a' must be longer than 7 rows.* Got 7"):
        evaluate(forecasts, df, 7, freq="D")


def test_columns_of_forecasts_are_checked():
    df = monthly(40)
    forecasts = df[30:].assign(y_hat=1.0, cutoff=df["ds"][29])
    bounds = forecasts.assign(**{"lo-80": 0.0, "hi-80": 2.0})
    zoned = forecasts["cutoff"].dt.tz_localize("UTC")
    for wrong, message in (
        (bounds.drop(columns="hi-80"), r"forecasts must .* Missing: \['hi-80'\]"),
        (bounds.assign(**{"lo-x": 0.0}), "a column lo-... must name a level.* Got 'lo-x'"),
        (bounds.assign(**{"lo-nan": 0.0}), "a column lo-... must name a level.* Got 'lo-nan'"),
        (bounds.assign(unique_id=np.nan), r"forecasts\['unique_id'\] must name series. Got none"),
        (bounds.assign(**{"hi-80": "much"}), r"forecasts\['hi-80'\] must hold numbers. Got 'much'"),
        (forecasts.assign(y="many"), r"forecasts\['y'\] must hold numbers. Got 'many'"),
        (forecasts.assign(y_hat="many"), r"forecasts\['y_hat'\] must hold numbers. Got 'many'"),
        (forecasts.assign(cutoff=zoned), r"forecasts\['cutoff'\] must have no time zone"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(wrong, df, 12)
    with pytest.raises(ValueError, match=r"forecast must have .* Missing: \['lo-95', 'hi-95'\]"):
        coverage(bounds, 95)
    with pytest.raises(ValueError, match=r"forecast\['y'\] must hold numbers. Got 'many'"):
        coverage(bounds.assign(y="many"), 80)
    assert math.isnan(coverage(bounds.assign(y=np.nan), 80))
    text = forecasts.astype({"cutoff": str, "y": str})
    pd.testing.assert_frame_equal(evaluate(text, df, 12), evaluate(forecasts, df, 12))
