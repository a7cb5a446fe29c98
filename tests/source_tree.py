"""Copies of the sources, for tests that build: in the checkout a build would leave its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPILED = ("*.so", "__pycache__")


def copy_sources(tree: Path) -> None:
    """What a build needs, with the objects already compiled, so that ninja reuses them."""
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy2(ROOT / name, tree)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(
        ROOT / "lstm_fast", tree / "lstm_fast", ignore=shutil.ignore_patterns(*COMPILED)
    )
    for folder in ROOT.glob(f"build/ninja-*{sys.implementation.cache_tag}"):
        shutil.copytree(folder, tree / "build" / folder.name)


def run_python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
