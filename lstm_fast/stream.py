"""`Stream`: an LSTM one step at a time on NumPy arrays, for serving."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lstm_fast import ops, options
from lstm_fast._load import load_bound

_Array = NDArray[numpy.floating[Any]]

# Hooks that compute weights before each call.
_COMPUTES_WEIGHTS: Any = (WeightNorm, SpectralNorm, BasePruningMethod)


def parameters_of(module: torch.nn.LSTM) -> tuple[list[Tensor], str]:
    """The weights of a module as they are now, contiguous, in torch's order, and their dtype in the
    names of the classes of `_kernels`. Parameters are given themselves where they can be.

    Raises:
        TypeError: `module` is not an LSTM.
        ValueError: it cannot be run on NumPy arrays.
    """
    if not isinstance(module, torch.nn.LSTM):
        raise TypeError(f"module must be a torch.nn.LSTM, got {type(module).__name__}")
    if used := options.used(module, training=False):
        raise ValueError(f"module must have no options beyond torch.nn.LSTM's, has {used}")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _COMPUTES_WEIGHTS):
            hook(module, None)
    # Not `_flat_weights`, in which computed weights are those of the last call of the module.
    weights = [getattr(module, name) for name in module._flat_weights_names]
    weights = [
        w if isinstance(w, Parameter) and w.is_contiguous() else w.detach().contiguous()
        for w in weights
    ]
    names = {torch.float32: "Float32", torch.float64: "Float64"}
    dtypes = {w.dtype for w in weights}
    if not all(w.is_cpu for w in weights) or len(dtypes) > 1 or not dtypes <= names.keys():
        raise ValueError("module must be on the CPU, in float32 or float64")
    return weights, names[dtypes.pop()]


class Stream:
    """An LSTM that takes one step a call on NumPy arrays and keeps its state between calls.

    For policies, sensors and other streams of small steps, where a call through torch takes
    several times as long as the arithmetic. It runs on the calling thread, without gradients.

    As in a call of the module, `torch.set_float32_matmul_precision` and
    `torch.use_deterministic_algorithms` say how sums may be made: as they are set when the `Stream`
    is made. With deterministic algorithms the bits of a row depend neither on the other rows nor on
    `batch_size`.

    The weights are those of the module: changed in place, the next step uses them, and so it does
    after `share_memory`, `vector_to_parameters` or an assignment to `data` has moved them. A
    parameter that is replaced needs a new `Stream`; so does a change of one that is parametrized,
    pruned or not contiguous, which are read when the `Stream` is made. Hooks of the module, and
    what a subclass does in its forward, are left out.

        stream = lstm_fast.Stream(module)
        for x in samples:  # [B, I]
            y = stream.step(x)

    Args:
        module: a `torch.nn.LSTM` (or ours) of one direction on the CPU, in float32 or float64.
        batch_size: rows of every step.

    Raises:
        TypeError: `module` is not an LSTM.
        ValueError: it has two directions, which need the end of a sequence to begin, or another
            device or dtype, or options that `torch.nn.LSTM` lacks and that act outside training;
            `batch_size` is no positive whole number.
        MemoryError: so many rows take more memory than there is.
    """

    def __init__(self, module: torch.nn.LSTM, batch_size: int = 1) -> None:
        params, dtype = parameters_of(module)
        if module.bidirectional:
            raise ValueError("module must have one direction: the other begins at the end")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive whole number, got {batch_size!r}")
        too_large = f"batch_size={batch_size} takes more memory than there is"
        if 8 * batch_size * module.num_layers * module.hidden_size > sys.maxsize:
            raise MemoryError(too_large)
        make = getattr(load_bound(), f"Stream{dtype}")
        arrays = [p.detach().numpy() for p in params]
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(params)
        sizes = module.num_layers, module.input_size, batch_size
        try:
            self._stream = make(arrays, handles, module.bias, *sizes, ops._cpu_parts())
        except MemoryError as error:
            raise MemoryError(too_large) from error
        if type(self).step is Stream.step:
            # Of a small step, a tenth would be the call of the method below.
            self.step = self._stream.step  # type: ignore[method-assign]

    def step(self, input: _Array) -> _Array:
        """One step.

        Args:
            input: [B, I], of the module's dtype and C-contiguous.

        Returns:
            The output, [B, P].

        Raises:
            TypeError: `input` is no array of this dtype, or not C-contiguous.
            ValueError: it has another shape.
            RuntimeError: the module has been given another dtype or device.
        """
        output: _Array = self._stream.step(input)
        return output

    def reset(self) -> None:
        """Set the state to zero, as it is at first."""
        self._stream.reset()

    @property
    def state(self) -> tuple[_Array, _Array]:
        """A copy of (h, c): [L, B, P] and [L, B, H]. May be set to a pair of arrays of the module's
        dtype: TypeError for anything else, ValueError for other shapes."""
        state: tuple[_Array, _Array] = self._stream.state
        return state

    @state.setter
    def state(self, state: tuple[_Array, _Array]) -> None:
        self._stream.state = state
