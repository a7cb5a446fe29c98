"""From a checked frame to batches of windows. `W` input steps, `h` steps ahead, `B` windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lstm_fast.forecast.calendar import season_phase, trading_days
from lstm_fast.forecast.frame import each_series, future_timestamps


class Batch(NamedTuple):
    """Windows on the scale the network works in: mean of the inputs 0, usual deviation 1."""

    values: Tensor
    """[B, W], the inputs."""
    season: Tensor
    """[B, W + h, 2], sine and cosine of the season."""
    trading: Tensor
    """[B, W + h, 7 or 0], trading days."""
    target: Tensor
    """[B, h], what follows the inputs; NaN where it is in the future."""
    mean: Tensor
    """[B, 1], float64: the series is `mean + scale * values`."""
    scale: Tensor
    """[B, 1], float64."""


@dataclass(frozen=True)
class Panel:
    """All series end to end, each followed by the `h` rows of its future, of value NaN."""

    unique_ids: pd.Index
    ds: list[pd.DatetimeIndex]
    """Timestamps of each series, future included."""
    values: Tensor
    """[rows], float64, transformed."""
    season: Tensor
    """[rows, 2], float32."""
    trading: Tensor
    """[rows, 7 or 0], float32."""
    offset: NDArray[np.int64]
    """[series], first row of each series."""
    length: NDArray[np.int64]
    """[series], rows of each series without its future."""
    h: int

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, freq: str, h: int, season_length: int, origin: pd.Timestamp
    ) -> Panel:
        """`frame`: checked and sorted, `y` transformed. The season is counted from `origin`."""
        ids, stamps, values, season, trading = [], [], [], [], []
        for unique_id, series in each_series(frame):
            known = pd.DatetimeIndex(series["ds"])
            ds = known.append(future_timestamps(known[-1], h, freq))
            position = _steps_between(origin, ds[0], freq) + np.arange(len(ds))
            ids.append(unique_id)
            stamps.append(ds)
            values.append(np.concatenate([series["y"].to_numpy(), np.full(h, np.nan)]))
            season.append(season_phase(position, season_length))
            trading.append(trading_days(ds, freq))
        rows = np.array([len(ds) for ds in stamps])
        return cls(
            unique_ids=pd.Index(ids),
            ds=stamps,
            values=torch.from_numpy(np.concatenate(values)),
            season=torch.from_numpy(np.concatenate(season)).float(),
            trading=torch.from_numpy(np.concatenate(trading)).float(),
            offset=np.cumsum(rows) - rows,
            length=rows - h,
            h=h,
        )

    def scale(self, input_size: int, held_out: int = 0) -> NDArray[np.float64]:
        """[series], RMS deviation from the window's mean, without the last `held_out` rows."""
        scales = []
        for offset, length in zip(self.offset, self.length, strict=True):
            known = self.values[offset : offset + length - held_out]
            windows = known.unfold(0, input_size, 1)
            scales.append(windows.var(dim=1, correction=0).mean().sqrt().item())
        # A constant series has no deviation to divide by, and needs none.
        return np.where(np.array(scales) > 0, scales, 1.0)

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

    def last_windows(self, input_size: int, scale: NDArray[np.float64]) -> Windows:
        """The one window of each series whose targets are its future."""
        series = np.arange(len(self.unique_ids))
        return Windows(self, input_size, scale, series, self.offset + self.length - input_size)


class Windows(Dataset[Batch]):
    """Windows of a panel; `windows.__getitems__(indices)` is a whole batch, gathered at once."""

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
        self.scale = torch.from_numpy(scale[series])[:, None]
        self.start = torch.from_numpy(start)
        self.steps = torch.arange(input_size + panel.h)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Batch:
        return Batch(*(field[0] for field in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        rows = self.start[chosen, None] + self.steps
        values, scale = self.panel.values[rows], self.scale[chosen]
        mean = values[:, : self.input_size].mean(dim=1, keepdim=True)
        scaled = ((values - mean) / scale).float()
        return Batch(
            values=scaled[:, : self.input_size],
            season=self.panel.season[rows],
            trading=self.panel.trading[rows],
            target=scaled[:, self.input_size :],
            mean=mean,
            scale=scale,
        )


def as_is(batch: Any) -> Any:
    """The collate function for a dataset that yields whole batches."""
    return batch


def _steps_between(origin: pd.Timestamp, ds: pd.Timestamp, freq: str) -> int:
    forward = len(pd.date_range(origin, ds, freq=freq)) - 1
    return forward if ds >= origin else 1 - len(pd.date_range(ds, origin, freq=freq))
