"""The networks. `W` input steps, `h` steps ahead, `B` windows, `P` outputs a step (`Loss`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lstm_fast.forecast.losses import Loss
from lstm_fast.forecast.windows import Batch

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class SmoothedSeason(nn.Module):
    """The mean season of a window, on the level of its last season: [B, W] -> [B, h].

    The window's seasons are averaged with one weight each; the result is raised by a weighted mean
    of how far the last season's values lie above it. Exponential smoothing has such means, with
    weights that fall by a power. Here each weight is learned, together with the network, as Smyl
    does with the power ("A hybrid method of exponential smoothing and recurrent neural networks
    for time series forecasting", International Journal of Forecasting 36, 2020).
    """

    def __init__(self, h: int, input_size: int, season_length: int) -> None:
        super().__init__()
        n_seasons = input_size // season_length
        self.shape = n_seasons, season_length
        # Before training, the last season has e**2 times the weight of each one before it.
        self.season_logit = nn.Parameter(2.0 * (torch.arange(n_seasons) == n_seasons - 1))
        self.level_logit = nn.Parameter(torch.zeros(season_length))
        self.place: Tensor
        self.register_buffer("place", torch.arange(h) % season_length, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        seasons = values[:, -math.prod(self.shape) :].unflatten(1, self.shape)
        mean = self.season_logit.softmax(0) @ seasons
        level = (seasons[:, -1] - mean) @ self.level_logit.softmax(0)
        return mean[:, self.place] + level[:, None]


class SeasonalLSTM(nn.Module):
    """A smoothed season, plus a correction that an LSTM reads from the window.

    The effects of trading days and of covariates are linear, as far as that goes: they are taken
    out of the inputs and put back into the forecast, so the LSTM sees the series without them. It
    sees the covariates too, for what is not linear. All `h` steps are forecast at once. Effects are
    learned by the smoothed season alone: no gradient goes back through the LSTM into its inputs,
    which nothing else would need.

    Args:
        season_size, trading_size, known_size: columns of `Batch.season`, `.trading` and `.known`.
        n_series: number of series, of which each has a learned vector of `id_size` numbers.
        dropout: of the encoding and of the dense layer, and between the layers of the LSTM.
        lstm_class: `torch.nn.LSTM` or a subclass of it.

    The rest is as in `Forecaster`.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        h: int,
        input_size: int,
        season_length: int,
        season_size: int,
        trading_size: int,
        known_size: int,
        n_series: int,
        id_size: int,
        hidden_size: int,
        num_layers: int,
        dense_size: int,
        activation: str,
        dropout: float,
        lstm_class: type[nn.LSTM],
    ) -> None:
        super().__init__()
        self.loss = loss
        self.h, self.input_size = h, input_size
        self.base = SmoothedSeason(h, input_size, season_length)
        self.encoder = lstm_class(
            1 + season_size + known_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        n_outputs = len(loss.located)
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self._features(hidden_size, known_size, id_size), dense_size),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            nn.Linear(dense_size, self._steps_at_once() * n_outputs),
            nn.Unflatten(-1, (self._steps_at_once(), n_outputs)),
        )
        self.effect_weight = nn.Parameter(torch.zeros(trading_size + known_size))
        self.series = nn.Embedding(n_series, id_size) if id_size else None
        self.located: Tensor
        self.register_buffer("located", torch.tensor(loss.located), persistent=False)

    def _steps_at_once(self) -> int:
        return self.h

    def _features(self, hidden_size: int, known_size: int, id_size: int) -> int:
        return hidden_size + self.h * known_size + id_size

    def forward(self, batch: Batch) -> Tensor:
        """[B, h, P], the outputs for the steps ahead; `batch.target` is not looked at."""
        W = self.input_size
        effect = self._effect(batch)
        values = batch.values - effect[:, :W]
        inputs = [values.detach()[..., None], batch.season[:, :W], batch.known[:, :W]]
        _, (h_n, _) = self.encoder(torch.cat(inputs, dim=-1))
        base = self.base(values) + effect[:, W:]
        seen = torch.cat([h_n[-1], batch.known[:, W:].flatten(1), *self._identity(batch)], dim=-1)
        return self.head(seen) + base[..., None] * self.located

    def training_output(self, batch: Batch) -> Tensor:
        """[B, h, P], of which the loss is taken."""
        return self(batch)

    def _effect(self, batch: Batch) -> Tensor:
        """[B, W + h], the linear effect of trading days and covariates."""
        return torch.cat([batch.trading, batch.known], dim=-1) @ self.effect_weight

    def _identity(self, batch: Batch) -> list[Tensor]:
        """[B, id_size], the vector of the series, if series have any."""
        return [] if self.series is None else [self.series(batch.series)]


class RecursiveLSTM(SeasonalLSTM):
    """One step at a time, each read from the forecast before it, the LSTM's state carried along.

    Training shows the true values in place of forecasts (teacher forcing, as DeepAR does: Salinas
    et al., "DeepAR", International Journal of Forecasting 36, 2020), so one pass over the window
    and its targets trains every step ahead.
    """

    def _steps_at_once(self) -> int:
        return 1

    def _features(self, hidden_size: int, known_size: int, id_size: int) -> int:
        return hidden_size + id_size

    def forward(self, batch: Batch) -> Tensor:
        W = self.input_size
        effect = self._effect(batch)
        values = batch.values - effect[:, :W]
        base = self.base(values) + effect[:, W:]
        encoding, state = self.encoder(self._steps(values, batch, 0))
        outputs = []
        for k in range(self.h):
            outputs.append(self._decode(encoding[:, -1:], base[:, k, None], batch))
            if k + 1 < self.h:
                forecast = self.loss.center(outputs[-1]) - effect[:, W + k, None]
                encoding, state = self.encoder(self._steps(forecast, batch, W + k), state)
        return torch.cat(outputs, dim=1)

    def training_output(self, batch: Batch) -> Tensor:
        W = self.input_size
        effect = self._effect(batch)
        values = torch.cat([batch.values, batch.target], dim=1) - effect
        encoding, _ = self.encoder(self._steps(values[:, :-1], batch, 0))
        base = self.base(values[:, :W]) + effect[:, W:]
        return self._decode(encoding[:, W - 1 :], base, batch)

    def _steps(self, values: Tensor, batch: Batch, first: int) -> Tensor:
        """Inputs from step `first` on: a value, and what is known of the step after it."""
        after = slice(first + 1, first + 1 + values.shape[1])
        inputs = [values.detach()[..., None], batch.season[:, after], batch.known[:, after]]
        return torch.cat(inputs, dim=-1)

    def _decode(self, encoding: Tensor, base: Tensor, batch: Batch) -> Tensor:
        """[B, n, H], [B, n] -> [B, n, P]."""
        n = encoding.shape[1]
        identity = [v[:, None].expand(-1, n, -1) for v in self._identity(batch)]
        output = self.head(torch.cat([encoding, *identity], dim=-1)).squeeze(-2)
        return output + base[..., None] * self.located


DECODINGS: dict[str, type[SeasonalLSTM]] = {"direct": SeasonalLSTM, "recursive": RecursiveLSTM}
