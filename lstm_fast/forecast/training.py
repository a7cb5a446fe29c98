"""Training by Lightning, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lstm_fast.forecast.frame import is_whole
from lstm_fast.forecast.model import SeasonalLSTM
from lstm_fast.forecast.process import float32_by_default, own_random_state
from lstm_fast.forecast.storage import replacing
from lstm_fast.forecast.windows import Batch, Windows, tilted

_CHUNK = 1024  # windows at a time where no gradient is needed
_GATHERED = 2**15  # rows of windows for training that are gathered at once: a megabyte or two
_LOG_STEPS = 10  # logging each step would take a tenth of a small one


@dataclass(frozen=True)
class TrainingOptions:
    """As in `Forecaster`; `checkpoint` is the file of this training, without its suffix."""

    seed: int
    n_models: int
    learning_rate: float
    batch_size: int
    max_steps: int
    val_check_steps: int
    patience: int
    checkpoint: Path | None
    checkpoint_steps: int
    trainer: Mapping[str, Any]


def train(
    build: Callable[[], SeasonalLSTM],
    windows: Windows,
    validation: Windows | None,
    slopes: Tensor,
    options: TrainingOptions,
) -> SeasonalLSTM:
    """The networks that `build` makes, trained; the random state of the process is left as it was.
    Trainings in several threads take turns.

    `slopes` [series] are the deviations of the random trends that windows are `tilted` by. With
    `validation` windows, training stops early and the best weights are kept. With a
    checkpoint, networks that are finished are read, and ones that are not go on: to the same
    weights, bit for bit, as if they had never stopped. Those that `trainer` stopped, as after a
    `max_time`, are not finished.

    Raises:
        ValueError: naming a checkpoint that cannot be read, or if nothing was trained.
    """
    with own_random_state(), _quiet_lightning():
        torch.manual_seed(options.seed)
        with float32_by_default():
            networks = build()
        done, part = _files(options.checkpoint)
        if done is not None and done.exists():
            with _opened(done) as file:
                networks.load_state_dict(torch.load(file, weights_only=True))
        else:
            if part is not None and part.exists():
                with _opened(part) as file:
                    torch.load(file, weights_only=True)
            trainer = _trainer(options, validation)
            try:
                trainer.fit(
                    TrainingModule(networks, options),
                    TrainingBatches(windows, slopes, options, trainer),
                    None if validation is None else ValidationBatches(validation, options.n_models),
                    ckpt_path=part if part is not None and part.exists() else None,
                    weights_only=True,
                )
            except MisconfigurationException as error:
                raise _unsuitable(error) from error
            except SIGTERMException as stop:  # an exit with the status of success
                raise SystemExit(128 + signal.SIGTERM) from stop
            except SystemExit as stop:
                if trainer.interrupted:  # by Ctrl-C
                    raise KeyboardInterrupt from stop
                raise
            networks.float()  # from what the precision of the trainer made of them
            if trainer.global_step == 0:
                raise ValueError("trainer_options must leave a step of training. There was none")
            is_finished = trainer.global_step >= options.max_steps or any(
                isinstance(c, Patience) and c.is_over for c in trainer.early_stopping_callbacks
            )
            if is_finished and done is not None and part is not None and trainer.is_global_zero:
                with replacing(done) as new:
                    torch.save(networks.state_dict(), new)
                part.unlink(missing_ok=True)
    return networks.cpu().eval().requires_grad_(False)


@torch.inference_mode()
def outputs_of(networks: SeasonalLSTM, windows: Windows) -> Tensor:
    """[N, windows, h, P], on the CPU."""
    chunks = torch.arange(len(windows)).split(_CHUNK)
    return torch.cat([networks(for_each(networks.n_models, windows[c])) for c in chunks], dim=1)


def for_each(n: int, batch: Batch) -> Batch:
    """The same windows for each of `n` networks."""
    return Batch(*(x.expand(n, *x.shape) for x in batch))


class TrainingBatches:
    """Endless batches for all networks, decided by the seed and the number of the batch alone, of
    which a step takes `accumulate_grad_batches`.

    A network deals its windows out in a random order until none is left, then in the next one. Of
    several processes each takes its share of every batch.
    """

    def __init__(
        self,
        windows: Windows,
        slopes: Tensor,
        options: TrainingOptions,
        trainer: lightning.Trainer,
    ) -> None:
        self.windows, self.slopes = windows, slopes
        self.options, self.trainer = options, trainer

    def __iter__(self) -> Iterator[Batch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        networks = range(self.options.n_models)
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        rows = self.options.n_models * self.options.batch_size * len(self.windows.steps)
        # Calls take longer than what they do with so few windows: some batches are made together.
        # They are the same ones wherever training begins, so that each lies in memory as before.
        together = min(8, max(1, _GATHERED // rows))
        begin = first - first % together
        deals = [self._deal(k, begin) for k in networks]
        for number in itertools.count(begin, together):
            numbers = range(number, number + together)
            chosen = torch.stack([torch.stack([next(deal) for deal in deals]) for _ in numbers])
            trend = torch.stack([self._trend(n) for n in numbers])[..., rank::world]
            chosen = chosen[..., rank::world]
            batch = self.windows[chosen.flatten()]
            batch = Batch(*(x.unflatten(0, chosen.shape) for x in batch))
            batch = tilted(batch, trend * self.slopes[batch.series])
            parts = zip(*batch, strict=True)
            yield from (Batch(*x) for n, x in zip(numbers, parts, strict=True) if n >= first)

    def _trend(self, number: int) -> Tensor:
        """[N, B], the random numbers of a batch."""
        generator = torch.Generator().manual_seed(_mix(self.options.seed, number))
        shape = self.options.n_models, self.options.batch_size
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def _deal(self, network: int, batch: int) -> Iterator[Tensor]:
        """Numbers of windows, `batch_size` at a time, from the batch of that number on."""
        size, n = self.options.batch_size, len(self.windows)
        epoch, at = divmod(batch * size, n)
        left = self._order(network, epoch)[at:]
        while True:
            while len(left) < size:
                epoch += 1
                left = torch.cat([left, self._order(network, epoch)])
            yield left[:size]
            left = left[size:]

    def _order(self, network: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(_mix(self.options.seed, network, epoch))
        return torch.randperm(len(self.windows), generator=generator)


class ValidationBatches:
    """All windows once, in order, for all networks."""

    def __init__(self, windows: Windows, n_models: int) -> None:
        self.windows, self.n_models = windows, n_models

    def __iter__(self) -> Iterator[Batch]:
        chunks = torch.arange(len(self.windows)).split(_CHUNK)
        return (for_each(self.n_models, self.windows[chunk]) for chunk in chunks)


class TrainingModule(lightning.LightningModule):
    """Adam, learning rate falling to 0 on half a cosine over `max_steps`.

    Networks have no weight in common, so the gradient of the sum of their losses is that of each.
    """

    def __init__(self, networks: SeasonalLSTM, options: TrainingOptions) -> None:
        super().__init__()
        self.networks = networks
        self.options = options

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        # Lightning's own asks of each part what it might be, for a fiftieth of a small step.
        return Batch(*(x.to(device) for x in batch))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is decided by the number of the batch, so that resuming needs no random state.
        of_step = self.trainer.accumulate_grad_batches
        number = self.global_step * of_step + batch_idx % of_step
        seed = _mix(self.options.seed, number, self.global_rank)
        # torch.manual_seed asks every kind of device, for half of the time of a small step.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.networks.loss(self.networks.training_output(batch), batch.target)
        if self.global_step % _LOG_STEPS == 0:
            self.log("train_loss", loss.detach(), prog_bar=True)
        return loss * self.options.n_models

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.networks.loss(self.networks(batch), batch.target)
        size = batch.target.shape[1]
        self.log("val_loss", loss, prog_bar=True, sync_dist=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        # Lightning cannot clip what a fused optimiser unscales, which it does in mixed precision.
        fused = "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.options.learning_rate, fused=fused)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Patience(EarlyStopping):
    """Our own early stopping, told from that of a user and from others who stop a training."""

    is_over = False

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        stopped_by_another = trainer.should_stop
        super().on_validation_end(trainer, module)
        self.is_over |= trainer.should_stop and not stopped_by_another


class BestWeights(Callback):
    """Keeps the weights of the lowest `val_loss`, and puts them back when training ends."""

    def __init__(self) -> None:
        self.best: dict[str, Any] = {"loss": float("inf"), "weights": {}}

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        loss = trainer.callback_metrics["val_loss"].item()
        if not trainer.sanity_checking and loss < self.best["loss"]:
            self.best = {"loss": loss, "weights": copy.deepcopy(module.networks.state_dict())}

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.best["weights"]:
            module.networks.load_state_dict(self.best["weights"])

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict


class History(Callback):
    """Losses of every training of a forecaster that has it among its callbacks, means over its
    networks.

    `Forecaster(trainer_options={"callbacks": [history]})` fills it.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, str, float]] = []
        self._trainings = 0

    def frame(self) -> pd.DataFrame:
        """Columns ``training`` (0, 1 ... in the order they were run), ``step``, ``name``
        (``train_loss`` or ``val_loss``) and ``loss``."""
        return pd.DataFrame(self._rows, columns=["training", "step", "name", "loss"])

    def on_train_start(self, *_: Any) -> None:
        self._trainings += 1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any
    ) -> None:
        self._record(trainer, "train_loss", outputs["loss"] / module.options.n_models)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._record(trainer, "val_loss", trainer.callback_metrics["val_loss"])

    def _record(self, trainer: lightning.Trainer, name: str, loss: Tensor) -> None:
        self._rows.append((self._trainings - 1, trainer.global_step, name, loss.item()))


