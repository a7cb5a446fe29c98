"""The kernels on NumPy arrays, compiled from csrc/python."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy import bool_, float32, floating, int64, uint16
from numpy.typing import NDArray

_Array = NDArray[floating[Any]]

def build_info() -> dict[str, Any]: ...
def bind(
    ops: str,
    tensor: type,
    parameter: type,
    is_neg: Callable[..., bool],
    to_handles: Callable[..., list[Any]],
    from_handles: Callable[..., list[Any]],
    busy: list[Callable[[], Any]],
    detach: Callable[..., Any],
    is_inference: Callable[..., bool],
) -> None: ...
def direct_forward(*args: Any) -> tuple[Any, ...] | None: ...
def direct_backward(*args: Any) -> tuple[Any, ...] | None: ...
def infer(*args: Any) -> Any: ...
def are_registered(parameters: dict[str, Any], names: list[str], weights: list[Any], /) -> bool: ...
def cpu_plan(
    dtype: str,
    batch_sizes: Sequence[int],
    I: int,
    H: int,
    P: int | None = None,
    L: int = 1,
    D: int = 1,
    parts: int = 3,
    threads: int = 1,
    second_cache: int | None = None,
    packed: bool = False,
    keeps_packed: bool = False,
) -> dict[str, Any]: ...
def cuda_plan(
    dtype: str,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int | None = None,
    L: int = 1,
    D: int = 1,
    allow_tf32: bool = True,
    compute_capability: int = 90,
    multiprocessors: int = 132,
    shared_bytes: int = ...,
    l2_bytes: int = ...,
    cluster_blocks: int = 8,
) -> dict[str, Any]: ...
def available_isas() -> list[str]: ...
def widen_float16(bits: NDArray[uint16], isa: str | None = None) -> NDArray[float32]: ...
def activations(x: _Array, isa: str | None = None) -> tuple[_Array, _Array]: ...
def lstm(
    x: _Array,
    params: Sequence[_Array],
    batch_sizes: NDArray[int64] | None = None,
    h0: _Array | None = None,
    c0: _Array | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    bidirectional: bool = False,
    save: bool = False,
    isa: str | None = None,
    slices: int = 1,
    parts: int = 0,
    recompute_gates: bool = False,
) -> tuple[_Array, _Array, _Array, _Array]: ...
def lstm_backward(
    grad_y: _Array | None,
    grad_h_n: _Array | None,
    grad_c_n: _Array | None,
    x: _Array,
    params: Sequence[_Array],
    batch_sizes: NDArray[int64] | None,
    h0: _Array | None,
    c0: _Array | None,
    y: _Array,
    saved: _Array,
    has_biases: bool = True,
    num_layers: int = 1,
    bidirectional: bool = False,
    isa: str | None = None,
    slices: int = 1,
    parts: int = 0,
    recompute_gates: bool = False,
) -> tuple[_Array, _Array, _Array, list[_Array]]: ...
def variant(
    x: _Array,
    params: Sequence[_Array],
    norms: Sequence[_Array],
    batch_sizes: NDArray[int64] | None,
    h0: _Array | None,
    c0: _Array | None,
    reset: NDArray[bool_] | None,
    reset_h: _Array | None,
    reset_c: _Array | None,
    drop_h: _Array | None,
    zone_h: _Array | None,
    zone_c: _Array | None,
    grad_y: _Array | None,
    grad_h_n: _Array | None,
    grad_c_n: _Array | None,
    grad_cells: _Array | None,
    has_biases: bool,
    reverse: bool,
    gate_activation: int,
    cell_activation: int,
    isa: str | None = None,
    slices: int = 1,
    parts: int = 0,
) -> list[_Array]: ...

class _Session:
    def __init__(
        self,
        params: Sequence[_Array],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
        parts: int,
    ) -> None: ...
    def run(
        self, input: _Array, hx: tuple[_Array, _Array] | None
    ) -> tuple[_Array, tuple[_Array, _Array]]: ...

class SessionFloat32(_Session): ...
class SessionFloat64(_Session): ...

class _Stream:
    state: tuple[_Array, _Array]
    def __init__(
        self,
        params: Sequence[_Array],
        handles: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        input_size: int,
        batch_size: int,
        parts: int,
    ) -> None: ...
    def step(self, input: _Array) -> _Array: ...
    def reset(self) -> None: ...

class StreamFloat32(_Stream): ...
class StreamFloat64(_Stream): ...
