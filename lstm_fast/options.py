"""What `torch.nn.LSTM` lacks, as options of our modules: their values, their parameters, and the
forward pass of a module that uses one. `lstm_fast.LSTM` documents them; `reference.variant` has
the formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import Parameter
from torch.nn.utils.rnn import PackedSequence

from lstm_fast import _dynamo, ops, reference
from lstm_fast.variant import variant

if TYPE_CHECKING:
    from lstm_fast.lstm import LSTM
    from lstm_fast.lstm_cell import LSTMCell

_Pair = tuple[Tensor, Tensor]
_Direction = tuple[Tensor, Tensor, Tensor, Tensor]  # output, h_n, c_n and cells of one direction


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that act in the forward pass, as `lstm_fast.LSTM` documents them.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    weight_dropout: float = 0.0
    variational_dropout: tuple[float, float] = (0.0, 0.0)  # of the input, of the state
    zoneout: tuple[float, float] = (0.0, 0.0)  # of the cell, of the output
    layer_norm: bool = False
    learned_state: bool = False
    gate_activation: str = "sigmoid"
    cell_activation: str = "tanh"
    return_cells: bool = False

    def __post_init__(self) -> None:
        rates = {
            "weight_dropout": [self.weight_dropout],
            "variational_dropout": self.variational_dropout,
            "zoneout": self.zoneout,
        }
        for name, values in rates.items():
            for value in values:
                if not _is_number(value) or not 0 <= value <= 1:
                    raise ValueError(f"{name} must be a probability, from 0 to 1, got {value!r}")
        # NumPy's numbers, which dynamo cannot trace, and others.
        object.__setattr__(self, "weight_dropout", float(self.weight_dropout))
        for name in ("variational_dropout", "zoneout"):
            first, second = getattr(self, name)
            object.__setattr__(self, name, (float(first), float(second)))
        for name in ("layer_norm", "learned_state", "return_cells"):
            check_flag(name, getattr(self, name))
        for name, known in (
            ("gate_activation", reference.GATE_ACTIVATIONS),
            ("cell_activation", reference.CELL_ACTIVATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )

    def used(self, training: bool = True) -> list[str]:
        """Those that differ from their defaults and act in training, or out of it."""
        return [
            f.name
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
            and (training or f.name not in ("weight_dropout", "variational_dropout"))
        ]

    def norms(self, bias: bool) -> list[str]:
        """The parameters that one direction of one layer has more than torch's."""
        if not self.layer_norm:
            return []
        return ["norm_ih", "norm_hh", "norm_c"] + ["norm_bias_c"] * bias

    def parameter_shapes(self, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Of these, with H hidden units."""
        return {name: (H,) if name.endswith("_c") else (4 * H,) for name in self.norms(bias)}


PLAIN = Options()

_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
_INTEGERS |= {torch.uint16, torch.uint32, torch.uint64}
_GATE_ACTIVATIONS = list(reference.GATE_ACTIVATIONS)
_CELL_ACTIVATIONS = list(reference.CELL_ACTIVATIONS)


def pair(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    """A number for both, or the two.

    Raises:
        ValueError: neither is given.
    """
    if not isinstance(value, (tuple, list)):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be a number or a pair of numbers, got {value!r}")
    first, second = value
    return first, second


def checked_forget_bias(forget_bias: float | None, bias: bool) -> float | None:
    """As a float of Python; ValueError for what is no number, or where there is no bias to set."""
    if forget_bias is None:
        return None
    if not _is_number(forget_bias) or not math.isfinite(forget_bias):
        raise ValueError(f"forget_bias must be None or a finite number, got {forget_bias!r}")
    if not bias:
        raise ValueError("forget_bias needs bias=True")
    return float(forget_bias)


NAMES = tuple(field.name for field in dataclasses.fields(Options))
OF_CELLS = "zoneout", "layer_norm", "learned_state", "gate_activation", "cell_activation"
_PAIRS = "variational_dropout", "zoneout"
_HAVE_PARAMETERS = "layer_norm", "learned_state"


def install(
    module: Any,
    chosen: Options,
    names: Sequence[str],
    forget_bias: float | None,
    shapes: dict[str, tuple[int, ...]],
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> None:
    """Give a module, constructed as torch's, its options, attributes of these names and the
    parameters of these shapes."""
    if chosen != PLAIN:
        module._lstm_options = chosen
        # A name that a client's class has is its own.
        names = [name for name in names if not hasattr(type(module), name)]
        module.__dict__.update({name: getattr(chosen, name) for name in names})
    if forget_bias is not None:
        module._lstm_forget_bias = forget_bias
    for name, shape in shapes.items():
        parameter = Parameter(torch.empty(shape, device=device, dtype=dtype))
        module.register_parameter(name, parameter)
    set_constants(module)


def assigned(module: Any, name: str, value: Any) -> Any:
    """What an attribute of a module is to be. One that is an option takes effect with it: other
    modules, which may have attributes of such names, have none in their `__dict__` beside options.

    Raises:
        ValueError: the value is out of range.
        AttributeError: it would take other parameters.
    """
    state = module.__dict__
    if "_lstm_options" not in state or name not in state or isinstance(value, torch.nn.Module):
        return value
    value = pair(name, value) if name in _PAIRS else value
    chosen = dataclasses.replace(module._lstm_options, **{name: value})
    value = getattr(chosen, name)
    if name in _HAVE_PARAMETERS and value != state[name]:
        raise AttributeError(
            f"{name} cannot change, as its parameters are made when a module is constructed"
        )
    state["_lstm_options"] = chosen
    return value


def remove(module: Any) -> None:
    """Take from a module what `install` gave it, without options in use."""
    if module.__dict__.pop("_lstm_options", None) is not None:
        for name in NAMES:
            module.__dict__.pop(name, None)


def used(module: Any, training: bool = True) -> str:
    """The options of a module that torch's has not, as arguments of its constructor; without those
    that act in training alone, if so asked."""
    chosen: Options | None = getattr(module, "_lstm_options", None)
    names = [] if chosen is None else chosen.used(training)
    return ", ".join(f"{name}={getattr(chosen, name)!r}" for name in names)


def instead(module: Any) -> str:
    """What there is for a module with options where torch's is needed, to end a message with."""
    if used(module, training=False):
        return ""
    return "; its state_dict loads into a torch.nn.LSTM, which computes the same in evaluation"


@_dynamo.constant  # which dynamo, of its own, takes for false
def _is_in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def _is_torchs(module: LSTM | LSTMCell, *beyond: Any) -> bool:
    """Whether torch's module is to speak, as for ours without options: traced or exported to ONNX,
    in evaluation with options of training alone. `beyond` are the arguments that it lacks.

    Raises:
        RuntimeError: ONNX has no such LSTM.
    """
    is_traced = torch._C._get_tracing_state() is not None
    if not is_traced and not torch.compiler.is_compiling():
        return False
    # In words only where there is an error to raise: dynamo cannot write a number that changes.
    acting = (module._lstm_options or PLAIN).used(module.training)
    is_stock = not acting and all([argument is None for argument in beyond])
    is_exported = _is_in_onnx_export()
    if is_exported and not is_stock:
        lacking = used(module, module.training) or "lengths or reset"
        raise RuntimeError(f"ONNX cannot have an LSTM with what torch lacks: {lacking}")
    return is_stock and (is_traced or is_exported)


def described(module: Any, text: str) -> str:
    """The `extra_repr` of torch's module, and what is different."""
    bias = module._lstm_forget_bias
    more = [] if bias is None else [f"forget_bias={bias!r}"]
    if getattr(module, "recompute_gates", False):
        more.append("recompute_gates=True")
    return ", ".join([text, *more, *filter(None, [used(module)])])


def set_constants(module: Any) -> None:
    """Give the parameters that do not begin at random their first values."""
    options, forget_bias = module._lstm_options, module._lstm_forget_bias
    if options is None and forget_bias is None:
        return
    H = module.hidden_size
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if forget_bias is not None and name.startswith("bias_"):
                parameter[H : 2 * H] = forget_bias if name.startswith("bias_ih") else 0
            if options is not None and name.startswith(("norm_", "initial_")):
                is_scale = name.startswith("norm_") and not name.startswith("norm_bias_")
                parameter.fill_(1 if is_scale else 0)


class _Rows(NamedTuple):
    """Where the rows of a batch lie: dense [T, B], of `lengths` [B] or whole, or those of a packed
    sequence."""

    T: int
    B: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None

    def _places(self, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each of the n rows: the batch row, the rows of its step and of the step after it."""
        assert self.batch_sizes is not None
        sizes = self.batch_sizes.to(device)
        ends = sizes.cumsum(0)
        rows = torch.arange(n, device=device)
        steps = torch.searchsorted(ends, rows, right=True)
        after = torch.cat([sizes[1:], sizes.new_zeros(1)])
        return rows - (ends - sizes)[steps], sizes[steps], after[steps]

    def repeat(self, per_row: Tensor, like: Tensor) -> Tensor:
        """[B, C] for each step: in a form that broadcasts against [T, B, C], or [N, C]."""
        if self.batch_sizes is None:
            return per_row
        return per_row[self._places(like.shape[0], per_row.device)[0]]

    def reversed_resets(self, reset: Tensor) -> Tensor:
        """The resets [N] as the reverse direction meets them: on the way from t + 1 to t."""
        if self.batch_sizes is None:
            steps = reset.view(self.T, self.B)
            return torch.cat([steps[1:], torch.zeros_like(steps[:1])]).view(-1)
        b, here, after = self._places(reset.shape[0], reset.device)
        following = torch.arange(reset.shape[0], device=reset.device) + here
        return reset[following.clamp(max=reset.shape[0] - 1)] & (b < after)


class _Result(NamedTuple):
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None

    def map(self, rows: Any, states: Any) -> _Result:
        """`rows` of output and cells, `states` of the states."""
        cells = None if self.cells is None else rows(self.cells)
        return _Result(rows(self.output), states(self.h_n), states(self.c_n), cells)

    def returned(self, rows: Any = lambda t: t) -> Any:
        """What forward returns."""
        result = rows(self.output), (self.h_n, self.c_n)
        return result if self.cells is None else (*result, rows(self.cells))


def forward(
    module: LSTM,
    input: Tensor | PackedSequence,
    hx: _Pair | None,
    lengths: Any,
    reset: Tensor | None,
) -> Any:
    """`LSTM.forward` of a module with options, or with `lengths` or `reset`."""
    if _is_torchs(module, lengths, reset):
        return torch.nn.LSTM.forward(module, input, hx)
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths must be None for a PackedSequence, which has its own")
        return _forward_packed(module, input, hx, reset)
    if input.dim() not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
    is_batched, batch_dim = input.dim() == 3, 0 if module.batch_first else 1
    if hx is not None and (hx[0].dim() != input.dim() or hx[1].dim() != input.dim()):
        dim = input.dim()
        raise RuntimeError(
            f"For {'' if is_batched else 'un'}batched {dim}-D input, hx and cx should also be "
            f"{dim}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    if not is_batched:
        if lengths is not None:
            raise ValueError("lengths must be None for unbatched input")
        input = input.unsqueeze(batch_dim)
        hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    T, B = input.size(1 - batch_dim), input.size(batch_dim)
    state = _initial_state(module, input, B) if hx is None else _two("lstm", hx)
    module.check_forward_args(input, state, None)
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    x = input.transpose(0, 1) if module.batch_first else input
    if reset is not None:
        reset = _time_major(module, reset, T, B, is_batched)
    if lengths is None:
        reset = None if reset is None else reset.reshape(-1)
        result = _run(module, x, _Rows(T, B), state, reset)
    else:
        result = _run_lengths(module, x, state, lengths, reset)
    if module.batch_first:
        result = result.map(lambda t: t.transpose(0, 1), lambda t: t)
    if not is_batched:
        result = result.map(lambda t: t.squeeze(batch_dim), lambda t: t.squeeze(1))
    return result.returned()


def reset_before_one_step(module: LSTM, input: Any, hx: Any, reset: Any) -> _Pair | None:
    """The states before the only step of layers without options, which the kernels of nn.LSTM take
    in less time; None where `forward` is to reset them, or to say what is wrong."""
    time = 1 if module.batch_first else 0
    if (
        module.bidirectional  # whose reverse direction begins at the step
        or not _may_be_masked(input, 3, 1 - time, hx)
        or input.size(time) != 1
    ):
        return None
    return _without(_time_major(module, reset, 1, input.size(1 - time))[0], hx, 1)


def reset_before_step(input: Any, hx: Any, reset: Any) -> _Pair | None:
    """Likewise of a cell."""
    if not _may_be_masked(input, 2, 0, hx):
        return None
    _check_reset_of_cell(input, reset)
    return _without(reset, hx, 0)


def _may_be_masked(input: Any, dim: int, batch_dim: int, hx: Any) -> bool:
    """Whether Python may ask for the numbers of an input of so many dimensions, and hx are states
    of its rows."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not ops._beyond_kernels()
        and type(input) in (Tensor, torch.nn.Parameter)
        and input.is_cpu
        and input.dim() == dim
        and isinstance(hx, (tuple, list))
        and len(hx) == 2
        and all(
            isinstance(state, Tensor)
            and state.dim() == dim
            and state.size(dim - 2) == input.size(batch_dim)
            for state in hx
        )
    )


def _without(is_reset: Tensor, states: _Pair, dim: int) -> _Pair:
    """The states with zeros in some rows. Most steps have none, which is soon found out."""
    if not is_reset.any():
        return states
    h, c = states
    rows = is_reset.nonzero().squeeze(-1)
    return h.index_fill(dim, rows, 0), c.index_fill(dim, rows, 0)


def _two(op: str, hx: _Pair) -> _Pair:
    """The states, if they are as many as torch's op expects."""
    if len(hx) != 2:
        raise RuntimeError(f"{op} expects two hidden states")
    return hx


def _time_major(
    module: LSTM,
    reset: Tensor,
    T: int,
    B: int,
    is_batched: bool = True,
    is_padded_further: bool = False,
) -> Tensor:
    """The mask of resets as [T, B], checked; if it may be, without its steps beyond T."""
    expected = (T,) if not is_batched else (B, T) if module.batch_first else (T, B)
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
        found = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise ValueError(f"reset must be a tensor of dtype bool, got {found}")
    given = tuple(reset.shape)
    if is_padded_further and reset.dim() == 2:
        reset = reset[:, :T] if module.batch_first else reset[:T]
    if tuple(reset.shape) != expected:
        raise ValueError(f"Expected reset size {expected}, got {given}")
    if not is_batched:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if module.batch_first else reset


def _forward_packed(
    module: LSTM, input: PackedSequence, hx: _Pair | None, reset: Tensor | None
) -> Any:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        state = _initial_state(module, data, int(batch_sizes[0]))
    else:
        state = module.permute_hidden(_two("lstm", hx), sorted_indices)
    module.check_forward_args(data, state, batch_sizes)
    rows = _Rows(len(batch_sizes), state[0].size(1), batch_sizes)
    if reset is not None:
        # The batch may have been padded to more steps than its longest sequence has.
        reset = _time_major(module, reset, rows.T, rows.B, is_padded_further=True)
        if sorted_indices is not None:
            reset = reset.index_select(1, sorted_indices)
        sizes = batch_sizes.to(reset.device)
        reset = reset[torch.arange(rows.B, device=reset.device) < sizes.unsqueeze(1)]
    result = _run(module, data, rows, state, reset)
    h_n, c_n = module.permute_hidden((result.h_n, result.c_n), unsorted_indices)
    result = result._replace(h_n=h_n, c_n=c_n)
    return result.returned(
        lambda t: PackedSequence(t, batch_sizes, sorted_indices, unsorted_indices)
    )


def _sees_no_numbers(x: Tensor) -> bool:
    """Whether sizes must not depend on the numbers in tensors: where a graph is made, under a
    transform of `torch.func`, and with fake tensors."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or isinstance(x, FakeTensor)
    )


def _integers(lengths: Any, B: int, device: torch.device) -> Tensor:
    """The lengths of B sequences as a tensor of int64."""
    expected = "lengths must be {} integers, one for each sequence, got {}".format
    try:
        found = torch.as_tensor(lengths, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # a word, rows of unequal length
        raise ValueError(expected(B, repr(lengths))) from error
    is_integer = found.dtype in _INTEGERS or B == 0  # of an empty list, torch makes floats
    if found.dim() != 1 or found.numel() != B or not is_integer:
        # A transform, say, shows no numbers.
        seen = f"a tensor of {found.dtype} and shape {tuple(found.shape)}"
        raise ValueError(expected(B, seen if isinstance(lengths, Tensor) else repr(lengths)))
    return found.long()


def _assert_within(lengths: Tensor, T: int) -> None:
    """Check lengths by an operation of the graph. vmap has no rule for it: what is checked is the
    tensor below transforms, with the lengths of all rows. Dynamo shows no such tensor; there torch
    finds those beyond T, as they index steps that there are not."""
    if torch._C._are_functorch_transforms_active():
        if torch.compiler.is_compiling():
            return
        while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
            lengths = torch._C._functorch.get_unwrapped(lengths)
    within = ((lengths >= 0) & (lengths <= T)).all()
    torch._assert_async(within, "lengths must be from 0 to the steps of input")


def _run_lengths(
    module: LSTM, x: Tensor, state: _Pair, lengths: Any, reset: Tensor | None
) -> _Result:
    """Run padded sequences x [T, B, I] of these lengths, which may be zero; reset [T, B] or None.

    They are packed, without those that have no step. Output past an end is zero.
    """
    T, B = x.shape[:2]
    is_whole = _sees_no_numbers(x)
    lengths = _integers(lengths, B, x.device if is_whole else torch.device("cpu"))
    if is_whole:  # by `_run_to_ends`
        _assert_within(lengths, T)
        if reset is not None:
            reset = (reset & (torch.arange(T, device=x.device).unsqueeze(1) < lengths)).reshape(-1)
        return _run(module, x, _Rows(T, B, lengths=lengths), state, reset)
    ends = lengths.numpy().astype(numpy.int64)
    longest = int(ends.max(initial=0))
    if ends.min(initial=0) < 0 or longest > T:
        raise ValueError(f"lengths must be from 0 to {T}, the steps of input, got {ends.tolist()}")
    falling = numpy.argsort(-ends, kind="stable")[: numpy.count_nonzero(ends)]
    is_alive = ends[falling] > numpy.arange(longest)[:, None]
    t, b = is_alive.nonzero()
    places, order = (torch.from_numpy(n).to(x.device) for n in (t * B + falling[b], falling))
    if len(order) == 0:
        rows = _Rows(1, 0)
        result = _run(module, x[:1, :0], rows, (state[0][:, :0], state[1][:, :0]), None)
    else:
        batch_sizes = torch.from_numpy(is_alive.sum(1))
        result = _run(
            module,
            x.reshape(T * B, -1).index_select(0, places),
            _Rows(longest, len(order), batch_sizes),
            (state[0].index_select(1, order), state[1].index_select(1, order)),
            None if reset is None else reset.reshape(-1)[places],
        )

    def pad(rows: Tensor) -> Tensor:
        columns = rows.shape[-1]
        padded = rows.new_zeros(T * B, columns)
        return padded.index_copy(0, places, rows.reshape(-1, columns)).view(T, B, columns)

    h_n = state[0].to(result.h_n.dtype).index_copy(1, order, result.h_n)
    c_n = state[1].to(result.c_n.dtype).index_copy(1, order, result.c_n)
    return result.map(pad, lambda t: t)._replace(h_n=h_n, c_n=c_n)


def _initial_state(module: LSTM, input: Tensor, B: int) -> _Pair:
    """What a sequence begins from when the caller gives no state."""
    if module._lstm_options is None or not module._lstm_options.learned_state:
        return module._zeros(input, B)
    h, c = module.initial_h, module.initial_c
    return h.unsqueeze(1).expand(-1, B, -1), c.unsqueeze(1).expand(-1, B, -1)


def _run(module: LSTM, input: Tensor, rows: _Rows, state: _Pair, reset: Tensor | None) -> _Result:
    """All layers and directions on input [T, B, I], or on the data [N, I] of a packed sequence.

    reset: [N] or None.
    """
    options = module._lstm_options or PLAIN
    training, L = module.training, module.num_layers
    weights = module._current_weights()
    if options.weight_dropout and training:
        dropout = torch.nn.functional.dropout
        weights = [
            dropout(w, options.weight_dropout) if name.startswith("weight_hh") else w
            for name, w in zip(module._flat_weights_names, weights, strict=True)
        ]
    h0, c0 = state
    rounded_from = None
    if torch._C._is_any_autocast_enabled():
        rounded_from = weights
        input, h0, c0, *weights = ops.autocast(input, h0, c0, *weights)
    if rows.lengths is None and reset is None and is_plain(options, training):
        args = input, rows.batch_sizes, h0, c0, weights
        if module.dropout and training and L > 1:
            return _Result(*module._layer_by_layer(*args, rounded_from), None)
        how = module.bias, L, module.bidirectional, module.recompute_gates
        return _Result(*ops.lstm(*args, *how, rounded_from=rounded_from), None)

    dtype, first = input.dtype, None
    if options.learned_state and reset is not None:
        first = module.initial_h.to(dtype), module.initial_c.to(dtype)
    if dtype in reference.HALVES:
        input, h0, c0, *weights = map(reference._wide, (input, h0, c0, *weights))
        first = first and (first[0].float(), first[1].float())
    resets = [reset]
    if module.bidirectional:
        resets.append(None if reset is None else rows.reversed_resets(reset))
    directions = len(resets)
    per_layer = len(weights) // (L * directions)
    x = input
    h_n, c_n = [], []
    for layer in range(L):
        if layer > 0 and module.dropout and training:
            x = torch.nn.functional.dropout(x, module.dropout)
        if options.variational_dropout[0] and training:
            x = x * rows.repeat(_dropped(x, rows.B, x.shape[-1], options.variational_dropout[0]), x)
        results = []
        for direction in range(directions):
            k = layer * directions + direction
            params = weights[k * per_layer : (k + 1) * per_layer]
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            first_of = None if first is None else (first[0][k], first[1][k])
            results.append(
                _run_direction(
                    *(module, suffix, x, rows, (h0[k], c0[k]), params, resets[direction]),
                    *(first_of, dtype),
                )
            )
        x = torch.cat([r[0] for r in results], dim=-1) if directions > 1 else results[0][0]
        h_n += [r[1] for r in results]
        c_n += [r[2] for r in results]
    cells = None
    if options.return_cells:
        cells = torch.cat([r[3] for r in results], dim=-1) if directions > 1 else results[0][3]
    result = _Result(x, torch.stack(h_n), torch.stack(c_n), cells)
    return result.map(lambda t: t.to(dtype), lambda t: t.to(dtype)) if x.dtype != dtype else result


def is_plain(options: Options, training: bool) -> bool:
    """Whether the kernels of `nn.LSTM` are enough."""
    return (
        not options.layer_norm
        and not options.return_cells
        and not any(options.zoneout)
        and not (training and any(options.variational_dropout))
        and options.gate_activation == PLAIN.gate_activation
        and options.cell_activation == PLAIN.cell_activation
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _dropped(like: Tensor, rows: int, columns: int, rate: float) -> Tensor:
    """A mask of dropout: zeros at this rate, and else 1 / (1 - rate)."""
    return torch.nn.functional.dropout(like.new_ones(rows, columns), rate)


def _zones(module: Any, like: Tensor, rows: int, columns: int, rate: float) -> Tensor | None:
    """The shares of zoneout: ones at this rate and else zeros, or their expectation."""
    if not rate:
        return None
    if module.training:
        return like.new_empty(rows, columns).bernoulli_(rate)
    return like.new_full((1, columns), rate)


def _run_direction(
    module: LSTM | LSTMCell,
    suffix: str,
    x: Tensor,
    rows: _Rows,
    state: _Pair,
    params: Sequence[Tensor],
    reset: Tensor | None,
    first: _Pair | None,
    dtype: torch.dtype,
) -> _Direction:
    """One direction of one layer, whose parameters have this suffix; first: the state [P], [H] to
    reset to, None for zeros; dtype: that of the module, of which halves have been widened."""
    options = module._lstm_options or PLAIN
    h0, c0 = state
    B, P, H, bias = rows.B, h0.shape[-1], c0.shape[-1], bool(module.bias)
    rate = options.variational_dropout[1]
    zone_c, zone_h = options.zoneout
    N = rows.T * B if rows.batch_sizes is None else x.shape[0]

    def run(x: Tensor, reset: Tensor | None, reverse: bool) -> _Direction:
        return variant(
            x,
            rows.batch_sizes,
            h0,
            c0,
            params,
            [reference._wide(getattr(module, name + suffix)) for name in options.norms(bias)],
            bias,
            reverse,
            _GATE_ACTIVATIONS.index(options.gate_activation),
            _CELL_ACTIVATIONS.index(options.cell_activation),
            reset,
            None if first is None else first[0].expand(B, -1),
            None if first is None else first[1].expand(B, -1),
            _dropped(x, B, P, rate) if rate and module.training else None,
            _zones(module, x, N, P, zone_h),
            _zones(module, x, N, H, zone_c),
            held_in=2 if dtype is torch.float16 else 0,
        )

    reverse = suffix.endswith("_reverse")
    if rows.lengths is None:
        return run(x, reset, reverse)
    return _run_to_ends(run, x, rows.lengths, state, reset, reverse)


def _run_to_ends(
    run: Callable[[Tensor, Tensor | None, bool], _Direction],
    x: Tensor,
    lengths: Tensor,
    state: _Pair,
    reset: Tensor | None,
    reverse: bool,
) -> _Direction:
    """One direction on sequences x [T, B, I] of these lengths, by operations whose sizes do not
    depend on them.

    All steps are run, in reverse those of each sequence from its own end on; past an end they begin
    anew with zeros, and what comes of them is dropped.
    """
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    ended = steps >= lengths
    order = (lengths - 1 - steps).clamp(min=0)

    def in_order(rows: Tensor) -> Tensor:
        """[T, B, C] as the direction meets it, and back."""
        return rows.gather(0, order.unsqueeze(-1).expand_as(rows)) if reverse else rows

    def cut(rows: Tensor) -> Tensor:
        return rows.masked_fill(ended.unsqueeze(-1), 0)

    def last(rows: Tensor, before: Tensor) -> Tensor:
        at = (lengths - 1).clamp(min=0).view(1, -1, 1).expand(1, *before.shape)
        return torch.where((lengths > 0).unsqueeze(1), rows.gather(0, at)[0], before)

    begins = ended
    if reset is not None:
        begins = begins | in_order(reset.view_as(ended).unsqueeze(-1)).squeeze(-1)
    output, _, _, cells = run(cut(in_order(x)), begins.reshape(-1), False)
    h0, c0 = state
    return cut(in_order(output)), last(output, h0), last(cells, c0), cut(in_order(cells))


def _check_reset_of_cell(input: Tensor, reset: Any) -> None:
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
        raise ValueError("reset must be a tensor of dtype bool")
    if reset.shape != input.shape[:-1]:
        expected = tuple(input.shape[:-1])
        raise ValueError(f"Expected reset size {expected}, got {tuple(reset.shape)}")


def forward_cell(module: LSTMCell, input: Tensor, hx: _Pair | None, reset: Tensor | None) -> _Pair:
    """`LSTMCell.forward` of a module with options, or with `reset`."""
    if _is_torchs(module, reset):
        return torch.nn.LSTMCell.forward(module, input, hx)
    if input.dim() not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if reset is not None:
        _check_reset_of_cell(input, reset)
    if input.dim() == 1:
        states = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        reset = None if reset is None else reset.unsqueeze(0)
        h, c = forward_cell(module, input.unsqueeze(0), states, reset)
        return h.squeeze(0), c.squeeze(0)
    B, H = input.shape[0], module.hidden_size
    if input.shape[1] != module.input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.shape[1]} expected {module.input_size}"
        )
    first = None
    if module._lstm_options is not None and module._lstm_options.learned_state:
        first = module.initial_h, module.initial_c
    if hx is not None:
        h0, c0 = _two("lstm_cell", hx)
        for i, (rows_of, *units) in enumerate((h0.shape, c0.shape)):
            if rows_of != B:
                raise RuntimeError(
                    f"Input batch size {B} doesn't match hidden{i} batch size {rows_of}"
                )
            if units != [H]:
                found = " x ".join(map(str, units)) or "none"
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {found}, expected {H}"
                )
    elif first is not None:
        h0, c0 = first[0].expand(B, -1), first[1].expand(B, -1)
    else:
        h0 = c0 = input.new_zeros(B, H)
    params = [module.weight_ih, module.weight_hh]
    params += [module.bias_ih, module.bias_hh] if module.bias else []
    input, h0, c0, *params = ops.autocast(input, h0, c0, *params)
    weight_dtype = params[0].dtype
    for name, t in (("input", input), ("h0", h0), ("c0", c0)):
        if t.dtype is not weight_dtype:
            raise RuntimeError(
                f"{name} must have the dtype of weight_ih, {weight_dtype}, got {t.dtype}"
            )
    wide, rows = reference._wide, _Rows(1, B)
    x, state = wide(input).unsqueeze(0), (wide(h0), wide(c0))
    if first is not None:
        first = (wide(first[0].to(input.dtype)), wide(first[1].to(input.dtype)))
    params = [wide(p) for p in params]
    dtype = input.dtype
    _, h, c, _ = _run_direction(module, "", x, rows, state, params, reset, first, dtype)
    return h.to(dtype), c.to(dtype)
