"""The ops as differentiable functions: fakes, autograd, the choice of kernel or reference.

With `variant.py`, the only Python files that call `torch.ops.lstm_fast`. Importing it loads the
compiled ops.
"""

from __future__ import annotations

import functools
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lstm_fast import _dynamo, _load, reference

_load.load_ops()

_lstm: Any = torch.ops.lstm_fast.lstm.default
_lstm_backward: Any = torch.ops.lstm_fast.lstm_backward.default

_cuda = _load.build_info()["cuda"]

_direct: Any = _load.load_bound()


class FrozenWeights:
    """What is kept of the weights of a module that `freeze` froze; copies keep nothing yet."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: Any = None  # by `_direct`, which fills it

    def __reduce__(self) -> Any:
        return FrozenWeights, ()

    def for_call(self) -> FrozenWeights | None:
        """None if a call keeps nothing: one that records gradients, after which optimisers may
        change the weights without torch counting it; all is forgotten then."""
        if torch.compiler.is_compiling():
            return None
        if records_grad():
            self.kept = None
            return None
        return self


_Module = TypeVar("_Module", bound=type[torch.nn.Module])


def contiguous(tensor: Any) -> Any:
    """A tensor without gaps; whatever has no strides as it is."""
    is_strided = isinstance(tensor, Tensor) and tensor.layout is torch.strided
    return tensor.contiguous() if is_strided else tensor


DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""The dtypes that the kernels compute; halves in float32 inside."""


def runs_on(tensor: Tensor) -> bool:
    """Whether there are kernels for the device of a tensor: the CPU, or CUDA if built for it."""
    return tensor.is_cpu or (_cuda and tensor.is_cuda and _runs_on_cuda(tensor.get_device()))


@_dynamo.constant
def _runs_on_cuda(device: int) -> bool:
    return _load.cuda_capability(device) > 0


def first(state: Tensor) -> Tensor:
    """state[0], of one layer and direction, as a tensor of its own.

    A view could not be detached in place, as truncated backpropagation through time does.
    """
    return torch.ops.aten._unsafe_view.default(state, state.shape[1:])


@_dynamo.constant  # dynamo knows no inference mode
def records_grad() -> bool:
    """Whether autograd records what is computed: never in inference mode."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def is_exported_to_onnx() -> bool:
    """Whether torch.export captures a model for ONNX, which has an LSTM and not our ops."""
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def wants_grad(tensors: Sequence[Tensor | None]) -> bool:
    return records_grad() and any([t is not None and t.requires_grad for t in tensors])


def run_together(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are on one device, and there are kernels for it."""
    return (a.is_cpu and b.is_cpu) or (_cuda and a.device == b.device and runs_on(a))


def autocast(*tensors: Any) -> list[Any]:
    """Cast as autocast on the device of the first tensor does: all on that device that are of a
    floating dtype other than float64."""
    device = tensors[0].device.type
    if not runs_on(tensors[0]) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype)
        if isinstance(t, Tensor)
        and t.device.type == device
        and t.is_floating_point()
        and t.dtype is not torch.float64
        else t
        for t in tensors
    ]


is_forked = False
"""Whether this process was forked from one that had imported this, without torch's threads."""


