"""ONNX Runtime beside torch.nn.LSTM and ours, inference in float32:

    pip install onnx onnxruntime
    python -m benchmarks.onnx_runtime [--threads 1] [--seconds 1]

The grid of `cases.py` without states, then single steps with the state carried, where ours is
`lstm_fast.Stream`. Prints Markdown: microseconds, lowest decile of an interleaved run.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable
from typing import Any

import numpy
import onnxruntime
import torch
from torch import Tensor, nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import GRID, STEPS, Case
from benchmarks.measure import Run
from benchmarks.table import markdown


class WithStates(nn.Module):
    """An LSTM whose states are inputs and outputs of their own, as a graph has them."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.lstm(x, (h, c))
        return output, h, c


def session(module: nn.LSTM, case: Case, threads: int) -> Callable[[dict[str, Any]], list[Any]]:
    graph = io.BytesIO()
    state = torch.zeros(case.L * case.D, case.B, case.H)
    torch.onnx.export(
        WithStates(module),
        (torch.zeros(case.T, case.B, case.I), state, state),
        graph,  # type: ignore[arg-type]
        input_names=["x", "h", "c"],
        output_names=["output", "h_n", "c_n"],
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(
        graph.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: made.run(None, feeds)


def onnx_inference(module: nn.LSTM, case: Case, x: Tensor, threads: int) -> Run:
    run = session(module, case, threads)
    state = numpy.zeros((case.L * case.D, case.B, case.H), "float32")
    feeds = {"x": x.numpy(), "h": state, "c": state}

    def inference() -> None:
        run(feeds)

    return inference


def onnx_step(module: nn.LSTM, case: Case, x: Tensor, threads: int) -> Run:
    run = session(module, case, threads)
    state = [numpy.zeros((case.L * case.D, case.B, case.H), "float32")] * 2

    def step() -> None:
        nonlocal state
        _, *state = run({"x": x.numpy(), "h": state[0], "c": state[1]})

    return step


def stream_step(module: nn.LSTM, case: Case, x: Tensor) -> Run:
    stream, sample = lstm_fast.Stream(module, case.B), x[0].numpy()

    def step() -> None:
        stream.step(sample)

    return step


def row(case: Case, runs: tuple[Run, Run, Run], seconds: float) -> tuple[list[str], float, float]:
    """A line of the table, and the best peer's time and nn.LSTM's over ours."""
    ours, theirs, onnx = (timing.low * 1e6 for timing in measure.interleave(runs, seconds))
    best = min(theirs, onnx) / ours
    shape = " ".join(str(getattr(case, letter)) for letter in "BTIHLD")
    times = [f"{value:,.1f}" for value in (ours, theirs, onnx)]
    return [shape, *times, f"{best:.2f}", f"{onnx / ours:.2f}"], best, onnx / ours


def table(title: str, rows: list[tuple[list[str], float, float]]) -> None:
    header = ["B T I H L D", "ours", "torch.nn.LSTM", "ONNX Runtime"]
    print(f"\n{title}\n")
    print(markdown([*header, "best of both / ours", "ONNX / ours"], [line for line, *_ in rows]))
    for name, of in (("best of both", 1), ("ONNX Runtime", 2)):
        ratios = [float(line[of]) for line in rows]  # type: ignore[arg-type]
        mean = statistics.geometric_mean(ratios)
        print(f"\n{name}: geometric mean {mean:.2f}, worst {min(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def build(case: Case) -> tuple[Any, Any, Tensor]:
        ours, theirs = (
            measure.build(of, case, torch.float32) for of in (lstm_fast.LSTM, torch.nn.LSTM)
        )
        return ours, theirs.eval(), measure.inputs(case, torch.float32)

    rows = []
    for case in GRID:
        ours, theirs, x = build(case)
        runs = (
            measure.inference(ours, x),
            measure.inference(theirs, x),
            onnx_inference(theirs, case, x, args.threads),
        )
        rows.append(row(case, runs, args.seconds))
    table(f"Inference, threads: {args.threads}", rows)

    rows = []
    for case in STEPS:
        _, theirs, x = build(case)
        runs = (
            stream_step(theirs, case, x),
            measure.step(theirs, x),
            onnx_step(theirs, case, x, args.threads),
        )
        rows.append(row(case, runs, args.seconds))
    table("One step through Stream", rows)


if __name__ == "__main__":
    main()
