"""`freeze`: weights that no longer change, packed once instead of at each call."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.nn import Module

from lstm_fast import ops
from lstm_fast.lstm import LSTM
from lstm_fast.lstm_cell import LSTMCell
from lstm_fast.swap import require_module, tell

_Model = TypeVar("_Model", bound=Module)

# A file with a frozen module needs no more leave to be loaded than one with another of ours.
torch.serialization.add_safe_globals([ops.FrozenWeights])


def freeze(model: _Model) -> _Model:
    """Freeze the weights of every LSTM and LSTMCell of ours in `model`, in place, and return it.

    A call packs the weights, so that no change to them is missed. Frozen ones, whose
    `requires_grad` is set to False here, are packed at the first call without gradients
    (`torch.no_grad`, `torch.inference_mode`) on the CPU, and kept until they change. The results
    are the same, but for roundings where sums have another order unless
    `torch.use_deterministic_algorithms` is on: of a single step of 2 to 64 rows, of up to 8 steps,
    and of up to 96 rows in all steps together if weights are large. Few rows and steps of large
    weights take up to 1.6 times less time, up to 2.2 in bfloat16; long sequences and large batches
    as long as before. It takes about as much memory as the weights do in float32, half of that for
    bfloat16.

    Changes that torch counts are noticed (an assignment, `load_state_dict`, operations in place),
    and so is other memory (`weight.data = ...`). What is written into `weight.data`, NumPy's arrays
    or shared memory is not, nor is a step of an optimiser with `fused=True`: freeze again after it.
    To train again, call `model.requires_grad_()`, and afterwards freeze again.

    Weights are packed at each call all the same under autocast, in a compiled or exported graph,
    under torch's profiler and where a parametrization or pruning computes them. Options beyond
    torch's are left as they are.

        model = lstm_fast.freeze(lstm_fast.accelerate(model).eval())
        with torch.inference_mode():
            model(x)

    For NumPy's arrays without torch there is `InferenceSession`.

    Raises:
        TypeError: `model` is not a module.
    """
    require_module(model)
    frozen = []
    for name, module in model.named_modules():
        if isinstance(module, (LSTM, LSTMCell)):
            module.requires_grad_(False)
            module._frozen_weights = ops.FrozenWeights()
            frozen.append(name)
    tell("froze", model, frozen)
    return model
