"""The networks, against what their formulas say."""

from __future__ import annotations

import pytest
import torch

from lstm_fast.forecast.losses import make_loss
from lstm_fast.forecast.model import DECODINGS, RecursiveLSTM, SeasonalLSTM
from lstm_fast.forecast.windows import Batch

W, H, S, B = 24, 15, 12, 3
TRADING, KNOWN = 7, 2


def network(decoding: str, loss: str = "mse", **options) -> SeasonalLSTM:
    defaults = {
        "loss": make_loss(loss, (80,)),
        "h": H,
        "input_size": W,
        "season_length": S,
        "season_size": 2,
        "trading_size": TRADING,
        "known_size": KNOWN,
        "n_series": 4,
        "id_size": 0,
        "hidden_size": 4,
        "num_layers": 1,
        "dense_size": 5,
        "activation": "tanh",
        "dropout": 0.0,
        "lstm_class": torch.nn.LSTM,
    }
    made = DECODINGS[decoding](**{**defaults, **options})
    torch.nn.init.normal_(made.effect_weight)
    return made


def batch() -> Batch:
    return Batch(
        values=torch.randn(B, W),
        season=torch.randn(B, W + H, 2),
        trading=torch.randn(B, W + H, TRADING),
        known=torch.randn(B, W + H, KNOWN),
        series=torch.arange(B),
        target=torch.randn(B, H),
        mean=torch.zeros(B, 1),
        scale=torch.ones(B, 1),
    )


def without_correction(made: SeasonalLSTM) -> SeasonalLSTM:
    for parameter in made.head.parameters():
        torch.nn.init.zeros_(parameter)
    return made


@pytest.mark.parametrize("decoding", DECODINGS)
def test_without_correction_it_is_the_season_ago_cleared_of_effects(decoding):
    made, given = without_correction(network(decoding)), batch()
    effect = torch.cat([given.trading, given.known], -1) @ made.effect_weight
    cleared = (given.values - effect[:, :W])[:, -S:]
    expected = torch.cat([cleared, cleared[:, : H - S]], dim=1) + effect[:, W:]
    torch.testing.assert_close(made(given)[..., 0], expected)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_targets_are_not_looked_at_when_forecasting(decoding):
    made, given = network(decoding), batch()
    blind = given._replace(target=torch.full((B, H), torch.nan))
    assert torch.equal(made(given), made(blind))


@pytest.mark.parametrize("loss", ["mse", "quantile", "normal"])
def test_teacher_forcing_with_the_own_forecasts_gives_these_forecasts(loss):
    """One pass over window and targets, and step after step with the state carried, agree."""
    made, given = network("recursive", loss), batch()
    outputs = made(given)
    forced = made.training_output(given._replace(target=made.loss.center(outputs)))
    torch.testing.assert_close(forced, outputs)


def test_recursive_steps_see_the_covariates_of_the_step_they_forecast():
    made, given = network("recursive"), batch()
    torch.nn.init.zeros_(made.effect_weight)
    before = made(given)[..., 0]
    given.known[:, W + 5] += 1
    after = made(given)[..., 0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5], after[:, 5]).any()


def test_direct_steps_see_the_covariates_of_the_future():
    made, given = network("direct"), batch()
    torch.nn.init.zeros_(made.effect_weight)
    before = made(given)
    given.known[:, W + 5] += 1
    assert not torch.isclose(before, made(given)).any()


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize(("loss", "outputs"), [("mse", 1), ("quantile", 3), ("laplace", 2)])
def test_shapes_of_outputs(decoding, loss, outputs):
    made, given = network(decoding, loss, num_layers=2, id_size=3), batch()
    assert made(given).shape == (B, H, outputs)
    assert made.training_output(given).shape == (B, H, outputs)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_series_are_told_apart_by_their_vector(decoding):
    made, given = network(decoding, id_size=3), batch()
    swapped = made(given._replace(series=torch.tensor([0, 3, 3])))
    assert torch.equal(made(given)[0], swapped[0])
    assert not torch.isclose(made(given)[1], swapped[1]).any()


def test_a_width_does_not_move_with_the_series():
    made, given = without_correction(network("direct", "normal")), batch()
    torch.testing.assert_close(made(given)[..., 1], torch.zeros(B, H))
    assert isinstance(network("recursive"), RecursiveLSTM)
