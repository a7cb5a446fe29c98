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
    interval, or within it, is divided by the error that is usual for its lead, and the widening is
    a quantile of these scores times that error. Errors of overlapping windows depend on each other,
    so the stated coverage is an aim, not the guarantee that exchangeable errors would give. A few
    windows tell the width of errors badly, mostly as too narrow, which Student's t distribution
    makes good for normal errors; intervals are widened by as much here.
    """

    loss: Loss
    outputs: Tensor
    """[networks, windows, h, P], what the networks gave."""
    target: Tensor
    """[windows, h], float64, what came."""
    n_independent: int
    """Of the windows, as far as that can be said of windows that overlap."""
    scale: Tensor
    """[series], float64, what `outputs` and `target` of each series were divided by."""

    @cached_property
    def lead_scale(self) -> NDArray[np.float64]:
        """[h], RMS error at each lead, not falling with the lead."""
        errors = self.target - mean_center(self.loss, self.outputs)
        usual = errors.square().mean(dim=0).sqrt().numpy()
        return np.maximum.accumulate(usual).clip(min=np.finfo(np.float64).tiny)

    def widening(self, level: float) -> Tensor:
        """[h], float64, what to add on either side for an interval that covers `level` per cent, in
        units of `scale`."""
        lower, upper = mean_band(self.loss, self.outputs, level)
        outside = torch.maximum(lower - self.target, self.target - upper).numpy()
        scores = np.sort((outside / self.lead_scale).ravel())
        rank = math.ceil((len(scores) + 1) * level / 100)
        score = scores[min(rank, len(scores)) - 1]
        score *= student_ratio(level, self.n_independent) if score > 0 else 1
        return torch.from_numpy(score * self.lead_scale)


def student_ratio(level: float, n: int) -> float:
    """Bound of the central `level` per cent of Student's t with `n` degrees of freedom, over that
    of the normal distribution: the first terms in 1/n (Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf(0.5 + level / 200)
    return 1 + (z**2 + 1) / (4 * n) + (5 * z**4 + 16 * z**2 + 3) / (96 * n**2)
