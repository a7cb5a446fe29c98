"""lstm_fast beside torch.nn.LSTM (cuDNN) on a CUDA device: `python -m benchmarks.gpu`.

Both take turns on the same device, timed by CUDA events; the figure of each is the median of its
samples. What is measured is written to the JSON file at once, and a second run measures what is
missing there, so that a run may be cut off. The JSON has all cases, with the device, the versions,
the outcomes of the tests (tests/cuda/watched.py), and the limits of the machine: bandwidth, rate of
matrix products, latency of a launch, of the barriers of a block, a cluster and a grid, and of the
exchanges that the kernels are made of (csrc/cuda/exchange.cuh). The table, printed and written
beside the JSON, has these too, and a line for each kind of work and for each regime of our kernels.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import Case
from benchmarks.table import markdown
from tests.cuda import watched

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What is measured: a dtype, and whether TF32 may stand for float32, for both alike.
KINDS = {"exact float32": "float32"} | {name: name for name in DTYPES}
# What a step of a regime waits for at least: a name of `limits`' barriers.
WAITS = {
    "stepwise": "launch",
    "one-block": "block",
    "cluster": "cluster_exchange",
    "grid-resident": "grid_exchange",
}
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
PATIENCE = 60  # seconds for a comparison, or for what barriers.cu measures


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
    for kind, name in KINDS.items():
        torch.backends.cuda.matmul.fp32_precision = "ieee" if kind == "exact float32" else "tf32"
        a, b = torch.randn(2, 4096, 4096, device="cuda").to(DTYPES[name])
        (product,) = median_seconds([functools.partial(torch.mm, a, b)], 0.3)
        found["gemm"][kind] = 2 * 4096**3 / product
    torch.backends.cuda.matmul.fp32_precision = before
    try:
        found["barriers"] = barriers(build)
    except (subprocess.SubprocessError, json.JSONDecodeError) as error:
        found |= {"barriers": {}, "without_barriers": str(error)}
    return found


def barriers(build: Path) -> dict[str, float | None]:
    """What barriers.cu prints."""
    build.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    program = build / "barriers"
    subprocess.run(build_of_barriers(program, f"{major}{minor}"), check=True)
    result = subprocess.run([program], stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
    found: dict[str, float | None] = json.loads(result.stdout)
    return found


def build_of_barriers(program: Path, arch: str) -> list[str]:
    """The command that makes a program of barriers.cu, which launches kernels as ours are."""
    import setup  # is in the checkout only

    cuda = setup.find_cuda([arch])
    sources = [Path("benchmarks") / "barriers.cu", setup.CSRC / "cuda" / "device.cu"]
    return [
        *(str(cuda.nvcc), *cuda.flags(setup.find_compiler())),
        *(str(setup.ROOT / source) for source in sources),
        *("-o", str(program)),
    ]


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
    x = measure.inputs(case, dtype).cuda()
    runs = []
    for cls in (lstm_fast.LSTM, nn.LSTM):
        module = measure.build(cls, case, dtype).cuda()
        if isinstance(module, lstm_fast.LSTM):
            kernels = lstm_fast.explain(module, x)
        runs.append(WORKS[work](module, x))
    ours, theirs = median_seconds(runs, seconds)
    training = work == "training"
    passes = 2 if training else 1
    # The largest of the products at the rate of a large one, input, output and parameters at the
    # rate of memory, once each and their gradients too, and a wait for each step.
    regime = kernels.removeprefix("CUDA kernels, ").split(", ")[0].split(" (")[0]
    wait = machine["barriers"].get(WAITS.get(regime)) or 0
    numbers = x.numel() * (1 + case.H * case.D / case.I) + sum(
        p.numel() for p in module.parameters()
    )
    limit = max(
        case.flops(training) / machine["gemm"][kind],
        passes * numbers * x.element_size() / machine["bandwidth"],
        passes * case.L * case.T * wait * 1e-9,
    )
    return {
        "us": ours * 1e6,
        "torch_us": theirs * 1e6,
        "ratio": theirs / ours,
        "us_a_step": ours * 1e6 / (case.T * case.L * passes),
        "share_of_limit": limit / ours,
        "regime": regime,
        "kernels": kernels,
    }


def table(results: dict[str, Any]) -> str:
    """The device and its limits; a line for each group, work and kind, and for each regime."""
    machine, of_device = results["machine"], results["device"]
    versions = ", ".join(f"{name} {of_device[name]}" for name in ("torch", "cuda", "cudnn"))
    rates = ", ".join(f"{kind} {rate * 1e-12:.0f}" for kind, rate in machine["gemm"].items())
    waits = ", ".join(
        f"{name.replace('_', ' ')} {'-' if wait is None else f'{wait * 1e-3:.2f}'}"
        for name, wait in machine["barriers"].items()
    )
    lines = [
        f"{of_device['name']}; {versions}; lstm_fast {of_device['lstm_fast']['version']}",
        "",
        f"- memory: {machine['bandwidth'] * 1e-12:.2f} TB/s",
        f"- products, TFLOP/s: {rates}",
        f"- launch, barriers and exchanges, us: {waits or 'NOT MEASURED, and left out of limits'}",
        f"- tests: {', '.join(f'{n} {what}' for what, n in results['tests']['counts'].items())}",
        *(f"  - {test}" for test in results["tests"]["wrong"]),
        "",
    ]
    parts: dict[tuple[str, str, str], list[Any]] = {}
    regimes: dict[tuple[str, str, str], list[Any]] = {}
    for result in results["cases"].values():
        if "ratio" not in result:
            continue
        parts.setdefault((result["group"], result["work"], result["kind"]), []).append(result)
        regimes.setdefault((result["regime"], result["work"], "all"), []).append(result)
    columns = ["shapes or regime", "work", "dtype", "cases", "ratio, geometric mean", "worst"]
    columns += ["us a step, median", "share of the limit, median"]
    rows = []
    for key, cases in [*parts.items(), *sorted(regimes.items())]:
        ratios = [case["ratio"] for case in cases]
        medians = [
            statistics.median(case[name] for case in cases)
            for name in ("us_a_step", "share_of_limit")
        ]
        figures = [statistics.geometric_mean(ratios), min(ratios), *medians]
        rows.append([*key, str(len(cases)), *(f"{figure:.2f}" for figure in figures)])
    lines.append(markdown(columns, rows))
    failed = [key for key, result in results["cases"].items() if "ratio" not in result]
    lines += ["", *(f"- {results['cases'][key]['error']}: {key}" for key in failed)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument(
        "--seconds-in-all", type=float, default=300, help="then stop, to go on later"
    )
    parser.add_argument("--seconds", type=float, default=0.6, help="for each comparison")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not lstm_fast.build_info()["cuda"]:
        parser.error("needs a CUDA device, a torch with CUDA, and a build with LSTM_FAST_CUDA=1")
    end = time.monotonic() + options.seconds_in_all
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def write() -> None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    if results and results["device"] != device():
        name = re.sub(r"\W+", "-", results["device"]["name"]).lower()
        kept = options.out.replace(options.out.with_stem(f"{options.out.stem}-{name}"))
        print(f"Other versions or another device: what was measured before is in {kept}.")
        results = {}
    if not results:
        results = {"device": device(), "machine": limits(Path("build") / "gpu"), "cases": {}}
    tested = watched.outcomes()
    wrong = [f"{outcome}: {test}" for test, outcome in tested.items() if outcome in watched.WRONG]
    results["tests"] = {"counts": Counter(tested.values()), "wrong": wrong}
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
        # A kernel that waits for ever ends this process, and the next run goes on behind it.
        results["cases"][key] = {"error": "hung"}
        write()
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            found = compare(case, work, kind, options.seconds, results["machine"])
            results["cases"][key] = {"group": group, "work": work, "kind": kind, **found}
            print(f"{key}: {found['us']:.1f} us, ratio {found['ratio']:.2f}, {found['kernels']}")
        except RuntimeError as error:
            results["cases"][key] = {"error": str(error)}
            print(f"{key}: {error}")
        works = watched.device_works()
        faulthandler.cancel_dump_traceback_later()
        write()
        if not works:
            sys.exit("The device is lost to this process: run again to measure the rest.")
    print(table(results))
    options.out.with_suffix(".md").write_text(table(results) + "\n")
    if why := results["machine"].get("without_barriers"):
        sys.exit(f"{options.out} has no latencies of barriers: {why}")


if __name__ == "__main__":
    main()
