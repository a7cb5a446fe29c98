"""The CPU's planner, and `explain`."""

from typing import Any

import pytest
import torch

import lstm_fast
from lstm_fast import _kernels
from tests.processes import check_in_child

ISA = lstm_fast.build_info()["isa"]
SECOND_CACHE = 2 << 20  # bytes that the planner is told of, whatever this machine has
WIDE = ISA == "amx" or ISA.startswith("avx512")  # vectors of 64 bytes


def path(*, B: int, T: int = 1, parts: int = 3, dtype: str = "float32", **shape: Any) -> str:
    return _kernels.cpu_plan(dtype, [B] * T, parts=parts, **shape)["path"]


def test_a_single_step():
    assert path(B=1, I=128, H=128) == path(B=32, I=128, H=128) == "single step"
    assert path(B=33, I=128, H=128) != "single step"
    assert path(B=1, I=16, H=64) == path(B=11, I=16, H=64) == "single step"
    assert path(B=12, I=16, H=64) != "single step"  # of few terms, which are soon packed
    assert path(B=1000, I=16, H=64, parts=0) == "single step"  # whose bits no batch may change
    large: dict[str, Any] = {"I": 512, "H": 512, "second_cache": 1 << 20}
    has_dots = ISA == "avx512_bf16"  # which multiply bfloat16 weights as they are
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        assert path(B=64, dtype=dtype, **large) == "single step"
        if dtype != "bfloat16" or not has_dots:
            assert path(B=65, dtype=dtype, **large) != "single step"
    small: dict[str, Any] = {"dtype": "bfloat16", "I": 64, "H": 64}
    assert (path(B=64, **small) == "single step") == has_dots
    assert (path(B=128, **small) == "single step") == has_dots
    assert path(B=129, **small) != "single step"
    assert (path(B=1024, dtype="bfloat16", **large) == "single step") == has_dots
    assert path(B=1025, dtype="bfloat16", **large) != "single step"
    assert path(B=1, I=16, H=64, parts=0, packed=True) == "packed weights"  # nor longer rows


def test_a_single_step_of_kept_weights():
    def rows(I: int, H: int, dtype: str = "float32") -> int:  # noqa: E741
        shape: dict[str, Any] = {"I": I, "H": H, "dtype": dtype, "keeps_packed": True}
        plain = [path(B=B, second_cache=1 << 20, **shape) == "single step" for B in range(1, 99)]
        assert plain == sorted(plain, reverse=True)
        return sum(plain)

    for dtype in ("float32", "float64", "float16"):
        assert rows(16, 64, dtype) == 1  # they are read faster packed
    assert rows(64, 512) == 1
    assert rows(64, 512, "float16") == 64  # half as much to read
    assert rows(512, 2048) == 8  # no cache holds them


def test_a_few_steps():
    small: dict[str, Any] = {"I": 16, "H": 64}
    large: dict[str, Any] = {"I": 64, "H": 512, "second_cache": 1 << 20}
    middle: dict[str, Any] = {"I": 64, "H": 400, "second_cache": 1 << 20}
    assert path(B=1, T=2, **small) == path(B=1, T=8, **middle) == "single steps"
    assert path(B=1, T=3, **small) == path(B=1, T=9, **middle) == "packed weights"
    assert path(B=4, T=4, **middle) == "single steps"
    assert path(B=4, T=4, I=16, H=128, second_cache=1 << 20) == "packed weights"  # what is cached
    assert path(B=6, T=4, **middle) == path(B=12, T=2, **middle) == "single steps"
    assert path(B=4, T=5, **middle) == path(B=7, T=4, **middle) == "packed weights"
    assert path(B=1, T=4, parts=0, **large) == "packed weights"
    assert path(B=1, T=4, packed=True, **large) == "packed weights"
    assert path(B=1, T=4, D=2, **large) == "single steps"
    assert path(B=1, T=2, dtype="bfloat16", **small) == "single steps"
    assert path(B=4, T=4, dtype="bfloat16", **large) == "single steps"
    assert path(B=1, T=4, parts=1, **large) == "single steps"
    # A step of 512 units is too short for eight threads, one of 2048 is not.
    assert path(B=1, T=4, threads=8, **large) == "packed weights"
    assert path(B=1, T=4, threads=8, I=64, H=2048) == "single steps"


