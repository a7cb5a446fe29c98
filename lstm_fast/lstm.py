"""`LSTM`: `torch.nn.LSTM` on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.nn.utils.rnn import PackedSequence

from lstm_fast import _dynamo, ops, options

_Pair = tuple[Tensor, Tensor]

_CHECKS = (
    "check_forward_args",
    "check_input",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
)


def inherits_checks(cls: type) -> bool:
    """Whether a subclass leaves all that `nn.LSTM` checks of a call's arguments as it is."""
    return all(getattr(cls, name) is getattr(torch.nn.LSTM, name) for name in _CHECKS)


@ops.on_one_thread_after_fork
class LSTM(torch.nn.LSTM):
    """`torch.nn.LSTM` with the same parameters, results and errors, in less time.

    Everything is documented there: constructor, inputs, outputs, attributes. What the kernels do
    not cover (devices other than the CPU and, in a build with CUDA kernels, CUDA; dtypes other than
    float32, float64, bfloat16 and float16; tensor subclasses with functions of their own;
    `torch.jit`) is computed by `torch.nn.LSTM`.

    Where the two differ: under autocast the states and packed outputs have the autocast dtype too;
    on the CPU halves are rounded once, at the end, not at every step (with AMX or AVX-512's dot
    products, states of bfloat16 are rounded where they enter a product, too); a parameter replaced
    by one of the wrong shape raises RuntimeError; without gradients, `output` is no view where the
    batch comes first; and what backward needs of `output` is `output` itself, so that changing it
    in place makes backward raise, which with torch's it does in float32 in one direction alone.

    `torch.jit.script(model)` leaves torch's modules, on the same parameters, in the place of those
    of ours that are in `model`: script a copy, or `lstm_fast.accelerate(model)` afterwards.
    `torch.jit.trace` compiles methods marked `torch.jit.export`, with torch's modules alone: for
    those, make it of a model after `lstm_fast.restore(model)`.
    `torch.onnx.export(model, ...)` exports torch's; a program that `torch.export` made before has
    our op, which ONNX lacks: make it of a model after `lstm_fast.restore(model)`.

    Keyword arguments beyond torch's, off by default. `reference.variant` has the step with all of
    them; x_t, h_t and c_t are those of one layer, and masks are drawn by torch's generator, once a
    call:

        weight_dropout: probability p of DropConnect on the recurrent weights in training. Every
            step uses W_hh * m / (1 - p), m of zeros (at this rate) and ones, [4H, P] (Merity,
            Keskar and Socher 2017, "Regularizing and optimizing LSTM language models").
        variational_dropout: probability p in training, or a pair: of the inputs x_t of each layer
            and of the recurrent input h_(t-1). Both are multiplied by m / (1 - p), with one mask
            [B, I] or [B, P] for all steps (Gal and Ghahramani 2016, "A theoretically grounded
            application of dropout in recurrent neural networks", tied weights).
        zoneout: probability p, or a pair: of the cell and of the output.
            c_t = m * c_(t-1) + (1 - m) * (f * c_(t-1) + i * g), and likewise h_t, with a mask for
            each step; in evaluation p takes the place of m (Krueger et al. 2017, "Zoneout:
            regularizing RNNs by randomly preserving hidden activations").
        layer_norm: normalise the gates and the cell, i, f, g, o from
            LN(W_ih x_t) * norm_ih + LN(W_hh h_(t-1)) * norm_hh + b_ih + b_hh and
            h_t = o * tanh(LN(c_t) * norm_c + norm_bias_c) (Ba, Kiros and Hinton 2016, "Layer
            normalization"). Adds the parameters norm_ih_l0 [4H], norm_hh_l0 [4H], norm_c_l0 [H]
            and, with biases, norm_bias_c_l0 [H], and so on.
        learned_state: the state that a sequence begins from when no `hx` is given is learned:
            parameters initial_h [L * D, P] and initial_c [L * D, H], zeros at first.
        forget_bias: b_ih + b_hh of the forget gates at construction and in `reset_parameters`
            (Jozefowicz, Zaremba and Sutskever 2015, "An empirical exploration of recurrent network
            architectures", recommend 1).
        gate_activation: of i, f and o: "sigmoid" or "hard_sigmoid", min(max(x + 3, 0), 6) / 6.
        cell_activation: of g and of the cell in h_t: "tanh", "relu" or "hard_tanh",
            min(max(x, -1), 1).
        return_cells: `forward` returns (output, (h_n, c_n), cells), with the c_t of all steps of
            the last layer in the form of output, H columns a direction.

    Those of them that act in forward are attributes of a module that is constructed with one, and
    may be set at any time, but for layer_norm and learned_state, which have parameters.

    One more is about memory and changes no result:

        recompute_gates: in training keep the outputs and the cells of each step alone, not the four
            gates, and compute these again in backward, in one product for all steps of a layer: a
            third of the memory that waits for backward, for a step of training that takes 1.2
            times as long (on the CPU; not measured on CUDA). An attribute as well, which may be set
            at any time, of a swapped module, say. Layers that layer_norm, zoneout,
            variational_dropout, an activation, return_cells or `reset` change keep their gates all
            the same.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    _inherits_checks = True
    # None for a module that does what torch's does; swapped ones never see __init__.
    _lstm_options: options.Options | None = None
    _lstm_forget_bias: float | None = None
    _frozen_weights: ops.FrozenWeights | None = None
    recompute_gates: bool = False
    initial_h: Tensor
    initial_c: Tensor

    # What nn.LSTM has as *args and **kwargs, by name: torch.nn.utils.skip_init reads the signature.
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_dropout: float = 0.0,
        variational_dropout: float | tuple[float, float] = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        learned_state: bool = False,
        forget_bias: float | None = None,
        gate_activation: str = "sigmoid",
        cell_activation: str = "tanh",
        return_cells: bool = False,
        recompute_gates: bool = False,
    ) -> None:
        chosen = options.Options(
            weight_dropout,
            options.pair("variational_dropout", variational_dropout),
            options.pair("zoneout", zoneout),
            layer_norm,
            learned_state,
            gate_activation,
            cell_activation,
            return_cells,
        )
        forget_bias = options.checked_forget_bias(forget_bias, bias)
        options.check_flag("recompute_gates", recompute_gates)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        if recompute_gates:
            self.recompute_gates = True
        shapes = self._parameter_shapes(chosen)
        options.install(self, chosen, options.NAMES, forget_bias, shapes, device, dtype)

    def _parameter_shapes(self, chosen: options.Options) -> dict[str, tuple[int, ...]]:
        """Of the parameters that options add."""
        H, P = self.hidden_size, self.proj_size or self.hidden_size
        directions = ("", "_reverse") if self.bidirectional else ("",)
        runs = [f"_l{layer}{d}" for layer in range(self.num_layers) for d in directions]
        of_run = chosen.parameter_shapes(H, self.bias)
        shapes = {name + run: shape for run in runs for name, shape in of_run.items()}
        if chosen.learned_state:
            shapes |= {"initial_h": (len(runs), P), "initial_c": (len(runs), H)}
        return shapes

    def reset_parameters(self) -> None:
        """As `torch.nn.LSTM.reset_parameters`; what the options add begins as constructed."""
        super().reset_parameters()
        options.set_constants(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in options.NAMES:
            value = options.assigned(self, name, value)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """As torch's, and the options that are in use."""
        return options.described(self, super().extra_repr())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._inherits_checks = inherits_checks(cls)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: _Pair | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
    ) -> Any:
        """As `torch.nn.LSTM.forward`, and with the option `return_cells` the cells of all steps.

        Args:
            lengths: [B] integers: the sequences in a padded `input` are so long, 0 included. h_n
                and c_n are the states after the last step of each, of a sequence of no steps the
                state that it begins from; output is zero from the end on.
            reset: [T, B] bool ([B, T] with `batch_first`, [T] unbatched; of a packed sequence in
                the order of the batch before packing, padded, if need be to more steps than the
                longest sequence has): where true, an episode begins at the step. The state before
                the step is then that of a sequence without `hx`: zero, or the learned one. The
                reverse direction, which goes from step t + 1 to t, is reset in between where
                `reset` is true at t + 1: no information crosses a beginning.

        Raises:
            ValueError: `lengths` or `reset` is not as described.
        """
        if self._lstm_options is not None or lengths is not None or reset is not None:
            if _is_traced(self, input, LSTM):
                return _traced_call(self, input, hx, lengths=lengths, reset=reset)
            if self._lstm_options is None and lengths is None:
                states = options.reset_before_one_step(self, input, hx, reset)
                if states is not None:
                    return LSTM.forward(self, input, states)
            return options.forward(self, input, hx, lengths, reset)
        if self._inherits_checks:
            results = ops.infer(self, input, hx, cell=False)
            if results is not None:
                return results
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if not isinstance(input, Tensor) or input.dim() != 3:
            return self._forward_unbatched(input, hx)
        batch_first = self.batch_first
        hidden = hx
        if not self._inherits_checks:
            state = self._zeros(input, input.size(0 if batch_first else 1)) if hx is None else hx
            self.check_forward_args(input, state, None)
            hidden = None if hx is None else self.permute_hidden(hx, None)
        fused = self._fused(input.transpose(0, 1) if batch_first else input, None, hidden)
        if fused is None:
            return super().forward(input, hx)
        output, h_n, c_n = fused
        return output.transpose(0, 1) if batch_first else output, (h_n, c_n)

    def _forward_unbatched(self, input: Tensor, hx: _Pair | None) -> tuple[Tensor, _Pair]:
        if not isinstance(input, Tensor) or input.dim() != 2 or not _is_state(hx, dim=2):
            if _is_traced(self, input, LSTM):
                return _traced_call(self, input, hx)
            return super().forward(input, hx)
        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        output, (h_n, c_n) = LSTM.forward(self, input.unsqueeze(batch_dim), hx)
        assert isinstance(output, Tensor)
        return output.squeeze(batch_dim), (h_n.squeeze(1), c_n.squeeze(1))

    def _forward_packed(
        self, input: PackedSequence, hx: _Pair | None
    ) -> tuple[PackedSequence, _Pair]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        fused = None
        if len(batch_sizes):
            hidden: _Pair | None = None
            if hx is not None:
                hidden = self.permute_hidden(hx, sorted_indices)
            elif torch.compiler.is_compiling():  # a graph has the batch from the size of a state
                hidden = self._zeros(data, int(batch_sizes[0]))
            fused = self._fused(data, batch_sizes, hidden)
        if fused is None:
            return super().forward(input, hx)
        output, h_n, c_n = fused
        return (
            PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices),
            self.permute_hidden((h_n, c_n), unsorted_indices),
        )

    def _fused(
        self, input: Tensor, batch_sizes: Tensor | None, hx: _Pair | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Run the op on input [T, B, I], or [N, I] with batch sizes.

        None where `nn.LSTM` is to speak: it raises, or computes what is not fused.
        """
        if torch._C._get_tracing_state():  # as torch.jit.is_tracing() does, in less time
            return None
        state = self.__dict__
        weights = self._current_weights()
        h0 = c0 = None
        if hx is not None:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                return None
            h0, c0 = hx
            if h0 is None or c0 is None:
                return None
        if ops.records_grad():
            # Backward reads copies of what has gaps: it may change until then, as with torch's.
            input, h0, c0 = ops.contiguous(input), ops.contiguous(h0), ops.contiguous(c0)
        frozen = self._frozen_weights
        if frozen is not None:
            frozen = frozen.for_call()
        rounded_from = None
        if torch._C._is_any_autocast_enabled():
            rounded_from = weights
            input, h0, c0, *weights = ops.autocast(input, h0, c0, *weights)
            frozen = None  # of other weights
        num_layers, bidirectional = state["num_layers"], state["bidirectional"]
        drops = state["dropout"] and state["training"] and num_layers > 1
        options = state["bias"], num_layers, bidirectional, self.recompute_gates
        if not drops and input.size(-1) == state["input_size"]:
            args = input, batch_sizes, h0, c0, weights, *options
            results = ops.attempt(*args, frozen, rounded_from)
            if results is not None:
                return results
        if batch_sizes is not None and _end_in_zero(batch_sizes):
            steps = batch_sizes[batch_sizes > 0]
            return self._fused(input, steps, hx) if len(steps) else None
        if (
            len(weights) != len(state["_flat_weights_names"])
            or not _are_plain([input, *weights] if hx is None else [input, h0, c0, *weights])
            or not _fits(input, weights)
            or ops.is_exported_to_onnx()
        ):
            return None

        if batch_sizes is None:
            T, B, input_size = input.shape
        else:
            if input.dim() != 2:
                return None
            T, input_size = len(batch_sizes), input.size(1)
            # Dynamo must not decide on the number in a tensor; there the op compares the two.
            if h0 is not None and torch.compiler.is_dynamo_compiling():
                B = h0.size(1)
            else:
                B = int(batch_sizes[0])
        if T == 0 and torch.compiler.is_compiling():  # torch's graph fails in other words
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if T == 0 or input_size == 0 or input_size != state["input_size"]:
            return None
        if h0 is not None and c0 is not None:
            runs = 2 * num_layers if bidirectional else num_layers
            hidden_size = state["hidden_size"]
            h0_shape = runs, B, state["proj_size"] or hidden_size
            c0_shape = runs, B, hidden_size
            if not (_is_for(input, h0, h0_shape) and _is_for(input, c0, c0_shape)):
                return None
        if drops:
            return self._layer_by_layer(input, batch_sizes, h0, c0, weights, rounded_from)
        args = input, batch_sizes, h0, c0, weights, *options
        return ops.lstm(*args, rounded_from=rounded_from)

    def _layer_by_layer(
        self,
        input: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: list[Tensor],
        rounded_from: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The stack with dropout on the output of each layer but the last."""
        L = self.num_layers
        h0_of = [None] * L if h0 is None else h0.chunk(L)
        c0_of = [None] * L if c0 is None else c0.chunk(L)
        per_layer = len(weights) // L
        h_n, c_n = [], []
        for layer in range(L):
            if layer > 0:
                input = torch.nn.functional.dropout(input, self.dropout, training=True)
            of_layer = slice(layer * per_layer, (layer + 1) * per_layer)
            input, h, c = ops.lstm(
                input,
                batch_sizes,
                h0_of[layer],
                c0_of[layer],
                weights[of_layer],
                self.bias,
                1,
                self.bidirectional,
                self.recompute_gates,
                rounded_from=None if rounded_from is None else rounded_from[of_layer],
            )
            h_n.append(h)
            c_n.append(c)
        return input, torch.cat(h_n), torch.cat(c_n)

    def _current_weights(self) -> list[Tensor]:
        """The weights that `nn.LSTM` would use now: found changed, they are read anew."""
        state = self.__dict__
        weights: Any = state.get("_flat_weights")  # a subclass may have a property of that name
        names = state["_flat_weights_names"]
        if torch.compiler.is_compiling():  # a module that keeps those of a graph would change it
            return [getattr(self, name, None) for name in names]  # type: ignore[misc]
        if ops.are_registered(state["_parameters"], names, weights):
            return weights
        self._update_flat_weights()
        return self._flat_weights  # type: ignore[return-value]

    def _zeros(self, input: Tensor, B: int) -> _Pair:
        runs = self.num_layers * (2 if self.bidirectional else 1)
        return (
            input.new_zeros(runs, B, self.proj_size or self.hidden_size),
            input.new_zeros(runs, B, self.hidden_size),
        )

    def __prepare_scriptable__(self) -> torch.nn.Module:
        return _scriptable(self, LSTM, torch.nn.LSTM)


def _end_in_zero(batch_sizes: Tensor) -> bool:
    """Whether the last step is of no sequence, as of a mask that goes on, summed by hand."""
    if torch.compiler.is_compiling():
        return False
    return batch_sizes.dim() == 1 and len(batch_sizes) > 0 and int(batch_sizes[-1]) == 0


def _scriptable(
    module: torch.nn.Module, fast: type[torch.nn.Module], stock: type[torch.nn.Module]
) -> torch.nn.Module:
    """What `torch.jit.script` compiles in the place of a fast module: a stock one on the same
    parameters, unless a subclass has a forward of its own. Torch puts it into the model that holds
    the module, for good."""
    if type(module).forward is not fast.forward:
        return module
    if used := options.used(module):
        raise RuntimeError(
            f"torch.jit cannot script an LSTM with options that torch lacks: {used}"
            f"{options.instead(module)}"
        )
    twin = stock.__new__(stock)
    twin.__dict__ = module.__dict__
    return twin


def _is_traced(module: torch.nn.Module, input: Any, fast: type[torch.nn.Module]) -> bool:
    """Whether torch.fx traces a model in which torch's module would be a leaf of the graph."""
    if not isinstance(input, torch.fx.Proxy) or type(module).forward is not fast.forward:
        return False
    tracer: Any = input.tracer
    return tracer.root is not module


def _traced_call(module: torch.nn.Module, input: Any, hx: Any, **kwargs: Any) -> Any:
    tracer = input.tracer
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    args = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


_TENSOR_TYPES = frozenset((Tensor, Parameter))


def _are_plain(tensors: list[Any]) -> bool:
    """Whether torch's own code handles these types: a fake tensor, say, but not one that overrides
    torch's functions or wraps other tensors."""
    return _TENSOR_TYPES.issuperset(map(type, tensors)) or all(
        kind in _TENSOR_TYPES
        or (
            issubclass(kind, Tensor)
            and kind.__torch_function__ is torch._C._disabled_torch_function_impl
            and not hasattr(kind, "__tensor_flatten__")
        )
        for kind in map(type, tensors)
    )


def _fits(input: Tensor, weights: list[Tensor]) -> bool:
    """Whether the kernels take this input with these weights."""
    return (
        input.dtype is weights[0].dtype
        and input.dtype in ops.DTYPES
        and all([ops.run_together(input, weight) for weight in weights])
        and input.layout is torch.strided
        and not input.is_nested
    )


def _is_for(input: Tensor, state: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the kernels take this h0 or c0, of a shape, with this input."""
    return (
        state.dtype is input.dtype
        and state.layout is torch.strided
        and ops.run_together(input, state)
        and state.shape == shape
    )


def _is_state(hx: Any, dim: int) -> bool:
    """Whether hx is None or a pair of tensors of so many dimensions."""
    return hx is None or (
        isinstance(hx, (tuple, list))
        and len(hx) == 2
        and isinstance(hx[0], Tensor)
        and isinstance(hx[1], Tensor)
        and hx[0].dim() == dim
        and hx[1].dim() == dim
    )


_dynamo.allow(LSTM)
