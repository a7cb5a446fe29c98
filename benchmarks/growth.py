"""How the cost of a call grows with T, B, H and threads: the picture docs/images/growth.png.

    python -m benchmarks.growth [--seconds 0.8] [--out docs/images]

One size at a time is varied about `BASE`, on one thread unless threads are what varies. Beside our
LSTM and torch.nn.LSTM stands the limit: the time that the arithmetic of the matrix products would
take at the rate of a large float32 product of torch, measured in between. (A matrix unit, which
makes float32 products of bfloat16 parts, may go below it.) Prints the figures, too.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import Case
from benchmarks.table import markdown
from lstm_fast.forecast.plot import plot_growth, save_figure

BASE = Case(B=32, T=48, I=8, H=64, L=1)
VARIED = {
    "T": (1, 4, 16, 64, 256, 1024),
    "B": (1, 4, 16, 64, 256, 1024),
    "H": (8, 16, 32, 64, 128, 256, 512),
}
WORKS = {"inference": measure.inference, "training": measure.training}
OURS, THEIRS, LIMIT = "lstm_fast.LSTM", "torch.nn.LSTM", "matrix product alone"
SIZES = {"T": "steps T", "B": "rows B", "H": "units H", "threads": "threads"}


def thread_counts() -> list[int]:
    """1, 2, 4 ... and all cores that this process may use."""
    cores = measure.cores()
    return sorted({*(2**k for k in range(cores.bit_length()) if 2**k <= cores), cores})


def points() -> list[tuple[str, int, Case, int]]:
    """What is measured: size that varies, its value, the case, threads."""
    varied = [
        (letter, value, replace(BASE, **{letter: value}), 1)
        for letter, values in VARIED.items()
        for value in values
    ]
    return varied + [("threads", threads, BASE, threads) for threads in thread_counts()]


def measured(seconds: float) -> pd.DataFrame:
    """A line for each size, value, work and name: what `plot_growth` draws.

    Args:
        seconds: of measuring for each point and work.
    """
    rows: list[dict[str, Any]] = []
    rates: dict[int, list[float]] = {threads: [] for threads in thread_counts()}
    for letter, value, case, threads in points():
        torch.set_num_threads(threads)
        x = measure.inputs(case, torch.float32)
        for work, prepare in WORKS.items():
            rates[threads].append(measure.gemm_rate(torch.float32, 0.1 * seconds))
            modules = (measure.build(of, case, torch.float32) for of in (lstm_fast.LSTM, nn.LSTM))
            runs = [prepare(module, x) for module in modules]
            ours, theirs = (timing.low for timing in measure.interleave(runs, 0.9 * seconds))
            # Over the rate, once that is known.
            limit = case.flops(training=work == "training")
            for name, low in ((OURS, ours), (THEIRS, theirs), (LIMIT, limit)):
                point = {"work": work, "size": SIZES[letter], "value": value, "threads": threads}
                rows.append({**point, "name": name, "seconds": low})
    for row in rows:
        if row["name"] == LIMIT:
            row["seconds"] /= statistics.median(rates[row["threads"]])
    return pd.DataFrame(rows)


def table(times: pd.DataFrame) -> str:
    """The figures in microseconds, a line for each point, the columns of each work side by side."""
    names = [(work, name) for work in WORKS for name in (OURS, THEIRS, LIMIT)]
    header = ["varied", *(f"{work}: {name}" for work, name in names)]
    lines = []
    for (size, value), group in times.groupby(["size", "value"], sort=False):
        low = group.set_index(["work", "name"])["seconds"]
        lines.append([f"{size} = {value}", *(f"{1e6 * low[key]:,.1f}" for key in names)])
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.8, help="for each point and work")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder")
    args = parser.parse_args()
    times = measured(args.seconds)
    print(table(times))
    base = f"B={BASE.B} T={BASE.T} I={BASE.I} H={BASE.H}, one layer, one thread"
    title = f"Time of a call, one size varied, the others {base}"
    print(save_figure(plot_growth(times, title=title), args.out / "growth.png", overwrite=True))


if __name__ == "__main__":
    main()
