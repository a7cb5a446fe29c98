"""From a checked frame to batches of windows. `W` input steps, `h` steps ahead, `B` windows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lstm_fast.forecast.calendar import cycle_phases, season_phase, trading_days, useful_cycles
from lstm_fast.forecast.frame import check_future, grid, grid_positions, spans_of_series, stamps


class Batch(NamedTuple):
    """Windows on the scale the network works in: mean of the inputs 0, usual deviation 1."""

    values: Tensor
    """[B, W], the inputs."""
    season: Tensor
    """[B, W + h, S], sines and cosines of the season and of the calendar's cycles."""
    trading: Tensor
    """[B, W + h, 7 or 0], trading days."""
    known: Tensor
    """[B, W + h, F], covariates whose future is known, standardised."""
    series: Tensor
    """[B], int64, number of the series."""
    target: Tensor
    """[B, h], what follows the inputs; NaN where it is in the future."""
    mean: Tensor
    """[B, 1], float64: the series is `mean + scale * values`."""
    scale: Tensor
    """[B, 1], float64."""


@dataclass(frozen=True)
class Features:
    """How features are made, decided on the rows that are fitted and kept for later ones."""

    freq: str
    season_length: int
    origin: pd.Timestamp
    """The season is counted from here."""
    cycles: list[str]
    covariates: list[str]
    mean: list[float]
    """Of each covariate."""
    deviation: list[float]
    """Standard deviation of each covariate; infinite for a constant one, of whose effect nothing
    can be learned: standardised it is 0, whatever comes later."""

    @classmethod
    def of(
        cls, frame: pd.DataFrame, freq: str, season_length: int, covariates: Sequence[str]
    ) -> Features:
        """`frame`: checked and sorted."""
        numbers = frame[list(covariates)]
        # Of a constant, neither mean nor standard deviation need be exact in floating point.
        varies = numbers.max() > numbers.min()
        mean = numbers.mean().where(varies, numbers.min())
        deviation = numbers.std(ddof=0).where(varies, np.inf)
        return cls(
            freq=freq,
            season_length=season_length,
            origin=frame["ds"].min(),
            cycles=useful_cycles(grid(frame["ds"], freq), season_length),
            covariates=list(covariates),
            mean=mean.tolist(),
            deviation=deviation.tolist(),
        )

    @property
    def season_size(self) -> int:
        """Columns of `Batch.season`."""
        return 2 + 2 * len(self.cycles)

    @property
    def trading_size(self) -> int:
        """Columns of `Batch.trading`."""
        return trading_days(pd.DatetimeIndex([self.origin]), self.freq).shape[1]


