"""A fitted forecaster in a file, and the folder of a training under way.

A file is what `torch.save` makes of tensors, text and numbers, read with ``weights_only=True``: it
cannot bring code with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from lstm_fast.forecast.intervals import ConformalIntervals
from lstm_fast.forecast.losses import make_loss
from lstm_fast.forecast.model import LAYERS
from lstm_fast.forecast.process import own_random_state
from lstm_fast.forecast.windows import Features

if TYPE_CHECKING:
    from lstm_fast.forecast.forecaster import Forecaster

FORMAT = "lstm-fast forecaster 5"
# Of the arguments of `lightning.Trainer`, those that change what a training learns or when it is
# over. Devices and what is shown may change on the way; what merely cuts it short, as well.
_TRAINING = (
    "accumulate_grad_batches",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_val_batches",
    "min_steps",
    "overfit_batches",
    "precision",
    "val_check_interval",
)


def save(model: Forecaster, path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another path, or overwrite=True")
    settings = {
        "format": FORMAT,
        "options": options_of(model),
        "features": _features_to_json(model._features),
        "unique_ids": _plain_ids(model._unique_ids),
        "ds_unit": model._fitted["ds"].dt.unit,
        "timezone": _zone_name(model._fitted["ds"]),
    }
    rows = model._fitted.groupby("unique_id", sort=False).tail(model.input_size)
    state: dict[str, Any] = {
        "settings": json.dumps(settings),
        "networks": model._networks.state_dict(),
        "scale": torch.from_numpy(model._scale),
        "never_negative": torch.from_numpy(model._never_negative),
        "series": torch.from_numpy(model._unique_ids.get_indexer(pd.Index(rows["unique_id"]))),
        "ds": torch.from_numpy(pd.DatetimeIndex(rows["ds"]).asi8.copy()),
        "values": torch.from_numpy(
            rows[["y", *model.futr_exog_list]].to_numpy("float64", copy=True)
        ),
    }
    if model._intervals is not None:
        _, *fields = dataclasses.fields(model._intervals)  # the loss is one of the settings
        state["calibration"] = [getattr(model._intervals, field.name) for field in fields]
    with replacing(path) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # of a full disk, for one
            raise OSError(f"{path} cannot be written: {error}") from error


@contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end: `path` is written whole
    or not at all. A link stays one, to the new file; a device or a pipe is written to itself.

    Raises:
        FileExistsError: at the end, if there is such a file by then and `overwrite` is False.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield part
        if not overwrite:
            target.touch(exist_ok=False)  # of several that write at once, one makes it
        elif target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def load(cls: type[Forecaster], path: Path) -> Forecaster:
    with path.open("rb") as file:
        try:
            damaged = zipfile.ZipFile(file).testzip()  # torch.load compares no checksums
            file.seek(0)
            state = torch.load(file, weights_only=True, map_location="cpu")
            settings = json.loads(state["settings"])
        except Exception as error:  # whose advice may be to load it without safety
            raise ValueError(f"{path} is no file of a forecaster") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: {damaged} in it has another checksum")
    found = settings.get("format") if isinstance(settings, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} must be of format {FORMAT!r}. Got {found!r}")
    try:
        # Networks are made with random weights first, which is nobody else's business.
        with own_random_state():
            return _restored(cls, state, settings)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _restored(cls: type[Forecaster], state: dict[str, Any], settings: dict[str, Any]) -> Forecaster:
    options = settings["options"]
    model = cls(**{**options, "lstm_class": LAYERS[options["lstm_class"]]})
    model._keep_settings()
    model._loss = make_loss(model.loss, model.levels)
    model._features = _features_from_json(settings["features"], settings["timezone"] or None)
    model._unique_ids = pd.Index(settings["unique_ids"])
    model._scale = state["scale"].numpy()
    model._never_negative = state["never_negative"].numpy()
    model._fitted = _rows(state, settings, model)
    networks = model._network(len(model._unique_ids)).float().eval()
    model._networks = networks.requires_grad_(False)
    model._networks.load_state_dict(state["networks"])
    model._intervals = None
    if "calibration" in state:
        model._intervals = ConformalIntervals(model._loss, *state["calibration"])
    return model


def options_of(model: Forecaster) -> dict[str, Any]:
    """The arguments of a forecaster as JSON holds them; where training leaves its state is none."""
    options = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    del options["checkpoint_dir"]
    names = {layer: name for name, layer in LAYERS.items()}
    if model.lstm_class not in names:
        raise ValueError(f"lstm_class must be one of {', '.join(LAYERS)}. Got {model.lstm_class}")
    options["lstm_class"] = names[model.lstm_class]
    for name in ("levels", "futr_exog_list"):
        options[name] = list(options[name])
    options["trainer_options"] = dict(model.trainer_options)
    try:
        json.dumps(options["trainer_options"])
    except TypeError as error:
        raise ValueError(f"trainer_options must hold what JSON can hold: {error}") from error
    return options


def claim_folder(folder: Path, model: Forecaster, frame: pd.DataFrame, val_size: int) -> None:
    """Make sure that the states in `folder` are of this training.

    Raises:
        ValueError: if they are of other data or other options, or `folder` cannot be one.
    """
    given = model.trainer_options
    trainer_options = {name: given[name] for name in _TRAINING if name in given}
    options = options_of(dataclasses.replace(model, trainer_options=trainer_options))
    options["val_size"] = val_size
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
    claim = {"options": options, "data": hashlib.sha256(rows).hexdigest()}
    path = folder / "training.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [k for k, v in options.items() if found["options"].get(k) != v]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged: {error!r}. Give another checkpoint_dir, or empty this one"
            ) from error
        if found != claim:
            raise ValueError(
                f"checkpoint_dir {folder} holds the state of another training, with other "
                f"{', '.join(differing) or 'data'}: give another folder, or empty this one"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"checkpoint_dir must be a folder, or a new one. Got {folder}") from error
    with replacing(path) as part:  # other processes of the run may write too
        part.write_text(json.dumps(claim, indent=1), encoding="utf-8")


def _rows(state: dict[str, Any], settings: dict[str, Any], model: Forecaster) -> pd.DataFrame:
    ds = pd.DatetimeIndex(state["ds"].numpy().view(f"datetime64[{settings['ds_unit']}]"))
    if settings["timezone"]:
        ds = ds.tz_localize("UTC").tz_convert(settings["timezone"])
    values = state["values"].numpy()
    columns = {name: values[:, k] for k, name in enumerate(["y", *model.futr_exog_list])}
    ids = model._unique_ids.take(state["series"].numpy())
    return pd.DataFrame({"unique_id": ids, "ds": ds, **columns})


def _plain_ids(unique_ids: pd.Index) -> list[Any]:
    ids = unique_ids.tolist()
    if not all(isinstance(unique_id, (str, int)) for unique_id in ids):
        raise ValueError("unique_id must hold text or whole numbers to be saved")
    return ids


def _zone_name(ds: pd.Series) -> str:
    """Empty for none."""
    name = str(ds.dt.tz or "")
    try:
        pd.Timestamp(0, tz=name or None)
    except Exception as error:  # of pytz or zoneinfo, which have none in common
        raise ValueError(
            f"ds must be of a time zone that has a name, such as Europe/Paris, to be saved. "
            f"Got {ds.dt.tz!r}"
        ) from error
    return name


def _features_to_json(features: Features) -> dict[str, Any]:
    return {**dataclasses.asdict(features), "origin": features.origin.isoformat()}


def _features_from_json(saved: dict[str, Any], timezone: str | None) -> Features:
    origin = pd.Timestamp(saved["origin"])
    return Features(**{**saved, "origin": origin.tz_convert(timezone) if timezone else origin})
