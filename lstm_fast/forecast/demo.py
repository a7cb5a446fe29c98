"""The last 12 months of the beer, wine and spirits series, forecast from the months before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from lstm_fast.forecast.forecaster import Forecaster, seasonal_naive
from lstm_fast.forecast.metrics import accuracy

H = SEASON = 12
PREDICTIONS = 20


@dataclass(frozen=True)
class Result:
    """What one method achieved; times are medians in seconds, None where nothing is trained."""

    forecast: pd.DataFrame
    accuracy: dict[str, float]
    train_s: float | None
    predict_s: float


def run_demo(
    df: pd.DataFrame, layers: Mapping[str, type[nn.LSTM]], options: Mapping[str, Any]
) -> dict[str, Result]:
    """Forecast the last 12 rows of one series with each layer, and with the seasonal naive.

    Each layer trains the same networks from the same seeds. The layers take turns, forwards then
    backwards, so a machine that slows down on the way slows all alike; a short training of each
    goes before and is not timed.

    Args:
        df: long frame of one series.
        layers: name and class of each.
        options: of `Forecaster`.
    """
    train, test = df.iloc[:-H], df.iloc[-H:]

    def forecaster(layer: str, **more: Any) -> Forecaster:
        return Forecaster(
            h=H, season_length=SEASON, lstm_class=layers[layer], **{**options, **more}
        )

    for layer in layers:
        forecaster(layer, max_steps=3).fit(train).predict()
    fitted: dict[str, Forecaster] = {}
    seconds: dict[str, list[float]] = {layer: [] for layer in layers}
    for layer in [*layers, *reversed(list(layers))]:
        start = time.perf_counter()
        fitted[layer] = forecaster(layer).fit(train)
        seconds[layer].append(time.perf_counter() - start)

    naive, naive_s = _timed(lambda: seasonal_naive(train, H, SEASON))
    results = {"seasonal naive": Result(naive, accuracy(test, naive, train, SEASON), None, naive_s)}
    for layer, model in fitted.items():
        forecast, predict_s = _timed(model.predict)
        scores = accuracy(test, forecast, train, SEASON)
        results[layer] = Result(forecast, scores, statistics.median(seconds[layer]), predict_s)
    return results


def _timed(predict: Callable[[], pd.DataFrame]) -> tuple[pd.DataFrame, float]:
    seconds = []
    for _ in range(PREDICTIONS):
        start = time.perf_counter()
        forecast = predict()
        seconds.append(time.perf_counter() - start)
    return forecast, statistics.median(seconds)
