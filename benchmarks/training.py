"""Time whole trainings of the forecaster on lstm_fast.LSTM and on torch.nn.LSTM.

    python -m benchmarks.training [--threads 1 2]

Both train the same networks from the same seeds, in turns. A step is one of all networks together
and everything with it: Lightning, data, loss, backward, optimizer.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.cases import at_least_1
from lstm_fast.forecast import Forecaster
from lstm_fast.forecast.model import LAYERS

ROUNDS = 5
SECONDS = 1.0  # of one training, about

MONTHS: dict[str, Any] = {"h": 12, "season_length": 12, "input_size": 36}
HOURS: dict[str, Any] = {"h": 24, "season_length": 24, "input_size": 168}
SIZES: dict[str, dict[str, Any]] = {
    "the defaults": MONTHS,
    "one network": {**MONTHS, "n_models": 1},
    "32 units": {**MONTHS, "hidden_size": 32},
    "128 units": {**MONTHS, "hidden_size": 128},
    "two layers": {**MONTHS, "num_layers": 2},
    "128 windows a batch": {**MONTHS, "batch_size": 128},
    "a week of hours": HOURS,
    "a week of hours, 128 units": {**HOURS, "hidden_size": 128},
}


def series(freq: str) -> pd.DataFrame:
    """A wave with noise; what the values are does not matter here."""
    rng, rows = np.random.default_rng(0), 2000
    y = 10 + np.sin(2 * np.pi * np.arange(rows) / 12) + 0.1 * rng.normal(size=rows)
    ds = pd.date_range("1800-01-01", periods=rows, freq=freq)
    return pd.DataFrame({"unique_id": "a", "ds": ds, "y": y})


def measure(options: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a step, the median over rounds, by layer."""
    df = series("MS" if options["season_length"] == 12 else "h")

    def train(layer: str, steps: int) -> float:
        model = Forecaster(**options, levels=(), max_steps=steps, lstm_class=LAYERS[layer])
        start = time.perf_counter()
        model.fit(df)
        return time.perf_counter() - start

    # What a training of one step takes is no part of a step: the frame, the trainer, the networks.
    steps = max(10, round(SECONDS / train("torch.nn.LSTM", 10) * 10))
    taken: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for k in range(ROUNDS):
        for layer in list(LAYERS)[:: 1 if k % 2 else -1]:
            few, many = train(layer, 1), train(layer, steps + 1)
            taken[layer].append(1e3 * (many - few) / steps)
    return {layer: float(np.median(values)) for layer, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=at_least_1, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    print(f"| training step | threads | {' | '.join(f'{name}, ms' for name in LAYERS)} | times |")
    print("|---|---|---|---|---|")
    for name in arguments.sizes:
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            ours, theirs = measure(SIZES[name]).values()
            print(
                f"| {name} | {threads} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
