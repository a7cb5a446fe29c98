"""`LSTMCell`: `torch.nn.LSTMCell` on the fused kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fast import ops, options
from lstm_fast.lstm import (
    _are_plain,
    _fits,
    _is_for,
    _is_state,
    _is_traced,
    _scriptable,
    _traced_call,
)

_Pair = tuple[Tensor, Tensor]
# The dtypes that autocast knows, with the parts of bfloat16 that hold a number of a half.
_AUTOCAST = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 0}
# Under autocast torch multiplies larger weights faster: it rounds them once for all steps. On a Zen
# 4 core our training was 1.12 times as fast with 64 inputs and 256 units, 0.87 with 256 of both.
_MOST_WEIGHTS = 400_000


@ops.on_one_thread_after_fork
class LSTMCell(torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` with the same parameters, results and errors, in less time.

    Everything is documented there. What the kernels do not cover is computed by
    `torch.nn.LSTMCell`; so is autocast on CUDA, and on the CPU of weights that are large or not in
    float32. A cell is an LSTM of one layer run for one step. `torch.jit.script` puts torch's cells
    into a model, as `lstm_fast.LSTM` says.

    Where the two differ: a step is one function of autograd, so that hooks on c, c.grad and
    torch.autograd.grad(..., c) have the gradient that reaches c itself; torch's have what reaches
    it through the h of the same step, too. The gradients of all else are the same, unless a hook
    changes that of c.

    Keyword arguments beyond torch's, as `lstm_fast.LSTM` has them: `zoneout`, `layer_norm`
    (parameters norm_ih [4H], norm_hh [4H], norm_c [H] and, with biases, norm_bias_c [H]),
    `learned_state` (initial_h [H], initial_c [H]), `forget_bias`, `gate_activation` and
    `cell_activation`. Masks of zoneout are drawn at each call. Those that hold for a whole sequence
    (weight_dropout, variational_dropout) a cell cannot have.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    _lstm_options: options.Options | None = None
    _lstm_forget_bias: float | None = None
    _frozen_weights: ops.FrozenWeights | None = None
    initial_h: Tensor
    initial_c: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        learned_state: bool = False,
        forget_bias: float | None = None,
        gate_activation: str = "sigmoid",
        cell_activation: str = "tanh",
    ) -> None:
        chosen = options.Options(
            zoneout=options.pair("zoneout", zoneout),
            layer_norm=layer_norm,
            learned_state=learned_state,
            gate_activation=gate_activation,
            cell_activation=cell_activation,
        )
        forget_bias = options.checked_forget_bias(forget_bias, bias)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        H = self.hidden_size
        shapes = chosen.parameter_shapes(H, bias)
        if learned_state:
            shapes |= {"initial_h": (H,), "initial_c": (H,)}
        options.install(self, chosen, options.OF_CELLS, forget_bias, shapes, device, dtype)

    def reset_parameters(self) -> None:
        """As `torch.nn.LSTMCell.reset_parameters`; what the options add begins as constructed."""
        super().reset_parameters()
        options.set_constants(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in options.NAMES:
            value = options.assigned(self, name, value)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """As torch's, and the options that are in use."""
        return options.described(self, super().extra_repr())

    def forward(
        self, input: Tensor, hx: _Pair | None = None, *, reset: Tensor | None = None
    ) -> _Pair:
        """As `torch.nn.LSTMCell.forward`.

        Args:
            reset: [B] bool ([] unbatched): where true, the state before the step is that of a call
                without `hx`: zero, or the learned one.

        Raises:
            ValueError: `reset` is not as described.
        """
        if self._lstm_options is not None or reset is not None:
            if _is_traced(self, input, LSTMCell):
                return _traced_call(self, input, hx, reset=reset)
            states = None
            if self._lstm_options is None:
                states = options.reset_before_step(input, hx, reset)
            if states is None:
                return options.forward_cell(self, input, hx, reset)
            return LSTMCell.forward(self, input, states)
        results = ops.infer(self, input, hx, cell=True)
        if results is not None:
            return results
        if isinstance(input, Tensor) and input.dim() == 1 and _is_state(hx, dim=1):
            h, c = LSTMCell.forward(
                self,
                input.unsqueeze(0),
                None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0)),
            )
            return h.squeeze(0), c.squeeze(0)
        registered = self.__dict__["_parameters"]
        params = [
            registered[name] if name in registered else getattr(self, name)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        has_biases = params[2] is not None
        if not has_biases and params[3] is None:
            del params[2:]
        step = self._autocast_step if torch._C._is_any_autocast_enabled() else self._step
        results = step(input, hx, params, has_biases)
        if results is not None:
            return results
        if _is_traced(self, input, LSTMCell):
            return _traced_call(self, input, hx)
        return super().forward(input, hx)

    def _step(
        self,
        input: Tensor,
        hx: _Pair | None,
        params: list[Tensor],
        has_biases: bool,
        held_in: int = 0,
    ) -> _Pair | None:
        """Run the op; None where `nn.LSTMCell` is to speak: it raises, or computes what is not
        fused."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return None
        if (
            isinstance(input, Tensor)
            and input.dim() == 2
            and input.size(1) == self.__dict__["input_size"]
            and _is_state(hx, dim=2)
        ):
            h0, c0 = (None, None) if hx is None else hx
            frozen = self._frozen_weights
            if frozen is not None:
                frozen = frozen.for_call()
            results = ops.attempt_cell(input, h0, c0, params, has_biases, held_in, frozen)
            if results is not None:
                return results
        if not self._is_fused(input, hx, params) or ops.is_exported_to_onnx():
            return None
        h0, c0 = (None, None) if hx is None else hx
        return ops.cell(input, h0, c0, params, has_biases, held_in)

    def _autocast_step(
        self, input: Tensor, hx: _Pair | None, params: list[Tensor], has_biases: bool
    ) -> _Pair | None:
        """Likewise under autocast on the CPU, which rounds what enters products. Torch rounds
        what comes of them too, until the cells, which widen it."""
        if not isinstance(input, Tensor) or not input.is_cpu or not _is_state(hx, dim=2):
            return None
        if not torch.is_autocast_enabled("cpu"):
            return self._step(input, hx, params, has_biases)
        rounded = torch.get_autocast_dtype("cpu")
        if rounded not in _AUTOCAST:  # float64, say, which a caller may have set
            return None
        state = [] if hx is None else list(hx)
        tensors = [input, *state, *params]
        if not _are_plain(tensors) or any(t.dtype not in _AUTOCAST for t in tensors):
            return None
        if any(p.dtype is not torch.float32 for p in params):
            return None
        if sum(p.numel() for p in params) > _MOST_WEIGHTS:
            return None
        dtype = torch.promote_types(rounded, tensors[len(state)].dtype)  # that of c0, or input's
        input, *state = (t.to(torch.float32) for t in (input, *state))
        hx = (state[0], state[1]) if state else None
        results = self._step(input, hx, params, has_biases, _AUTOCAST[rounded])
        return results and (results[0].to(dtype), results[1].to(dtype))

    def _is_fused(self, input: Tensor, hx: _Pair | None, params: list[Tensor]) -> bool:
        """Whether the kernels compute this; if not, `nn.LSTMCell` raises or computes it."""
        if not isinstance(input, Tensor):  # of torch.fx, whose hx cannot be unpacked either
            return False
        tensors = [input, *params] if hx is None else [input, *hx, *params]
        if not _are_plain(tensors) or not _fits(input, params):
            return False
        shape, state = input.shape, self.__dict__
        if len(shape) != 2 or shape[1] == 0 or shape[1] != state["input_size"]:
            return False
        if state["hidden_size"] == 0:
            return False
        if hx is None:
            return True
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            return False
        h0, c0 = hx
        state_shape = shape[0], state["hidden_size"]
        return _is_for(input, h0, state_shape) and _is_for(input, c0, state_shape)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        return _scriptable(self, LSTMCell, torch.nn.LSTMCell)
