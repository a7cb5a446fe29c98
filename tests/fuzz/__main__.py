"""Builds stack.cpp and variant.cpp with sanitizers and runs them: `python -m tests.fuzz [thread]
[--cases=3000]`.

With `--seconds`, libFuzzer looks for cases that reach new code; that needs clang (`CXX=clang++`).
It looks in the kernels for any CPU, whose source is that of all. What it found is run, besides
random cases, by the next call without `--seconds`, on every instruction set of the host.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import setup

FOLDER = Path("tests") / "fuzz"
PROGRAMS = ("stack", "variant")


def folder_of(sanitizers: str, guided: bool) -> Path:
    return Path("build") / f"fuzz-{sanitizers.replace(',', '-')}{'-guided' * guided}"


def build(sanitizers: str, guided: bool) -> None:
    """The programs, linked from the CPU floor alone. Raises CompileError."""
    folder = folder_of(sanitizers, guided)
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
    left = {"-g0", "-O3", "-DNDEBUG", *(setup.ISA_MACROS if guided else [])}
    kept = [flag for flag in setup.CXX_FLAGS if flag not in left]
    cover, link = ["-fsanitize=fuzzer-no-link"] * guided, ["-fsanitize=fuzzer"] * guided
    ninja = setup.NinjaFile(
        setup.find_compiler(), build=folder, flags=[*kept, *flags, *cover, f"-I{setup.CSRC}"]
    )
    main = [] if guided else ["-DLSTM_FAST_RANDOM_CASES"]
    floor = setup.add_common_objects(ninja)
    floor += setup.add_cpu_objects(ninja, *([["baseline"]] if guided else []))
    for name in PROGRAMS:
        objects = [*floor, ninja.compile(FOLDER / f"{name}.cpp", main)]
        ninja.link_program(folder / name, objects, [*flags, *link, "-pthread"])
    ninja.run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("sanitizers", nargs="?", default="address,undefined")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seconds", type=int)
    arguments = parser.parse_args()
    guided = arguments.seconds is not None
    build(arguments.sanitizers, guided)
    folder = setup.ROOT / folder_of(arguments.sanitizers, guided)
    for name in PROGRAMS:
        corpus = setup.ROOT / "build" / f"fuzz-corpus-{name}"
        corpus.mkdir(exist_ok=True)
        if guided:
            options = [f"-max_total_time={arguments.seconds}", "-max_len=96"]
            options += ["-len_control=0", str(corpus)]
        else:
            options = [str(arguments.cases), *sorted(map(str, corpus.iterdir()))]
        print(name, flush=True)
        subprocess.run([folder / name, *options], cwd=folder, check=True)


if __name__ == "__main__":
    main()