def test_a_few_steps_of_large_weights():
    """To pack them takes longer than to read them a few times."""
    large: dict[str, Any] = {"I": 64, "H": 512, "second_cache": 1 << 20}
    of_floats, of_halves = (24, 96) if WIDE else (64, 64)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        rows = of_floats if dtype in ("float32", "float64") else of_halves
        of_dtype = {"dtype": dtype, **large}
        for B in (2, 4, rows // 2):
            T = min(rows // B, 32)
            assert path(B=B, T=T, **of_dtype) == "single steps"
            assert path(B=B, T=T + 1, **of_dtype) != "single steps"
        assert path(B=2, T=2, keeps_packed=True, **of_dtype) != "single steps"
    # Inputs that are summed before the steps spare these half of the weights.
    steps, most_steps = (5, 24) if WIDE else (11, 32)
    for D in (1, 2):
        assert path(B=1, T=most_steps, D=D, **large) == "single steps"
        assert path(B=1, T=most_steps + 1, D=D, **large) == "packed weights"
        assert path(B=1, T=steps, D=D, **{**large, "I": 512}) == "single steps"
        assert path(B=1, T=steps + 1, D=D, **{**large, "I": 512}) == "packed weights"
    # Packed as float32, float16 would be twice as much to read, but for inputs.
    of_one_row: dict[str, Any] = {"B": 1, "T": 99, "dtype": "float16", **large}
    assert path(**of_one_row) == path(keeps_packed=True, **of_one_row) == "single steps"
    assert path(**{**of_one_row, "I": 2048}) == "packed weights"
    assert path(**{**of_one_row, "H": 64}) == "packed weights"  # what is cached


@pytest.mark.skipif(ISA != "amx", reason="no matrix unit")
def test_the_matrix_unit():
    assert path(B=32, T=24, I=1, H=64) == "matrix unit"
    assert path(B=4, T=24, I=1, H=64) == "packed weights"  # few rows
    assert path(B=32, T=24, I=1, H=32) == "packed weights"  # few terms
    assert path(B=32, T=24, I=1, H=64, parts=0) == "packed weights"
    assert _kernels.cpu_plan("float64", [32] * 24, 1, 64)["path"] == "packed weights"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_of_float32_is_nothing_to_halves(dtype: torch.dtype):
    module, paths = lstm_fast.LSTM(16, 64, dtype=dtype), []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        paths.append(lstm_fast.explain(module, (24, 32, 16)))
    assert paths[0] == paths[1]
    if ISA == "avx512_bf16":
        assert ("bfloat16 dot products" in paths[0]) == (dtype is torch.bfloat16)
    if ISA == "amx":
        assert "matrix unit" in paths[0]


@pytest.mark.skipif(ISA != "avx512_bf16", reason="no dot products of bfloat16")
def test_dot_products():
    assert path(B=1, T=24, I=1, H=32, parts=1) == "bfloat16 dot products"
    assert path(B=32, T=24, I=1, H=8, parts=1) == "packed weights"  # few units
    assert path(B=32, T=24, I=1, H=64, parts=2) == "packed weights"


def test_sums_of_inputs_before_the_steps():
    def before(B: int, H: int, **more: Any) -> bool:
        shape = {"second_cache": SECOND_CACHE, **more}
        return _kernels.cpu_plan("float32", [B] * 24, 64, H, **shape)["sums_inputs"]

    assert before(1, 32)
    assert not before(1, 32, parts=0)
    assert before(4, 400)  # whose weights leave the cache
    assert not before(4, 200)
    assert before(4, 200, second_cache=512 << 10)
    assert not before(64, 400)  # rows enough to read them for
    assert not before(4, 400, threads=2)  # a team's weights do not
    assert before(1, 400, threads=2, D=2)


def test_threads():
    tiny = _kernels.cpu_plan("float32", [1] * 24, 1, 32, threads=8)
    large = _kernels.cpu_plan("float32", [64] * 24, 1, 64, threads=8)
    assert (tiny["threads"], large["threads"]) == (1, 8)


def test_teams():
    def members(B: int, H: int, **more: Any) -> tuple[int, int]:
        shape = {"parts": 0, "second_cache": SECOND_CACHE, **more}
        plan = _kernels.cpu_plan("float32", [B] * 24, 32, H, **shape)
        return plan["members"], plan["backward_members"]

    assert members(2, 400, threads=2) == (2, 2)  # a row each would read all weights twice
    assert members(2, 400, threads=1) == (1, 1)
    assert members(2, 400, threads=2, D=2) == (1, 1)  # a direction each
    assert members(2, 400, threads=4, D=2) == (2, 2)
    assert members(2, 400, threads=2, P=8) == (1, 1)
    assert members(64, 64, threads=2) == (1, 1)  # rows enough
    assert members(2, 32, threads=2) == (1, 1)  # too short a step to wait for each other
    assert members(1, 512, threads=64)[0] == 16


def test_teams_of_a_few_steps():
    """A member packs the weights of its units alone."""

    def members(T: int, H: int, **more: Any) -> int:
        shape = {"parts": 0, "threads": 2, "second_cache": 1 << 20, **more}
        return _kernels.cpu_plan("float32", [64] * T, 256, H, **shape)["members"]

    assert members(2, 256) == 2
    assert members(24, 256) == 1
    assert members(2, 256, keeps_packed=True) == 1
    assert members(2, 32) == 1  # soon packed


def test_layers_one_behind_the_other():
    def layers(B: int, H: int, L: int, **more: Any) -> tuple[int, int]:
        shape = {"parts": 0, "second_cache": 1 << 20, "threads": 2, **more}
        plan = _kernels.cpu_plan("float32", [B] * 100, 8, H, L=L, **shape)
        forward = plan["members"] if plan["shares_layers"] else 1
        backward = plan["backward_members"] if plan["backward_shares_layers"] else 1
        return forward, backward

    assert layers(1, 64, 2) == (2, 2)
    assert layers(1, 64, 1) == (1, 1)
    assert layers(1, 64, 3) == (2, 2)  # by turns
    assert layers(1, 128, 3) == (1, 1)  # all of whose weights no cache holds
    assert layers(1, 64, 3, threads=8) == (3, 3)
    assert layers(1, 64, 2, threads=1) == layers(1, 64, 2, D=2) == (1, 1)
    assert layers(1, 64, 2, P=32) == (2, 2)
    assert layers(1, 64, 2, packed=True) == (1, 1)
    assert layers(2, 64, 2) == (1, 1)  # a row each
    assert layers(2, 64, 2, threads=4) == (2, 1)


def test_explain(monkeypatch):
    x = torch.ones(5, 2, 3)
    module = lstm_fast.LSTM(3, 4)
    assert lstm_fast.explain(module, x) == f"CPU kernels, {ISA}, packed weights, 1 thread"
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    assert lstm_fast.explain(module, packed) == f"CPU kernels, {ISA}, packed weights, 1 thread"
    step = f"CPU kernels, {ISA}, single step, 1 thread"
    assert lstm_fast.explain(module, x[:1]) == step
    assert lstm_fast.explain(module, x[:1, 0]) == step  # unbatched
    for shape in ((1, 2, 3), [1, 3], x[:1].shape):
        assert lstm_fast.explain(module, shape) == step
    varied = lstm_fast.LSTM(3, 4, variational_dropout=0.1)
    assert lstm_fast.explain(varied, x) == f"CPU kernels, {ISA}, packed weights, step by step"
    assert lstm_fast.explain(varied.eval(), x) == lstm_fast.explain(module, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    in_teams = lstm_fast.explain(lstm_fast.LSTM(3, 400), torch.ones(50, 2, 3))
    assert in_teams.endswith(", 2 threads in teams of 2")
    stack = lstm_fast.explain(lstm_fast.LSTM(3, 64, 2), torch.ones(100, 1, 3))
    assert stack.endswith(", 2 threads, each layer behind the one below")
    assert lstm_fast.explain(torch.nn.LSTM(3, 4), x) == "torch.nn.LSTM"
    assert lstm_fast.explain(lstm_fast.LSTM(3, 4, device="meta"), x.to("meta")) == "torch.nn.LSTM"


def test_explain_under_autocast():
    module, x = lstm_fast.LSTM(64, 64), torch.ones(1, 64, 64)
    half = lstm_fast.explain(lstm_fast.LSTM(64, 64, dtype=torch.bfloat16), x.bfloat16())
    if ISA == "avx512_bf16":
        assert half != lstm_fast.explain(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16(), x.shape):
            assert lstm_fast.explain(module, given) == half
        assert lstm_fast.explain(lstm_fast.freeze(module), x) == half
    assert lstm_fast.explain(module, torch.ones(5, 2, 64).to_sparse()) == "torch.nn.LSTM"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the CPU's planner is asked, of a machine with that second cache."""
    calls: list[tuple[Any, ...]] = []
    plan = _kernels.cpu_plan

    def cpu_plan(*args: Any, **kwargs: Any) -> dict[str, Any]:
        calls.append((*args, kwargs))
        return plan(*args, **{**kwargs, "second_cache": SECOND_CACHE})

    monkeypatch.setattr(_kernels, "cpu_plan", cpu_plan)
    return calls


def test_what_explain_asks_the_planner(asked: list[tuple[Any, ...]]):
    module = lstm_fast.LSTM(3, 8, 2, bidirectional=True, proj_size=4)
    threads = torch.get_num_threads()
    shape: dict[str, Any] = {"I": 3, "H": 8, "P": 4, "L": 2, "D": 2, "threads": threads}
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.ones(5, 2, 3), [5, 3])
    lstm_fast.explain(module, packed)
    how = {"parts": 3, "packed": True, "keeps_packed": False}
    assert asked.pop() == ("float32", [2, 2, 2, 1, 1], shape | how)
    torch.set_float32_matmul_precision("medium")
    lstm_fast.explain(module.double(), (5, 2, 3))
    how = {"parts": 1, "packed": False, "keeps_packed": False}
    assert asked.pop() == ("float64", [2] * 5, shape | how)


def test_explain_of_a_frozen_module(asked: list[tuple[Any, ...]]):
    module, x = lstm_fast.LSTM(16, 128), torch.ones(1, 16, 16)
    assert "single step" in lstm_fast.explain(module, x)
    assert "single step" not in lstm_fast.explain(lstm_fast.freeze(module), x)
    assert "single step" in lstm_fast.explain(module, x[:, :1])
    assert "single step" in lstm_fast.explain(module.requires_grad_(), x)


@pytest.mark.parametrize(
    ("input", "error", "message"),
    [
        (torch.ones(5, 2, 4), RuntimeError, "must be equal to input_size"),
        ((5, 2, 4), RuntimeError, "must be equal to input_size"),
        ((5, 2, 3, 1), ValueError, "2D or 3D, got 4D"),
        ((0, 2, 3), RuntimeError, "Expected sequence length to be larger than 0"),
        (torch.ones(0, 3), RuntimeError, "Expected sequence length to be larger than 0"),
        (torch.ones(5, 2, 3, device="meta"), RuntimeError, "not at the same device, found input"),
        # As torch 2.13 and 2.10 say it.
        (torch.ones(5, 2, 3).double(), ValueError, "not match weight dtype|must have the type"),
        ((-5, 2, 3), ValueError, "without negative sizes"),
        (None, TypeError, "input must be a Tensor, a PackedSequence or a shape, got None"),
        (("5", 2, 3), TypeError, "input must be"),
    ],
)
def test_explain_refuses(input: Any, error: type[Exception], message: str):
    module = lstm_fast.LSTM(3, 4)
    with pytest.raises(error, match=message):
        lstm_fast.explain(module, input)
    if isinstance(input, torch.Tensor):
        with pytest.raises(error, match=message):
            module(input)


def test_explain_refuses_another_module():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.LSTM, got Linear"):
        lstm_fast.explain(torch.nn.Linear(3, 4), (5, 2, 3))  # type: ignore[arg-type]


def test_a_forked_child_has_one_thread():
    module, shape = lstm_fast.LSTM(64, 256), (48, 64, 64)
    torch.set_num_threads(2)
    assert "2 threads" in lstm_fast.explain(module, shape)

    def check() -> None:
        assert lstm_fast.explain(module, shape).endswith("1 thread")

    check_in_child(check)
