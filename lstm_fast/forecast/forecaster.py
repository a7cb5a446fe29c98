"""Forecasts of one or many series with an LSTM, and the benchmark that any model must beat."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lstm_fast import LSTM
from lstm_fast.forecast import storage
from lstm_fast.forecast.frame import (
    check_covariates,
    check_fill,
    check_frame,
    check_positive,
    checked_freq,
    grid,
    grid_positions,
    in_zone_of,
    is_whole,
    never_negative,
    plain,
    rolling_origins,
    spans_of_series,
)
from lstm_fast.forecast.intervals import ConformalIntervals, mean_band, mean_center
from lstm_fast.forecast.losses import Loss, make_loss
from lstm_fast.forecast.model import ACTIVATIONS, DECODINGS, SeasonalLSTM
from lstm_fast.forecast.training import TrainingOptions, outputs_of, train
from lstm_fast.forecast.windows import Features, Panel, Windows

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
    "val_check_steps",
    "early_stop_patience",
    "checkpoint_steps",
)

# Windows that calibrate: with more, intervals would change by less than anybody sees. Of each
# series there are some, which tell its width from that of others.
_CALIBRATION_WINDOWS = 4096
_WINDOWS_OF_SERIES = 3


@dataclass(kw_only=True)
class Forecaster:
    """Forecasts series `h` steps ahead: the mean of `n_models` networks.

    Each network (`SeasonalLSTM`) adds a learned correction to the mean season of its window. Each
    window is the logarithm of the series, minus the window's mean, divided by the series' typical
    deviation. In training each window is given a random trend that ends with it (`tilt`), so that
    the networks neither count on the growth of all history nor take every trend for lasting. Months
    and quarters are cleared of trading-day effects, which are learned too; days and hours come with
    their place in the day, the week and the year. Intervals are widened by what networks that were
    trained without the last `calibration_size` rows got wrong there (`ConformalIntervals`); those
    networks serve for nothing else.

    The defaults were chosen by errors on 23 monthly and quarterly collections
    (`benchmarks/selection.py`): the rows of those in the backtest that come before the ones it
    forecasts, and other series. Nothing later was looked at.

    Settings that are changed later are those of the next `fit`, which checks them as the
    constructor does; `predict`, `future_rows` and `save` go by the ones that were fitted.
    `fill` is a matter of the frame that is given, and `trainer_options` of training alone: these
    are taken as they are.

    Args:
        h: steps to forecast.
        input_size: steps that the LSTM reads, at least `season_length`.
        hidden_size, num_layers: of the LSTM.
        dense_size: units of the dense layer between the LSTM and the output.
        activation: of the dense layer, a key of `ACTIVATIONS`.
        dropout: of the encoding and of the dense layer, and between the layers of the LSTM.
        learning_rate: at the first step; it falls to 0 on half a cosine.
        batch_size: windows in a training step, of all processes together. Where there are fewer,
            they come several times, with other trends (`tilt`).
        max_steps: training steps of each network.
        tilt: deviation of the random trends, over the usual slope of the windows of a series; 0 for
            none.
        loss: ``"mse"``, ``"mae"`` or ``"huber"`` for the forecast alone, ``"quantile"`` for the
            median and the bounds of `levels`, ``"normal"`` or ``"laplace"`` for a distribution.
        decoding: ``"direct"`` for all steps at once, ``"recursive"`` for each step from the one
            before it.
        levels: coverage of the intervals, in per cent; without any, training takes half the time.
        seed: of initial weights, dropout and the order of windows. A seed gives the same forecast
            again, whatever other threads train: trainings take turns, as the random state of the
            process is one. It is left as it was.
        season_length: rows in a season; 1 for none.
        n_models: networks to average, trained side by side.
        calibration_size: last rows of each series that calibrate the intervals; None for `3 * h`; 0
            to leave them as the networks give them, for losses that give some. From `2 * h` on,
            series whose errors differ have intervals of their own width; with fewer they share one.
        log: forecast logarithms, which needs `y` above 0.
        nonnegative: series that were never below 0, neither in the rows that were fitted nor in
            those given to `predict`, are not forecast below 0, nor are their bounds; False where
            they may yet fall below, as a temperature or a profit may.
        freq: pandas alias of the frequency; None to infer it.
        fill: what to do about missing timestamps and values, see `check_frame`; None to refuse.
        futr_exog_list: columns of covariates whose future is known when forecasting.
        id_size: numbers that are learned for each series, by which the network tells them apart;
            0 for none.
        early_stop_patience, val_check_steps: training stops when the loss on the validation rows
            has not fallen in so many checks; there is one every `val_check_steps` steps.
        checkpoint_dir: folder where training leaves its state every `checkpoint_steps` steps, from
            which the same `fit` goes on after a crash, or after it was cut short by an option of
            the trainer such as ``max_time``; None for none.
        lstm_class: `lstm_fast.LSTM`, `torch.nn.LSTM` or a subclass of it.
        trainer_options: further arguments of `lightning.Trainer`, for example
            ``{"precision": "bf16-mixed", "enable_progress_bar": True}`` or
            ``{"devices": 2, "strategy": "ddp"}``. Each training has its own copies of callbacks,
            except of a `History`.

    Raises:
        ValueError: naming the argument that has no sense.
    """

    h: int = 12
    input_size: int = 36
    hidden_size: int = 64
    num_layers: int = 1
    dense_size: int = 64
    activation: str = "relu"
    dropout: float = 0.4
    learning_rate: float = 1e-2
    batch_size: int = 32
    max_steps: int = 200
    tilt: float = 2.0
    loss: str = "mae"
    decoding: str = "direct"
    levels: Sequence[float] = (80, 95)
    seed: int = 0
    season_length: int = 12
    n_models: int = 3
    calibration_size: int | None = None
    log: bool = True
    nonnegative: bool = True
    freq: str | None = None
    fill: str | None = None
    futr_exog_list: Sequence[str] = ()
    id_size: int = 0
    early_stop_patience: int = 5
    val_check_steps: int = 20
    checkpoint_dir: Path | str | None = None
    checkpoint_steps: int = 100
    lstm_class: type[nn.LSTM] = LSTM
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, Real) or not float(value) > 0:
                raise ValueError(f"{name} must be a number greater than 0. Got {value!r}")
        self._check_types()
        if self.input_size < self.season_length:
            raise ValueError(
                f"input_size must be at least season_length, {self.season_length}. "
                f"Got {self.input_size}"
            )
        for name, choices in (("activation", ACTIVATIONS), ("decoding", DECODINGS)):
            if getattr(self, name) not in tuple(choices):  # which takes what has no hash
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}. Got {getattr(self, name)!r}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1). Got {self.dropout}")
        for name in ("tilt", "id_size"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0. Got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must fit in 64 bits. Got {self.seed}")
        if not isinstance(self.trainer_options, Mapping):
            raise ValueError(f"trainer_options must be a mapping. Got {self.trainer_options!r}")
        if "max_steps" in self.trainer_options:
            raise ValueError("trainer_options must not have max_steps, an argument of its own")
        if not isinstance(self.lstm_class, type) or not issubclass(self.lstm_class, nn.LSTM):
            raise ValueError(f"lstm_class must derive from torch.nn.LSTM. Got {self.lstm_class!r}")
        if self.checkpoint_dir is not None and not isinstance(
            self.checkpoint_dir, (str, os.PathLike)
        ):
            raise ValueError(f"checkpoint_dir must be a path. Got {self.checkpoint_dir!r}")
        if self.freq is not None and not isinstance(self.freq, str):
            self.freq = checked_freq(self.freq)  # of an offset, which no file can hold
        check_fill(self.fill)
        self.futr_exog_list = check_covariates(self.futr_exog_list)
        self.levels = _checked_levels(self.levels)
        loss = make_loss(self.loss, self.levels)
        size = self.calibration_size
        if size is not None and size < self.h and not (loss.has_width and size == 0):
            raise ValueError(
                f"calibration_size must be at least h, or 0 with a loss that gives intervals. "
                f"Got {self.calibration_size}"
            )

    @property
    def calibration_rows(self) -> int:
        """Last rows of each series that calibrate: none without `levels`."""
        size = 3 * self.h if self.calibration_size is None else self.calibration_size
        return size if self.levels else 0

    def _check_types(self) -> None:
        """Numbers become Python's own, which a file can hold."""
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            is_number = isinstance(value, Real) and math.isfinite(value)
            if option.type == "int" or (option.type == "int | None" and value is not None):
                if not is_number or value != int(value):
                    raise ValueError(f"{option.name} must be a whole number. Got {value!r}")
                setattr(self, option.name, int(value))
            elif option.type == "float":
                if not is_number:
                    raise ValueError(f"{option.name} must be a number. Got {value!r}")
                setattr(self, option.name, float(value))
            elif option.type == "bool":
                if not isinstance(value, (bool, np.bool_)):
                    raise ValueError(f"{option.name} must be True or False. Got {value!r}")
                setattr(self, option.name, bool(value))

    def fit(self, df: pd.DataFrame, val_size: int = 0) -> Forecaster:
        """Train on `df`: ``unique_id``, ``ds``, ``y`` and `futr_exog_list`, one or many series.

        Args:
            val_size: last rows of each series whose `y` decides when training stops, and nothing
                else in it; at least `h`. With 0 all rows train, for `max_steps`.

        Raises:
            ValueError: naming the series and the row, if a series is too short or irregular, or
                has missing, repeated or (with `log`) non-positive values; for `trainer_options`
                that leave no step of training, or that the trainer does not take.
        """
        before = dict(vars(self))
        try:
            self._fit(df, val_size)
        except BaseException:  # nothing of a training that failed stays
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def _fit(self, df: pd.DataFrame, val_size: int) -> None:
        self.__post_init__()  # settings may have changed
        if not is_whole(val_size) or (val_size and val_size < self.h):
            raise ValueError(
                f"val_size must be 0 or a whole number, at least h, {self.h}. Got {val_size!r}"
            )
        val_size = int(val_size)  # which a file can hold
        frame, freq = self._check(df, self.freq)
        held_out = self.calibration_rows
        needed = self.input_size + self.h + held_out + val_size
        what = "input_size, h, calibration_size and val_size need"
        self._check_lengths(frame, needed, what, "; lower h, season_length or input_size")
        self._features = Features.of(frame, freq, self.season_length, self.futr_exog_list)
        self._loss: Loss = make_loss(self.loss, self.levels)
        if self.checkpoint_dir is not None:
            storage.claim_folder(Path(self.checkpoint_dir), self, frame, val_size)
        panel = self._panel(frame)
        self._intervals = self._calibrate(panel, held_out, val_size) if held_out else None
        self._scale = panel.scale(self.input_size, val_size, self.log)
        self._networks = self._train("final", panel, self._scale, 0, val_size)
        self._fitted, self._unique_ids = frame, panel.unique_ids
        self._never_negative = never_negative(frame)
        self._keep_settings()

    def _keep_settings(self) -> None:
        names = {option.name for option in dataclasses.fields(self)} - {"fill", "trainer_options"}
        self._settings = copy.deepcopy({name: getattr(self, name) for name in names})

    def _as_fitted(self) -> Forecaster:
        """This forecaster with the settings that were fitted; before `fit`, as it is."""
        if not hasattr(self, "_fitted"):
            return self
        model = copy.copy(self)
        vars(model).update(self._settings)
        check_fill(model.fill)
        return model

    def predict(
        self,
        df: pd.DataFrame | None = None,
        futr_df: pd.DataFrame | None = None,
        levels: Sequence[float] | None = None,
    ) -> pd.DataFrame:
        """Forecast the `h` steps after the training part, or after `df`, without training again.

        Args:
            df: later rows of the series that were fitted, the last `input_size` at least.
            futr_df: ``unique_id``, ``ds`` and `futr_exog_list` of the rows to forecast, if there
                are such covariates; further rows are ignored.
            levels: coverage of the intervals in per cent; None for the levels of the forecaster.

        Returns:
            A long frame with the columns ``unique_id``, ``ds``, ``y_hat`` and for each level
            ``lo-80``, ``hi-80`` and so on.

        Raises:
            RuntimeError: before `fit`.
            ValueError: as `fit`, for a series that was not fitted, for a missing `futr_df`, and for
                times without a zone where those that were fitted have one, or the reverse; if
                `levels` are asked of a forecaster fitted without.
            FloatingPointError: if the forecast is not a number, or infinite.
        """
        if not hasattr(self, "_fitted"):
            raise RuntimeError("call fit before predict")
        model = self._as_fitted()
        levels = model.levels if levels is None else _checked_levels(levels)
        if levels and model._intervals is None and not model._loss.has_width:
            raise ValueError("levels need a forecaster that was fitted with levels")
        if model.futr_exog_list and futr_df is None:
            raise ValueError(f"futr_df must give the future of {list(model.futr_exog_list)}")
        frame = model._fitted
        if df is not None:
            df = in_zone_of(frame["ds"], df, "df")
            frame, _ = model._check(df, model._features.freq)
            model._check_lengths(frame, model.input_size, "input_size needs")
        panel = model._panel(frame, futr_df)
        place = model._unique_ids.get_indexer(panel.unique_ids)
        if (place < 0).any():
            unknown = plain(panel.unique_ids[place < 0][0])
            raise ValueError(f"series {unknown!r} was not fitted")
        windows = panel.last_windows(model.input_size, model._scale, place)
        forecast = model._forecast_frame(panel, windows, place, levels)
        if model.nonnegative:
            stays = model._never_negative[place] & never_negative(frame)
            floor = np.where(stays, 0.0, -np.inf).repeat(model.h)
            numbers = forecast.columns[2:]
            forecast[numbers] = forecast[numbers].clip(lower=floor, axis=0)
        return forecast

    def future_rows(self, df: pd.DataFrame) -> pd.DataFrame:
        """``unique_id`` and ``ds`` of the `h` rows that come after `df`, at the frequency that was
        fitted; before `fit`, at `freq`."""
        model = self._as_fitted()
        freq = model._features.freq if hasattr(model, "_fitted") else model.freq
        frame, freq = check_frame(df, freq, model.fill)
        features = Features.of(frame, freq, model.season_length, ())
        return Panel.from_frame(frame, features, model.h).future

    def cross_validation(
        self,
        df: pd.DataFrame,
        n_windows: int = 1,
        step_size: int = 1,
        val_size: int = 0,
        refit: bool = True,
    ) -> pd.DataFrame:
        """Forecast the last rows of each series as if they were not known yet, from `n_windows`
        origins, `step_size` rows apart, of which the last has its `h` targets at the end of `df`.

        Args:
            val_size: as in `fit`.
            refit: train anew at each origin; False trains at the first one only, and the later
                forecasts read rows that came after that.

        Returns:
            A long frame with the columns ``unique_id``, ``ds``, ``cutoff`` (the last row that the
            forecast could know), ``y`` (NaN where it was filled with anything but zero), ``y_hat``
            and the bounds of the levels.

        The forecaster itself is left as it was. No row after a cutoff is seen in its training, nor
        in what ``fill="linear"`` makes of a gap that the cutoff lies in: it repeats the value
        before. Of covariates the `h` rows after it are known too, and nothing later.
        """
        model = dataclasses.replace(self)
        frame, freq = model._check(df, model.freq, held_out=model.h)
        origins = rolling_origins(frame, df, model.fill, model.h, n_windows, step_size)
        model.freq, model.fill = freq, None
        windows = []
        for k, (known, later, actual) in enumerate(origins):
            if k == 0 or refit:
                model.checkpoint_dir = self.checkpoint_dir and Path(
                    self.checkpoint_dir, f"window-{k}"
                )
                model.fit(known, val_size)
            forecast = model.predict(known, later if model.futr_exog_list else None)
            windows.append(actual.merge(forecast, on=["unique_id", "ds"], validate="one_to_one"))
        return pd.concat(windows, ignore_index=True)

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the fitted forecaster to a file: numbers and settings, no code.

        Raises:
            RuntimeError: before `fit`.
            FileExistsError: if the file exists and `overwrite` is False.
            ValueError: for `trainer_options` or an `lstm_class` that a file cannot hold.
        """
        if not hasattr(self, "_fitted"):
            raise RuntimeError("call fit before save")
        storage.save(self._as_fitted(), Path(path), overwrite)

    @classmethod
    def load(cls, path: Path | str) -> Forecaster:
        """Read what `save` wrote. A file from elsewhere can hold wrong numbers, but no code. It
        waits for a training that another thread is at.

        Raises:
            ValueError: for a file that is none of `save`'s.
        """
        return storage.load(cls, Path(path))

    def _check(
        self, df: pd.DataFrame, freq: str | None, held_out: int = 0
    ) -> tuple[pd.DataFrame, str]:
        return check_frame(df, freq, self.fill, self.futr_exog_list, self.log, held_out)

    def _check_lengths(self, frame: pd.DataFrame, needed: int, what: str, hint: str = "") -> None:
        rows = frame["unique_id"].value_counts()
        if rows.min() < needed:
            raise ValueError(
                f"series {plain(rows.idxmin())!r} is too short: {what} {needed} rows. "
                f"Got {rows.min()}{hint}"
            )

    def _panel(self, frame: pd.DataFrame, futr_df: pd.DataFrame | None = None) -> Panel:
        if self.log:
            frame = frame.assign(y=np.log(frame["y"]))
        return Panel.from_frame(frame, self._features, self.h, futr_df)

    def _calibrate(self, panel: Panel, held_out: int, val_size: int) -> ConformalIntervals:
        scale = panel.scale(self.input_size, held_out + val_size, self.log)
        networks = self._train("calibration", panel, scale, held_out, val_size)
        windows = panel.windows(self.input_size, scale, slice(-held_out, None))
        n_series = len(panel.unique_ids)
        windows = windows.at_most(max(_WINDOWS_OF_SERIES, _CALIBRATION_WINDOWS // n_series))
        target = windows.all().target.double()
        # Errors of windows that overlap by half are taken as independent: with that, 95 % intervals
        # held 93 % and 80 % ones 81 % on rows before the backtest's (90 and 78 % without widening).
        varies = panel.varies(held_out)
        n_independent = int(varies.sum()) * max(1, 2 * held_out // self.h)
        start = windows.start[: len(windows) // n_series]
        n_apart = int((2 * (start - start[0]) + self.h <= start[-1] - start[0]).sum())
        return ConformalIntervals(
            self._loss,
            outputs_of(networks, windows),
            target,
            n_independent,
            torch.from_numpy(scale),
            n_apart,
            varies,
        )

    def _train(
        self, name: str, panel: Panel, scale: NDArray[np.float64], held_out: int, val_size: int
    ) -> SeasonalLSTM:
        """Networks that neither saw the last `held_out` rows nor learned from `val_size` more."""
        W = self.input_size
        windows = panel.windows(W, scale, slice(0, -(held_out + val_size) or None))
        validation = None
        if val_size:
            validation = panel.windows(W, scale, slice(-(held_out + val_size), -held_out or None))
        slopes = self.tilt * panel.slope(W, self.season_length, held_out + val_size) / scale
        build = partial(self._network, len(panel.unique_ids))
        options = self._training_options(name)
        return train(build, windows, validation, torch.from_numpy(slopes).float(), options)

    def _network(self, n_series: int) -> SeasonalLSTM:
        return DECODINGS[self.decoding](
            n_models=self.n_models,
            loss=self._loss,
            h=self.h,
            input_size=self.input_size,
            season_length=self.season_length,
            season_size=self._features.season_size,
            trading_size=self._features.trading_size,
            known_size=len(self.futr_exog_list),
            n_series=n_series,
            id_size=self.id_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dense_size=self.dense_size,
            activation=self.activation,
            dropout=self.dropout,
            lstm_class=self.lstm_class,
        )

    def _training_options(self, name: str) -> TrainingOptions:
        folder = self.checkpoint_dir
        return TrainingOptions(
            seed=self.seed,
            n_models=self.n_models,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            val_check_steps=self.val_check_steps,
            patience=self.early_stop_patience,
            checkpoint=None if folder is None else Path(folder, name),
            checkpoint_steps=self.checkpoint_steps,
            trainer=self.trainer_options,
        )

    def _forecast_frame(
        self,
        panel: Panel,
        windows: Windows,
        place: NDArray[np.intp],
        levels: Sequence[float],
    ) -> pd.DataFrame:
        batch, outputs = windows.all(), outputs_of(self._networks, windows)

        def back(scaled: Tensor) -> NDArray[np.float64]:
            values = (batch.mean + batch.scale * scaled).numpy().ravel()
            return np.exp(values) if self.log else values

        center = mean_center(self._loss, outputs)
        forecast = panel.future.assign(y_hat=back(center))
        if not np.isfinite(forecast["y_hat"]).all():
            row = forecast[~np.isfinite(forecast["y_hat"])].iloc[0]
            raise FloatingPointError(
                f"the forecast of series {plain(row['unique_id'])!r} at {row['ds']} is "
                f"{row['y_hat']}: a lower learning_rate, or log, may help"
            )
        bands = {}
        lower = upper = center
        for level in sorted(levels):
            low, high = mean_band(self._loss, outputs, level)
            if self._intervals is not None:
                # By as much as the errors were, whatever the scale has become with later rows.
                scale = (self._intervals.scale * self._intervals.width)[place, None]
                widening = self._intervals.widening(level) * scale / batch.scale
                low, high = low - widening, high + widening
            # A widening below 0 may be more than an interval has, at some lead or some level.
            lower, upper = torch.minimum(low, lower), torch.maximum(high, upper)
            bands[level] = lower, upper
        for level in levels:
            forecast[f"lo-{level:g}"], forecast[f"hi-{level:g}"] = map(back, bands[level])
        return forecast


def seasonal_naive(
    df: pd.DataFrame, h: int, season_length: int, freq: str | None = None
) -> pd.DataFrame:
    """The last season again: a frame ``unique_id``, ``ds``, ``y_hat`` of `h` rows a series.

    Raises:
        ValueError: as `Forecaster.fit`; if `h` or `season_length` counts nothing.
    """
    check_positive(h=h, season_length=season_length)
    frame, freq = check_frame(df, freq)
    start, length = spans_of_series(frame)
    ids = frame["unique_id"].iloc[start]
    if length.min() < season_length:
        short = int((length < season_length).argmax())
        raise ValueError(
            f"series {plain(ids.iloc[short])!r} is too short: season_length needs {season_length} "
            f"rows. Got {length[short]}"
        )
    step = np.arange(h)
    end = (start + length)[:, None]
    season = frame["y"].to_numpy()[end - season_length + step % season_length]
    last = grid_positions(frame["ds"], freq)[end - 1]
    ds = grid(frame["ds"], freq, beyond=h)[(last + 1 + step).ravel()]
    return pd.DataFrame({"unique_id": ids.repeat(h).to_numpy(), "ds": ds, "y_hat": season.ravel()})


def _checked_levels(levels: Sequence[float]) -> Sequence[float]:
    """In Python's own numbers, which a file can hold."""
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise ValueError(f"levels must be a sequence of numbers. Got {levels!r}")
    found = tuple(plain(level) for level in levels)
    for level in found:
        if not isinstance(level, (int, float)) or not 0 < level < 100:
            raise ValueError(f"levels must be numbers between 0 and 100. Got {level!r}")
    names = [f"{level:g}" for level in found]
    if len(set(names)) < len(names) or "100" in names:
        raise ValueError(
            "levels must differ from each other and from 100 in six digits, by which columns are "
            f"named. Got {list(found)}"
        )
    return found
