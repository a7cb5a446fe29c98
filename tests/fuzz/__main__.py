"""Builds stack.cpp and variant.cpp with sanitizers and runs them: `python -m tests.fuzz [thread]
[--cases=3000]`.

With `--seconds`, libFuzzer looks for cases that reach new code; that needs clang (`CXX=clang++`).
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import setup

FOLDER = Path("tests") / "fuzz"
PROGRAMS = ("stack", "variant")


def build(sanitizers: str, guided: bool) -> Path:
    """The programs, linked from the CPU floor alone, in this folder. Raises CompileError."""
    folder = Path("build") / f"fuzz-{sanitizers.replace(',', '-')}{'-guided' * guided}"
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
    kept = [flag for flag in setup.CXX_FLAGS if flag not in ("-g0", "-O3", "-DNDEBUG")]
    includes = [f"-I{setup.CSRC}", f"-I{setup.CSRC / 'cpu'}"]
    cover, link = ["-fsanitize=fuzzer-no-link"] * guided, ["-fsanitize=fuzzer"] * guided
    ninja = setup.NinjaFile(
        setup.find_compiler(), build=folder, flags=[*kept, *flags, *cover, *includes]
    )
    random = [] if guided else ["-DLSTM_FAST_RANDOM_CASES"]
    floor = [*setup.add_common_objects(ninja), *setup.add_cpu_objects(ninja)]
    for name in PROGRAMS:
        objects = [*floor, ninja.compile(FOLDER / f"{name}.cpp", random)]
        ninja.link_program(folder / name, objects, [*flags, *link, "-pthread"])
    ninja.run()
    return setup.ROOT / folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("sanitizers", nargs="?", default="address,undefined")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seconds", type=int)
    arguments = parser.parse_args()
    folder = build(arguments.sanitizers, guided=arguments.seconds is not None)
    for name in PROGRAMS:
        if arguments.seconds is None:
            options = [str(arguments.cases)]
        else:
            corpus = folder / f"corpus-{name}"
            corpus.mkdir(exist_ok=True)
            options = [f"-max_total_time={arguments.seconds}", "-max_len=96", str(corpus)]
        print(name, flush=True)
        subprocess.run([folder / name, *options], cwd=folder, check=True)


if __name__ == "__main__":
    main()
