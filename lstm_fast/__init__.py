"""torch.nn.LSTM with fused kernels: same interface, same results, less time."""

from lstm_fast._load import BuildInfo, build_info, empty_cache, load_ops

load_ops()

from lstm_fast import _flops  # noqa: E402, F401
from lstm_fast.explain import explain  # noqa: E402
from lstm_fast.freeze import freeze  # noqa: E402
from lstm_fast.lstm import LSTM  # noqa: E402
from lstm_fast.lstm_cell import LSTMCell  # noqa: E402
from lstm_fast.session import InferenceSession  # noqa: E402
from lstm_fast.stream import Stream  # noqa: E402
from lstm_fast.swap import accelerate, patch, restore  # noqa: E402

__version__ = build_info()["version"]

__all__ = [
    "LSTM",
    "BuildInfo",
    "InferenceSession",
    "LSTMCell",
    "Stream",
    "__version__",
    "accelerate",
    "build_info",
    "empty_cache",
    "explain",
    "freeze",
    "patch",
    "restore",
]
