"""The instruction sets of this machine that there are kernels for."""

from __future__ import annotations

from typing import Any

import pytest

from lstm_fast._load import load_kernels

_kernels: Any = load_kernels()
ISAS = _kernels.available_isas()
needs_amx = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no matrix unit")
needs_dot_products = pytest.mark.skipif(
    "avx512_bf16" not in ISAS, reason="this machine has no dot products of bfloat16"
)
