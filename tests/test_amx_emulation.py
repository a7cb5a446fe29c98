"""The kernels for AMX where there is none: its instructions are emulated (emulated_amx.h), and the
tests that compute run on them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import lstm_fast
from tests.isas import ISAS
from tests.source_tree import ROOT, copy_sources, run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("amx" in ISAS, reason="this machine has a matrix unit of its own"),
    # From which the kernels take all but the matrix unit.
    pytest.mark.skipif("avx512_bf16" not in ISAS, reason="needs AVX-512 with bfloat16"),
    pytest.mark.skipif(
        "amx" not in lstm_fast.build_info()["isas_built"], reason="AMX was not compiled"
    ),
]

FILES = [
    *("kernels", "variant", "lstm", "lstm_cell", "session", "stream"),
    *("ops", "recompute", "explain", "threads", "freeze"),
]
# There are about 1100: many fewer would mean that this has left off testing.
ENOUGH = 1000


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources, tests and a build in which AMX is emulated."""
    tree = tmp_path_factory.mktemp("emulated")
    copy_sources(tree)
    shutil.copytree(ROOT / "tests", tree / "tests")
    # As new: ninja compiles what includes it.
    shutil.copyfile(ROOT / "tests" / "emulated_amx.h", tree / "csrc" / "cpu" / "amx.h")
    result = run_python("setup.py", "build_ext", "--inplace", cwd=tree)
    assert result.returncode == 0, result.stdout + result.stderr
    return tree


def test_on_emulated_amx(emulated: Path) -> None:
    environment = {"LSTM_FAST_ISA": "amx", "PYTHONPATH": str(emulated)}
    code = "import lstm_fast; print(lstm_fast.build_info()['isa'], lstm_fast.__file__)"
    used = run_python("-c", code, cwd=emulated, **environment)
    assert used.stdout.split() == ["amx", str(emulated / "lstm_fast" / "__init__.py")], used.stderr
    # Other instruction sets are tested where they are.
    others = "not baseline and not avx"
    files = [f"tests/test_{name}.py" for name in FILES]
    result = run_python("-m", "pytest", "-q", "-k", others, *files, cwd=emulated, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (passed,) = re.findall(r"(\d+) passed", result.stdout)
    assert int(passed) >= ENOUGH
