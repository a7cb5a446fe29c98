"""Compiles the CUDA kernels for all architectures and reads what ptxas says of them, without a GPU:
`python -m tests.cuda.architectures`, as `make lint` does. `--table` prints that of csrc/README.md.

Weights that stay in registers must be there: nothing spilled and no local memory in the kernels
that run all steps of a layer in one launch. That table must be right, for the nvcc that it names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import PlatformError

import setup

CACHE = setup.ROOT / "build" / "architectures"


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel on an architecture."""

    kernel: str
    arch: str
    spilled_bytes: int
    stack_bytes: int
    registers: int


def usages(log: str) -> list[Usage]:
    found = re.finditer(
        r"Compiling entry function '(?P<kernel>\S+)' for 'sm_(?P<arch>\S+)'\n.*\n"
        r"\s+(?P<stack>\d+) bytes stack frame, (?P<spill>\d+) bytes spill stores.*\n"
        r".*Used (?P<registers>\d+) registers",
        log,
    )
    return [
        Usage(m["kernel"], m["arch"], int(m["spill"]), int(m["stack"]), int(m["registers"]))
        for m in found
    ]


# What there is on every architecture, by the names and template arguments in a mangled name.
# `block`: three sizes of TF32, float16 and bfloat16. `team`: alone, two sizes of float32 and one of
# float64; a cluster of one size and a grid of two, each of TF32, float32, float16 and bfloat16.
# The others: at least float32 in two units, float64, float16 and bfloat16.
RESIDENT = {"block_forward": 9, "block_backward": 9, "team_forward": 15, "team_backward": 15}
OTHERS = {"product": 5, "step_forward": 5, "step_backward": 5, "weight_grad": 5}


def complaints(found: Sequence[Usage], archs: Sequence[str]) -> list[str]:
    """What is wrong; nothing, if all is as it should be."""
    said = []
    for arch in archs:
        there = [usage for usage in found if usage.arch == arch]
        for name, count in [*RESIDENT.items(), *OTHERS.items()]:
            kernels = [usage for usage in there if f"{name}_kernel" in usage.kernel]
            if len(kernels) < count or (name in RESIDENT and len(kernels) > count):
                said.append(f"sm_{arch}: {len(kernels)} kernels {name}, expected {count}")
            if name not in RESIDENT:
                continue
            for usage in kernels:
                if usage.spilled_bytes or usage.stack_bytes:
                    said.append(f"local memory: {usage}")
                # 16 chunks of 8 words for a thread, or 6 where there are twice as many threads; on
                # older devices the kernels of a cluster are empty.
                least = 48 if "ELi128E" in usage.kernel else 128
                hopper = arch.startswith(("9", "1"))
                if name.startswith("team") and hopper and usage.registers <= least:
                    said.append(f"weights are not in registers: {usage}")
    return said


def compiled(cuda: setup.Cuda, version: str, source: Path, flags: Sequence[str]) -> str:
    """What the compilers say of a source; compiled if that, a header, a flag or nvcc is new."""
    command = [str(cuda.nvcc), *cuda.flags(setup.find_compiler()), "-Xptxas=-v", *flags]
    text = hashlib.sha256(" ".join([version, *command]).encode())
    text.update((setup.ROOT / source).read_bytes())
    folders = [setup.ROOT / setup.CSRC, setup.ROOT / setup.CSRC / "cuda"]
    for path in sorted(path for folder in folders for path in folder.glob("*.*h")):
        text.update(path.read_bytes())
    log = CACHE / f"{source.stem}.{text.hexdigest()[:16]}.log"
    if not log.exists():
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [*command, "-c", str(source), "-o", str(Path(folder) / "out.o")],
                cwd=setup.ROOT,
                capture_output=True,
                text=True,
            )
        if result.returncode:
            raise SystemExit(f"{source} does not compile:\n{result.stdout}{result.stderr}")
        CACHE.mkdir(parents=True, exist_ok=True)
        log.write_text(result.stdout + result.stderr)
    return log.read_text()


def table(found: Sequence[Usage]) -> str:
    """Registers of a thread, by kernel, from sm_80 on, or sm_90 for a cluster."""
    names = subprocess.run(
        ["c++filt"], input="\n".join(u.kernel for u in found), capture_output=True, text=True
    ).stdout.splitlines()
    rows: dict[tuple[str, ...], dict[str, list[int]]] = {}
    types = {"float": "TF32", "__half": "halves", "__nv_bfloat16": "halves"}
    for usage, name in zip(found, names, strict=True):
        block = re.search(r"block_(forward|backward)_kernel<(\w+), (\d+)>", name)
        team = re.search(r"team_(\w+)_kernel<(\w+), \S+\)(\d), (\d+), lstm_fast::cuda::(\w+)", name)
        if usage.arch == "75" or not (block or team):
            continue
        if block:
            direction, dtype = block[1], block[2]
            units = int(block[3]) * (8 if dtype == "float" else 16)
            row: tuple[str, ...] = "one_block.cuh", types[dtype], str(units), str(4 * units)
        else:
            assert team
            direction, dtype, way = team[1], team[2], team[5]
            if way == "Cluster" and not usage.arch.startswith(("9", "1")):
                continue
            exact = {"float": "exact float32", "double": "exact float64"}
            products = types[dtype] if team[3] == "1" else exact[dtype]
            way = {"Alone": "one block"}.get(way, way.lower())
            row = f"team.cuh, {way}", products, team[4], "512" if team[4] == "128" else "256"
        rows.setdefault(row, {}).setdefault(direction, []).append(usage.registers)
    head = ["kernel", "products", "units of a block", "threads"]
    lines = [
        f"| {' | '.join([*head, 'registers, forward', 'backward', 'spills'])} |",
        "|---" * 7 + "|",
    ]
    order = ["one_block.cuh", "team.cuh, cluster", "team.cuh, grid", "team.cuh, one block"]
    for row in sorted(
        rows,
        key=lambda row: (
            order.index(row[0]),
            row[1] == "halves",
            row[1] != "TF32",
            row[1],
            int(row[2]),
        ),
    ):
        spans = [f"{min(r)} to {max(r)}" for r in (rows[row]["forward"], rows[row]["backward"])]
        lines.append(f"| {' | '.join([*row, *spans, '0'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.architectures", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--table", action="store_true", help="print the registers of the kernels")
    options = parser.parse_args()
    try:
        cuda = setup.find_cuda(setup.CUDA_ARCHS)
    except PlatformError as error:
        print(f"CUDA kernels are not looked at: {error}")
        return
    version = subprocess.run([cuda.nvcc, "--version"], capture_output=True, text=True).stdout
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [(source, flags) for source, flags, _ in setup.cuda_sources()]
        barriers: list[tuple[Path, list[str]]] = [(Path("benchmarks") / "barriers.cu", [])]
        logs = pool.map(lambda item: compiled(cuda, version, *item), [*kernels, *barriers])
        found = usages("".join(logs))
    if said := complaints(found, setup.CUDA_ARCHS):
        sys.exit("\n".join(said))
    release = re.search(r"release (\d+\.\d+)", version)
    readme = (setup.ROOT / setup.CSRC / "README.md").read_text()
    archs = ", ".join(f"sm_{arch}" for arch in setup.CUDA_ARCHS)
    print(f"CUDA kernels: {len(found)} compiled for {archs}; nothing spilled where weights stay")
    if options.table:
        print(table(found))
    elif release and f"ptxas of CUDA {release[1]} " in readme and table(found) not in readme:
        sys.exit("csrc/README.md has another table than `--table` prints")


if __name__ == "__main__":
    main()
