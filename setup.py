"""Build of the compiled part: one build.ninja, so that a rebuild compiles only what changed.

    lstm_fast/_ops.abi3.so      csrc/cpu + csrc/ops       torch ops through the LibTorch stable ABI
                                and csrc/cuda, on demand
    lstm_fast/_kernels.*.so     csrc/cpu + csrc/python    NumPy access to the kernels; no torch

Metadata and tool settings are in pyproject.toml. Environment variables:

    CXX, CXXFLAGS, LDFLAGS   compiler, and flags added after ours
    MAX_JOBS                 number of compilations at a time
    LSTM_FAST_COMPILE=0      without the compiled part: what an extra needs, and no more
    LSTM_FAST_DEBUG=1        -g -O1 with assertions instead of -O3 without
    LSTM_FAST_CPU_ISAS       instruction sets beside the baseline, such as "avx2"; all if empty
    LSTM_FAST_CUDA           1: with CUDA kernels; 0: without; auto, the default: with, if the
                             installed torch has CUDA and there is an nvcc
    LSTM_FAST_CUDA_ARCHS     architectures, such as "80 90a"; PTX of the newest serves newer ones
    CUDA_HOME                the CUDA toolkit
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

ROOT = Path(__file__).parent.resolve()
# Relative to ROOT, where ninja runs: no path of this machine ends up in a binary.
CSRC = Path("csrc")
BUILD = Path("build") / f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

MIN_TORCH = (2, 10)
TORCH_TARGET = ".".join(map(str, MIN_TORCH))
INSTALL = "pip install --no-build-isolation ."

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if X86:
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = [
        *ISA_FLAGS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ]
    # GCC 12 warns of operands that its own intrinsics leave undefined.
    ISA_FLAGS["avx512_bf16"] = [
        *ISA_FLAGS["avx512"],
        *("-mavx512bf16", "-Wno-maybe-uninitialized"),
    ]
    ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]


def chosen_isas() -> list[str]:
    """The instruction sets to compile for: all, or the baseline and those of LSTM_FAST_CPU_ISAS."""
    wanted = os.environ.get("LSTM_FAST_CPU_ISAS", "").split() or list(ISA_FLAGS)
    unknown = set(wanted) - set(ISA_FLAGS)
    if unknown:
        sys.exit(f"LSTM_FAST_CPU_ISAS must be of {' '.join(ISA_FLAGS)}, got {' '.join(wanted)}")
    return [isa for isa in ISA_FLAGS if isa in {"baseline", *wanted}]


CPU_ISAS = chosen_isas()
# What dispatch.cpp may refer to.
ISA_MACROS = [f"-DLSTM_FAST_{isa.upper()}" for isa in CPU_ISAS if isa != "baseline"]

MIN_NVCC = (12, 8)  # the oldest that knows sm_100
# Turing, Ampere (two), Ada, Hopper, Blackwell (two). 90a rather than 90: what Hopper alone has.
CUDA_ARCHS = ["75", "80", "86", "89", "90a", "100", "120"]
CUDA_ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
}

DEBUG = os.environ.get("LSTM_FAST_DEBUG", "0") not in ("", "0")
# -ffp-contract=off: the order and rounding of every addition is written in the source, so that a
# row's result cannot depend on which loop (main or tail) the compiler fused; fma is explicit.
CXX_FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"),
    *(("-g", "-O1") if DEBUG else ("-g0", "-O3", "-DNDEBUG")),
    *ISA_MACROS,
]
# Without exceptions the objects of the instruction sets share no symbol, not even the unwinder's.
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti"]
# Names of Python stay open until it loads the library, which macOS has to be told.
LIBRARY_FLAGS = ["-shared", *(("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ())]


@dataclass(frozen=True)
class Library:
    """A shared library: its sources beyond csrc/cpu, the flags that only they need, and further
    ones of single files."""

    folder: Path
    flags: Sequence[str]
    libraries: Sequence[str] = ()
    flags_of: Mapping[str, Sequence[str]] = field(default_factory=dict)


def find_compiler() -> list[str]:
    """The C++ compiler as a command line, checked to know C++17."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    command = next((c for name in names if (c := shlex.split(name)) and shutil.which(c[0])), None)
    if command is None:
        raise PlatformError(
            f"no C++ compiler: {' or '.join(names)} not found. Install one (Debian, Ubuntu: "
            f"apt install g++; conda: conda install gxx), or name one: CXX=/path/to/g++ {INSTALL}"
        )
    probe = "#include <optional>\n#if __cplusplus < 201703L\n#error\n#endif\n"
    result = subprocess.run(
        [*command, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"],
        input=probe,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise PlatformError(
            f"{shlex.join(command)} cannot compile C++17:\n{result.stderr}"
            f"Name a newer compiler (g++ 9, clang 9 or later): CXX=/path/to/g++ {INSTALL}"
        )
    return command


def find_ninja() -> str:
    """The ninja of the Python package, which need not be on PATH, or the system's."""
    folders = os.environ.get("PATH", "")
    if importlib.util.find_spec("ninja"):
        import ninja

        folders = os.pathsep.join([ninja.BIN_DIR, folders])
    path = shutil.which("ninja", path=folders)
    if path is None:
        raise PlatformError(f"ninja not found: pip install ninja, then {INSTALL}")
    return path


def find_torch() -> Path:
    """The folder of the installed torch, found without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise PlatformError(
            "torch not found. lstm-fast is compiled against the torch that it will run with, "
            "so install torch first and build in the same environment:\n"
            f"    pip install 'torch>={TORCH_TARGET}' setuptools wheel ninja pybind11\n"
            f"    {INSTALL}"
        )
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TORCH:
        raise PlatformError(
            f"torch {version} is too old, {TORCH_TARGET} or newer is needed: "
            f"pip install --upgrade 'torch>={TORCH_TARGET}', then {INSTALL}"
        )
    return Path(spec.origin).parent


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit and the architectures to compile for."""

    home: Path
    archs: Sequence[str]

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    def flags(self, compiler: Sequence[str]) -> list[str]:
        # The kernels tell generations apart, not members of one, which share half of the work.
        generations = {"86": "80", "87": "80", "89": "80", "103": "100", "120": "100", "121": "100"}
        kinds = {arch: generations.get(arch, arch) for arch in self.archs}
        codes = [f"arch=compute_{kind},code=sm_{arch}" for arch, kind in kinds.items()]
        # What newer devices make their code of; that of an architecture alone they would refuse.
        newest = max(int(kind.rstrip("af")) for kind in kinds.values())
        codes.append(f"arch=compute_{newest},code=compute_{newest}")
        return [
            *(f"-gencode={code}" for code in codes),
            *("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
            *(("-g", "-lineinfo") if DEBUG else ("-DNDEBUG",)),
            f"-ccbin={compiler[0]}",
        ]

    @property
    def libraries(self) -> list[str]:
        # Static, and hidden: torch brings a runtime of its own, of maybe another version.
        folder = self.home / "lib64"
        return [f"-L{folder}", "-lcudart_static", "-lrt", "-ldl", "-Wl,--exclude-libs,ALL"]


def cuda_archs() -> list[str]:
    archs = re.split(r"[\s,;]+", os.environ.get("LSTM_FAST_CUDA_ARCHS", "").strip())
    if archs == [""]:
        return CUDA_ARCHS
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise PlatformError(
                f"LSTM_FAST_CUDA_ARCHS must be numbers as in sm_NN, such as '80 90a', got {arch!r}"
            )
    return archs


def find_cuda(archs: Sequence[str]) -> Cuda:
    """The CUDA toolkit, complete and new enough."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    homes = [Path(named)] if named else [Path("/usr/local/cuda")]
    if on_path and not named:
        homes.insert(0, Path(on_path).resolve().parent.parent)
    # An nvcc on PATH may be a script that calls the one in the toolkit.
    whole = [home for home in homes if (home / "lib64" / "libcudart_static.a").exists()]
    home = next((home for home in whole if (home / "bin" / "nvcc").exists()), None)
    if home is None:
        raise PlatformError(
            f"no CUDA toolkit with nvcc in {' or '.join(map(str, homes))}. Install one, "
            f"or name it: CUDA_HOME=/usr/local/cuda LSTM_FAST_CUDA=1 {INSTALL}\n"
            f"Without CUDA kernels: LSTM_FAST_CUDA=0 {INSTALL}"
        )
    cuda = Cuda(home, archs)
    text = subprocess.run([cuda.nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < MIN_NVCC:
        version = found[0] if found else "of an unknown version"
        raise PlatformError(
            f"{cuda.nvcc} ({version}) is too old, {MIN_NVCC[0]}.{MIN_NVCC[1]} or newer is needed. "
            f"Name a newer toolkit: CUDA_HOME=/usr/local/cuda LSTM_FAST_CUDA=1 {INSTALL}"
        )
    return cuda


def wanted_cuda() -> Cuda | None:
    """The toolkit to compile CUDA kernels with, or None for a build without them."""
    choice = os.environ.get("LSTM_FAST_CUDA", "auto") or "auto"
    if choice not in ("auto", "0", "1"):
        raise PlatformError(f"LSTM_FAST_CUDA must be auto, 0 or 1, got {choice!r}")
    archs = cuda_archs()
    if choice == "1":
        return find_cuda(archs)
    if choice == "0" or not (find_torch() / "lib" / "libtorch_cuda.so").exists():
        return None
    try:
        return find_cuda(archs)
    except PlatformError as error:
        print(f"Building without CUDA kernels, though torch has CUDA: {error}", file=sys.stderr)
        return None


def system_includes(folders: Iterable[str | Path]) -> list[str]:
    """Include flags that spare us other people's warnings."""
    return [word for folder in folders for word in ("-isystem", str(folder))]


def ops_library(cuda: Cuda | None) -> Library:
    torch = find_torch()
    flags = [
        f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000",
        "-DTORCH_STABLE_ONLY",
        *system_includes([torch / "include"]),
        # torch's messages name their source file; keep this machine's folders out of them.
        f"-ffile-prefix-map={torch.parent}/=",
    ]
    # No RPATH: Python code imports torch, and with it libtorch_cpu.so, before this library.
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", *(cuda.libraries if cuda else [])]
    return Library(CSRC / "ops", flags, libraries, {"lstm.cpp": [headers_flag()]})


def kernels_library(version: str, cuda: Cuda | None) -> Library:
    if not importlib.util.find_spec("pybind11"):
        raise PlatformError(f"pybind11 not found: pip install pybind11, then {INSTALL}")
    import pybind11

    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        raise PlatformError(
            f"Python.h not found in {python}: install the headers of this Python "
            "(Debian, Ubuntu: apt install python3-dev)"
        )
    info = [
        f'-DLSTM_FAST_VERSION="{version}"',
        f'-DLSTM_FAST_TORCH_TARGET="{TORCH_TARGET}"',
        f'-DLSTM_FAST_ISAS="{" ".join(CPU_ISAS)}"',
        f'-DLSTM_FAST_CUDA_ARCHS="{" ".join(cuda.archs) if cuda else ""}"',
    ]
    flags = system_includes([pybind11.get_include(), python])
    flags_of = {"build_info.cpp": info, "direct.cpp": [headers_flag()]}
    return Library(CSRC / "python", flags, flags_of=flags_of)


def headers_flag() -> str:
    """A stamp of the headers, by which the two libraries know that they are of the same: there is
    one _ops for all Pythons, and a _kernels for each, of which one may be of an older build."""
    headers = sorted((ROOT / CSRC).rglob("*.h"))
    stamp = zlib.crc32(b"".join(header.read_bytes() for header in headers))
    return f'-DLSTM_FAST_HEADERS="headers {stamp:08x}"'


class NinjaFile:
    """Text of a build.ninja: compile and link edges. What they make lies in `build`."""

    def __init__(
        self,
        compiler: Sequence[str],
        cuda: Cuda | None = None,
        build: Path = BUILD,
        flags: Sequence[str] = CXX_FLAGS,
    ) -> None:
        self.build = build
        environment = {name: os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")}
        # -MD, not -MMD: a change of torch's or Python's headers rebuilds too.
        self.lines = [
            f"builddir = {build}",
            f"cxx = {self._command(compiler)}",
            f"cxxflags = {self._command(flags)}",
            f"kind = {self._command(LIBRARY_FLAGS)}",
            f"user_cxxflags = {self._escape(environment['CXXFLAGS'])}",
            f"user_ldflags = {self._escape(environment['LDFLAGS'])}",
            "rule compile",
            "  command = $cxx $cxxflags $flags $user_cxxflags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $out",
            *(self._cuda_rule(cuda, compiler) if cuda else []),
            "rule link",
            "  command = $cxx $kind $user_cxxflags $in -o $out $libraries $user_ldflags",
            "  description = link $out",
        ]

    def _cuda_rule(self, cuda: Cuda, compiler: Sequence[str]) -> list[str]:
        return [
            f"nvcc = {self._command([str(cuda.nvcc)])}",
            f"nvccflags = {self._command(cuda.flags(compiler))}",
            "rule compile_cuda",
            "  command = $nvcc $nvccflags $flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $out",
        ]

    def compile(self, source: Path, flags: Sequence[str] = (), suffix: str = "") -> Path:
        """Add one object and return its path; `suffix` tells objects of the same source apart."""
        cuda = source.suffix == ".cu"
        folder = source.parent.relative_to(CSRC) if CSRC in source.parents else source.parent
        out = self.build / folder / f"{source.stem}{suffix}.{'cu.o' if cuda else 'o'}"
        self._edge("compile_cuda" if cuda else "compile", out, [source], flags=flags)
        return out

    def link(self, out: Path, objects: Sequence[Path], libraries: Sequence[str]) -> None:
        self._edge("link", out, objects, libraries=libraries)

    def link_program(self, out: Path, objects: Sequence[Path], flags: Sequence[str]) -> None:
        self._edge("link", out, objects, kind=flags)

    def run(self, verbose: bool = False) -> None:
        """Write the file and make what has changed. Raises CompileError."""
        path = self.build / "build.ninja"
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text("\n".join(self.lines) + "\n")
        command = [find_ninja(), "-f", str(path)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if verbose:
            command.append("-v")
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise CompileError("the compilation failed; the compiler's messages are above")

    def _edge(
        self, rule: str, out: Path, inputs: Sequence[Path], **variables: Sequence[str]
    ) -> None:
        self.lines.append(f"build {out}: {rule} {' '.join(map(str, inputs))}")
        self.lines += [f"  {name} = {self._command(value)}" for name, value in variables.items()]

    @classmethod
    def _command(cls, words: Sequence[str]) -> str:
        return cls._escape(shlex.join(words))

    @staticmethod
    def _escape(text: str) -> str:
        return text.replace("$", "$$")


def sources(folder: Path, suffix: str = ".cpp") -> list[Path]:
    """The C++ files of a folder below ROOT, relative to ROOT, in a fixed order."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(f"*{suffix}"))


def add_cpu_objects(ninja: NinjaFile, isas: Iterable[str] = tuple(CPU_ISAS)) -> list[Path]:
    """csrc/cpu: kernels.cpp once per instruction set, everything else once, for any CPU."""
    objects = []
    for source in sources(CSRC / "cpu"):
        if source.name == "kernels.cpp":
            for isa in isas:
                flags = [f"-DLSTM_FAST_ISA={isa}", *KERNEL_FLAGS, *ISA_FLAGS[isa]]
                objects.append(ninja.compile(source, flags, f".{isa}"))
        else:
            objects.append(ninja.compile(source))
    return objects


def add_common_objects(ninja: NinjaFile) -> list[Path]:
    """What belongs to no device, and the planner of CUDA kernels, which needs no CUDA."""
    return [ninja.compile(s) for s in [*sources(CSRC), CSRC / "cuda" / "plan.cpp"]]


def cuda_sources() -> list[tuple[Path, list[str], str]]:
    """What nvcc compiles, with flags and a suffix: kernels.cu once per dtype; the longest first."""
    kernels = CSRC / "cuda" / "kernels.cu"
    return [
        *(
            (kernels, [f"-DLSTM_FAST_DTYPE={dtype}", f"-DLSTM_FAST_ELEMENT={element}"], f".{dtype}")
            for dtype, element in CUDA_ELEMENTS.items()
        ),
        *((source, [], "") for source in sources(CSRC / "cuda", ".cu") if source != kernels),
    ]


def add_cuda_objects(ninja: NinjaFile, flags: Sequence[str]) -> list[Path]:
    """csrc/cuda, and the ops over it, which take `flags`."""
    return [
        *(ninja.compile(*source) for source in cuda_sources()),
        ninja.compile(CSRC / "cuda" / "dispatch.cpp"),
        *(ninja.compile(source, flags) for source in sources(CSRC / "ops" / "cuda")),
    ]


class NinjaBuild(build_ext):
    """Replaces the compilation of setuptools; where the results are put stays its business."""

    def get_ext_filename(self, fullname: str) -> str:
        # _ops holds no Python symbol, so one file serves every Python, free-threaded ones too.
        if fullname.split(".")[-1] == "_ops":
            return str(Path(*fullname.split(".")).with_suffix(".abi3.so"))
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        cuda = wanted_cuda()
        libraries = {
            "lstm_fast._ops": ops_library(cuda),
            "lstm_fast._kernels": kernels_library(self.distribution.get_version(), cuda),
        }
        ninja = NinjaFile(find_compiler(), cuda)
        common = add_common_objects(ninja) + add_cpu_objects(ninja)
        built = {}
        for name, library in libraries.items():
            objects = [
                ninja.compile(s, [*library.flags, *library.flags_of.get(s.name, [])])
                for s in sources(library.folder)
            ]
            if cuda and name == "lstm_fast._ops":
                objects += add_cuda_objects(ninja, library.flags)
            built[name] = BUILD / Path(self.get_ext_filename(name)).name
            ninja.link(built[name], objects + common, library.libraries)
        ninja.run(verbose=self.verbose > 1)
        for name, path in built.items():
            target = Path(self.get_ext_fullpath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Unlinks an existing file first: overwriting one that a process has mapped kills it.
            self.copy_file(str(ROOT / path), str(target))


class CleanBuild(build):
    """From empty folders: setuptools would ship what a build before has left in them, too, and the
    sources no longer have."""

    def run(self) -> None:
        for folder in (ROOT / "build").glob("lib*"):
            shutil.rmtree(folder)
        super().run()


if __name__ == "__main__":
    compiled = ("_ops", "_kernels") if os.environ.get("LSTM_FAST_COMPILE", "1") != "0" else ()
    setup(
        # The sources are found when the build runs; setuptools only needs the names here.
        ext_modules=[Extension(f"lstm_fast.{name}", sources=[]) for name in compiled],
        cmdclass={"build": CleanBuild, "build_ext": NinjaBuild},
    )
