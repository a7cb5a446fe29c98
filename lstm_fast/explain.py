"""`explain`: how a call of an LSTM is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lstm_fast import ops, options
from lstm_fast._load import build_info, load_kernels
from lstm_fast.lstm import LSTM, _are_plain, _fits


def explain(module: torch.nn.LSTM, input: Tensor | PackedSequence) -> str:
    """Say in a line how `module(input)` is computed: by which kernels, or by torch.nn.LSTM.

    Args:
        module: an `lstm_fast.LSTM` or `torch.nn.LSTM`.
        input: as for a call, batched or packed; only its shape, dtype and device matter.

    Returns:
        For example "CPU kernels, avx512, packed weights, 2 threads", as for inference, or "CUDA
        kernels, cluster (4 teams of 3 blocks), tensor cores"; backward on CUDA is named too where
        it takes another way. What the words mean: csrc/README.md.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    weight: Any = module._flat_weights[0]
    if not isinstance(module, LSTM) or not _are_plain([data, weight]) or not _fits(data, weight):
        return "torch.nn.LSTM"
    if not options.is_plain(module._lstm_options or options.PLAIN, module.training):
        if data.is_cpu:
            return f"CPU kernels, {build_info()['isa']}, packed weights, step by step"
        return "CUDA kernels, stepwise, exact products"
    if isinstance(input, PackedSequence):
        T, B = len(input.batch_sizes), int(input.batch_sizes[0])
    else:
        batch_dim = 0 if module.batch_first else 1
        T, B = data.size(1 - batch_dim), data.size(batch_dim)
    if data.is_cpu:
        plan = load_kernels().cpu_plan(
            str(data.dtype).removeprefix("torch."),
            input.batch_sizes.tolist() if isinstance(input, PackedSequence) else [B] * T,
            I=data.size(-1),
            H=module.hidden_size,
            P=module.proj_size or None,
            L=module.num_layers,
            D=2 if module.bidirectional else 1,
            parts=ops._parts(data),
            threads=torch.get_num_threads(),
            packed=isinstance(input, PackedSequence),
        )
        threads = "1 thread" if plan["threads"] == 1 else f"{plan['threads']} threads"
        if plan["members"] > 1:
            threads += f" in teams of {plan['members']}"
        return f"CPU kernels, {build_info()['isa']}, {plan['path']}, {threads}"
    properties: Any = torch.cuda.get_device_properties(data.device)
    plan = load_kernels().cuda_plan(
        str(data.dtype).removeprefix("torch."),
        T=T,
        B=B,
        I=data.size(-1),
        H=module.hidden_size,
        P=module.proj_size or None,
        L=module.num_layers,
        D=2 if module.bidirectional else 1,
        allow_tf32=ops._parts(data) in (1, 2),
        compute_capability=10 * properties.major + properties.minor,
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        l2_bytes=properties.L2_cache_size,
        cluster_blocks=8 if properties.major >= 9 else 1,
    )
    return describe_cuda(plan)


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
