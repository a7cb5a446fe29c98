"""What a network is trained to minimise, and how its outputs are read.

A network gives `P` numbers for each step ahead. A loss knows what they are: the forecast alone,
quantiles, or the parameters of a distribution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

LOSSES = ("mse", "mae", "huber", "quantile", "normal", "laplace")


def make_loss(name: str, levels: Sequence[float]) -> Loss:
    """The loss of a name out of `LOSSES`; `levels` are those that a quantile loss is to learn."""
    if name == "quantile":
        return QuantileLoss(levels)
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}. Got {name!r}")
    if name in DistributionLoss.FAMILIES:
        return DistributionLoss(name)
    return PointLoss(name)


class Loss(ABC):
    """Outputs are [..., P]; targets, forecasts and bounds are [...]."""

    located: list[float]
    """[P], 1 for an output that moves with the series, 0 for one that does not (a width)."""
    has_width: bool
    """Whether the outputs alone make an interval."""

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss, a scalar."""

    @abstractmethod
    def center(self, output: Tensor) -> Tensor:
        """The forecast: mean or median, as the loss asks for."""

    @abstractmethod
    def band(self, output: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the interval that should cover `level` per cent."""


class PointLoss(Loss):
    """Of the forecast alone, whose interval has no width."""

    ERRORS: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
        "mse": nn.functional.mse_loss,
        "mae": nn.functional.l1_loss,
        "huber": nn.functional.huber_loss,
    }
    has_width = False

    def __init__(self, name: str) -> None:
        self.error = self.ERRORS[name]
        self.located = [1.0]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.error(output[..., 0], target)

    def center(self, output: Tensor) -> Tensor:
        return output[..., 0]

    def band(self, output: Tensor, level: float) -> tuple[Tensor, Tensor]:
        return output[..., 0], output[..., 0]


class QuantileLoss(Loss):
    """The pinball loss of the median and of both bounds of each level (Koenker and Bassett,
    "Regression quantiles", Econometrica 46, 1978). Outputs are sorted, so bounds never cross
    (Chernozhukov et al., "Quantile and probability curves without crossing", Econometrica 78,
    2010).
    """

    has_width = True

    def __init__(self, levels: Sequence[float]) -> None:
        tails = {(50 - level / 2) / 100 for level in levels}
        self.quantiles = sorted({0.5, *tails, *(1 - tail for tail in tails)})
        self.levels = list(levels)
        self.located = [1.0] * len(self.quantiles)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        q = output.new_tensor(self.quantiles)
        error = target[..., None] - output
        return torch.maximum(q * error, (q - 1) * error).mean()

    def center(self, output: Tensor) -> Tensor:
        return output.sort(dim=-1).values[..., self.quantiles.index(0.5)]

    def band(self, output: Tensor, level: float) -> tuple[Tensor, Tensor]:
        if level not in self.levels:
            raise ValueError(
                f"levels must be among those of the fit, {self.levels}, with the quantile loss. "
                f"Got {level:g}"
            )
        tail = (50 - level / 2) / 100
        ordered = output.sort(dim=-1).values
        below, above = self.quantiles.index(tail), self.quantiles.index(1 - tail)
        return ordered[..., below], ordered[..., above]


class DistributionLoss(Loss):
    """Minus the logarithm of the likelihood; outputs are the location and the raw scale."""

    FAMILIES: ClassVar[dict[str, Callable[..., torch.distributions.Distribution]]] = {
        "normal": torch.distributions.Normal,
        "laplace": torch.distributions.Laplace,
    }
    has_width = True
    # Windows have a usual deviation of 1. A smaller scale than this chases single values.
    MIN_SCALE = 1e-3

    def __init__(self, name: str) -> None:
        self.family = self.FAMILIES[name]
        self.located = [1.0, 0.0]

    def _distribution(self, output: Tensor) -> torch.distributions.Distribution:
        scale = nn.functional.softplus(output[..., 1].float()) + self.MIN_SCALE
        return self.family(output[..., 0].float(), scale, validate_args=False)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return -self._distribution(output).log_prob(target).mean()

    def center(self, output: Tensor) -> Tensor:
        return output[..., 0]

    def band(self, output: Tensor, level: float) -> tuple[Tensor, Tensor]:
        tail = output.new_tensor(0.5 - level / 200)
        distribution = self._distribution(output)
        return distribution.icdf(tail), distribution.icdf(1 - tail)
