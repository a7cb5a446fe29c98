"""ONNX Runtime beside torch.nn.LSTM and ours, inference in float32:

    pip install onnx onnxruntime
    python -m benchmarks.onnx_runtime [--threads 1] [--seconds 1] [--json RESULTS.json]
    python -m benchmarks.onnx_runtime --show RESULTS.json

The grid of `cases.py` without states, ours as a module, as one that is frozen and as an
`lstm_fast.InferenceSession`, which pack their weights once, as ONNX Runtime does; then single steps
with the state carried, where ours is an `lstm_fast.Stream`. Prints Markdown: microseconds, lowest
decile of an interleaved run. What is kept in benchmarks/results/ holds all of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import GRID, STEPS, Case, at_least_1
from benchmarks.measure import Run
from benchmarks.table import Info, markdown, result_of, shape


class WithStates(nn.Module):
    """An LSTM whose states are inputs and outputs of their own, as a graph has them."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.lstm(x, (h, c))
        return output, h, c


def session(module: nn.LSTM, case: Case, threads: int) -> Callable[[dict[str, Any]], list[Any]]:
    import onnxruntime  # which a result that was kept is shown without

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
    # Between its turns its threads would otherwise go on spinning, on the cores of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
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


def session_inference(module: nn.LSTM, x: Tensor) -> Run:
    session, sample = lstm_fast.InferenceSession(module), x.numpy()

    def inference() -> None:
        session.run(sample)

    return inference


def stream_step(module: nn.LSTM, case: Case, x: Tensor) -> Run:
    stream, sample = lstm_fast.Stream(module, case.B), x[0].numpy()

    def step() -> None:
        stream.step(sample)

    return step


def timed(work: str, case: Case, runs: tuple[Run, Run, Run], seconds: float) -> Info:
    """Microseconds of ours, torch.nn.LSTM's and ONNX Runtime's turn."""
    lows = [timing.low * 1e6 for timing in measure.interleave(runs, seconds)]
    times = dict(zip(("ours_us", "torch_us", "onnx_us"), lows, strict=True))
    return {"work": work, **dataclasses.asdict(case), **times}


def measured(threads: int, seconds: float) -> list[Info]:
    rows = []
    for work in ("inference", "frozen", "session", "step"):
        for case in STEPS if work == "step" else GRID:
            ours, theirs = (
                measure.build(of, case, torch.float32) for of in (lstm_fast.LSTM, nn.LSTM)
            )
            assert isinstance(theirs, nn.LSTM)
            theirs.eval()
            x = measure.inputs(case, torch.float32)
            if work == "step":
                first = stream_step(theirs, case, x)
                others = measure.step(theirs, x), onnx_step(theirs, case, x, threads)
            else:
                if work == "session":
                    first = session_inference(theirs, x)
                else:
                    first = measure.WORKS[work](ours, x)
                others = measure.inference(theirs, x), onnx_inference(theirs, case, x, threads)
            rows.append(timed(work, case, (first, *others), seconds))
    return rows


def table(rows: list[Info]) -> str:
    """A row a case; geometric mean and worst of the ratios below."""
    header = ["B T I H L D", "ours", "torch.nn.LSTM", "ONNX Runtime"]
    ratios = [
        (min(row["torch_us"], row["onnx_us"]) / row["ours_us"], row["onnx_us"] / row["ours_us"])
        for row in rows
    ]
    lines = [
        [shape(row), *(f"{row[name]:,.1f}" for name in ("ours_us", "torch_us", "onnx_us"))]
        + [f"{ratio:.2f}" for ratio in of]
        for row, of in zip(rows, ratios, strict=True)
    ]
    for name, reduce in (("geometric mean", statistics.geometric_mean), ("worst", min)):
        lines.append([name, "", "", "", *(f"{reduce(of):.2f}" for of in zip(*ratios, strict=True))])
    return markdown([*header, "best of both / ours", "ONNX / ours"], lines)


def report(results: Info) -> str:
    """All of a result as Markdown."""
    built, threads = results["lstm_fast"], results["threads"]
    parts = [
        f"{results['cpu']}, {built['isa']}, torch {results['torch']}, ONNX Runtime "
        f"{results['onnxruntime']}, lstm-fast {built['version']}, float32, {results['date']}, "
        f"threads: {threads}; microseconds, lowest decile of an interleaved run: "
        f"`{results['command']}`"
    ]
    for title, work in (
        ("Inference:", "inference"),
        ("Inference, frozen:", "frozen"),
        ("Inference through InferenceSession:", "session"),
        ("One step through Stream:", "step"),
    ):
        if rows := [row for row in results["rows"] if row["work"] == work]:
            parts += [title, table(rows)]
    return "\n\n".join(parts)


def cpu_name() -> str:
    """As Linux tells it; elsewhere the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--json", type=Path, help="keep the result here")
    parser.add_argument(
        "--show",
        type=result_of("benchmarks.onnx_runtime"),
        metavar="JSON",
        help="print a result that was kept",
    )
    args = parser.parse_args()
    if args.show:
        print(report(args.show))
        return
    import onnxruntime

    torch.set_num_threads(args.threads)
    results = {
        "command": shlex.join(["python", "-m", "benchmarks.onnx_runtime", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "lstm_fast": lstm_fast.build_info(),
        "threads": args.threads,
        "rows": measured(args.threads, args.seconds),
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


if __name__ == "__main__":
    main()
