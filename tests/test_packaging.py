"""What is built, shipped and said when something is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import lstm_fast
from lstm_fast._load import MIN_TORCH
from tests.source_tree import COMPILED, ROOT, copy_sources, run_python

PACKAGE = Path(lstm_fast.__file__).parent
ISAS = ["baseline"] + ["avx2", "avx512", "avx512_bf16", "amx"] * (platform.machine() == "x86_64")

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")


def nm(*arguments: str | Path) -> list[tuple[str, str]]:
    """(type, name) of each symbol that nm lists."""
    text = subprocess.run(["nm", *arguments], check=True, capture_output=True, text=True).stdout
    # Undefined symbols have no address; a version follows @ in dynamic ones.
    fields = [line.split()[-2:] for line in text.splitlines()]
    return [(kind, name.split("@")[0]) for kind, name in fields]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("sources")
    copy_sources(tree)
    return tree


@pytest.fixture(scope="module")
def kernel_objects(sources: Path) -> dict[str, Path]:
    """The object of csrc/cpu/kernels.cpp of each instruction set, up to date."""
    result = run_python("setup.py", "build_ext", cwd=sources)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {p.name.split(".")[1]: p for p in sources.glob("build/ninja-*/cpu/kernels.*.o")}
    assert sorted(found) == sorted(ISAS)
    return found


@needs_nm
@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_isa_objects_share_no_symbol(kernel_objects: dict[str, Path], isa: str) -> None:
    """A weak symbol in two objects is merged when they are linked: the AVX-512 copy may win."""
    symbols = nm("--defined-only", "--extern-only", kernel_objects[isa])
    assert [name for kind, name in symbols if kind in "WwVvu"] == []
    (exported,) = [name for _, name in symbols]
    assert f"kernels_{isa}" in exported


def shared_libraries() -> list[Path]:
    libraries = sorted(PACKAGE.glob("*.so"))
    assert [path.name.split(".")[0] for path in libraries] == ["_kernels", "_ops"]
    return libraries


@needs_nm
def test_no_second_openmp_runtime() -> None:
    for library in shared_libraries():
        undefined = [name for _, name in nm("--dynamic", "--undefined-only", library)]
        assert [n for n in undefined if re.match(r"GOMP_|omp_|__kmpc_", n)] == []


@needs_nm
def test_ops_need_no_python_and_kernels_no_torch() -> None:
    kernels, ops = shared_libraries()
    assert [n for _, n in nm("--dynamic", "--undefined-only", ops) if re.match(r"_?Py", n)] == []
    symbols = [name for _, name in nm("--dynamic", "--undefined-only", kernels)]
    assert [n for n in symbols if re.match(r"aoti_|torch_|_ZN\d*(at|c10|torch)", n)] == []


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(sources: Path, tmp_path: Path) -> None:
    # As a build of sources that had this module left it.
    library = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    built = sources / "build" / library / "lstm_fast"
    built.mkdir(parents=True, exist_ok=True)
    (built / "deleted.py").touch()
    result = run_python(
        *("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"),
        *("--disable-pip-version-check", "--wheel-dir", str(tmp_path), "."),
        cwd=sources,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    compiled = {n for n in names if n.endswith(".so")}
    package = [p for p in (sources / "lstm_fast").rglob("*") if p.is_file()]
    expected = {p.relative_to(sources).as_posix() for p in package if p.suffix != ".pyc"}
    assert names - compiled == expected
    assert sorted(Path(n).name.split(".")[0] for n in compiled) == ["_kernels", "_ops"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("chosen", "refused"),
    [
        ([], None),
        (["TORCH=torch==2.11.0 --pre", "PYTHON=python3.12"], None),
        (["TORCH=torch==2.11.0"], "was not made with TORCH=torch==2.11.0: remove it first"),
        (["PYTHON=python3"], "was not made with PYTHON=python3: remove it first"),
    ],
)
def test_make_refuses_what_its_environment_was_not_made_with(
    tmp_path: Path, chosen: list[str], refused: str | None
) -> None:
    (tmp_path / ".torch").write_text("PYTHON=python3.12\nTORCH=torch==2.11.0 --pre\n")
    (tmp_path / ".built").touch()
    # Else a make that runs the tests would hand on what was chosen for it.
    of_make = {"MAKEFLAGS", "PYTHON", "TORCH"}
    result = subprocess.run(
        ["make", "build", f"VENV={tmp_path}", *chosen],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in of_make},
        capture_output=True,
        text=True,
    )
    assert (result.returncode == 0) == (refused is None), result.stderr
    assert refused is None or refused in result.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CXX": "/nonexistent/g++"}, ["no C++ compiler", "/nonexistent/g++", "apt install g++"]),
        ({"CXX": shutil.which("false") or "false"}, ["cannot compile C++17", "CXX=/path/to/g++"]),
    ],
)
def test_build_without_a_compiler(
    sources: Path, environment: dict[str, str], expected: list[str]
) -> None:
    result = run_python("setup.py", "build_ext", cwd=sources, **environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for text in expected:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("torch", ["torch not found", "pip install --no-build-isolation ."]),
        ("pybind11", ["pip install pybind11"]),
        ("ninja", ["pip install ninja"]),
    ],
)
def test_build_without_a_requirement(
    sources: Path, tmp_path: Path, missing: str, expected: list[str]
) -> None:
    code = f"""
import runpy, sys
sys.modules[{missing!r}] = None
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++") or "c++"
    # A PATH without ninja; the compiler is named by its full path.
    result = run_python("-c", code, cwd=sources, PATH=str(tmp_path), CXX=compiler)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for text in expected:
        assert text in result.stderr


