"""Series made for the tests."""

from __future__ import annotations

import numpy as np
import pandas as pd


def monthly(rows: int = 72, unique_id: str = "a", start: str = "2000-01-01") -> pd.DataFrame:
    """A trend, a season and a little noise, always above 0."""
    step = np.arange(rows)
    noise = np.random.default_rng(len(unique_id)).normal(size=rows)
    y = 100 + 0.5 * step + 10 * np.sin(2 * np.pi * step / 12) + noise
    ds = pd.date_range(start, periods=rows, freq="MS")
    return pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y})
