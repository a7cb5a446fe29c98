"""The series that is shipped with the package."""

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
    source = files("lstm_fast.forecast") / "data" / f"S4248SM144NCEN_{vintage}.csv"
    with source.open("r", encoding="utf-8") as file:
        frame = pd.read_csv(file, header=0, names=["ds", "y"], parse_dates=["ds"])
    frame.insert(0, "unique_id", "beer_wine_sales")
    return frame.astype({"y": "float64"})
