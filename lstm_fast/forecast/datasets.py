"""The series that are shipped with the package."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

VINTAGES = (2019, 2022)


def load_beer_wine_sales(vintage: int = 2019) -> pd.DataFrame:
    """Monthly US wholesale sales of beer, wine and distilled alcoholic beverages.

    Millions of US dollars, not seasonally adjusted; US Census Bureau (public domain), FRED id
    S4248SM144NCEN.

    Args:
        vintage: 2019 (325 months, 1992-01 to 2019-01) or 2022 (367 months, to 2022-07). The later
            vintage revises the earlier one from 2012 on.

    Returns:
        A long frame with the columns ``unique_id``, ``ds`` (first day of the month) and ``y``.

    Raises:
        ValueError: for any other vintage.
    """
    if vintage not in VINTAGES:
        raise ValueError(f"vintage must be one of {VINTAGES}. Got {vintage}")
    return _read(f"S4248SM144NCEN_{vintage}.csv", "beer_wine_sales")


def load_liquor_store_sales() -> pd.DataFrame:
    """Monthly sales of US beer, wine and liquor stores.

    Millions of US dollars, not seasonally adjusted, 324 months from 1992-01 to 2018-12; US Census
    Bureau (public domain), FRED id MRTSSM4453USN.

    Returns:
        A long frame with the columns ``unique_id``, ``ds`` (first day of the month) and ``y``.
    """
    return _read("MRTSSM4453USN.csv", "liquor_store_sales")


def _read(name: str, unique_id: str) -> pd.DataFrame:
    source = files("lstm_fast.forecast") / "data" / name
    with source.open("r", encoding="utf-8") as file:
        frame = pd.read_csv(file, header=0, names=["ds", "y"], parse_dates=["ds"])
    frame.insert(0, "unique_id", unique_id)
    return frame.astype({"y": "float64"})