@dataclass(frozen=True)
class Panel:
    """All series end to end, each followed by the `h` rows of its future, of value NaN."""

    unique_ids: pd.Index
    future: pd.DataFrame
    """``unique_id`` and ``ds`` of the future rows, series after series."""
    values: Tensor
    """[rows], float64, transformed."""
    season: Tensor
    """[rows, S], float32."""
    trading: Tensor
    """[rows, 7 or 0], float32."""
    known: Tensor
    """[rows, F], float32; NaN in the future where it was not given."""
    offset: NDArray[np.int64]
    """[series], first row of each series."""
    length: NDArray[np.int64]
    """[series], rows of each series without its future."""
    h: int

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        features: Features,
        h: int,
        futr_df: pd.DataFrame | None = None,
    ) -> Panel:
        """`frame`: checked and sorted, `y` transformed. `futr_df`: covariates of the future."""
        freq = features.freq
        ds = grid(frame["ds"], freq, beyond=h)
        start, length = spans_of_series(frame)
        offset = start + h * np.arange(len(start))
        is_future = np.ones(len(frame) + h * len(start), dtype=bool)
        is_future[np.arange(len(frame)) + np.repeat(h * np.arange(len(start)), length)] = False
        # Place of each row on the grid of timestamps.
        first = grid_positions(frame["ds"], freq)[start]
        at = np.arange(len(is_future)) + np.repeat(first - offset, length + h)
        ids = frame["unique_id"].iloc[start]
        future = pd.DataFrame(
            {"unique_id": ids.repeat(h).to_numpy(), "ds": ds[at[is_future]]},
        )
        values = np.full(len(at), np.nan)
        values[~is_future] = frame["y"]
        known = np.full((len(at), len(features.covariates)), np.nan)
        known[~is_future] = frame[features.covariates]
        if features.covariates and futr_df is not None:
            given = check_future(futr_df, future["unique_id"], future["ds"], features.covariates)
            known[is_future] = given[features.covariates]
        known -= features.mean
        _warn_of_changes(known, features)
        known /= features.deviation
        counted = _steps_between(features.origin, ds[0], freq) + np.arange(len(ds))
        season = np.concatenate(
            [season_phase(counted, features.season_length), cycle_phases(ds, features.cycles)],
            axis=1,
        )
        return cls(
            unique_ids=pd.Index(ids),
            future=future,
            values=torch.from_numpy(values),
            season=torch.from_numpy(season).float()[at],
            trading=torch.from_numpy(trading_days(ds, freq)).float()[at],
            known=torch.from_numpy(known).float(),
            offset=offset,
            length=length,
            h=h,
        )

    def scale(
        self, input_size: int, held_out: int = 0, is_log: bool = False
    ) -> NDArray[np.float64]:
        """[series], RMS deviation from the window's mean, without the last `held_out` rows. Of a
        series that is constant without them, it is that with them. A window of one row has the
        mean of all.

        Of a constant series, it is the median of the others' (1 if there are none) in units of
        their mean absolute values; logarithms are in units of nothing. Zeros show no unit: they
        have a thousandth of the least scale, by which what may come is seen and nothing is
        forecast.
        """
        scales, units = [], []
        for offset, length in zip(self.offset, self.length, strict=True):
            of_all = self.values[offset : offset + length]
            of_known = of_all[: length - held_out]
            varying = next((v for v in (of_known, of_all) if v.max() > v.min()), None)
            units.append(1.0 if is_log else _mean_size(of_all if varying is None else varying))
            if varying is None:
                scales.append(np.nan)
                continue
            size = varying.abs().max()  # squares of what is huge or tiny leave the range
            windows = (varying / size).unfold(0, input_size, 1)
            if input_size == 1:
                windows = windows.T
            variance = windows.var(dim=1, correction=0).mean()
            scales.append((size * variance.sqrt()).item())
        found, unit = np.array(scales), np.array(units)
        constant = np.isnan(found)
        ratio = 1.0 if constant.all() else np.median(found[~constant] / unit[~constant])
        found[constant] = ratio * unit[constant]
        zeros = found == 0
        found[zeros] = 1.0 if zeros.all() else 1e-3 * found[~zeros].min()
        return found

    def varies(self, rows: int) -> Tensor:
        """[series], bool, whether the last `rows` are not constant; of all, if none has any that
        are not."""
        ends = torch.from_numpy(self.offset + self.length)
        last = self.values[ends[:, None] - 1 - torch.arange(rows)]
        varies = last.amax(dim=1) > last.amin(dim=1)
        return varies if varies.any() else ~varies

    def slope(self, input_size: int, season_length: int, held_out: int = 0) -> NDArray[np.float64]:
        """[series], RMS rise a step from a window's first season to its last, without the last
        `held_out` rows.
        """
        lag = max(season_length, input_size - season_length)
        slopes = []
        for offset, length in zip(self.offset, self.length, strict=True):
            known = self.values[offset : offset + length - held_out]
            means = known.unfold(0, season_length, 1).mean(dim=1)
            rise = means[lag:] - means[:-lag]
            slopes.append(_root_mean_square(rise) / lag if len(rise) else 0.0)
        return np.array(slopes)

    def windows(self, input_size: int, scale: NDArray[np.float64], span: slice) -> Windows:
        """Those windows of each series whose targets all lie in the rows `span` of the series.

        `span` is understood as Python does for a list of the series' known rows.
        """
        series, start = [], []
        for k, (offset, length) in enumerate(zip(self.offset, self.length, strict=True)):
            first, last, _ = span.indices(int(length))
            origins = np.arange(max(first, input_size), last - self.h + 1)
            start.append(offset + origins - input_size)
            series.append(np.full(len(origins), k))
        return Windows(self, input_size, scale, np.concatenate(series), np.concatenate(start))

    def last_windows(
        self, input_size: int, scale: NDArray[np.float64], series: NDArray[np.int64]
    ) -> Windows:
        """The one window of each series whose targets are its future.

        `series`: the number of each under which it was fitted, and under which `scale` lists it.
        """
        return Windows(self, input_size, scale, series, self.offset + self.length - input_size)


