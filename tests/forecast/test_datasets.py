"""The shipped series are whole, and where they come from is said beside them."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from lstm_fast.forecast import accuracy, load_beer_wine_sales, seasonal_naive

LAST_ROWS = {2019: (325, "2019-01-01", 10718.0), 2022: (367, "2022-07-01", 15112.0)}


@pytest.mark.parametrize("vintage", LAST_ROWS)
def test_rows_first_and_last_values(vintage):
    df = load_beer_wine_sales(vintage)
    rows, last, value = LAST_ROWS[vintage]
    assert list(df.columns) == ["unique_id", "ds", "y"]
    assert len(df) == rows
    assert (df["ds"].iloc[0], df["y"].iloc[0]) == (pd.Timestamp("1992-01-01"), 3459.0)
    assert (df["ds"].iloc[-1], df["y"].iloc[-1]) == (pd.Timestamp(last), value)
    assert df["y"].gt(0).all()
    assert df["ds"].tolist() == pd.date_range("1992-01-01", last, freq="MS").tolist()


def test_2019_is_the_default_and_vintages_agree_up_to_2011():
    old, new = load_beer_wine_sales(), load_beer_wine_sales(2022)
    assert len(old) == 325
    early = old["ds"] < "2012-01-01"
    assert np.array_equal(old["y"][early], new["y"][: early.sum()])
    revision = (new["y"][: len(old)] / old["y"] - 1).abs()
    assert 0 < revision.max() < 0.035


def test_unknown_vintage():
    with pytest.raises(ValueError, match=r"vintage must be one of \(2019, 2022\). Got 2020"):
        load_beer_wine_sales(2020)


def test_provenance_is_shipped():
    text = (files("lstm_fast.forecast") / "data" / "README.md").read_text(encoding="utf-8")
    for fact in ("S4248SM144NCEN", "US Census Bureau", "public\ndomain", "325", "367"):
        assert fact in text


def test_seasonal_naive_has_the_error_known_for_this_series():
    df = load_beer_wine_sales(2019)
    train, test = df[:-12], df[-12:]
    assert round(accuracy(test, seasonal_naive(train, 12, 12), train, 12)["RMSE"]) == 827
