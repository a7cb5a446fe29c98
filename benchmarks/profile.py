"""Where the time of a call goes: `python -m benchmarks.profile CASE WORK [--threads 1]`.

Needs Linux's perf and a build that says which line an instruction is of, and who called it:

    CXXFLAGS='-g -fno-omit-frame-pointer' .venv/bin/python setup.py build_ext --inplace

CASE is written as in the names of the benchmarks, such as B32_T96_I8_H128_L2_D1; works are those of
`measure.py` and "step". Calls go on for some seconds while perf takes samples of this process. A
sample in our library counts for the kernel that it was taken in (a row of the table) and for the
source file of the innermost line that does more than load or add (a column), which tells products,
gates and packing apart though they are inlined into each other. Samples elsewhere count for their
library.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from os import getpid
from pathlib import Path

import torch
from torch import Tensor, nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import at_least_1, parse_case
from benchmarks.table import markdown

WORKS: dict[str, Callable[[nn.Module, Tensor], measure.Run]] = {
    **measure.WORKS,
    "step": measure.step,
}
OURS = "_ops.abi3.so"
# Kernels that others are inlined into or called by: a row of the table each.
KERNELS = (
    "forward_rows",
    "forward_step",
    "pack_forward",
    "backward_rows",
    "pack_backward",
    "pack_input_grad",
    "input_grad_rows",
    "weight_grad",
    "recompute_rows",
    "is_ordinary",
)
# What the lines of a file do. Those of others, such as simd.h, count for the line they serve.
FILES = {
    "tile.h": "product",
    "matmul.h": "product",
    "forward_step.h": "product",
    "split.h": "bfloat16 unit",
    "split_matmul.h": "bfloat16 unit",
    "matrix_unit.h": "bfloat16 unit",
    "dot_products.h": "bfloat16 unit",
    "math.h": "gates",
    "pack.h": "packing",
    "forward.h": "gates",
    "backward.h": "gates",
    "weight_grad.h": "product",
}
# Libraries, by a part of their name.
ELSEWHERE = {
    "libtorch_python": "torch's Python",
    "libtorch": "torch",
    "libc10": "torch",
    "libgomp": "threads",
    "libc.so": "libc",
    "_kernels": "direct door",
    "python": "Python",
    "[kernel": "operating system",
    "[unknown": "operating system",
}


def record(run: measure.Run, seconds: float, data: Path) -> float:
    """Sample this process by perf while it calls `run`; return the seconds of a call."""
    command = ["perf", "record", "-q", "-g", "-F", "2000", "-p", str(getpid()), "-o", str(data)]
    perf = subprocess.Popen(command)
    time.sleep(0.5)
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            run()
        calls += 10
    perf.send_signal(signal.SIGINT)
    perf.wait()
    return passed / calls


def samples(data: Path) -> Iterator[list[tuple[int, str]]]:
    """Of each sample the addresses with the libraries that they lie in, innermost first."""
    command = ["perf", "script", "-i", str(data), "-F", "ip,sym,dso", "--no-inline"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for block in text.split("\n\n"):
        lines = [re.match(r"\s*([0-9a-f]+) .*\((.*)\)", line) for line in block.splitlines()]
        stack = [(int(found[1], 16), Path(found[2]).name) for found in lines if found]
        if stack:
            yield stack


def loaded_at(library: str) -> tuple[str, int]:
    """Path of a library of this process, and the address that its own addresses count from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(library):
            return line.split(maxsplit=5)[5], int(line.split("-")[0], 16)
    raise SystemExit(f"{library} is not loaded")


def inlined(addresses: Iterable[int]) -> dict[int, list[tuple[str, str]]]:
    """Of each address in our library the functions and files of its line, innermost first."""
    path, base = loaded_at(OURS)  # versions of perf differ in whether they have subtracted it
    asked = sorted(set(addresses))
    answer = subprocess.run(
        ["addr2line", "-a", "-f", "-C", "-i", "-e", path],
        input="\n".join(f"{address - base * (address >= base):#x}" for address in asked),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    blocks = re.split(r"^0x[0-9a-f]+\n", answer, flags=re.MULTILINE)[1:]
    frames = {}
    for address, block in zip(asked, blocks, strict=True):
        lines = block.splitlines()
        files = [Path(line.split(":")[0]).name for line in lines[1::2]]
        frames[address] = list(zip(lines[::2], files, strict=True))
    return frames


def kernel_of(frames: list[tuple[str, str]]) -> str | None:
    for function, _ in frames:
        for name in KERNELS:
            if re.search(rf"\b{name}\b", function):
                return name
    return None


def place(stack: list[tuple[int, str]], lines: dict[int, list[tuple[str, str]]]) -> tuple[str, str]:
    """Row and column of a sample in the table."""
    library = stack[0][1]
    ours = [frame for address, name in stack if name == OURS for frame in lines[address]]
    kernel = kernel_of(ours)
    if library == OURS:
        for _, file in lines[stack[0][0]]:
            if file in FILES:
                packs = kernel is not None and kernel.startswith("pack")
                return kernel or "other kernels", "packing" if packs else FILES[file]
        return kernel or "ops", "other"
    for part, name in ELSEWHERE.items():
        if part in library:
            return kernel or name, name if kernel else "other"
    return library, "other"


def table(places: Counter[tuple[str, str]]) -> str:
    """Shares of all samples, a row for each kernel or library, a column for each kind of work."""
    total = places.total()
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for (row, column), count in places.items():
        rows[row][column] += count
    columns = [c for c, n in sum(rows.values(), Counter()).most_common() if n >= 0.005 * total]
    header = ["% of the samples", "all", *columns]
    lines = [
        [name, f"{100 * of.total() / total:.1f}"]
        + [f"{100 * of[column] / total:.1f}" if of[column] else "" for column in columns]
        for name, of in sorted(rows.items(), key=lambda item: -item[1].total())
        if of.total() >= 0.005 * total
    ]
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case", type=parse_case)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=at_least_1, default=1)
    args = parser.parse_args()
    for tool in ("perf", "addr2line"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is needed and not on the PATH")
    torch.set_num_threads(args.threads)
    x = measure.inputs(args.case, torch.float32)
    module = measure.build(lstm_fast.LSTM, args.case, torch.float32)
    assert isinstance(module, nn.LSTM)
    run = WORKS[args.work](module, x)
    measure.warm_up(run, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        seconds = record(run, args.seconds, data)
        stacks = list(samples(data))
    lines = inlined(address for stack in stacks for address, name in stack if name == OURS)
    print(
        f"{args.case} {args.work}: {lstm_fast.explain(module, x)}; {1e6 * seconds:.1f} us a call\n"
    )
    print(table(Counter(place(stack, lines) for stack in stacks)))


if __name__ == "__main__":
    main()
