"""Calls that come alone, as requests do: `python -m benchmarks.pauses`.

    python -m benchmarks.pauses B1_T168_I8_H40_L2_D1 --threads=2 --pause=0.05

Microseconds of a call of inference after a pause of so many seconds, on one thread and on more,
beside torch.nn.LSTM: lowest decile, median and highest decile. After a pause threads sleep and
caches are cold.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

import lstm_fast
from benchmarks.cases import Case, at_least_1, parse_case
from benchmarks.measure import Run, build, inference, inputs, once
from benchmarks.table import markdown, shape

CASES = [
    Case(B=1, T=24, I=8, H=64, L=2),
    Case(B=1, T=168, I=8, H=40, L=2),
    Case(B=64, T=24, I=24, H=20, L=2),
]


def alone(run: Run, pause: float, calls: int) -> str:
    """What calls take that each come after a pause."""
    samples = []
    run()
    for _ in range(calls):
        time.sleep(pause)
        samples.append(1e6 * once(run))
    samples.sort()
    low, median, high = (samples[calls * tenths // 10] for tenths in (1, 5, 9))
    return f"{low:,.0f} {median:,.0f} {high:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=at_least_1, default=2)
    parser.add_argument("--pause", type=float, default=0.03)
    parser.add_argument("--calls", type=at_least_1, default=100)
    parser.add_argument("cases", nargs="*", type=parse_case, default=CASES)
    args = parser.parse_args()
    counts = sorted({1, args.threads})
    header = ["B T I H L D"]
    for threads in counts:
        words = f"{threads} thread" if threads == 1 else f"{threads} threads"
        header += [f"LSTM, {words}", f"nn.LSTM, {words}"]
    rows = []
    for case in args.cases:
        x = inputs(case, torch.float32)
        runs = [inference(build(m, case, torch.float32), x) for m in (lstm_fast.LSTM, nn.LSTM)]
        cells = []
        for threads in counts:
            torch.set_num_threads(threads)
            cells += [alone(run, args.pause, args.calls) for run in runs]
        rows.append([shape(vars(case)), *cells])
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
