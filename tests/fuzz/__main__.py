"""Builds stack.cpp with sanitizers and runs it: `python -m tests.fuzz [thread] [--cases=3000]`.

With `--seconds`, libFuzzer looks for cases that reach new code; that needs clang (`CXX=clang++`).
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import setup

FOLDER = Path("tests") / "fuzz"


def build(sanitizers: str, guided: bool) -> Path:
    """The program, linked from the CPU floor alone. Raises CompileError."""
    folder = Path("build") / f"fuzz-{sanitizers.replace(',', '-')}{'-guided' * guided}"
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
    kept = [flag for flag in setup.CXX_FLAGS if flag not in ("-g0", "-O3", "-DNDEBUG")]
    includes = [f"-I{setup.CSRC}", f"-I{setup.CSRC / 'cpu'}"]
    cover, link = ["-fsanitize=fuzzer-no-link"] * guided, ["-fsanitize=fuzzer"] * guided
    ninja = setup.NinjaFile(
        setup.find_compiler(), build=folder, flags=[*kept, *flags, *cover, *includes]
    )
    random = [] if guided else ["-DLSTM_FAST_RANDOM_CASES"]
    objects = [*setup.add_cpu_objects(ninja), ninja.compile(FOLDER / "stack.cpp", random)]
    ninja.link_program(folder / "stack", objects, [*flags, *link, "-pthread"])
    ninja.run()
    return setup.ROOT / folder / "stack"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("sanitizers", nargs="?", default="address,undefined")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seconds", type=int)
    arguments = parser.parse_args()
    program = build(arguments.sanitizers, guided=arguments.seconds is not None)
    if arguments.seconds is None:
        command = [str(program), str(arguments.cases)]
    else:
        corpus = program.parent / "corpus"
        corpus.mkdir(exist_ok=True)
        command = [str(program), f"-max_total_time={arguments.seconds}", "-max_len=96", str(corpus)]
    raise SystemExit(subprocess.run(command, cwd=program.parent).returncode)


if __name__ == "__main__":
    main()