def _note_fork() -> None:
    global is_forked
    is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _after_fork_on_one_thread(module: Any) -> None:
    """Torch's threads do not survive a fork, and a child that calls on them waits forever. The
    kernels know that; what torch computes around them, forward and backward, does not."""
    forward = module.forward

    @functools.wraps(forward)
    def on_one_thread(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            results = forward(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)
        for result in _tensors(results):
            if result.grad_fn is not None:
                result.grad_fn.register_prehook(_backward_on_one_thread)
        return results

    module.forward = on_one_thread


def _backward_on_one_thread(_: Any) -> None:
    """From the first gradient of a result until all of backward has ended, as nothing tells where
    that of the module does."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: torch.set_num_threads(threads))


def _tensors(results: Any) -> Iterator[Tensor]:
    """Of what a module returns: tensors, packed sequences and tuples of them."""
    if isinstance(results, Tensor):
        yield results
    elif isinstance(results, tuple):
        for result in results:
            yield from _tensors(result)


def on_one_thread_after_fork(module: _Module) -> _Module:
    """Have forked children run a class of modules on one thread."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _after_fork_on_one_thread(module))
    return module


def lstm(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    recompute_gates: bool = False,
    parts: int | None = None,
    rounded_from: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a stack of LSTM layers, differentiable to any order. Semantics are those of `nn.LSTM`.

    Args:
        input: [T, B, I] of any strides, or the data [N, I] of a packed sequence.
        batch_sizes: None, or the [T] int64 batch sizes of a packed sequence.
        h0: [L * D, B, P], or None for zeros.
        c0: [L * D, B, H], or None for zeros.
        params: in the order of `nn.LSTM._flat_weights`, see `reference.lstm`.
        recompute_gates: keep outputs and cells alone for backward, not the gates.
        parts: how products of float32 may be made, as the op's schema says, or None for torch's
            settings of an LSTM.
        rounded_from: what `autocast` made params of. Backward keeps these, which a module has
            anyway, and rounds them again: a loop of steps would keep a copy for each.

    Returns:
        output [T, B, D * P] (or [N, D * P]), h_n [L * D, B, P] and c_n [L * D, B, H]; contiguous.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or device; the message names it.
    """
    options = has_biases, num_layers, bidirectional
    is_transformed = _beyond_kernels()
    if not runs_on(input) or (
        is_transformed and not _are_for_kernels(input, batch_sizes, num_layers, bidirectional)
    ):
        return reference.lstm(input, batch_sizes, h0, c0, params, *options)
    how = _parts(input) if parts is None else parts, recompute_gates
    if is_transformed:
        args = None, input, batch_sizes, h0, c0, *options, *how, None, *params
        return _TransformedLSTM.apply(*args)[:3]
    is_trained = wants_grad([input, h0, c0, *params])
    if is_trained and num_layers > 1 and not (input.requires_grad or params[0].requires_grad):
        first = _first_trained_layer(h0, c0, params, num_layers)
        if first > 0:
            return _in_two(
                *(first, input, batch_sizes, h0, c0, params, *options),
                *(recompute_gates, rounded_from),
            )
    if torch.compiler.is_compiling():  # the op differentiates itself where the graph is run
        return _lstm(input, batch_sizes, h0, c0, list(params), *options, False, *how)[:3]
    if is_trained:
        tensors, kept = (input, batch_sizes, h0, c0), _kept(rounded_from)
        return _LSTM.apply(None, *tensors, *options, *how, kept, *params)
    return _forward(input, batch_sizes, h0, c0, list(params), *options, False, how[0])[:3]


def _kept(rounded_from: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    """What backward is to keep in the place of params, if not these: of what is computed for the
    call, the smaller."""
    if rounded_from is None or not all([p.is_leaf for p in rounded_from]):
        return None
    return rounded_from


def _first_trained_layer(
    h0: Tensor | None, c0: Tensor | None, params: Sequence[Tensor], num_layers: int
) -> int:
    """The first that a gradient is wanted of; that of the input is not."""
    if (h0 is not None and h0.requires_grad) or (c0 is not None and c0.requires_grad):
        return 0
    first = next(i for i, p in enumerate(params) if p.requires_grad)
    return first // (len(params) // num_layers)


def _in_two(
    below: int,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    recompute_gates: bool,
    rounded_from: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm` of the layers below a number, and of the others on what comes of them."""
    runs, count = 2 * below if bidirectional else below, len(params) // num_layers * below
    output, *states = lstm(
        input,
        batch_sizes,
        None if h0 is None else h0[:runs],
        None if c0 is None else c0[:runs],
        params[:count],
        has_biases,
        below,
        bidirectional,
        recompute_gates,
    )
    output, *others = lstm(
        output,
        batch_sizes,
        None if h0 is None else h0[runs:],
        None if c0 is None else c0[runs:],
        params[count:],
        has_biases,
        num_layers - below,
        bidirectional,
        recompute_gates,
        rounded_from=None if rounded_from is None else rounded_from[count:],
    )
    h_n, c_n = (torch.cat(pair) for pair in zip(states, others, strict=True))
    return output, h_n, c_n


def are_registered(parameters: dict[str, Any], names: list[str], weights: list[Any]) -> bool:
    """Whether the parameters of these names are those weights."""
    registered: bool = _direct.are_registered(parameters, names, weights)
    return registered


def infer(module: Any, input: Any, hx: Any, cell: bool) -> Any:
    """What an LSTM without options returns for a call that makes results alone: no gradients, no
    graph. None for another, and for arguments that Python is to look at, wrong ones among them."""
    if (
        torch.compiler.is_compiling()
        or records_grad()
        or torch._C._is_any_autocast_enabled()
        or forward_ad._current_level >= 0
        or not isinstance(input, Tensor)
        or input.dim() != (2 if cell else 3)
        or not input.is_cpu
    ):
        return None
    state = module.__dict__
    return _direct.infer(state, input, hx, cell, module._frozen_weights, _cpu_parts())


def attempt(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    recompute_gates: bool,
    frozen: FrozenWeights | None = None,
    rounded_from: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`lstm` for the arguments that are common, in less time than their checks in Python take;
    None for others, wrong ones among them. What `frozen` keeps of params is used; `rounded_from`
    is that of `lstm`."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or not input.is_cpu:
        return None
    save = records_grad()
    # As in a model in training. Of others, `lstm` finds out what gradients are wanted of.
    if save and not (params and getattr(params[0], "requires_grad", False)):
        return None
    parts, recompute_gates = _cpu_parts(), save and recompute_gates
    results = _direct.direct_forward(
        *(input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional),
        *(save, parts, recompute_gates, False, frozen),
    )
    if results is None:
        return None
    if not save:
        return results[:3]
    # They are no function of anything yet, since they come past autograd.
    return _apply_past_transforms(
        *(results, input, batch_sizes, h0, c0, has_biases, num_layers, bidirectional),
        *(parts, recompute_gates, _kept(rounded_from), *params),
    )


def attempt_cell(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    held_in: int,
    frozen: FrozenWeights | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Likewise for one step of one layer: h and c, given input [B, I], h0 [B, H] and c0 [B, H].
    If they are halves that were widened, so many parts of bfloat16 hold one of them, else 0."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or not input.is_cpu:
        return None
    save = records_grad()
    if save and not getattr(params[0], "requires_grad", False):
        return None
    parts = parts_held(_cpu_parts(), held_in)
    results = _direct.direct_forward(
        input, None, h0, c0, params, has_biases, 1, False, save, parts, False, True, frozen
    )
    if results is None or not save:
        return results and results[1:3]
    return _apply_cell_past_transforms(results, input, h0, c0, has_biases, parts, *params)


def cell(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    held_in: int,
) -> tuple[Tensor, Tensor]:
    """`lstm` for one step of one layer, with arguments and results as `attempt_cell` has them."""
    tensors, parts = (input, h0, c0), parts_held(_parts(input, cell=True), held_in)
    is_beyond = torch.compiler.is_compiling() or _beyond_kernels() or not runs_on(input)
    if is_beyond or not wants_grad([*tensors, *params]):
        x, h0, c0 = _steps(*tensors)
        options = has_biases, 1, False, False, parts
        _, h, c = lstm(x, None, h0, c0, params, *options)
        return first(h), first(c)
    # With or without a direct call, the same is saved: a checkpoint may compare the two.
    return _Cell.apply(None, *tensors, has_biases, parts, *params)


def _steps(*tensors: Tensor | None) -> list[Any]:
    """Each as the only step of a sequence, or the state of a stack of one layer."""
    return [None if t is None else t.unsqueeze(0) for t in tensors]


def _forward(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The op, past the dispatcher where that has nothing to do."""
    results = None
    if not torch.compiler.is_compiling() and input.is_cpu:
        results = _direct.direct_forward(input, *rest)
    return dispatched(_lstm, input, *rest) if results is None else results


def _backward(*args: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor]]:
    """Likewise for the op of backward, whose fourth argument is the input."""
    results = None
    if not torch.compiler.is_compiling() and args[3].is_cpu:
        results = _direct.direct_backward(*args)
    if results is None:
        return dispatched(_lstm_backward, *args)
    grad_input, grad_h0, grad_c0, *grad_params = results
    return grad_input, grad_h0, grad_c0, grad_params


def dispatched(op: Any, *args: Any, **kwargs: Any) -> Any:
    """`op(*args)` where autograd has nothing to do."""
    if torch.compiler.is_compiling():
        return op(*args, **kwargs)
    return below_autograd(op, *args, **kwargs)


def below_autograd(op: Any, *args: Any, **kwargs: Any) -> Any:
    """`op(*args)` past its kernel for autograd. The stable ABI makes a RuntimeError of every error;
    that of torch's allocator has its own type again here."""
    try:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)
    except RuntimeError as error:
        if str(error).startswith("CUDA out of memory"):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


_PARTS = {"highest": 3, "high": 2, "medium": 1}


def _parts(input: Tensor, cell: bool = False) -> int:
    """How products of float32 may be made, as the op's schema says.

    On the CPU `torch.set_float32_matmul_precision` decides; `torch.use_deterministic_algorithms`
    asks for results that depend neither on the batch nor on the number of threads. On CUDA it is
    torch's setting for what computes its module: cuDNN's RNNs, or the products of cuBLAS for a cell
    and where cuDNN is off.
    """
    return _cuda_parts(cell) if input.is_cuda else _cpu_parts()


# These are read when a graph is compiled, as dynamo knows no function of torch that returns a word.
@_dynamo.constant
def _cuda_parts(cell: bool) -> int:
    backends: Any = torch.backends
    by_cudnn = backends.cudnn.enabled and not cell
    of = backends.cudnn.rnn if by_cudnn else backends.cuda.matmul
    return 2 if of.fp32_precision == "tf32" else 3


@_dynamo.constant
def _cpu_parts() -> int:
    if torch._C._get_deterministic_algorithms():
        return 0
    return _PARTS[torch._C._get_float32_matmul_precision()]


def parts_held(parts: int, held_in: int) -> int:
    """How products may be made of halves that were widened, `held_in` parts of bfloat16 each (0 if
    they are none), given how those of float32 may be."""
    return parts and (held_in or parts)


def _beyond_kernels() -> bool:
    """Whether a `torch.func` transform or forward-mode differentiation must see plain ops."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _are_for_kernels(
    input: Tensor,
    batch_sizes: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    is_backward: bool = False,
) -> bool:
    """Whether what is beyond kernels is `torch.func.grad`, `vjp` and the like, or `vmap` over no
    more than plain ops take steps of all layers and directions, for all at once: one kernel after
    another takes less time then."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    functorch: Any = torch._C._functorch
    mapped, has_grad = 1, False
    for transform in functorch.get_interpreter_stack():
        if transform.key() == functorch.TransformType.Vmap:
            mapped *= functorch.CVmapInterpreterPtr(transform).batchSize()
            # Within a gradient, each call is one of a function of autograd.
            mapped *= 3 if has_grad and not is_backward else 1
        elif transform.key() == functorch.TransformType.Grad:
            has_grad = True
        else:
            return False
    T = input.shape[0] if batch_sizes is None else len(batch_sizes)
    return 0 < mapped <= max(T * num_layers * (2 if bidirectional else 1), 1)


def _is_differentiated(grads: Sequence[Tensor | None]) -> bool:
    """Whether backward is to be differentiated or transformed itself.

    What dynamo traces is backward as the kernels do it, since torch compiles one order only.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    return torch.is_grad_enabled() or _beyond_kernels() or _are_batched(grads)


def _are_batched(grads: Sequence[Tensor | None]) -> bool:
    """As `autograd.grad(is_grads_batched=True)` passes them, while no transform is active."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    return any([grad is not None and is_batched(grad) for grad in grads])


class _Hooks(OrderedDict[int, Callable[[Tensor], Any]]):
    """Hooks on a result of a function that has others. The engine calls them without a gradient,
    too, when only others are used."""

    def __setitem__(self, key: int, hook: Callable[[Tensor], Any]) -> None:
        # Torch's own, of `register_multi_grad_hook`, count the results that the engine has come to.
        if getattr(hook, "__module__", None) != torch.autograd.graph.__name__:
            hook = _unless_none(hook)
        super().__setitem__(key, hook)


def _unless_none(hook: Callable[[Tensor], Any]) -> Callable[[Tensor | None], Any]:
    return lambda grad: None if grad is None else hook(grad)


def spares_hooks(function: Any) -> Any:
    """Have hooks on results of an autograd function called with gradients alone, as torch's are,
    whose results have functions of their own."""
    node = function._backward_cls

    def register(self: Any, result: Any) -> None:
        result._backward_hooks = _Hooks()
        super(node, self)._register_hook_dict(result)

    node._register_hook_dict = register
    return function


def _are_wanted(ctx: Any, rows: int, params: Sequence[Tensor]) -> bool:
    """Whether the engine goes on to the parameters, the last tensors that a function was given:
    `torch.autograd.grad` and `backward(inputs=...)` may be after gradients of others alone."""
    # To ask takes microseconds, and to compute those of few rows and units no more.
    if rows * params[1].numel() < 1 << 18 or torch.compiler.is_compiling() or _beyond_kernels():
        return True
    nodes = [node for node, _ in ctx.next_functions[-len(params) :] if node is not None]
    return any(map(_is_run, nodes))


def _is_run(node: Any) -> bool:
    task = torch._C._current_graph_task_id()
    if node.metadata.get("lstm_fast.wanted_in") == task:
        return True
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient `torch.autograd.grad` is to hand out
        # Raising takes as long as a small step: once for all steps of a loop.
        node.metadata["lstm_fast.wanted_in"] = task
        return True


@spares_hooks
class _LSTM(torch.autograd.Function):
    """Kernel forward, kernel backward; the backward of the backward goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        results: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        input: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        parts: int,
        recompute_gates: bool,
        kept: Sequence[Tensor] | None,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`results` are those of the op, if it has been run; `kept` is what params were rounded
        from, if backward is to round it again."""
        ctx.set_materialize_grads(False)
        ctx.options = options = has_biases, num_layers, bidirectional
        ctx.how = parts, recompute_gates
        output, h_n, c_n, saved = results or _forward(
            input, batch_sizes, h0, c0, list(params), *options, True, parts, recompute_gates
        )
        ctx.is_rounded = kept is not None
        ctx.save_for_backward(input, batch_sizes, h0, c0, output, saved, *(kept or params))
        return output, h_n, c_n

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        _: None = None,
    ) -> tuple[Tensor | None, ...]:
        grads = grad_output, grad_h_n, grad_c_n
        if all([grad is None for grad in grads]):
            return (None,) * len(ctx.needs_input_grad)
        input, batch_sizes, h0, c0, output, saved, *params = ctx.saved_tensors
        _, needs_input, _, needs_h0, needs_c0, _, _, _, _, _, _, *needs_params = (
            ctx.needs_input_grad
        )
        rows = output.numel() // output.shape[-1]
        need_params = any(needs_params) and _are_wanted(ctx, rows, params)
        if ctx.is_rounded:
            params = [p.to(input.dtype) for p in params]
        args: Any = (*grads, input, batch_sizes, h0, c0, params, *ctx.options)
        rest: Any = (output, saved, needs_input, needs_h0 or needs_c0, need_params, *ctx.how)
        compute = _differentiable_backward if _is_differentiated(grads) else _backward
        results = compute(*args, *rest)
        grad_input, grad_h0, grad_c0, grad_params = results
        return (
            None,
            grad_input if needs_input else None,
            None,
            grad_h0 if needs_h0 else None,
            grad_c0 if needs_c0 else None,
            None,
            None,
            None,
            None,
            None,
            None,
            *[grad if needed else None for grad, needed in zip_longest(grad_params, needs_params)],
        )


class _TransformedLSTM(_LSTM):
    """The same as `torch.func` wants it, which sees what is saved as a result; that costs time."""

    @staticmethod
    def forward(results: None, *args: Any) -> Any:  # type: ignore[override]
        *tensors, has_biases, num_layers, bidirectional, parts, recompute_gates = args[:9]
        options = has_biases, num_layers, bidirectional
        return _forward(*tensors, list(args[10:]), *options, True, parts, recompute_gates)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        _, *tensors = inputs[:5]
        ctx.options, ctx.how, ctx.is_rounded = inputs[5:8], inputs[8:10], False
        ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(*tensors, output[0], output[3], *inputs[11:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _one_by_one(_TransformedLSTM, info, in_dims, args)


def _one_by_one(
    function: Any, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A rule of `torch.func.vmap` for a function of autograd."""
    each = [
        function.apply(
            *[
                arg.select(dim, k) if isinstance(arg, Tensor) and dim is not None else arg
                for arg, dim in zip(args, in_dims, strict=True)
            ]
        )
        for k in range(info.batch_size)
    ]
    results = tuple(torch.stack(of_all) for of_all in zip(*each, strict=True))
    return results, (0,) * len(results)


def _differentiable_backward(*args: Any) -> Any:
    """`_backward` with gradients of its own, or made of plain ops if a transform must see them."""
    grads, rest = args[:3], args[3:]
    input, batch_sizes, h0, c0, params, *options, output, saved = rest[:10]
    needs, how = rest[10:13], rest[13:]
    _, num_layers, bidirectional = options
    by_kernels = not _beyond_kernels() or _are_for_kernels(
        input, batch_sizes, num_layers, bidirectional, is_backward=True
    )
    if not by_kernels or _are_batched(grads):
        return reference.lstm_backward(*args[:11], *needs)
    grad_input, grad_h0, grad_c0, *grad_params = _Gradients.apply(
        *(batch_sizes, output, saved, options, needs, how, *grads, input, h0, c0, *params)
    )
    return grad_input, grad_h0, grad_c0, grad_params


class _Gradients(torch.autograd.Function):
    """Backward by kernels, whose own backward goes through the reference."""

    @staticmethod
    def forward(
        batch_sizes: Tensor | None,
        output: Tensor,
        saved: Tensor,
        options: tuple[bool, int, bool],
        needs: tuple[bool, bool, bool],
        how: tuple[int, bool],
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        args = _of_backward(batch_sizes, options, tensors)
        *grads, grad_params = _backward(*args, output, saved, *needs, *how)
        unneeded = output.new_empty(0)  # as the reference has it
        grads = [unneeded if grad is None else grad for grad in grads]
        return *grads, *(grad_params if needs[2] else ())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        batch_sizes, _, _, ctx.options, ctx.needs, _, *tensors = inputs
        ctx.save_for_backward(batch_sizes, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _one_by_one(_Gradients, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch_sizes, *tensors = ctx.saved_tensors

        def function(*tensors: Any) -> tuple[Tensor, ...]:
            args = _of_backward(batch_sizes, ctx.options, tensors)
            *of_states, of_params = reference.lstm_backward(*args, *ctx.needs)
            return *of_states, *of_params

        return *(None,) * 6, *pull_back(function, tensors, ctx.needs_input_grad[6:], grads)


def _of_backward(
    batch_sizes: Tensor | None, options: tuple[bool, int, bool], tensors: Sequence[Any]
) -> tuple[Any, ...]:
    """Arguments of the op of backward and of its reference."""
    *grads, input, h0, c0 = tensors[:6]
    return *grads, input, batch_sizes, h0, c0, list(tensors[6:]), *options


def pull_back(
    function: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of those tensors that need one, given those of a function's results.

    They are functions of `tensors` and `grads`, if gradients are recorded."""
    is_differentiated = torch.is_grad_enabled()
    # Of a transform of `torch.func` that is over, what is left are wrappers that say nothing true.
    unwrapped = torch._C._functorch.unwrap_if_dead
    tensors = [None if t is None else unwrapped(t) for t in tensors]
    wanted = {i: t for i, t in enumerate(tensors) if needs[i] and t is not None}
    used = [i for i, grad in enumerate(grads) if grad is not None]
    found: Sequence[Tensor | None]

    def used_results(*places: Any) -> tuple[Tensor, ...]:
        given = dict(zip(wanted, places, strict=True))
        results = function(*[given.get(i, t) for i, t in enumerate(tensors)])
        return tuple(results[i] for i in used)

    of_results = tuple(grad for grad in grads if grad is not None)
    if not all([tensor.requires_grad for tensor in wanted.values()]):  # they did in that transform
        found = torch.func.vjp(used_results, *wanted.values())[1](of_results)
    else:
        with torch.enable_grad():
            # One tensor may be given twice, or be a function of another; each place has a gradient
            # of its own.
            places = [tensor.view_as(tensor) for tensor in wanted.values()]
            results = used_results(*places)
        pairs = [pair for pair in zip(results, of_results, strict=True) if pair[0].requires_grad]
        found = [None] * len(places)
        if pairs and places:
            found = torch.autograd.grad(
                [result for result, _ in pairs],
                places,
                [grad for _, grad in pairs],
                create_graph=is_differentiated,
                allow_unused=True,
            )
    by_place = dict(zip(wanted, found, strict=True))
    return [by_place.get(i) for i in range(len(tensors))]


tells_saved_tensors_apart = hasattr(torch._C._autograd.SavedTensor, "unpack")
"""Whether torch hands out one that has not changed beside others that have; 2.10 does not."""


@spares_hooks
class _Cell(torch.autograd.Function):
    """One step of one layer, as `_LSTM` but for the dimensions of T and L, which would cost more
    functions of autograd than one."""

    @staticmethod
    def forward(
        ctx: Any,
        results: tuple[None, Tensor, Tensor, Tensor] | None,
        input: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        has_biases: bool,
        parts: int,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.how = has_biases, parts
        if results is None:
            x, *state = _steps(input, h0, c0)
            op_args = x, None, *state, list(params), has_biases, 1, False, True, parts
            _, h_n, c_n, saved = _forward(*op_args)
            h, c = first(h_n), first(c_n)
        else:
            _, h, c, saved = results
        ctx.save_for_backward(input, h0, c0, saved, *params)
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Any, ...]:
        if grad_h is None and grad_c is None:
            return (None,) * len(ctx.needs_input_grad)
        _, needs_input, needs_h0, needs_c0, _, _, *needs_params = ctx.needs_input_grad
        is_differentiated = _is_differentiated((grad_h, grad_c))
        try:
            tensors: Any = ctx.saved_tensors
        except RuntimeError as error:
            is_change = "modified by an inplace operation" in str(error)
            if is_differentiated or not is_change or not tells_saved_tensors_apart:
                raise
            # What the kernels read no number of may have changed: torch's cell does not keep it.
            is_read = *needs_params[:2], True, True, needs_input, needs_h0, False, False
            raw = zip(ctx._raw_saved_tensors, is_read, strict=False)
            tensors = [t.unpack() if read else t.data for t, read in raw]
        input, h0, c0, saved, *params = tensors
        # Of the output nothing but its form is read, where no step follows. A user may change it.
        like_h = grad_c if grad_h is None else grad_h
        has_biases, parts = ctx.how
        options = has_biases, 1, False
        need_params = any(needs_params) and _are_wanted(ctx, input.shape[0], params)
        needs: Any = (needs_input, needs_h0 or needs_c0, need_params)
        results: Any = None
        if not (is_differentiated or torch.compiler.is_compiling()) and input.is_cpu:
            results = _direct.direct_backward(
                *(None, grad_h, grad_c, input, None, h0, c0, params),
                *(*options, like_h, saved, *needs, parts, False, True),
            )
        if results is not None:
            grad_input, grad_h0, grad_c0, *grad_params = results
        else:
            steps = _steps(grad_h, grad_c, input, h0, c0, like_h)
            args: Any = (None, *steps[:3], None, *steps[3:5], params, *options)
            args += steps[5], saved, *needs, parts, False
            compute = _differentiable_backward if is_differentiated else _backward
            *grads, grad_params = compute(*args)
            wanted = needs_input, needs_h0, needs_c0
            grad_input, grad_h0, grad_c0 = (
                grad[0] if needed else None for grad, needed in zip(grads, wanted, strict=True)
            )
        return (
            None,
            grad_input if needs_input else None,
            grad_h0 if needs_h0 else None,
            grad_c0 if needs_c0 else None,
            None,
            None,
            *[grad if needed else None for grad, needed in zip_longest(grad_params, needs_params)],
        )


# What is defined there lives as long as this.
library = torch.library.Library("lstm_fast", "IMPL")


def _differentiable_lstm(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    save: bool,
    parts: int = 0,
    recompute_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op for autograd, which meets it by itself in compiled and exported graphs. Whoever has it
    save something differentiates it."""
    tensors = input, batch_sizes, h0, c0
    options, how = (has_biases, num_layers, bidirectional), (parts, recompute_gates)
    if not save and _beyond_kernels():
        results = reference.lstm(*tensors, params, *options)
    elif not save and wants_grad([input, h0, c0, *params]):
        results = _LSTM.apply(None, *tensors, *options, *how, None, *params)
    else:
        return below_autograd(_lstm, *tensors, params, *options, save, *how)
    return *results, input.new_empty(0)


library.impl("lstm", _differentiable_lstm, "Autograd")


def _autocast_lstm(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: list[Tensor],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op under autocast. An exported program was made without it: there an input that autocast
    has made half meets weights that it has not. What modules pass to the op agrees, and stays."""
    tensors = input, h0, c0, *params
    if len({t.dtype for t in tensors if t is not None}) > 1:
        input, h0, c0, *params = autocast(*tensors)
    with torch._C._DisableAutocast():
        return _lstm(input, batch_sizes, h0, c0, params, *options)


def impl_autocast(name: str, kernel: Callable[..., Any]) -> None:
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(name, kernel, key)


impl_autocast("lstm", _autocast_lstm)

# `apply` less the preparations for transforms of `torch.func`, which take as long as the rest of
# it: a direct call has found none active.
_apply_past_transforms = super(torch.autograd.Function, _LSTM).apply
_apply_cell_past_transforms = super(torch.autograd.Function, _Cell).apply


@torch.library.register_fake("lstm_fast::lstm")
def _lstm_fake(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    save: bool,
    parts: int = 0,
    recompute_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    directions = 2 if bidirectional else 1
    weights = reference.split_params(params, has_biases, num_layers, bidirectional)[0]
    H, P = weights.ih.shape[0] // 4, weights.hh.shape[1]
    rows = input.shape[:-1]
    B: int | torch.SymInt
    if len(rows) == 2:
        B = rows[1]
    else:
        B = torch.library.get_ctx().new_dynamic_size() if h0 is None else h0.shape[1]
    return (
        input.new_empty((*rows, directions * P)),
        input.new_empty((num_layers * directions, B, P)),
        input.new_empty((num_layers * directions, B, H)),
        input.new_empty(
            _saved_per_row(input.dtype, weights, num_layers, directions, recompute_gates)
            * math.prod(rows)
            if save
            else 0,
            dtype=torch.float64 if input.dtype is torch.float64 else torch.float32,
        ),
    )


def _saved_per_row(
    dtype: torch.dtype,
    weights: reference.Weights,
    num_layers: int,
    directions: int,
    recompute_gates: bool,
) -> int:
    """Numbers that the kernels keep for backward, for each of the N rows: i, f, g, o and c, or c
    alone; m with a projection and gates; h where it is not the output itself (below the last layer,
    or in halves)."""
    H, P = weights.ih.shape[0] // 4, weights.hh.shape[1]
    inner = num_layers if dtype in reference.HALVES else num_layers - 1
    states = H if recompute_gates else 5 * H if weights.hr is None else 6 * H
    return directions * (num_layers * states + inner * P)


@torch.library.register_fake("lstm_fast::lstm_backward")
def _lstm_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    output: Tensor,
    saved: Tensor,
    need_input: bool,
    need_hx: bool,
    need_params: bool,
    parts: int = 0,
    recompute_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _, h_n, c_n, _ = _lstm_fake(
        input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional, False
    )
    return (
        input.new_empty(input.shape if need_input else 0),
        input.new_empty(h_n.shape if need_hx else 0),
        input.new_empty(c_n.shape if need_hx else 0),
        [input.new_empty(p.shape) for p in params] if need_params else [],
    )
