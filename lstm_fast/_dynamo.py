"""What lets `torch.compile` trace into an LSTM of ours.

Dynamo refuses to look at an instance of nn.LSTM, of whatever subclass, unless
`torch._dynamo.config.allow_rnn` is set. It is set here for the moment in which dynamo wraps a
module of ours: other modules and the setting that the user sees stay as they are. Importing dynamo
takes as long as importing torch, and 70 MB, so nothing here does before somebody else has.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_BUILDER = "torch._dynamo.variables.builder"


def constant(function: _F) -> _F:
    """Have dynamo call a function when it compiles, and keep what it returned. It is what
    `torch.compiler.assume_constant_result` does, but for importing dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def allow(fused: type) -> None:
    """Let dynamo trace into instances of `fused`, now or as soon as it is imported."""
    if builder := sys.modules.get(_BUILDER):
        _admit(builder, fused)
    else:
        sys.meta_path.insert(0, _WhenImported(fused))


def _admit(builder: ModuleType, fused: type) -> None:
    wrap_module = builder.VariableBuilder.wrap_module

    @functools.wraps(wrap_module)
    def wrap(self: Any, value: Any) -> Any:
        if not isinstance(value, fused):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds dynamo's module by the other finders, and has `_admit` run once it is loaded."""

    def __init__(self, fused: type) -> None:
        self.fused = fused

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _admit(module, self.fused)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
