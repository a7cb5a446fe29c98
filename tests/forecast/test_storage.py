"""Saving and loading, which must bring numbers back and never run code."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import torch

import lstm_fast
from lstm_fast.forecast import Forecaster, History, evaluate
from tests.forecast.series import monthly


def two_series(**columns) -> pd.DataFrame:
    return pd.concat([monthly(72, "a"), monthly(60, "bb", "2001-05-01")]).assign(**columns)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "quantile", "decoding": "recursive", "id_size": 2},
        {"loss": "normal", "calibration_size": 0, "lstm_class": torch.nn.LSTM},
        {"levels": (), "num_layers": 2, "trainer_options": {"precision": "bf16-mixed"}},
    ],
)
def test_what_is_loaded_forecasts_the_same(small, tmp_path, options):
    model = small(**options).fit(two_series())
    model.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    assert loaded.lstm_class is model.lstm_class
    pd.testing.assert_frame_equal(loaded.predict(), model.predict(), check_exact=True)
    later = pd.concat([two_series(), monthly(80, "a")[72:]])
    pd.testing.assert_frame_equal(loaded.predict(later), model.predict(later), check_exact=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_covariates_time_zones_and_whole_number_ids(small, tmp_path):
    ds = pd.date_range("2000-01-03", periods=150, freq="h", tz="Europe/Paris")
    df = pd.DataFrame({"unique_id": 7, "ds": ds, "y": range(1, 151), "price": range(150)})
    model = small(futr_exog_list=["price"], season_length=24).fit(df[:140])
    model.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    forecast = loaded.predict(futr_df=df[140:])
    pd.testing.assert_frame_equal(forecast, model.predict(futr_df=df[140:]), check_exact=True)
    assert forecast["unique_id"].eq(7).all()
    assert forecast["ds"].iloc[0] == ds[140]


def test_a_file_is_not_overwritten_unasked(small, series, tmp_path):
    model = small(levels=()).fit(series)
    path = tmp_path / "model.pt"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"model.pt exists"):
        model.save(path)
    assert path.read_text() == "precious"
    model.save(path, overwrite=True)
    assert len(Forecaster.load(path).predict()) == 6


def test_what_is_behind_a_link_is_replaced_and_keeps_its_mode(small, series, tmp_path):
    model = small(levels=()).fit(series)
    link, target = tmp_path / "link.pt", tmp_path / "folder" / "model.pt"
    target.parent.mkdir()
    link.symlink_to(target)
    model.save(link)  # leads to nothing yet
    target.write_text("replaced")
    target.chmod(0o600)
    model.save(link, overwrite=True)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(Forecaster.load(target).predict()) == 6
    assert [file.name for file in target.parent.iterdir()] == ["model.pt"]


def test_a_file_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, write in (("torch.pt", torch.save), ("pickle.pt", _pickle)):
        write({"settings": Payload()}, tmp_path / name)
        with pytest.raises(ValueError, match="is no file of a forecaster"):
            Forecaster.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def _pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def test_files_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError):
        Forecaster.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    torch.save({"settings": '{"format": "other"}'}, tmp_path / "other.pt")
    for name, message in (
        ("text.pt", "no file of a forecaster"),
        ("weights.pt", "no file of a forecaster"),
        ("other.pt", "must be of format 'lstm-fast forecaster 5'. Got 'other'"),
    ):
        with pytest.raises(ValueError, match=message):
            Forecaster.load(tmp_path / name)


def test_damaged_files(small, series, tmp_path):
    path = tmp_path / "model.pt"
    small().fit(series).save(path)
    state = torch.load(path, weights_only=True)
    for name in ("scale", "never_negative", "networks", "series"):
        torch.save({k: v for k, v in state.items() if k != name}, path)
        with pytest.raises(ValueError, match=f"model.pt is damaged: .*{name}"):
            Forecaster.load(path)
    torch.save({**state, "values": state["values"][1:]}, path)
    with pytest.raises(ValueError, match=r"model.pt is damaged: .*length"):
        Forecaster.load(path)


def test_a_number_that_changed_in_a_file_is_noticed(small, series, tmp_path):
    path = tmp_path / "model.pt"
    small().fit(series).save(path)
    scale = torch.load(path, weights_only=True)["scale"].numpy().tobytes()
    whole = path.read_bytes()
    assert whole.count(scale) == 1
    path.write_bytes(whole.replace(scale, scale[:1] + b"\x7f" + scale[2:]))
    with pytest.raises(ValueError, match=r"model.pt is damaged: .* has another checksum"):
        Forecaster.load(path)


def test_a_file_that_was_cut_off(small, series, tmp_path):
    path = tmp_path / "model.pt"
    small(levels=()).fit(series).save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.pt is no file of a forecaster"):
            Forecaster.load(path)


def test_numbers_of_numpy_are_saved(small, series, tmp_path):
    options = {"h": np.int64(6), "dropout": np.float32(0.25), "log": np.bool_(True)}
    forecaster = small(**options).fit(series)
    forecaster.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    assert (loaded.h, loaded.dropout, loaded.log) == (6, 0.25, True)
    pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict())


def test_a_time_zone_without_a_name_is_not_saved(small, series, tmp_path):
    ds = series["ds"].dt.tz_localize(timezone(timedelta(hours=1), "ship's time"))
    model = small(levels=()).fit(series.assign(ds=ds))
    assert len(model.predict()) == 6
    with pytest.raises(ValueError, match="time zone that has a name, such as Europe/Paris"):
        model.save(tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_disk_that_is_full_leaves_what_was_there(small, series, tmp_path, monkeypatch):
    def write(state, path):
        path.write_bytes(b"begin")
        raise RuntimeError("unexpected pos")

    model = small(levels=()).fit(series)
    (tmp_path / "model.pt").write_text("precious")
    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(OSError, match=r"model.pt cannot be written: unexpected pos"):
        model.save(tmp_path / "model.pt", overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.pt", "precious")]


def test_what_cannot_be_saved(small, series, tmp_path):
    class Own(lstm_fast.LSTM):
        pass

    with pytest.raises(RuntimeError, match="call fit before save"):
        small().save(tmp_path / "model.pt")
    for options, message in (
        ({"lstm_class": Own}, "lstm_class must be one of lstm_fast.LSTM, torch.nn.LSTM"),
        ({"trainer_options": {"callbacks": [History()]}}, "must hold what JSON can hold"),
    ):
        model = small(levels=(), **options).fit(series)
        with pytest.raises(ValueError, match=message):
            model.save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
    model.trainer_options = {}  # which its networks do not need
    model.save(tmp_path / "model.pt")
    assert Forecaster.load(tmp_path / "model.pt").predict().equals(model.predict())


@pytest.mark.parametrize("ids", [(1, 2), ("a", "b")])
@pytest.mark.parametrize("dtype", ["category", object])
def test_ids_stay_of_the_type_that_they_have_when_loaded(small, series, tmp_path, ids, dtype):
    df = pd.concat([series.assign(unique_id=name, x=series.index % 3) for name in ids])
    df = df.astype({"unique_id": dtype})
    step = df.groupby("unique_id", observed=True).cumcount(ascending=False)
    known, future = df[step >= 6], df[step < 6]
    model = small(futr_exog_list=["x"]).fit(known)
    forecast = model.predict(futr_df=future)
    model.save(tmp_path / "model.pt")
    assert Forecaster.load(tmp_path / "model.pt").predict(futr_df=future).equals(forecast)
    scores = evaluate(model.cross_validation(df), df, 12)
    assert scores["unique_id"].tolist() == [*ids]


def test_what_numpy_and_pandas_make_can_be_written(small, series, tmp_path):
    df = series.assign(y=series["y"])
    df[5] = np.arange(72.0) % 5
    options = {"futr_exog_list": np.array([5]), "freq": pd.offsets.MonthBegin()}
    model = small(**options, checkpoint_dir=tmp_path / "state").fit(df, val_size=np.int64(6))
    assert [model.freq, *model.futr_exog_list] == ["MS", 5]
    model.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    assert [loaded.freq, *loaded.futr_exog_list] == ["MS", 5]
    again = small(**options, checkpoint_dir=tmp_path / "state").fit(df, val_size=6)
    future = model.future_rows(df)
    future[5] = 1.0
    for other in (loaded, again):
        pd.testing.assert_frame_equal(
            other.predict(futr_df=future), model.predict(futr_df=future), check_exact=True
        )


def test_a_checkpoint_dir_is_a_folder(small, series, tmp_path):
    for wrong in (3, b"here", ["here"], True):
        with pytest.raises(ValueError, match="checkpoint_dir must be a path"):
            small(checkpoint_dir=wrong)
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, str(file), file / "below"):
        with pytest.raises(ValueError, match="checkpoint_dir must be a folder, or a new one"):
            small(checkpoint_dir=folder).fit(series)
    assert file.read_text() == "mine"
