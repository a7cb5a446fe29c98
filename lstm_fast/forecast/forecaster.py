"""Forecasts of one or many series with an LSTM, and the benchmark that any model must beat."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lstm_fast import LSTM
from lstm_fast.forecast.frame import check_frame, each_series, future_timestamps
from lstm_fast.forecast.intervals import ConformalIntervals
from lstm_fast.forecast.model import ACTIVATIONS, SeasonalLSTM, TrainingModule
from lstm_fast.forecast.windows import Panel, Windows, as_is

_POSITIVE = (
    "h",
    "input_size",
    "hidden_size",
    "num_layers",
    "dense_size",
    "learning_rate",
    "batch_size",
    "max_steps",
    "season_length",
    "n_models",
)


@dataclass(kw_only=True)
class Forecaster:
    """Forecasts series `h` steps ahead: the mean of `n_models` networks that differ by seed.

    Each network (`SeasonalLSTM`) adds a learned correction to the value of a season ago; windows
    are logarithms, less their mean. Months and quarters are cleared of trading-day effects, which
    are learned too. Intervals come from the errors of networks that were trained without the last
    `calibration_size` rows (`ConformalIntervals`); those networks serve for nothing else.

    The defaults were chosen on the beer, wine and spirits series (2019 vintage) by the errors of 7
    origins whose targets end in February 2017; nothing later was looked at in choosing.

    Args:
        h: steps to forecast.
        input_size: steps that the LSTM reads, at least `season_length`.
        hidden_size, num_layers: of the LSTM.
        dense_size: units of the dense layer between the LSTM and the output.
        activation: of the dense layer, a key of `ACTIVATIONS`.
        dropout: of the encoding and of the dense layer, and between the layers of the LSTM.
        learning_rate: at the first step; it falls to 0 on half a cosine.
        batch_size: windows in a training step.
        max_steps: training steps of each network.
        levels: coverage of the intervals, in per cent; without any, training takes half the time.
        seed: of the first network; the next has `seed + 1`. A seed gives the same forecast again.
            The random state of the process is left as it was.
        season_length: rows in a season; 1 for none.
        n_models: networks to average.
        calibration_size: last rows of `df` that calibrate the intervals; None for `3 * h`.
        log: forecast logarithms, which needs `y` above 0.
        freq: pandas alias of the frequency; None to infer it.
        lstm_class: `lstm_fast.LSTM`, `torch.nn.LSTM` or a subclass of it.
        trainer_options: further arguments of `lightning.Trainer`.

    Raises:
        ValueError: naming the argument that has no sense.
    """

    h: int = 12
    input_size: int = 36
    hidden_size: int = 64
    num_layers: int = 1
    dense_size: int = 32
    activation: str = "relu"
    dropout: float = 0.1
    learning_rate: float = 5e-3
    batch_size: int = 32
    max_steps: int = 400
    levels: Sequence[float] = (80, 95)
    seed: int = 0
    season_length: int = 12
    n_models: int = 3
    calibration_size: int | None = None
    log: bool = True
    freq: str | None = None
    lstm_class: type[nn.LSTM] = LSTM
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0. Got {getattr(self, name)}")
        if self.input_size < self.season_length:
            raise ValueError(
                f"input_size must be at least season_length, {self.season_length}. "
                f"Got {self.input_size}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}. Got {self.activation!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1). Got {self.dropout}")
        _check_levels(self.levels)
        if self.calibration_size is None:
            self.calibration_size = 3 * self.h
        if self.calibration_size < self.h:
            raise ValueError(f"calibration_size must be at least h. Got {self.calibration_size}")

    def fit(self, df: pd.DataFrame) -> Forecaster:
        """Train on all rows of `df`: ``unique_id``, ``ds``, ``y``, one or many series.

        Raises:
            ValueError: naming the series and the row, if a series is too short or irregular, or
                has missing, repeated or (with `log`) non-positive values.
        """
        frame, self._freq = check_frame(df, self.freq)
        self._origin: pd.Timestamp = frame["ds"].min()
        held_out = int(self.calibration_size or 0) if self.levels else 0
        self._check_lengths(frame, self.input_size + self.h + held_out)
        panel = self._panel(frame)
        self._intervals = self._calibrate(panel, held_out) if held_out else None
        self._scale = panel.scale(self.input_size)
        self._networks = self._train(panel.windows(self.input_size, self._scale, slice(None)))
        self._fitted = panel
        return self

    def predict(
        self, df: pd.DataFrame | None = None, levels: Sequence[float] | None = None
    ) -> pd.DataFrame:
        """Forecast the `h` steps after the training part, or after `df`, without training again.

        Args:
            df: later rows of the series that were fitted, the last `input_size` at least.
            levels: coverage of the intervals in per cent; None for the levels of the forecaster.

        Returns:
            A long frame with the columns ``unique_id``, ``ds``, ``y_hat`` and for each level
            ``lo-80``, ``hi-80`` and so on.

        Raises:
            RuntimeError: before `fit`, or if `levels` are asked of a forecaster fitted without.
            ValueError: as `fit`, and for a series that was not fitted.
        """
        if not hasattr(self, "_fitted"):
            raise RuntimeError("call fit before predict")
        levels = self.levels if levels is None else levels
        _check_levels(levels)
        if levels and self._intervals is None:
            raise RuntimeError("levels need a forecaster that was fitted with levels")
        panel, scale = self._fitted, self._scale
        if df is not None:
            frame, _ = check_frame(df, self._freq)
            self._check_lengths(frame, self.input_size)
            panel = self._panel(frame)
            place = self._fitted.unique_ids.get_indexer(panel.unique_ids)
            if (place < 0).any():
                raise ValueError(f"series {panel.unique_ids[place < 0][0]!r} was not fitted")
            scale = scale[place]
        windows = panel.last_windows(self.input_size, scale)
        return self._forecast_frame(panel, windows, scale, levels)

    def _check_lengths(self, frame: pd.DataFrame, needed: int) -> None:
        rows = frame["unique_id"].value_counts()
        if rows.min() < needed:
            raise ValueError(
                f"series {rows.idxmin()!r} is too short: input_size, h and calibration_size "
                f"need {needed} rows. Got {rows.min()}"
            )

    def _panel(self, frame: pd.DataFrame) -> Panel:
        if self.log:
            if (frame["y"] <= 0).any():
                row = frame[frame["y"] <= 0].iloc[0]
                raise ValueError(
                    f"series {row['unique_id']!r} must be above 0 for its logarithm. "
                    f"Got {row['y']} at ds {row['ds']}; use log=False"
                )
            frame = frame.assign(y=np.log(frame["y"]))
        return Panel.from_frame(frame, self._freq, self.h, self.season_length, self._origin)

    def _calibrate(self, panel: Panel, held_out: int) -> ConformalIntervals:
        scale = panel.scale(self.input_size, held_out)
        networks = self._train(panel.windows(self.input_size, scale, slice(-held_out)))
        windows = panel.windows(self.input_size, scale, slice(-held_out, None))
        target = windows.__getitems__(range(len(windows))).target.numpy()
        return ConformalIntervals.from_errors(target - _mean_forecast(networks, windows))

    def _train(self, windows: Windows) -> list[SeasonalLSTM]:
        return [self._train_one(windows, self.seed + k) for k in range(self.n_models)]

    def _train_one(self, windows: Windows, seed: int) -> SeasonalLSTM:
        with torch.random.fork_rng(), _quiet_lightning():
            torch.manual_seed(seed)
            network = SeasonalLSTM(
                h=self.h,
                input_size=self.input_size,
                season_length=self.season_length,
                trading_size=windows.panel.trading.shape[1],
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                dense_size=self.dense_size,
                activation=self.activation,
                dropout=self.dropout,
                lstm_class=self.lstm_class,
            )
            # One long epoch, since Lightning spends more on an epoch's end than on a step.
            sampler = RandomSampler(windows, num_samples=self.max_steps * self.batch_size)
            loader = DataLoader(windows, self.batch_size, sampler=sampler, collate_fn=as_is)
            options = {
                "accelerator": "cpu",
                "max_steps": self.max_steps,
                "gradient_clip_val": 1.0,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **self.trainer_options,
            }
            module = TrainingModule(network, self.learning_rate, self.max_steps)
            lightning.Trainer(**options).fit(module, loader)
        return network.eval()

    def _forecast_frame(
        self, panel: Panel, windows: Windows, scale: NDArray[np.float64], levels: Sequence[float]
    ) -> pd.DataFrame:
        mean = windows.__getitems__(range(len(windows))).mean.numpy()
        center = mean + scale[:, None] * _mean_forecast(self._networks, windows)
        back = np.exp if self.log else np.asarray
        future = [ds[-self.h :] for ds in panel.ds]
        columns: dict[str, Any] = {
            "unique_id": panel.unique_ids.repeat(self.h),
            "ds": future[0].append(future[1:]),
            "y_hat": back(center).ravel(),
        }
        for level in levels:
            assert self._intervals is not None
            half_width = scale[:, None] * self._intervals.half_width(level)
            columns[f"lo-{level:g}"] = back(center - half_width).ravel()
            columns[f"hi-{level:g}"] = back(center + half_width).ravel()
        return pd.DataFrame(columns)


def seasonal_naive(df: pd.DataFrame, h: int, season_length: int) -> pd.DataFrame:
    """The last season again: a frame ``unique_id``, ``ds``, ``y_hat`` of `h` rows a series.

    Raises:
        ValueError: as `Forecaster.fit`.
    """
    frame, freq = check_frame(df)
    forecasts = []
    for unique_id, series in each_series(frame):
        if len(series) < season_length:
            raise ValueError(
                f"series {unique_id!r} is too short: season_length needs {season_length} rows. "
                f"Got {len(series)}"
            )
        season = series["y"].to_numpy()[-season_length:]
        ds = future_timestamps(series["ds"].iloc[-1], h, freq)
        forecasts.append(
            pd.DataFrame({"unique_id": unique_id, "ds": ds, "y_hat": np.resize(season, h)})
        )
    return pd.concat(forecasts, ignore_index=True)


@torch.inference_mode()
def _mean_forecast(networks: Sequence[SeasonalLSTM], windows: Windows) -> NDArray[np.float64]:
    """[windows, h], on the scale of the network."""
    forecasts = []
    for chunk in torch.arange(len(windows)).split(1024):
        batch = windows.__getitems__(chunk.tolist())
        members = [network(batch.values, batch.season, batch.trading) for network in networks]
        forecasts.append(torch.stack(members).mean(dim=0).double())
    result: NDArray[np.float64] = torch.cat(forecasts).numpy()
    return result


def _check_levels(levels: Sequence[float]) -> None:
    for level in levels:
        if not 0 < level < 100:
            raise ValueError(f"levels must lie between 0 and 100. Got {level}")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hints about devices, workers and logging intervals."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
