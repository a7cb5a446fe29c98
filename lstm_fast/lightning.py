"""A callback for Lightning, for models whose layers are built inside `fit`."""

from __future__ import annotations

from typing import Any

from lstm_fast.swap import accelerate

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        raise ImportError(
            "lstm_fast.lightning needs Lightning: pip install lightning (or pytorch-lightning)"
        ) from error


class Accelerate(Callback):
    """`Trainer(callbacks=[Accelerate()])` runs `lstm_fast.accelerate` on the module.

    It does so in `setup`, before optimizers and strategies see the module, and once more when
    training starts, for layers that the module's own `setup` or `configure_model` built. Serves
    trainers of `lightning` and of `pytorch_lightning` alike.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        accelerate(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        accelerate(pl_module)
