"""Trainings of other people's forecasters, as released, on the sales series of this project.

Each is a function of `swap`: whether our layer is swapped in, in the way that the library lends
itself to. It trains from a fixed seed and returns the loss of each step and a forecast of a year.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

import lstm_fast
from lstm_fast.forecast.datasets import load_beer_wine_sales

HORIZON, WINDOW, STEPS = 12, 24, 20
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Result(NamedTuple):
    losses: np.ndarray  # [steps]
    forecast: np.ndarray  # [HORIZON], in units of the series
    seconds: float


class Client(NamedTuple):
    library: str
    model: str
    way: str  # of swapping
    run: Callable[[bool], tuple[list[float], Any]]

    def __call__(self, swap: bool) -> Result:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                losses, forecast = self.run(swap)
            finally:
                logging.disable(logging.NOTSET)
        seconds = time.perf_counter() - start
        return Result(np.array(losses), np.asarray(forecast, np.float64).reshape(-1), seconds)


def observed(losses: list[float]) -> Any:
    """A Lightning callback that notes the loss of each step."""
    from lightning.pytorch import Callback

    class Losses(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            losses.append(float(outputs["loss"]))

    return Losses()


def callbacks(losses: list[float], swap: bool = False) -> list[Any]:
    from lstm_fast.lightning import Accelerate

    return [observed(losses)] + [Accelerate()] * swap


def neuralforecast(kind: str, **options: Any) -> Callable[[bool], Any]:
    def run(swap: bool) -> tuple[list[float], Any]:
        from neuralforecast import NeuralForecast, models

        losses: list[float] = []
        network = getattr(models, kind)(
            h=HORIZON,
            input_size=WINDOW,
            max_steps=STEPS,
            random_seed=1,
            callbacks=callbacks(losses, swap),
            **options,
            **TRAINER,
        )
        forecaster = NeuralForecast(models=[network], freq="MS")
        forecaster.fit(load_beer_wine_sales(2019))
        return losses, forecaster.predict()[kind]

    return run


def darts(kind: str, **options: Any) -> Callable[[bool], Any]:
    def run(swap: bool) -> tuple[list[float], Any]:
        from darts import TimeSeries, models

        sales = load_beer_wine_sales(2019)
        series = TimeSeries.from_dataframe(sales, "ds", "y").astype(np.float32) / 1e4
        losses: list[float] = []
        with lstm_fast.patch() if swap else nullcontext():
            network = getattr(models, kind)(
                input_chunk_length=WINDOW,
                n_epochs=2,
                batch_size=32,
                random_state=1,
                pl_trainer_kwargs=TRAINER | {"callbacks": callbacks(losses)},
                **options,
            )
            network.fit(series)
        return losses, network.predict(HORIZON).values() * 1e4

    return run


def pytorch_forecasting(kind: str, **options: Any) -> Callable[[bool], Any]:
    def run(swap: bool) -> tuple[list[float], Any]:
        import pytorch_forecasting as library
        from lightning.pytorch import Trainer

        sales = load_beer_wine_sales(2019).astype({"unique_id": object})
        sales = sales.assign(step=np.arange(len(sales)), y=sales["y"].astype(np.float32) / 1e4)
        dataset = library.TimeSeriesDataSet(
            sales,
            time_idx="step",
            target="y",
            group_ids=["unique_id"],
            max_encoder_length=WINDOW,
            max_prediction_length=HORIZON,
            time_varying_known_reals=["step"],
            time_varying_unknown_reals=["y"],
        )
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 (what the library draws from)
        losses: list[float] = []
        network = getattr(library, kind).from_dataset(dataset, learning_rate=1e-3, **options)
        if swap:
            lstm_fast.accelerate(network)
        trainer = Trainer(max_steps=STEPS, callbacks=callbacks(losses), **TRAINER)
        trainer.fit(network, dataset.to_dataloader(train=True, batch_size=32))
        last = library.TimeSeriesDataSet.from_dataset(dataset, sales, predict=True)
        torch.manual_seed(2)
        forecast = network.predict(
            last.to_dataloader(train=False, batch_size=1), trainer_kwargs=dict(TRAINER)
        )
        return losses, forecast.numpy() * 1e4

    return run


def gluonts(swap: bool) -> tuple[list[float], Any]:
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.torch.model.deepar import DeepAREstimator

    sales = load_beer_wine_sales(2019).astype({"unique_id": object}).set_index("ds")
    dataset = PandasDataset.from_long_dataframe(
        sales, target="y", item_id="unique_id", freq="M", unchecked=True
    )
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (what the library draws from)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:  # it insists on writing a checkpoint
        options = {"enable_checkpointing": True, "default_root_dir": folder, "max_epochs": 1}
        estimator = DeepAREstimator(
            freq="M",
            prediction_length=HORIZON,
            num_batches_per_epoch=STEPS,
            trainer_kwargs=TRAINER | options | {"callbacks": callbacks(losses, swap)},
        )
        predictor = estimator.train(dataset)
    torch.manual_seed(2)
    return losses, next(iter(predictor.predict(dataset))).mean


CLIENTS = [
    Client("neuralforecast", "LSTM", "callback", neuralforecast("LSTM")),
    Client("neuralforecast", "DeepAR", "callback", neuralforecast("DeepAR", trajectory_samples=20)),
    Client("neuralforecast", "TFT", "callback", neuralforecast("TFT", hidden_size=32)),
    Client("darts", "RNNModel", "patch", darts("RNNModel", model="LSTM", hidden_dim=25)),
    Client(
        "darts",
        "BlockRNNModel",
        "patch",
        darts("BlockRNNModel", model="LSTM", output_chunk_length=12),
    ),
    Client(
        "darts",
        "TFTModel",
        "patch",
        darts("TFTModel", add_relative_index=True, output_chunk_length=12),
    ),
    Client("pytorch_forecasting", "DeepAR", "walk", pytorch_forecasting("DeepAR", hidden_size=32)),
    Client(
        "pytorch_forecasting",
        "TemporalFusionTransformer",
        "walk",
        pytorch_forecasting("TemporalFusionTransformer", hidden_size=32),
    ),
    Client("gluonts", "DeepAR", "callback", gluonts),
]
