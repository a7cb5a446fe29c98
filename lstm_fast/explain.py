"""`explain`: how a call of an LSTM is computed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lstm_fast import ops, options
from lstm_fast._load import build_info, cuda_capability, load_kernels
from lstm_fast.lstm import LSTM, _are_plain, _fits


def explain(module: torch.nn.LSTM, input: Tensor | PackedSequence | Sequence[int]) -> str:
    """Say in a line how `module(input)` is computed: by which kernels, or by torch.nn.LSTM.

    Args:
        module: an `lstm_fast.LSTM` or `torch.nn.LSTM`.
        input: as for a call; only its shape, dtype and device matter. Or the shape alone, of an
            input of the module's dtype on its device.

    Returns:
        For example "CPU kernels, avx512, packed weights, 2 threads", as for inference, or "CUDA
        kernels, cluster (4 teams of 3 blocks), tensor cores"; backward on CUDA is named too where
        it takes another way. What the words mean: csrc/README.md. Autocast, if on, and frozen
        weights are taken into account.

    Raises:
        TypeError: `module` is not an LSTM, or `input` nothing of the above.
        ValueError, RuntimeError: a call would, of an input of this shape, dtype and device.
    """
    if not isinstance(module, torch.nn.LSTM):
        raise TypeError(f"module must be a torch.nn.LSTM, got {type(module).__name__}")
    weight: Any = module._flat_weights[0]
    if isinstance(input, PackedSequence):
        module.check_input(input.data, input.batch_sizes)
        data, batch_sizes = input.data, input.batch_sizes.tolist()
    else:
        data = input if isinstance(input, Tensor) else _of_shape(input, weight)
        if data.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {data.dim()}D instead")
        if data.dim() == 2:
            data = data.unsqueeze(0 if module.batch_first else 1)
        module.check_input(data, None)
        batch_dim = 0 if module.batch_first else 1
        batch_sizes = [data.size(batch_dim)] * data.size(1 - batch_dim)
    if not batch_sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if data.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{data.device} and parameter tensor at {weight.device}"
        )
    # Of one number each: what autocast makes of them would be copies.
    x, w = ops.autocast(data.new_empty(()), weight.new_empty(()))
    if not isinstance(module, LSTM) or not _are_plain([data, weight]) or not _fits(x, [w]):
        return "torch.nn.LSTM"
    dtype = str(x.dtype).removeprefix("torch.")
    if not options.is_plain(module._lstm_options or options.PLAIN, module.training):
        if data.is_cpu:
            return f"CPU kernels, {build_info()['isa']}, packed weights, step by step"
        return "CUDA kernels, stepwise, exact products"
    if data.is_cpu:
        is_kept = module._frozen_weights is not None and not weight.requires_grad
        plan = load_kernels().cpu_plan(
            dtype,
            batch_sizes,
            I=data.size(-1),
            H=module.hidden_size,
            P=module.proj_size or None,
            L=module.num_layers,
            D=2 if module.bidirectional else 1,
            parts=ops._parts(data),
            threads=1 if ops.is_forked else torch.get_num_threads(),
            packed=isinstance(input, PackedSequence),
            keeps_packed=is_kept and not torch._C._is_any_autocast_enabled(),
        )
        threads = "1 thread" if plan["threads"] == 1 else f"{plan['threads']} threads"
        if plan["shares_layers"]:
            threads += ", each layer behind the one below"
        elif plan["members"] > 1:
            threads += f" in teams of {plan['members']}"
        return f"CPU kernels, {build_info()['isa']}, {plan['path']}, {threads}"
    properties: Any = torch.cuda.get_device_properties(data.device)
    capability = cuda_capability(data.get_device())
    plan = load_kernels().cuda_plan(
        dtype,
        T=len(batch_sizes),
        B=batch_sizes[0],
        I=data.size(-1),
        H=module.hidden_size,
        P=module.proj_size or None,
        L=module.num_layers,
        D=2 if module.bidirectional else 1,
        allow_tf32=ops._parts(data) in (1, 2),
        compute_capability=capability,
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        l2_bytes=properties.L2_cache_size,
        cluster_blocks=8 if capability >= 90 else 1,
    )
    return describe_cuda(plan)


def _of_shape(shape: Any, like: Tensor) -> Tensor:
    """A tensor of this shape that takes the memory of one number."""
    try:
        sizes = [operator.index(size) for size in shape]
    except TypeError as error:
        raise TypeError(
            f"input must be a Tensor, a PackedSequence or a shape, got {shape!r}"
        ) from error
    if min(sizes, default=0) < 0:
        raise ValueError(f"input must be a shape without negative sizes, got {shape!r}")
    return like.detach().new_empty(()).expand(sizes)


def describe_cuda(plan: dict[str, Any]) -> str:
    """The line that `explain` returns for a plan of `_kernels.cuda_plan`."""

    def way(steps: dict[str, Any]) -> str:
        blocks = steps["blocks"]
        if blocks < 2:
            return str(steps["regime"])
        teams = f"{steps['teams']} team{'s' * (steps['teams'] > 1)}"
        return f"{steps['regime']} ({teams} of {blocks} blocks)"

    forward, backward = way(plan["forward"]), way(plan["backward"])
    steps = forward if forward == backward else f"{forward}, backward {backward}"
    units = "tensor cores" if plan["tensor_cores"] else "exact products"
    return f"CUDA kernels, {steps}, {units}"
