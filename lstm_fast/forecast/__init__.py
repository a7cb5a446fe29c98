"""Forecasting with `lstm_fast.LSTM`: long frames in, forecasts with intervals out."""

try:
    import lightning  # noqa: F401
    import pandas  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"lstm_fast.forecast needs {error.name}: pip install --no-build-isolation '.[forecast]'"
    ) from error

from lstm_fast.forecast.datasets import load_beer_wine_sales
from lstm_fast.forecast.forecaster import Forecaster, seasonal_naive
from lstm_fast.forecast.metrics import accuracy, mae, mase, rmse, smape
from lstm_fast.forecast.model import ACTIVATIONS, SeasonalLSTM

__all__ = [
    "ACTIVATIONS",
    "Forecaster",
    "SeasonalLSTM",
    "accuracy",
    "load_beer_wine_sales",
    "mae",
    "mase",
    "rmse",
    "seasonal_naive",
    "smape",
]
