"""Torch's own machinery on our layer and on nn.LSTM: what works where.

`python -m tests.test_machinery` prints the table of the README, which a test compares with it.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.multiprocessing import spawn  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lstm_fast import LSTM, build_info, ops, restore
from tests.sample_inputs import CONFIGS, assert_all_close

Layer = type[nn.LSTM]
SIZES = {"input_size": 4, "hidden_size": 5, "num_layers": 2}
CLOSE = CONFIGS["deep"]


class Tool(NamedTuple):
    """A thing that torch does to a module, and what comes of it."""

    name: str
    run: Callable[[Layer], None]
    nn_lstm: str  # "yes", or what nn.LSTM does instead
    error: str  # which it then raises
    needs: tuple[str, ...]  # packages without which this is skipped
    slow: bool
    cuda: bool  # skipped without a device


TOOLS: list[Tool] = []

# What nn.LSTM does, for several rows.
REFUSED: dict[str, Any] = {"nn_lstm": "refuses", "error": "Attempted to wrap RNN, GRU, or LSTM"}
FIXED: dict[str, Any] = {
    "nn_lstm": "makes T a constant",
    "error": "specialized it to be a constant",
}
NO_RULE: dict[str, Any] = {"nn_lstm": "has no rule", "error": "Batching rule not implemented"}
# oneDNN has nn.LSTM in bfloat16 for these processors alone.
AVX512: dict[str, Any] = {"nn_lstm": "on processors with AVX-512", "error": "primitive descriptor"}
NO_FORWARD: dict[str, Any] = {"nn_lstm": "not implemented", "error": "has not been implemented"}


def tool(
    name: str,
    nn_lstm: str = "yes",
    error: str = "",
    needs: tuple[str, ...] = (),
    slow: bool = False,
    cuda: bool = False,
) -> Callable[[Any], Any]:
    """Register a check: a function of the class of layer, which raises where that does not work."""

    def register(run: Callable[[Layer], None]) -> Callable[[Layer], None]:
        TOOLS.append(Tool(name, run, nn_lstm, error, needs, slow, cuda))
        return run

    return register


def data(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)


X = data(6, 3, 4)


def exact(module: Any) -> nn.LSTM:
    """nn.LSTM in float64 on the same weights: what everything is compared with."""
    twin = nn.LSTM(**SIZES, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    return twin


def loss(result: Any) -> Tensor:
    total: Tensor = result[0].square().sum()
    return total


def exact_gradients(module: Any, x: Tensor) -> dict[str, Tensor]:
    twin = exact(module)
    grads = torch.autograd.grad(loss(twin(x.double())), tuple(twin.parameters()))
    names = [name for name, _ in twin.named_parameters()]
    return {name: grad.float() for name, grad in zip(names, grads, strict=True)}


def assert_right(module: Any, x: Tensor = X) -> None:
    """Outputs and gradients of the parameters."""
    output, state = module(x)
    assert_all_close((output, state), in_float32(exact(module)(x.double())), CLOSE)
    names, leaves = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss((output, state)), leaves)
    assert_all_close(dict(zip(names, grads, strict=True)), exact_gradients(module, x), CLOSE)


def in_float32(tree: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.float(), tree)


@tool("autocast on the CPU, bfloat16", **AVX512)
def autocast_bfloat16(layer: Layer) -> None:
    check_autocast(layer, X, torch.bfloat16)


@tool("autocast on the CPU, float16", nn_lstm="refuses", error="primitive descriptor")
def autocast_float16(layer: Layer) -> None:
    check_autocast(layer, X, torch.float16)


@tool("autocast of a packed sequence", nn_lstm="stays in float32", error="output in torch.float32")
def autocast_packed(layer: Layer) -> None:
    check_autocast(layer, pack_padded_sequence(X, [6, 4, 1]), torch.bfloat16)


@tool("autocast on CUDA, float16 and bfloat16 (not run yet)", cuda=True)
def autocast_cuda(layer: Layer) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check_autocast(layer, X.cuda(), dtype, "cuda")


def check_autocast(layer: Layer, x: Any, dtype: torch.dtype, device: str = "cpu") -> None:
    module = layer(**SIZES).to(device)
    with torch.autocast(device, dtype):
        output, _ = module(x)
        got = output if isinstance(output, Tensor) else output.data
        torch.autograd.grad(got.float().square().sum(), tuple(module.parameters()))
    assert got.dtype == dtype, f"output in {got.dtype}"
    expected = module(x)[0]
    expected = expected if isinstance(expected, Tensor) else expected.data
    # Weights, inputs and results are rounded, each by eps / 2; sums of K + H terms of order 1.
    bound = torch.finfo(dtype).eps * CLOSE.T
    torch.testing.assert_close(got.float(), expected, rtol=bound, atol=bound)


def check_compile(layer: Layer, backend: str, **options: Any) -> None:
    torch._dynamo.reset()
    module = layer(**SIZES)
    assert_right(Compiled(module, backend, **options))


class Compiled:
    """The compiled call of a module, with the parameters of the module."""

    def __init__(self, module: nn.Module, backend: str, **options: Any) -> None:
        self.call = torch.compile(module, backend=backend, fullgraph=True, **options)
        self.named_parameters, self.state_dict = module.named_parameters, module.state_dict

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


@tool("`torch.compile(fullgraph=True)`, aot_eager", **REFUSED)
def compile_aot_eager(layer: Layer) -> None:
    check_compile(layer, "aot_eager")


@tool("`torch.compile(fullgraph=True)`, inductor", **REFUSED, slow=True)
def compile_inductor(layer: Layer) -> None:
    check_compile(layer, "inductor")


@tool("`torch.compile(fullgraph=True)`, all sizes in one graph", **REFUSED)
def compile_dynamic(layer: Layer) -> None:
    torch._dynamo.reset()
    model = Compiled(layer(**SIZES), "aot_eager", dynamic=True)
    assert_right(model)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_right(model, data(3, 8, 4))


def check_export(layer: Layer, strict: bool) -> Any:
    module = layer(**SIZES, batch_first=True).eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        module, (X,), dynamic_shapes=((dynamic, dynamic, None),), strict=strict
    )
    for shape in ((2, 9, 4), (7, 3, 4)):
        assert_all_close(program.module()(data(*shape)), module(data(*shape)), CLOSE)
    return module, program


@tool("`torch.export(strict=True)`, dynamic time and batch", **FIXED)
def export_strict(layer: Layer) -> None:
    check_export(layer, strict=True)


@tool("`torch.export(strict=False)`, dynamic time and batch", **FIXED)
def export_non_strict(layer: Layer) -> None:
    check_export(layer, strict=False)


@tool("training of an exported program")
def export_then_train(layer: Layer) -> None:
    torch._dynamo.reset()
    module = layer(**SIZES)
    x = data(6, 3, 4)  # others may have marked X as one of dynamic sizes
    for strict in (False, True):
        program = torch.export.export(module, (x,), strict=strict).module()
        params = dict(program.named_parameters())
        got = torch.autograd.grad(program(x)[0].square().sum(), list(params.values()))
        expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
        assert list(params) == [name for name, _ in module.named_parameters()]
        assert_all_close(got, expected, CLOSE)


@tool("AOTInductor, dynamic time and batch", **FIXED, slow=True)
def aot_inductor(layer: Layer) -> None:
    module, program = check_export(layer, strict=False)
    with torch.no_grad():
        package = torch._inductor.aoti_load_package(
            torch._inductor.aoti_compile_and_package(program)
        )
        for shape in ((2, 9, 4), (7, 3, 4)):
            assert_all_close(package(data(*shape)), module(data(*shape)), CLOSE)


@tool("`torch.func.grad`")
def func_grad(layer: Layer) -> None:
    module = layer(**SIZES)
    got = grad(lambda p: loss(functional_call(module, p, (X,))))(params_of(module))
    assert_all_close(got, exact_gradients(module, X), CLOSE)


def params_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


@tool("`vmap` over inputs", **NO_RULE)
def vmap_inputs(layer: Layer) -> None:
    module = layer(**SIZES)
    samples = data(5, 6, 3, 4)
    got = vmap(lambda x: module(x)[0])(samples)
    assert_all_close(got, torch.stack([module(x)[0] for x in samples]), CLOSE)


@tool("`vmap` over stacked weights", **NO_RULE)
def vmap_weights(layer: Layer) -> None:
    modules = [layer(**SIZES) for _ in range(4)]
    params, buffers = stack_module_state(modules)
    got = vmap(lambda p: functional_call(modules[0], (p, buffers), (X,))[0])(params)
    assert_all_close(got, torch.stack([m(X)[0] for m in modules]), CLOSE)


@tool("gradients per sample, `vmap(grad)`")
def per_sample_gradients(layer: Layer) -> None:
    module = layer(**SIZES)
    of_sample = grad(lambda p, x: loss(functional_call(module, p, (x,))))
    samples = data(3, 6, 1, 4)
    got = vmap(of_sample, (None, 0))(params_of(module), samples)
    for index, sample in enumerate(samples):
        one = {name: grads[index] for name, grads in got.items()}
        assert_all_close(one, exact_gradients(module, sample), CLOSE)


@tool("`torch.func.jvp` and forward-mode AD in float32", **NO_FORWARD)
def forward_mode(layer: Layer) -> None:
    module = layer(**SIZES)
    got = jvp(lambda x: module(x)[0], (X,), (X,))[1]
    twin = exact(module)
    jacobian = torch.autograd.functional.jacobian(lambda x: twin(x)[0], X.double())
    assert_all_close(got, torch.tensordot(jacobian, X.double(), 3).float(), CLOSE)


@tool("`torch.func.hessian` in float32", **NO_FORWARD)
def hessians(layer: Layer) -> None:
    module, x = layer(**SIZES), data(3, 1, 4)
    got = hessian(lambda x: loss(module(x)))(x)
    twin = exact(module)
    expected = torch.autograd.functional.hessian(lambda x: loss(twin(x)), x.double())
    assert_all_close(got, expected.float(), CLOSE)


@tool("double backward")
def double_backward(layer: Layer) -> None:
    module = layer(**SIZES)
    results = []
    for m, x in ((module, X), (exact(module), X.double())):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(m(x)), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), (x, *m.parameters())))
    assert_all_close(results[0], in_float32(results[1]), CLOSE)


@tool("`torch.utils.checkpoint`, reentrant or not")
def checkpointing(layer: Layer) -> None:
    module = layer(**SIZES)
    for reentrant in (False, True):
        x = X.clone().requires_grad_()
        module.zero_grad()
        loss(checkpoint(module, x, use_reentrant=reentrant)).backward()
        got = {name: p.grad for name, p in module.named_parameters()}
        assert_all_close(got, exact_gradients(module, X), CLOSE)


def weights_of(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.dim() == 2]


@tool("products counted by `FlopCounterMode`", nn_lstm="in float64", error="counted 0 of")
def flop_counter(layer: Layer) -> None:
    """As those of nn.LSTM in float64, which is made of ordinary products."""

    def count(module: nn.Module, wanted: str) -> int:
        dtype = next(module.parameters()).dtype
        x, h, c = (data(*s).to(dtype) for s in ((6, 3, 4), (4, 3, 5), (4, 3, 5)))
        for name, t in (("x", x), ("h", h), ("c", c)):
            t.requires_grad_(name in wanted)
        with FlopCounterMode(display=False) as counter:
            module(x, (h, c))[0].sum().backward()
        return counter.get_total_flops()

    sizes: dict[str, Any] = {**SIZES, "num_layers": 2, "bidirectional": True}
    for wanted in ("xhc", "x", "h", ""):
        counted = count(layer(**sizes), wanted)
        expected = count(nn.LSTM(**sizes, dtype=torch.float64), wanted)
        assert counted == expected, f"counted {counted} of {expected}"


@tool("pruning, of any weight")
def pruning(layer: Layer) -> None:
    for name in weights_of(layer(**SIZES)):
        module = layer(**SIZES)
        prune.l1_unstructured(module, name, amount=0.5)
        check_computed_weight(module)
        prune.remove(module, name)
        assert_right(module)


@tool("`weight_norm` and `parametrize`, of any weight")
def parametrized(layer: Layer) -> None:
    for name in weights_of(layer(**SIZES)):
        for apply in (parametrizations.weight_norm, parametrizations.spectral_norm):
            module = layer(**SIZES)
            apply(module, name)
            module.eval()
            with torch.no_grad():
                for p in module.parameters():
                    p.mul_(1.5)
            check_computed_weight(module)
            parametrize.remove_parametrizations(module, name)
            assert_right(module)


def check_computed_weight(module: nn.LSTM) -> None:
    """A weight that is computed from parameters counts, and hands its gradient on to them."""
    got = module(X)
    plain = nn.LSTM(**SIZES)
    for name, _ in list(plain.named_parameters()):
        setattr(plain, name, nn.Parameter(getattr(module, name).detach().clone()))
    assert_all_close(got, plain(X), CLOSE)
    gradients = torch.autograd.grad(loss(got), tuple(module.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


@tool("`parameters_to_vector` and back")
def parameter_vectors(layer: Layer) -> None:
    module, other = layer(**SIZES), layer(**SIZES)
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector, other.parameters())
    torch.testing.assert_close(other(X), module(X), rtol=0, atol=0)


@tool("frozen weights skip the work of their gradients")
def frozen(layer: Layer) -> None:
    module = layer(**SIZES).requires_grad_(False)
    x = X.clone().requires_grad_()
    output, _ = module(x)
    output.square().sum().backward()
    expected = X.double().requires_grad_()
    loss(exact(module)(expected)).backward()
    assert_all_close(x.grad, in_float32(expected.grad), CLOSE)
    assert all(p.grad is None for p in module.parameters())

    trained = [p.requires_grad_() for name, p in module.named_parameters() if name.endswith("_l1")]
    loss(module(X)).backward()
    of_all = exact_gradients(module, X)
    for name, p in module.named_parameters():
        if name.endswith("_l1"):
            assert_all_close(p.grad, of_all[name], CLOSE)
    assert sum(p.grad is not None for p in module.parameters()) == len(trained)


@tool("DistributedDataParallel and FSDP2, two processes", slow=True)
def two_processes(layer: Layer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train_in_two, (layer, f"file://{folder}/rendezvous"), nprocs=2)


def _train_in_two(rank: int, layer: Layer, address: str) -> None:
    """Each takes half of the batch; the gradients are the mean of both, so those of the whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        single: Any = layer(**SIZES)
        replicated, sharded = copy.deepcopy(single), copy.deepcopy(single)
        batch = data(6, 4, 4)
        single(batch)[0].square().mean().backward()
        mine = batch[:, 2 * rank : 2 * rank + 2]

        parallel = DistributedDataParallel(replicated)
        parallel(mine)[0].square().mean().backward()
        for got, expected in zip(replicated.parameters(), single.parameters(), strict=True):
            assert_all_close(got.grad, expected.grad, CLOSE)

        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        fully_shard(sharded, mesh=mesh)
        sharded(mine)[0].square().mean().backward()
        for got, expected in zip(sharded.parameters(), single.parameters(), strict=True):
            assert got.grad is not None
            assert_all_close(got.grad.full_tensor(), expected.grad, CLOSE)
    finally:
        dist.destroy_process_group()
    # Gloo's threads may ask for the interpreter while it shuts down, which aborts the process.
    os._exit(0)


