"""`InferenceSession`: an LSTM with fixed weights on NumPy arrays, for serving."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from lstm_fast import ops
from lstm_fast._load import load_bound
from lstm_fast.stream import parameters_of

_Array = NDArray[numpy.floating[Any]]


class InferenceSession:
    """An LSTM whose weights no longer change, on NumPy arrays: whole sequences a call.

    A call of the module packs the weights anew each time, so that no change to them is missed; here
    they are packed once. Small and short sequences gain most: at 1 row, 24 steps, 1 input and 32
    units a call takes a third of the module's time, of which most is torch's. It runs on torch's
    threads (`torch.set_num_threads`), without gradients, dropout, hooks and what a subclass does in
    its forward. Several Python threads may use one session at the same time.

    As in a call of the module, `torch.set_float32_matmul_precision` and
    `torch.use_deterministic_algorithms` say how sums may be made: as they are set when the session
    is made.

        session = lstm_fast.InferenceSession(module)
        output, (h_n, c_n) = session.run(x)

    Args:
        module: a `torch.nn.LSTM` (or ours) on the CPU, in float32 or float64. Its weights are
            copied: what later becomes of them does not matter.

    Raises:
        TypeError: `module` is not an LSTM.
        ValueError: it is on another device, or has another dtype or options that `torch.nn.LSTM`
            lacks and that act outside training.
    """

    def __init__(self, module: torch.nn.LSTM) -> None:
        params, dtype = parameters_of(module)
        make = getattr(load_bound(), f"Session{dtype}")
        self._session = make(
            [p.detach().clone().numpy() for p in params],
            module.bias,
            module.num_layers,
            module.bidirectional,
            module.batch_first,
            ops._cpu_parts(),
        )

    def run(
        self, input: _Array, hx: tuple[_Array, _Array] | None = None
    ) -> tuple[_Array, tuple[_Array, _Array]]:
        """As the module's forward.

        Args:
            input: [T, B, I], with `batch_first` [B, T, I], or unbatched [T, I]; of the module's
                dtype and any strides.
            hx: (h_0, c_0), [L * D, B, P] and [L * D, B, H], unbatched without B. None: zeros.

        Returns:
            (output, (h_n, c_n)): output [T, B, D * P], or as `input` has its axes, and the states
            after the last step, in the shapes of `hx`.

        Raises:
            TypeError: an argument is no array of the module's dtype.
            ValueError, RuntimeError: its shape is wrong, as `torch.nn.LSTM` raises them.
        """
        result: tuple[_Array, tuple[_Array, _Array]] = self._session.run(input, hx)
        return result