def test_without_the_compiled_part_nothing_is_needed(sources: Path, tmp_path: Path) -> None:
    environment = {"LSTM_FAST_COMPILE": "0", "CXX": "/nonexistent/g++"}
    result = run_python(
        *("setup.py", "editable_wheel", f"--dist-dir={tmp_path}"), cwd=sources, **environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.glob("lstm_fast-*.whl"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("goal", ["lint", "format"])
def test_linters_compile_nothing(tmp_path: Path, goal: str) -> None:
    command = ["make", "--dry-run", goal, f"VENV={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (install,) = [line for line in result.stdout.splitlines() if "--editable" in line]
    assert install.startswith("LSTM_FAST_COMPILE=0 ")


def test_torch_too_old_for_the_build(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    metadata = tmp_path / "torch-2.9.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    result = run_python("setup.py", "build_ext", cwd=sources, PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "torch 2.9.1 is too old, 2.10 or newer is needed" in result.stderr


# An editable install would look for missing submodules in the checkout.
WITHOUT_EDITABLE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def import_error(folder: Path, code: str = "import lstm_fast") -> str:
    """The message of the ImportError that `code` ends with in `folder`."""
    result = run_python("-c", WITHOUT_EDITABLE + code, cwd=folder, PYTHONPATH=str(folder))
    assert result.returncode == 1
    *_, last = re.split(r"^ImportError: ", result.stderr, flags=re.MULTILINE)
    assert last != result.stderr, result.stderr
    return last


def test_import_without_ops(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns(*COMPILED)
    shutil.copytree(PACKAGE, tmp_path / "lstm_fast", ignore=ignore)
    message = import_error(tmp_path)
    assert "compiled part of lstm_fast is missing" in message
    assert "pip install --no-build-isolation ." in message


def test_import_of_a_checkout_that_is_not_built(tmp_path: Path) -> None:
    """Python takes it before an installed package where it runs, whatever is installed there."""
    ignore = shutil.ignore_patterns(*COMPILED)
    shutil.copytree(PACKAGE, tmp_path / "lstm_fast", ignore=ignore)
    (tmp_path / "setup.py").touch()
    message = import_error(tmp_path)
    assert f"{tmp_path} is a checkout: leave it to use an installed lstm_fast" in message
    assert message.rstrip().endswith("pip install --no-build-isolation -e .")


def test_import_without_kernels_for_this_python(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("_kernels.*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "lstm_fast", ignore=ignore)
    message = import_error(tmp_path)
    assert f"no _kernels for {sys.implementation.name} {sys.version_info.major}." in message
    assert "pip install --no-build-isolation ." in message


def test_import_with_kernels_of_another_build(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "lstm_fast", ignore=shutil.ignore_patterns("__pycache__"))
    (kernels,) = (tmp_path / "lstm_fast").glob("_kernels.*.so")
    ours = re.findall(rb"headers [0-9a-f]{8}\0", kernels.read_bytes())
    assert len(ours) == 1
    kernels.write_bytes(kernels.read_bytes().replace(ours[0], b"headers of older\0"))
    message = import_error(tmp_path)
    assert "_kernels of this Python are of another build of lstm_fast" in message
    assert "pip install --no-build-isolation ." in message


def test_import_with_broken_ops(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "lstm_fast", ignore=shutil.ignore_patterns(*COMPILED))
    (tmp_path / "lstm_fast" / "_ops.abi3.so").write_bytes(b"not a library")
    message = import_error(tmp_path)
    assert "cannot be loaded with torch" in message
    assert "pip install --no-build-isolation ." in message


def test_import_with_torch_too_old(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('__version__ = "2.9.1+cpu"\n')
    (tmp_path / "lstm_fast").symlink_to(PACKAGE)
    message = import_error(tmp_path)
    assert "needs PyTorch 2.10 or newer, found 2.9.1+cpu: pip install" in message


def test_import_without_torch(tmp_path: Path) -> None:
    (tmp_path / "lstm_fast").symlink_to(PACKAGE)
    code = "import sys; sys.modules['torch'] = None; import lstm_fast"
    assert "needs PyTorch 2.10 or newer: pip install" in import_error(tmp_path, code)


def test_import_is_light() -> None:
    heavy = {"pandas", "lightning", "matplotlib", "torch._dynamo"}
    code = f"import sys, lstm_fast; print({heavy} & {{*sys.modules}})"
    result = run_python("-c", code, cwd=ROOT)
    assert result.stdout.strip() == "set()", result.stderr


def test_build_info() -> None:
    info = lstm_fast.build_info()
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert info["version"] == lstm_fast.__version__ == declared[1]
    assert info["isas_built"] == ISAS
    assert info["isa"] in ISAS
    assert re.search(r"\d+\.\d+", info["compiler"])
    assert isinstance(info["cuda"], bool)


def test_oldest_torch_is_the_same_everywhere() -> None:
    """What the build targets, what the import demands and what pip is told."""
    target = lstm_fast.build_info()["torch_target"]
    assert target == ".".join(map(str, MIN_TORCH))
    assert f'"torch>={target}"' in (ROOT / "pyproject.toml").read_text()


def test_isa_can_be_chosen() -> None:
    code = "import lstm_fast; print(lstm_fast.build_info()['isa'])"
    result = run_python("-c", code, cwd=ROOT, LSTM_FAST_ISA="baseline")
    assert result.stdout.strip() == "baseline", result.stderr


def test_unknown_isa_is_refused() -> None:
    result = run_python("-c", "import lstm_fast", cwd=ROOT, LSTM_FAST_ISA="mmx")
    assert result.returncode != 0
    assert "LSTM_FAST_ISA must be one of baseline" in result.stderr
    assert "in this build on this machine, got mmx" in result.stderr