@tool("`share_memory` and a spawned process", slow=True)
def shared_memory(layer: Layer) -> None:
    module = layer(**SIZES).share_memory()
    before = module(X)[0]
    spawn(_train_shared, (module,), nprocs=1)
    assert not torch.allclose(module(X)[0], before)
    assert_right(module)


def _train_shared(rank: int, module: nn.LSTM) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    loss(module(X)).backward()
    optimizer.step()


FORK = """
import os, sys, time, torch, lstm_fast
torch.set_num_threads(2)
torch.manual_seed(0)
cases = []
# So large that torch, too, would copy or convert it on two threads.
for sizes, options in [((20, 64, 24), dict()), {large}]:
    autocast, call = options.pop("autocast", False), options.pop("call", dict())
    module = {layer}(sizes[2], 24, **options)
    x = torch.randn(*sizes, dtype=options.get("dtype"))
    cases.append((module, x, autocast, call))
def gradients(module, x, autocast, call):
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x, **call)[0]
    return torch.autograd.grad(y, tuple(module.parameters()), torch.randn_like(y))
def run():
    return [grad for case in cases for grad in gradients(*case)]
expected = run()
child = os.fork()
if not child:
    same = all((a - b).abs().max() <= 0.01 * b.abs().max() for a, b in zip(run(), expected))
    os._exit(0 if same else 1)
for _ in range({patience}):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


@tool("a forked child, after use on two threads", nn_lstm="hangs", error="hangs", slow=True)
def fork(layer: Layer) -> None:
    ours = layer is LSTM
    name = "lstm_fast.LSTM" if ours else "torch.nn.LSTM"
    large = ["batch_first=True", "num_layers=2, dropout=0.2"]
    if ours:
        # The latter needs AVX-512 with torch's.
        large += ["dtype=torch.bfloat16", "autocast=True"]
        large += ["layer_norm=True, bidirectional=True, batch_first=True"]
        large += ["variational_dropout=0.2", "call=dict(lengths=[64, 0] * 50)"]
    cases = ", ".join(f"((64, 100, 16), dict({options}))" for options in large)
    code = FORK.format(layer=name, large=cases, patience=600 if ours else 50)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@tool("eight Python threads on one module")
def python_threads(layer: Layer) -> None:
    module = layer(**SIZES)
    expected = exact_gradients(module, X)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                grads = torch.autograd.grad(loss(module(X)), tuple(module.parameters()))
                assert_all_close(grads, tuple(expected.values()), CLOSE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@tool("`torch.inference_mode`, then training")
def inference_mode(layer: Layer) -> None:
    module = layer(**SIZES)
    with torch.inference_mode():
        got = module(X)
    assert got[0].is_inference()
    assert_all_close(got, in_float32(exact(module)(X.double())), CLOSE)
    assert_right(module)


@tool("`.double()`, `.half()`, `.bfloat16()`, `.to(dtype)`")
def conversions(layer: Layer) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        module = layer(**SIZES).to(dtype)
        got = module(X.to(dtype))
        assert {t.dtype for t in (got[0], *got[1])} == {dtype}
        # nn.LSTM rounds its states to the dtype at each of T steps in L layers.
        bound = torch.finfo(dtype).eps * CLOSE.T * CLOSE.num_layers
        expected = exact(module)(X.to(dtype).double())
        torch.testing.assert_close(in_float32(got), in_float32(expected), rtol=bound, atol=bound)


@tool("the meta device, `to_empty`, `load_state_dict(assign=True)`")
def meta_device(layer: Layer) -> None:
    source = layer(**SIZES)
    for assign in (False, True):
        with torch.device("meta"):
            module = layer(**SIZES)
        assert module(X.to("meta"))[0].shape == (6, 3, 5)
        if not assign:
            module.to_empty(device="cpu")
        module.load_state_dict(source.state_dict(), assign=assign)
        assert_right(module)


@tool("`torch.nn.utils.skip_init`", nn_lstm="refuses", error="must support a 'device' arg")
def skip_init(layer: Layer) -> None:
    module = nn.utils.skip_init(layer, 4, 5, num_layers=2)
    module.reset_parameters()
    assert_right(module)


@tool("`torch.jit.script` (of a copy: a model that is scripted is left with nn.LSTM) and `trace`")
def torchscript(layer: Layer) -> None:
    module = layer(**SIZES)
    expected = in_float32(exact(module)(X.double()))
    scripted = torch.jit.script(nn.Sequential(module))
    traced = torch.jit.trace(module, (X,))
    for compiled in (scripted, traced):
        assert_all_close(compiled(X), expected, CLOSE)


class Forecaster(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.lstm = layer(**SIZES)

    def forward(self, x: Tensor) -> Tensor:
        output, (h_n, _) = self.lstm(x)
        result: Tensor = output[-1] + h_n[0]
        return result


@tool("`torch.fx.symbolic_trace`, as a leaf")
def fx(layer: Layer) -> None:
    model = Forecaster(layer)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["lstm"]
    torch.testing.assert_close(traced(X), model(X), rtol=0, atol=0)


@tool("`quantize_dynamic` through `restore`")
def dynamic_quantization(layer: Layer) -> None:
    model = Forecaster(layer).eval()
    expected = model(X)
    quantized = torch.ao.quantization.quantize_dynamic(restore(model), {nn.LSTM})
    assert "quantized" in type(quantized.lstm).__module__
    # Weights of order 1 and states are 8 bits wide.
    torch.testing.assert_close(quantized(X), expected, rtol=0, atol=0.05)


class Quantizable(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.lstm = layer(**SIZES)
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dequant(self.lstm(self.quant(x))[0])
        return result


@tool("static quantization, `prepare` and `convert`, through `restore`")
def static_quantization(layer: Layer) -> None:
    model = Quantizable(layer).eval()
    expected = model(X)
    engine = torch.backends.quantized.engine
    model.qconfig = torch.ao.quantization.get_default_qconfig(engine)
    prepared = torch.ao.quantization.prepare(restore(model))
    prepared(X)
    quantized = torch.ao.quantization.convert(prepared)
    assert "quantized" in type(quantized.lstm).__module__
    torch.testing.assert_close(quantized(X), expected, rtol=0, atol=0.05)


@tool("ONNX, in ONNX Runtime", needs=("onnx", "onnxruntime", "onnxscript"))
def onnx(layer: Layer) -> None:
    import onnxruntime

    model = Forecaster(layer).eval()
    for of_export in (False, True):  # torch's two exporters: by TorchScript and by torch.export
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            torch.onnx.export(model, (X,), path, dynamo=of_export, verbose=False)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            (result,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), model(X))


def params(tools: list[Tool]) -> list[Any]:
    return [
        pytest.param(t, id=t.run.__name__, marks=[pytest.mark.slow] if t.slow else [])
        for t in tools
    ]


def require(tool: Tool) -> None:
    if tool.cuda and not (torch.cuda.is_available() and build_info()["cuda"]):
        pytest.skip("no CUDA device, or a build without CUDA kernels")
    for package in tool.needs:
        pytest.importorskip(package, reason=f"needs {package} of the extra 'clients'")


@pytest.mark.parametrize("tool", params(TOOLS))
def test_ours(tool: Tool):
    require(tool)
    tool.run(LSTM)


@pytest.mark.parametrize("tool", params(TOOLS))
def test_nn_lstm(tool: Tool):
    """The other column of the table is as true as ours."""
    require(tool)
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if tool.nn_lstm == "yes" or (tool.nn_lstm == AVX512["nn_lstm"] and has_avx512):
        tool.run(nn.LSTM)
    else:
        with pytest.raises(Exception, match=tool.error):
            tool.run(nn.LSTM)


def test_frozen_weights_skip_the_work(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    backward = ops._backward

    def noting(*args: Any) -> Any:
        *_, layers, _, _, _, need_input, need_hx, need_params, _, _ = args
        asked.append((layers, need_input, need_hx, need_params))
        return backward(*args)

    monkeypatch.setattr(ops, "_backward", noting)
    frozen(LSTM)
    assert asked == [(2, True, False, False), (1, False, False, True)]


def table() -> str:
    rows = [f"| {tool.name} | yes | {tool.nn_lstm} |" for tool in TOOLS]
    return "\n".join(["| | lstm_fast.LSTM | torch.nn.LSTM |", "|---|---|---|", *rows])


def test_the_table_of_the_readme():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert table() in readme, "replace it by what python -m tests.test_machinery prints"


if __name__ == "__main__":
    print(table())