class Checkpoint(Callback):
    """Writes the state of the training every so many steps, whole or not at all."""

    def __init__(self, path: Path, steps: int, validating: bool) -> None:
        self.path, self.steps, self.validating = path, steps, validating
        self.saved = 0
        self.within_step = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that await further batches are no part of a state.
        self.within_step = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if not self.validating:
            self._save(trainer)

    # A state from between a step and its validation would go on without that validation.
    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if not trainer.should_stop:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if self.within_step or trainer.global_step < self.saved + self.steps:
            return
        self.saved = trainer.global_step
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            os.replace(part, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict["saved"]


def _trainer(options: TrainingOptions, validation: Windows | None) -> lightning.Trainer:
    given = options.trainer.get("callbacks") or ()
    found = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(c, Callback) for c in found):
        raise _unsuitable(f"callbacks must be those of Lightning. Got {given!r}")
    batches_of_step = options.trainer.get("accumulate_grad_batches", 1)
    if not is_whole(batches_of_step) or batches_of_step < 1:
        raise _unsuitable(
            f"accumulate_grad_batches must be a whole number greater than 0. Got {batches_of_step}"
        )
    callbacks = [_fresh(c) for c in found]
    if validation is not None:
        callbacks += [Patience("val_loss", patience=options.patience), BestWeights()]
    _, part = _files(options.checkpoint)
    if part is not None:
        part.parent.mkdir(parents=True, exist_ok=True)
        callbacks.append(Checkpoint(part, options.checkpoint_steps, validation is not None))
    arguments = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "max_steps": options.max_steps,
        # Counted in batches by the trainer.
        "val_check_interval": min(options.val_check_steps, options.max_steps) * batches_of_step,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # `TrainingBatches` deals out by itself
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options.trainer,
        "callbacks": callbacks,
    }
    try:
        trainer = lightning.Trainer(**arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise _unsuitable(error) from error
    if not all(isinstance(logger, Logger) for logger in trainer.loggers):
        raise _unsuitable(f"logger must be one of Lightning's. Got {arguments['logger']!r}")
    if trainer.precision == "16-true":
        # What Adam adds to a divisor is 0 there: networks end in nonsense, or in no numbers.
        raise _unsuitable("precision must be another than 16-true, as bf16-true or 16-mixed")
    return trainer


def _unsuitable(error: object) -> ValueError:
    """In one line, whatever the trainer's message has."""
    return ValueError(
        f"trainer_options must suit lightning.Trainer: {' '.join(str(error).split())}"
    )


def _fresh(callback: Callback) -> Callback:
    """A copy for one training, whose state another one has no part in. A history is of them all,
    and what cannot be copied is taken as it is."""
    if isinstance(callback, History):
        return callback
    try:
        return copy.deepcopy(callback)
    except Exception:  # of any kind, by what the callback holds
        return callback


@contextmanager
def _opened(checkpoint: Path) -> Iterator[BinaryIO]:
    """An error of reading what is no checkpoint says which file that is."""
    with checkpoint.open("rb") as file:
        try:
            yield file
        except Exception as error:  # of many kinds, by what is wrong with it
            raise ValueError(
                f"{checkpoint} is damaged: {error}. Delete it to begin this training anew"
            ) from error


def _files(checkpoint: Path | None) -> tuple[Path | None, Path | None]:
    """Where the weights of a finished network lie, and the state of an unfinished one."""
    if checkpoint is None:
        return None, None
    return checkpoint.with_suffix(".pt"), checkpoint.with_suffix(".ckpt")


def _mix(*numbers: int) -> int:
    """A seed from several numbers, which neighbours do not share."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hints about devices, workers and logging intervals."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
