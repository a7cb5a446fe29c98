"""Forecasting with `lstm_fast.LSTM`: long frames in, forecasts with intervals out."""

from lstm_fast._load import install_extra

try:
    import lightning  # noqa: F401
    import pandas  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"lstm_fast.forecast needs {error.name}: {install_extra('forecast')}"
    ) from error

from lstm_fast.forecast.datasets import load_beer_wine_sales, load_liquor_store_sales
from lstm_fast.forecast.forecaster import Forecaster, seasonal_naive
from lstm_fast.forecast.losses import LOSSES
from lstm_fast.forecast.metrics import accuracy, coverage, evaluate, mae, mase, rmse, smape
from lstm_fast.forecast.model import ACTIVATIONS, DECODINGS, RecursiveLSTM, SeasonalLSTM
from lstm_fast.forecast.training import History

__all__ = [
    "ACTIVATIONS",
    "DECODINGS",
    "LOSSES",
    "Forecaster",
    "History",
    "RecursiveLSTM",
    "SeasonalLSTM",
    "accuracy",
    "coverage",
    "evaluate",
    "load_beer_wine_sales",
    "load_liquor_store_sales",
    "mae",
    "mase",
    "rmse",
    "seasonal_naive",
    "smape",
]
