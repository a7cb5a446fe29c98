"""The networks: `N` of them side by side in one module, each with weights and windows of its own.

`B` windows, `W` input steps, `h` steps ahead, `P` outputs a step (`Loss`). A small network spends
most of its time on calling operators, and one call for all networks takes hardly longer than one
for each; the LSTMs alone are called one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstm_fast import LSTM
from lstm_fast.forecast.losses import Loss
from lstm_fast.forecast.windows import Batch

LAYERS: dict[str, type[nn.LSTM]] = {"lstm_fast.LSTM": LSTM, "torch.nn.LSTM": nn.LSTM}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class Linears(nn.Module):
    """`N` of `nn.Linear`, initialised as it is: [N, B, in_features] -> [N, B, out_features]."""

    def __init__(self, n: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(n, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(n, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class SmoothedSeason(nn.Module):
    """The mean season of a window, on the level of its last season: [N, B, W] -> [N, B, h].

    The window's seasons are averaged with one weight each; the result is raised by a weighted mean
    of how far the last season's values lie above it. Exponential smoothing has such means, with
    weights that fall by a power. Here each weight is learned, together with the network, as Smyl
    does with the power ("A hybrid method of exponential smoothing and recurrent neural networks
    for time series forecasting", International Journal of Forecasting 36, 2020).
    """

    def __init__(self, n: int, h: int, input_size: int, season_length: int) -> None:
        super().__init__()
        n_seasons = input_size // season_length
        is_last = (torch.arange(n_seasons) == n_seasons - 1).float()
        # Before training, the last season has e**2 times the weight of each one before it.
        self.season_logit = nn.Parameter((2.0 * is_last).repeat(n, 1))
        self.level_logit = nn.Parameter(torch.zeros(n, season_length))
        self.is_last: Tensor
        self.register_buffer("is_last", is_last[:, None], persistent=False)
        same_place = torch.arange(season_length)[:, None] == torch.arange(h) % season_length
        self.same_place: Tensor
        self.register_buffer("same_place", same_place.float(), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        weight = self.weight()
        unused = values.shape[-1] - weight.shape[1]
        return (values[..., unused:] if unused else values) @ weight

    def weight(self) -> Tensor:
        """[N, seasons * season_length, h]: all of it is linear in the values."""
        season = self.season_logit.softmax(1)[:, :, None]
        level = ((self.is_last - season) * self.level_logit.softmax(1)[:, None])[..., None]
        return (season[..., None] * self.same_place + level).flatten(1, 2)


class SeasonalLSTM(nn.Module):
    """A smoothed season, plus a correction that an LSTM reads from the window.

    The effects of trading days and of covariates are linear, as far as that goes: they are taken
    out of the inputs and put back into the forecast, so the LSTM sees the series without them. It
    sees the covariates too, for what is not linear. All `h` steps are forecast at once. Effects are
    learned by the smoothed season alone: no gradient goes back through the LSTM into its inputs,
    which nothing else would need.

    Args:
        n_models: `N`.
        season_size, trading_size, known_size: columns of `Batch.season`, `.trading` and `.known`.
        n_series: number of series, of which each has a learned vector of `id_size` numbers.
        dropout: of the encoding and of the dense layer, and between the layers of the LSTM.
        lstm_class: `torch.nn.LSTM` or a subclass of it.

    The rest is as in `Forecaster`. Each tensor of a batch comes with `N` before its own dimensions.
    """

    def __init__(
        self,
        *,
        n_models: int,
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
        self.n_models, self.h, self.input_size = n_models, h, input_size
        self.base = SmoothedSeason(n_models, h, input_size, season_length)
        self.encoders = nn.ModuleList(
            lstm_class(
                1 + season_size + known_size,
                hidden_size,
                num_layers,
                batch_first=True,
                dropout=dropout if num_layers > 1 else 0.0,
            )
            for _ in range(n_models)
        )
        n_outputs = len(loss.located)
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            Linears(n_models, self._features(hidden_size, known_size, id_size), dense_size),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            Linears(n_models, dense_size, self._steps_at_once() * n_outputs),
            nn.Unflatten(-1, (self._steps_at_once(), n_outputs)),
        )
        self.effect_weight = nn.Parameter(torch.zeros(n_models, trading_size + known_size, 1))
        self.series = nn.Embedding(n_models * n_series, id_size) if id_size else None
        self.first_vector: Tensor
        first_vector = n_series * torch.arange(n_models)[:, None]
        self.register_buffer("first_vector", first_vector, persistent=False)
        self.located: Tensor
        self.register_buffer("located", torch.tensor(loss.located), persistent=False)

    def _steps_at_once(self) -> int:
        return self.h

    def _features(self, hidden_size: int, known_size: int, id_size: int) -> int:
        return hidden_size + self.h * known_size + id_size

    def forward(self, batch: Batch) -> Tensor:
        """[N, B, h, P], the outputs for the steps ahead; `batch.target` is not looked at."""
        W = self.input_size
        past, future = self._effect(batch).split([W, self.h], dim=-1)
        values = batch.values - past
        inputs = [values.detach()[..., None], batch.season[:, :, :W], batch.known[:, :, :W]]
        runs = zip(self.encoders, torch.cat(inputs, dim=-1), strict=True)
        encoding = torch.stack([encoder(x)[1][0][-1] for encoder, x in runs])
        base = self.base(values) + future
        seen = [encoding, batch.known[:, :, W:].flatten(2), *self._identity(batch)]
        return self.head(torch.cat(seen, dim=-1)) + base[..., None] * self.located

    def training_output(self, batch: Batch) -> Tensor:
        """[N, B, h, P], of which the loss is taken."""
        return self(batch)

    def _effect(self, batch: Batch) -> Tensor:
        """[N, B, W + h], the linear effect of trading days and covariates."""
        known = torch.cat([batch.trading, batch.known], dim=-1)
        return (known.flatten(1, 2) @ self.effect_weight).view(known.shape[:3])

    def _identity(self, batch: Batch) -> list[Tensor]:
        """[N, B, id_size], the vector of the series, if series have any."""
        return [] if self.series is None else [self.series(batch.series + self.first_vector)]


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
        values = batch.values - effect[..., :W]
        base = self.base(values) + effect[..., W:]
        encoding, states = self._encode(values, batch, 0, [None] * self.n_models)
        outputs = []
        for k in range(self.h):
            outputs.append(self._decode(encoding[:, :, -1:], base[..., k, None], batch))
            if k + 1 < self.h:
                forecast = self.loss.center(outputs[-1]) - effect[..., W + k, None]
                encoding, states = self._encode(forecast, batch, W + k, states)
        return torch.cat(outputs, dim=2)

    def training_output(self, batch: Batch) -> Tensor:
        W = self.input_size
        effect = self._effect(batch)
        values = torch.cat([batch.values, batch.target], dim=-1) - effect
        encoding, _ = self._encode(values[..., :-1], batch, 0, [None] * self.n_models)
        base = self.base(values[..., :W]) + effect[..., W:]
        return self._decode(encoding[:, :, W - 1 :], base, batch)

    def _encode(
        self, values: Tensor, batch: Batch, first: int, states: Sequence[Any]
    ) -> tuple[Tensor, Sequence[Any]]:
        """[N, B, n] -> [N, B, n, H] and new states: read from step `first` on a value, and what is
        known of the step after it.
        """
        after = slice(first + 1, first + 1 + values.shape[2])
        inputs = [values.detach()[..., None], batch.season[:, :, after], batch.known[:, :, after]]
        runs = zip(self.encoders, torch.cat(inputs, dim=-1), states, strict=True)
        encodings, states = zip(*(encoder(x, state) for encoder, x, state in runs), strict=True)
        return torch.stack(encodings), states

    def _decode(self, encoding: Tensor, base: Tensor, batch: Batch) -> Tensor:
        """[N, B, n, H], [N, B, n] -> [N, B, n, P]."""
        B, n = base.shape[1:]
        identity = [v[:, :, None].expand(-1, -1, n, -1) for v in self._identity(batch)]
        output = self.head(torch.cat([encoding, *identity], dim=-1).flatten(1, 2))
        return output.view(-1, B, n, output.shape[-1]) + base[..., None] * self.located


DECODINGS: dict[str, type[SeasonalLSTM]] = {"direct": SeasonalLSTM, "recursive": RecursiveLSTM}
