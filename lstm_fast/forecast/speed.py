"""How much faster lstm_fast.LSTM is than torch.nn.LSTM on this machine, at a forecaster's sizes."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lstm_fast.forecast.model import LAYERS

BASELINE = "torch.nn.LSTM"

# Shorter samples would measure the clock as much as the call.
_SAMPLE_SECONDS = 200e-6


@dataclass(frozen=True)
class Size:
    """Windows, steps, inputs, hidden units and layers of one call."""

    B: int
    T: int
    I: int  # noqa: E741
    H: int
    L: int

    def __str__(self) -> str:
        return f"B={self.B} T={self.T} I={self.I} H={self.H} L={self.L}"


SIZES = (
    Size(1, 1, 8, 64, 1),
    Size(1, 36, 3, 100, 1),
    Size(32, 24, 1, 32, 1),
    Size(32, 36, 3, 64, 1),
    Size(32, 96, 8, 128, 2),
    Size(128, 24, 1, 64, 2),
    Size(64, 168, 8, 128, 2),
)


@dataclass(frozen=True)
class Timing:
    size: Size
    work: str
    """``"inference"``, or ``"training"``: forward and backward with a loss on the last step."""
    seconds: dict[str, float]
    """Lowest decile of one call, by layer."""

    @property
    def speedup(self) -> float:
        return self.seconds[BASELINE] / self.seconds["lstm_fast.LSTM"]


def measure(size: Size, work: str, seconds: float) -> Timing:
    """Let both layers take turns on the same input and weights for about `seconds`."""
    torch.manual_seed(0)
    x = torch.randn(size.B, size.T, size.I)
    layers = {
        name: layer(size.I, size.H, size.L, batch_first=True) for name, layer in LAYERS.items()
    }
    layers["lstm_fast.LSTM"].load_state_dict(layers[BASELINE].state_dict())
    # They keep the collector of garbage from running meanwhile.
    timers = {name: timeit.Timer(_call(layer, x, work)) for name, layer in layers.items()}
    calls = {}
    for name, timer in timers.items():
        timer.timeit(1)  # the first call sets things up
        calls[name] = max(1, round(_SAMPLE_SECONDS / timer.timeit(1)))
    taken: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[BASELINE]) < 10:
        for name in order:
            taken[name].append(timers[name].timeit(calls[name]) / calls[name])
        order.reverse()  # either finds in the caches what the other left there
    low = {name: sorted(values)[len(values) // 10] for name, values in taken.items()}
    return Timing(size, work, low)


def _call(layer: nn.LSTM, x: torch.Tensor, work: str) -> Callable[[], object]:
    if work == "inference":
        return torch.inference_mode()(lambda: layer(x))
    parameters = list(layer.parameters())

    def train() -> None:
        for parameter in parameters:
            parameter.grad = None
        output, _ = layer(x)
        output[:, -1].square().mean().backward()

    return train
