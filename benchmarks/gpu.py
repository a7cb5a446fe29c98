"""lstm_fast beside torch.nn.LSTM (cuDNN) on a CUDA device: `python -m benchmarks.gpu`.

Both take turns on the same device, timed by CUDA events; the figure of each is the median of its
samples. What is measured is written to the JSON file at once, and a second run measures what is
missing there, so that a run may be cut off. The table at the end has a line for each kind of work
and for each regime of our kernels, and the JSON has all cases, with the device, the versions, and
the limits of the machine: bandwidth, rate of matrix products, latency of the barriers of a block, a
cluster and a grid, and of the exchanges that the kernels are made of (csrc/cuda/exchange.cuh).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What is measured: a dtype, and whether TF32 may stand for float32, for both alike.
KINDS = {"exact float32": "float32"} | {name: name for name in DTYPES}
# What a step of a regime waits for at least: a name of `limits`' barriers.
WAITS = {"one-block": "block", "cluster": "cluster_exchange", "grid-resident": "grid_exchange"}
WORKS = {"inference": measure.inference, "training": measure.training}
# What forecasters use: B 1 to 256, T 24 to 336, H 20 to 512, I 1 to 200, L 1 and 2.
FORECASTERS = [
    Case(1, 24, 1, 32, 1),
    Case(1, 168, 8, 64, 2),
    Case(1, 96, 8, 256, 1),
    Case(8, 48, 3, 50, 2),
    Case(32, 24, 1, 64, 1),
    Case(32, 336, 3, 64, 1),
    Case(32, 96, 8, 128, 2),
    Case(32, 48, 40, 300, 1),
    Case(64, 24, 24, 20, 2),
    Case(64, 60, 100, 256, 2),
    Case(64, 168, 1, 96, 1),
    Case(64, 50, 200, 512, 1),
    Case(128, 36, 10, 100, 2),
    Case(256, 30, 4, 32, 2),
    Case(256, 72, 16, 160, 1),
    Case(256, 24, 64, 512, 2),
]
LARGE = [
    Case(1, 256, 768, 768, 1),
    Case(16, 1024, 768, 768, 1),
    Case(64, 256, 1024, 1024, 1),
    Case(64, 256, 2048, 2048, 1),
]
GROUPS = {"forecasters": FORECASTERS, "large": LARGE}


def median_seconds(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The median time of a call of each, by events around samples taken in turns."""
    calls = []
    for run in runs:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        calls.append(max(1, round(2e-3 / (time.perf_counter() - start))))
    samples: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[0]) < 5:
        for run, n, taken in zip(runs, calls, samples, strict=True):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            for _ in range(n):
                run()
            after.record()
            after.synchronize()
            taken.append(before.elapsed_time(after) * 1e-3 / n)
    return [statistics.median(taken) for taken in samples]


def limits(build: Path) -> dict[str, Any]:
    """Bandwidth in bytes/s, products in FLOP/s by dtype, barriers in nanoseconds."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    (copy,) = median_seconds([lambda: target.copy_(source)], 0.3)
    found: dict[str, Any] = {"bandwidth": 2 * source.nbytes / copy, "gemm": {}}
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for name, dtype in DTYPES.items():
        a, b = torch.randn(2, 4096, 4096, device="cuda").to(dtype)
        (product,) = median_seconds([functools.partial(torch.mm, a, b)], 0.3)
        found["gemm"][name] = 2 * 4096**3 / product
    torch.backends.cuda.matmul.fp32_precision = before
    build.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    program, code = build / "barriers", f"{major}{minor}"
    source_file = str(Path(__file__).with_name("barriers.cu"))
    nvcc = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{code}", source_file]
    subprocess.run([*nvcc, "-o", str(program)], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found["barriers"] = json.loads(said)
    return found


def device() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "lstm_fast": lstm_fast.build_info(),
    }


def compare(case: Case, work: str, kind: str, seconds: float, machine: Any) -> dict[str, Any]:
    dtype = DTYPES[KINDS[kind]]
    setting: Any = torch.backends.cudnn.rnn
    setting.fp32_precision = "ieee" if kind == "exact float32" else "tf32"
    x = torch.randn(case.T, case.B, case.I, device="cuda").to(dtype)
    runs = []
    for cls in (lstm_fast.LSTM, nn.LSTM):
        torch.manual_seed(0)
        module = cls(case.I, case.H, case.L, bidirectional=case.D == 2, dtype=dtype).cuda()
        if cls is lstm_fast.LSTM:
            kernels = lstm_fast.explain(module, x)
        runs.append(WORKS[work](module, x))
    ours, theirs = median_seconds(runs, seconds)
    flops = case.flops(training=work == "training")
    passes = 2 if work == "training" else 1
    # The larger of the products at the rate of a large one, and a wait for each step; the rate is
    # that of TF32 for exact products too, which have no tensor cores.
    regime = kernels.split(", ")[1].split(" (")[0]
    wait = machine["barriers"][WAITS.get(regime, "grid")] or 0
    limit = max(flops / machine["gemm"][KINDS[kind]], passes * case.L * case.T * wait * 1e-9)
    return {
        "us": ours * 1e6,
        "torch_us": theirs * 1e6,
        "ratio": theirs / ours,
        "us_a_step": ours * 1e6 / (case.T * case.L * passes),
        "share_of_limit": limit / ours,
        "regime": regime,
        "kernels": kernels,
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(results: dict[str, Any]) -> str:
    """A line for each group, work and kind, and one for each regime and work."""
    parts: dict[tuple[str, str, str], list[Any]] = {}
    regimes: dict[tuple[str, str, str], list[Any]] = {}
    for result in results["cases"].values():
        parts.setdefault((result["group"], result["work"], result["kind"]), []).append(result)
        regimes.setdefault((result["regime"], result["work"], "all"), []).append(result)
    columns = ["shapes or regime", "work", "dtype", "cases", "ratio, geometric mean", "worst"]
    columns += ["us a step, median", "share of the limit, median"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, cases in [*parts.items(), *sorted(regimes.items())]:
        ratios = [case["ratio"] for case in cases]
        medians = [
            statistics.median(case[name] for case in cases)
            for name in ("us_a_step", "share_of_limit")
        ]
        figures = [geometric_mean(ratios), min(ratios), *medians]
        entries = [*key, str(len(cases)), *(f"{figure:.2f}" for figure in figures)]
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--minutes", type=float, default=5, help="stop after these, to go on later")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each comparison")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not lstm_fast.build_info()["cuda"]:
        parser.error("needs a CUDA device, a torch with CUDA, and a build with LSTM_FAST_CUDA=1")
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def write() -> None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    if results.get("device") != device():
        results = {"device": device(), "machine": limits(Path("build") / "gpu"), "cases": {}}
        write()
    wanted = {
        f"{group} {work} {kind} {case}": (group, case, work, kind)
        for group, cases in GROUPS.items()
        for kind in KINDS
        for case in cases
        for work in WORKS
    }
    for key, (group, case, work, kind) in wanted.items():
        if key in results["cases"]:
            continue
        if time.monotonic() > end:
            print("Time is up: run again to measure the rest.")
            break
        found = compare(case, work, kind, options.seconds, results["machine"])
        results["cases"][key] = {"group": group, "work": work, "kind": kind, **found}
        print(f"{key}: {found['us']:.1f} us, ratio {found['ratio']:.2f}, {found['kernels']}")
        write()
    print(table(results))


if __name__ == "__main__":
    main()
