"""The network and how it is trained. `W` input steps, `h` steps ahead, `B` windows."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn

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


class SeasonalLSTM(nn.Module):
    """The value of a season ago, plus a correction that an LSTM reads from the window.

    The effect of trading days is linear and is taken out of the inputs, and put back into the
    forecast, so the LSTM sees the series without it. All `h` steps are forecast at once.

    Args:
        trading_size: number of trading-day regressors, possibly 0.
        dropout: of the encoding and of the dense layer, and between the layers of the LSTM.
        lstm_class: `torch.nn.LSTM` or a subclass of it.

    The rest is as in `Forecaster`.
    """

    def __init__(
        self,
        *,
        h: int,
        input_size: int,
        season_length: int,
        trading_size: int,
        hidden_size: int,
        num_layers: int,
        dense_size: int,
        activation: str,
        dropout: float,
        lstm_class: type[nn.LSTM],
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.encoder = lstm_class(
            3, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(hidden_size, dense_size),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            nn.Linear(dense_size, h),
        )
        self.trading_weight = nn.Parameter(torch.zeros(trading_size))
        season_ago = input_size - season_length + torch.arange(h) % season_length
        self.season_ago: Tensor
        self.register_buffer("season_ago", season_ago, persistent=False)

    def forward(self, values: Tensor, season: Tensor, trading: Tensor) -> Tensor:
        """[B, W], [B, W + h, 2], [B, W + h, trading_size] -> [B, h]."""
        W = self.input_size
        effect = trading @ self.trading_weight
        adjusted = values - effect[:, :W]
        steps = torch.cat([adjusted[..., None], season[:, :W]], dim=-1)
        _, (h_n, _) = self.encoder(steps)
        return adjusted[:, self.season_ago] + self.head(h_n[-1]) + effect[:, W:]


class TrainingModule(lightning.LightningModule):
    """Squared error, Adam, learning rate falling to 0 on half a cosine over `max_steps`."""

    def __init__(self, model: SeasonalLSTM, learning_rate: float, max_steps: int) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.max_steps = max_steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        forecast = self.model(batch.values, batch.season, batch.trading)
        return nn.functional.mse_loss(forecast, batch.target)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
