"""Forecast intervals from errors on held-out windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConformalIntervals:
    """Split conformal intervals, after Lei et al., "Distribution-free predictive inference for
    regression" (Journal of the American Statistical Association 113, 2018, sections 2.2 and 5.2).

    The errors are those of a model that never saw the windows. Each is divided by the size that
    is usual for its lead, and the half-width of an interval is a quantile of these scores times
    that size. Errors of overlapping windows depend on each other, so the stated coverage is an
    aim, not the guarantee that exchangeable errors would give.
    """

    lead_scale: NDArray[np.float64]
    """[h], usual error at each lead, not falling with the lead."""
    scores: NDArray[np.float64]
    """Absolute errors over `lead_scale`, of all windows and leads, sorted."""

    @classmethod
    def from_errors(cls, errors: NDArray[np.float64]) -> ConformalIntervals:
        """`errors`: [windows, h], actual minus forecast."""
        # Few windows make the RMS of a single lead noisy, hence the running mean over leads.
        mean_square = np.square(errors).mean(axis=0)
        running = np.cumsum(mean_square) / np.arange(1, errors.shape[1] + 1)
        lead_scale = np.maximum.accumulate(np.sqrt(running)).clip(min=np.finfo(np.float64).tiny)
        return cls(lead_scale, np.sort((np.abs(errors) / lead_scale).ravel()))

    def half_width(self, level: float) -> NDArray[np.float64]:
        """[h], half-width of the interval that should cover `level` per cent."""
        rank = math.ceil((len(self.scores) + 1) * level / 100)
        return self.scores[min(rank, len(self.scores)) - 1] * self.lead_scale
