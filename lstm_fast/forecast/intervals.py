"""Forecast intervals from errors on held-out windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_fast.forecast.losses import Loss

_TINY = np.finfo(np.float64).tiny


def mean_center(loss: Loss, outputs: Tensor) -> Tensor:
    """[networks, windows, h, P] -> [windows, h], the forecast of several networks."""
    return loss.center(outputs).double().mean(dim=0)


def mean_band(loss: Loss, outputs: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """[networks, windows, h, P] -> two of [windows, h]: bounds are averaged over networks."""
    lower, upper = loss.band(outputs, level)
    return lower.double().mean(dim=0), upper.double().mean(dim=0)


@dataclass(frozen=True)
class ConformalIntervals:
    """Split conformal intervals: how much wider the networks' own intervals must be.

    For networks that forecast quantiles this is conformalised quantile regression (Romano et al.,
    "Conformalized quantile regression", Advances in Neural Information Processing Systems 32,
    2019). Where the network gives no interval it is that of Lei et al., "Distribution-free
    predictive inference for regression" (Journal of the American Statistical Association 113, 2018,
    sections 2.2 and 5.2).

    The windows are ones that the networks never saw. How far an actual value lies outside the
    interval, or within it, is divided by the error that is usual for its lead and for its series,
    and the widening is a quantile of these scores times that error. Errors of overlapping windows
    depend on each other, so the stated coverage is an aim, not the guarantee that exchangeable
    errors would give. A few windows tell the width of errors badly, mostly as too narrow, which
    Student's t distribution makes good for normal errors; intervals are widened by as much here.

    What is usual for a series is told from the others by as much as that is reliable: logarithms
    of the errors' size are drawn to their mean by the correlation, over series, of what the first
    windows say and the last ones (Spearman and Brown's formula, British Journal of Psychology 3,
    1910, for both together). Series that are alike share one width that way. A score would be too
    low where its own error had a part in what is usual: first windows are divided by what the last
    ones say, and the reverse. Series of constant rows have errors of another kind, by which no
    other interval is widened, and widths of their own.
    """

    loss: Loss
    outputs: Tensor
    """[networks, windows, h, P], what the networks gave."""
    target: Tensor
    """[windows, h], float64, what came. As many windows of each series, one series after another.
    """
    n_independent: int
    """Of the windows, as far as that can be said of windows that overlap."""
    scale: Tensor
    """[series], float64, what `outputs` and `target` of each series were divided by."""
    n_apart: int
    """Of the windows of a series, as many first and last ones have no row in common."""
    varies: Tensor
    """[series], bool, whether the rows of the series that calibrate are not constant."""

    @cached_property
    def lead_scale(self) -> NDArray[np.float64]:
        """[h], RMS error at each lead, not falling with the lead, over `width`."""
        errors = self._errors[self.varies]
        if len(errors) > 1:
            errors = errors / _size(errors)[:, None, None]
        usual = errors.flatten(0, 1).square().mean(dim=0).sqrt().numpy()
        return np.maximum.accumulate(usual).clip(min=_TINY)

    @cached_property
    def width(self) -> Tensor:
        """[series], float64, size of the errors, over that of others."""
        of_both = 2 * self._reliability / (1 + self._reliability)
        log = self._log_width(slice(None))
        return torch.where(self.varies, of_both * log, log).exp()

    def widening(self, level: float) -> Tensor:
        """[h], float64, what to add on either side for an interval that covers `level` per cent, in
        units of `scale` times `width`."""
        lower, upper = mean_band(self.loss, self.outputs, level)
        outside = self._of_series(torch.maximum(lower - self.target, self.target - upper))
        if self._reliability > 0:
            first, last = slice(self.n_apart), slice(-self.n_apart, None)
            parts = [
                outside[:, part] / (self._reliability * self._log_width(other)).exp()[:, None, None]
                for part, other in ((first, last), (last, first))
            ]
            outside = torch.cat(parts, dim=1)
        scores = np.sort((outside[self.varies].numpy() / self.lead_scale).ravel())
        rank = math.ceil((len(scores) + 1) * level / 100)
        score = scores[min(rank, len(scores)) - 1]
        score *= student_ratio(level, self.n_independent) if score > 0 else 1
        return torch.from_numpy(score * self.lead_scale)

    def _of_series(self, values: Tensor) -> Tensor:
        """[windows, h] -> [series, windows of each, h]."""
        return values.unflatten(0, (len(self.scale), -1))

    @cached_property
    def _errors(self) -> Tensor:
        return self._of_series(self.target - mean_center(self.loss, self.outputs))

    def _log_width(self, part: slice) -> Tensor:
        """[series], by these windows of each series; 0 for what is usual."""
        log = _size(self._errors[:, part] / torch.from_numpy(self.lead_scale)).log()
        return log - log[self.varies].mean()

    @cached_property
    def _reliability(self) -> float:
        """Correlation of the widths by the first windows and by the last; 0 if there are none."""
        if self.n_apart == 0:
            return 0.0
        n = self.n_apart
        first, last = (self._log_width(s)[self.varies] for s in (slice(n), slice(-n, None)))
        spread = (first.square() + last.square()).sum().item()
        return max(0.0, 2 * (first * last).sum().item() / spread) if spread > 0 else 0.0


def _size(errors: Tensor) -> Tensor:
    """[series, windows, h] -> [series], RMS."""
    return errors.square().mean(dim=(1, 2)).sqrt().clamp(min=_TINY)


def student_ratio(level: float, n: int) -> float:
    """Bound of the central `level` per cent of Student's t with `n` degrees of freedom, over that
    of the normal distribution: the first terms in 1/n (Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf(0.5 + level / 200)
    return 1 + (z**2 + 1) / (4 * n) + (5 * z**4 + 16 * z**2 + 3) / (96 * n**2)
