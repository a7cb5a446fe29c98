"""A small series, and a forecaster that trains in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch

from lstm_fast.forecast import Forecaster
from tests.forecast.series import monthly


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Networks this small gain nothing from a second thread, and lose on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def series() -> pd.DataFrame:
    return monthly()


@pytest.fixture
def small() -> Callable[..., Forecaster]:
    def make(**options) -> Forecaster:
        defaults = {
            "h": 6,
            "input_size": 24,
            "hidden_size": 5,
            "dense_size": 4,
            "max_steps": 4,
            "batch_size": 8,
            "n_models": 2,
            "calibration_size": 12,
        }
        return Forecaster(**{**defaults, **options})

    return make