class Windows:
    """Windows of a panel; `windows[indices]` is a whole batch, gathered at once."""

    def __init__(
        self,
        panel: Panel,
        input_size: int,
        scale: NDArray[np.float64],
        series: NDArray[np.int64],
        start: NDArray[np.int64],
    ) -> None:
        self.panel = panel
        self.input_size = input_size
        self.scale = torch.from_numpy(scale)
        self.series = torch.from_numpy(series)
        self.start = torch.from_numpy(start)
        self.steps = torch.arange(input_size + panel.h)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, indices: Tensor) -> Batch:
        series = self.series[indices]
        rows = self.start[indices, None] + self.steps
        values, scale = self.panel.values[rows], self.scale[series, None]
        mean = values[:, : self.input_size].mean(dim=1, keepdim=True)
        scaled = ((values - mean) / scale).float()
        return Batch(
            values=scaled[:, : self.input_size],
            # Whole rows of a table: a third of the time of indexing.
            season=nn.functional.embedding(rows, self.panel.season),
            trading=nn.functional.embedding(rows, self.panel.trading),
            known=nn.functional.embedding(rows, self.panel.known),
            series=series,
            target=scaled[:, self.input_size :],
            mean=mean,
            scale=scale,
        )

    def all(self) -> Batch:
        """One batch of every window."""
        return self[torch.arange(len(self))]

    def at_most(self, count: int) -> Windows:
        """Not more than `count` of the windows of each series, evenly spread; series must have
        equally many."""
        n = len(self) // len(self.panel.unique_ids)
        if n <= count:
            return self
        of_one = np.linspace(0, n - 1, count).round().astype(np.int64)
        chosen = (np.arange(0, len(self), n)[:, None] + of_one).ravel()
        return Windows(
            self.panel,
            self.input_size,
            self.scale.numpy(),
            self.series.numpy()[chosen],
            self.start.numpy()[chosen],
        )


def _warn_of_changes(change: NDArray[np.float64], features: Features) -> None:
    """Of covariates that were constant where they were fitted: [rows, F], less what they were."""
    changed = (np.nan_to_num(change) != 0).any(axis=0) & np.isinf(features.deviation)
    if changed.any():
        names = [name for name, is_new in zip(features.covariates, changed, strict=True) if is_new]
        warnings.warn(
            f"covariates {names} never varied in the rows that were fitted, and do now: nothing "
            "is known of their effect, and forecasts are made as if they had not changed",
            stacklevel=5,  # from who asks for a forecast
        )


def _mean_size(values: Tensor) -> float:
    size = values.abs().max()  # a sum of what is huge leaves the range
    return (size * (values / size).abs().mean()).item() if size > 0 else 0.0


def _root_mean_square(values: Tensor) -> float:
    size = values.abs().max()  # squares of what is huge or tiny leave the range
    return (size * (values / size).square().mean().sqrt()).item() if size > 0 else 0.0


def tilted(batch: Batch, slope: Tensor) -> Batch:
    """The windows with a trend of `slope` [B] a step, which ends where the inputs do.

    The mean of the inputs stays 0; targets go on, on the new level.
    """
    W = batch.values.shape[-1]
    trend = slope[..., None] * (torch.arange(W, dtype=slope.dtype) - (W - 1) / 2)
    return batch._replace(values=batch.values + trend, target=batch.target + trend[..., -1:])


def _steps_between(origin: pd.Timestamp, ds: pd.Timestamp, freq: str) -> int:
    forward = len(stamps(origin, freq, end=ds)) - 1
    return forward if ds >= origin else 1 - len(stamps(ds, freq, end=origin))
