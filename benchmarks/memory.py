"""Memory of a training step beside torch.nn.LSTM's, and what `recompute_gates` saves and costs.

    python -m benchmarks.memory                          # the table of docs/memory.md
    python -m benchmarks.memory B64_T168_I160_H160_L1_D1 --threads=2 --seconds=5

Of each case, in megabytes above what the process had before, as Linux tells it: what is kept
between forward and backward, and the peak of three steps of forward, loss on all outputs and
backward, with the memory that our ops keep from call to call; and the time of a step with
recomputed gates to one without. Each module has a process of its own, and takes a step before that
does not count.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cases import GRID, Case, at_least_1, parse_case
from benchmarks.measure import inputs, interleave, training
from benchmarks.table import markdown
from lstm_fast import LSTM, empty_cache

KINDS: dict[str, tuple[type[nn.LSTM], dict[str, Any]]] = {
    "nn.LSTM": (nn.LSTM, {}),
    "ours": (LSTM, {}),
    "recomputing": (LSTM, {"recompute_gates": True}),
}
# Blocks from here on go back to the system when they are freed, so that a process has what is in
# use. A number of mallopt, of the C library.
M_MMAP_THRESHOLD, OWN_BLOCK = -3, 1 << 14
# Of nn.LSTM; below this, pages and what the C library keeps are as much as the tensors, and only
# times are compared.
LEAST_PEAK = 4e6


def build(kind: str, case: Case) -> nn.LSTM:
    module, options = KINDS[kind]
    torch.manual_seed(0)
    return module(case.I, case.H, case.L, bidirectional=case.D == 2, **options)


def _status(field: str) -> int:
    """Bytes of a field of what Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def memory(kind: str, case: Case, threads: int) -> tuple[int, int]:
    """Bytes of this process, above those before any step of training: between the forward and the
    backward of one, and at most in some."""
    c = ctypes.CDLL(None)
    c.mallopt(M_MMAP_THRESHOLD, OWN_BLOCK)
    torch.set_num_threads(threads)
    module, x = build(kind, case), inputs(case, torch.float32)
    run = training(module, x)

    def used() -> int:
        empty_cache()
        c.malloc_trim(0)
        return _status("VmRSS")

    run()
    module.zero_grad()
    gc.collect()
    before = used()
    output, _ = module(x)
    kept = used() - before
    del output
    used()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    for _ in range(3):
        run()
    return kept, _status("VmHWM") - before


def measure(cases: list[Case], threads: int, seconds: float) -> str:
    """The table in Markdown, and what it says in all."""
    torch.set_num_threads(threads)
    rows, saved, costs = [], [], []
    ratios: dict[str, list[float]] = {"ours": [], "recomputing": []}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure", "lstm_fast"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for case in cases:
            found = {kind: pool.apply(memory, (kind, case, threads)) for kind in KINDS}
            kept, peaks = ({kind: n[i] for kind, n in found.items()} for i in (0, 1))
            x = inputs(case, torch.float32)
            runs = [training(build(kind, case), x) for kind in ratios]
            ours, recomputing = (timing.low for timing in interleave(runs, seconds))
            costs.append(recomputing / ours)
            if peaks["nn.LSTM"] >= LEAST_PEAK:
                saved.append(kept["recomputing"] / kept["ours"])
                for kind, of_kind in ratios.items():
                    of_kind.append(peaks[kind] / peaks["nn.LSTM"])
            rows.append(
                [
                    " ".join(map(str, (case.B, case.T, case.I, case.H, case.L, case.D))),
                    *(f"{n / 1e6:.1f}" for n in (*kept.values(), *peaks.values())),
                    f"{recomputing / ours:.2f}",
                ]
            )
    header = ["B T I H L D", *(f"{what}, {kind}" for what in ("kept", "peak") for kind in KINDS)]
    lines = [markdown([*header, "time, recomputing to ours"], rows), ""]
    means = {f"peak, {kind} to nn.LSTM": of_kind for kind, of_kind in ratios.items()}
    means["kept, recomputing to ours"] = saved
    means["time, recomputing to ours"] = costs
    for name, values in means.items():
        if values:
            mean = statistics.geometric_mean(values)
            lines.append(f"{name}: {mean:.2f}, at most {max(values):.2f} ({len(values)} cases)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", type=parse_case, help="those of the grid, if none")
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="the timing of a case takes so long"
    )
    args = parser.parse_args()
    print(measure(args.cases or GRID, args.threads, args.seconds))


if __name__ == "__main__":
    main()
