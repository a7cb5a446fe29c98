"""The networks, against what their formulas say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lstm_fast.forecast.losses import make_loss
from lstm_fast.forecast.model import DECODINGS, Linears, RecursiveLSTM, SeasonalLSTM, SmoothedSeason
from lstm_fast.forecast.windows import Batch

N, W, H, S, B = 2, 24, 15, 12, 3
TRADING, KNOWN = 7, 2


def network(decoding: str, loss: str = "mse", **options) -> SeasonalLSTM:
    defaults = {
        "n_models": N,
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
        "lstm_class": nn.LSTM,
    }
    made = DECODINGS[decoding](**{**defaults, **options})
    for parameter in made.parameters():  # no weight that is zero before training
        nn.init.normal_(parameter, std=0.5)
    return made


def batch() -> Batch:
    return Batch(
        values=torch.randn(N, B, W),
        season=torch.randn(N, B, W + H, 2),
        trading=torch.randn(N, B, W + H, TRADING),
        known=torch.randn(N, B, W + H, KNOWN),
        series=torch.arange(B).expand(N, B),
        target=torch.randn(N, B, H),
        mean=torch.zeros(N, B, 1),
        scale=torch.ones(N, B, 1),
    )


def without_correction(made: SeasonalLSTM) -> SeasonalLSTM:
    for parameter in made.head.parameters():
        nn.init.zeros_(parameter)
    return made


@pytest.mark.parametrize("decoding", DECODINGS)
def test_without_correction_it_is_the_smoothed_season_cleared_of_effects(decoding):
    made, given = without_correction(network(decoding)), batch()
    known = torch.cat([given.trading, given.known], -1)
    effect = torch.einsum("nbtf,nf->nbt", known, made.effect_weight[..., 0])
    expected = made.base(given.values - effect[..., :W]) + effect[..., W:]
    torch.testing.assert_close(made(given)[..., 0], expected)


def test_smoothed_season_is_a_pattern_on_a_level():
    """As its parts say: deviations from each season's mean, and what remains of the last one."""
    W = 40  # three seasons, and four rows before them
    base, values = SmoothedSeason(N, H, W, S).double(), torch.randn(N, B, W, dtype=torch.float64)
    nn.init.normal_(base.season_logit)
    nn.init.normal_(base.level_logit)
    forecast = base(values)
    for n in range(N):
        seasons = values[n, :, 4:].reshape(B, 3, S)
        weight = base.season_logit[n].exp() / base.season_logit[n].exp().sum()
        pattern = ((seasons - seasons.mean(dim=2, keepdim=True)) * weight[:, None]).sum(dim=1)
        shares = base.level_logit[n].exp() / base.level_logit[n].exp().sum()
        level = ((seasons[:, 2] - pattern) * shares).sum(dim=1)
        for k in range(H):
            torch.testing.assert_close(forecast[n, :, k], pattern[:, k % S] + level)


@pytest.mark.parametrize("W", [1, 2])
def test_without_a_season_the_last_value_goes_on(W):
    values = torch.randn(N, B, W)
    expected = values[..., -1:].expand(N, B, H)
    torch.testing.assert_close(SmoothedSeason(N, H, 1, 1)(values), expected)


def test_a_season_that_repeats_itself_goes_on():
    season = torch.randn(N, B, S)
    forecast = SmoothedSeason(N, H, 3 * S, S)(season.repeat(1, 1, 3))
    torch.testing.assert_close(forecast, season.repeat(1, 1, 2)[..., :H])


def test_the_last_season_has_e_squared_times_the_weight_of_each_other_before_training():
    base, e2 = SmoothedSeason(N, H, 3 * S, S), math.exp(2)
    expected = torch.tensor([1, 1, e2]).expand(N, 3) / (2 + e2)
    torch.testing.assert_close(base.season_logit.softmax(1), expected)
    assert not base.level_logit.any()


def test_linears_are_one_of_torchs_for_each_network():
    made, x = Linears(N, 4, 5), torch.randn(N, B, 4)
    for n in range(N):
        expected = nn.functional.linear(x[n], made.weight[n].T, made.bias[n, 0])
        torch.testing.assert_close(made(x)[n], expected)
    bound = max(parameter.abs().max().item() for parameter in nn.Linear(4, 1000).parameters())
    assert 0.4 < max(parameter.abs().max().item() for parameter in made.parameters()) <= 0.5
    assert bound == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_networks_side_by_side_have_no_part_in_each_other(decoding):
    made, given = network(decoding, id_size=3), batch()
    before = made(given)
    made.training_output(given)[0].sum().backward()
    for name, parameter in made.named_parameters():
        grad = parameter.grad
        if grad is None:
            assert name.startswith("encoders.1"), name
        elif name == "series.weight":
            assert not grad[4:].any()
        elif not name.startswith("encoders"):
            assert grad[0].any(), name
            assert not grad[1].any(), name
    with torch.no_grad():
        made.effect_weight[1] += 1
        made.base.level_logit[1, 0] += 1
    after = made(given)
    assert torch.equal(after[0], before[0])
    assert not torch.isclose(after[1], before[1]).all()


@pytest.mark.parametrize("decoding", DECODINGS)
def test_targets_are_not_looked_at_when_forecasting(decoding):
    made, given = network(decoding), batch()
    blind = given._replace(target=torch.full((N, B, H), torch.nan))
    assert torch.equal(made(given), made(blind))


@pytest.mark.parametrize("loss", ["mse", "quantile", "normal"])
def test_teacher_forcing_with_the_own_forecasts_gives_these_forecasts(loss):
    """One pass over window and targets, and step after step with the state carried, agree."""
    made, given = network("recursive", loss), batch()
    outputs = made(given)
    forced = made.training_output(given._replace(target=made.loss.center(outputs)))
    torch.testing.assert_close(forced, outputs)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_effects_are_learned_by_the_smoothed_season_alone(decoding):
    """Without an LSTM that corrects it, effects have the same gradient."""
    made, given = network(decoding), batch()

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(made.training_output(given).sum(), made.effect_weight)[0]

    whole = gradient()
    without_correction(made)
    assert torch.equal(whole, gradient())


@pytest.mark.parametrize("feature", ["known", "season"])
def test_recursive_steps_see_what_is_known_of_the_step_they_forecast(feature):
    made, given = network("recursive"), batch()
    nn.init.zeros_(made.effect_weight)
    before = made(given)[..., 0]
    getattr(given, feature)[:, :, W + 5] += 1
    after = made(given)[..., 0]
    assert torch.equal(before[..., :5], after[..., :5])
    assert not torch.isclose(before[..., 5], after[..., 5]).any()


def test_direct_steps_see_the_covariates_of_the_future():
    made, given = network("direct"), batch()
    nn.init.zeros_(made.effect_weight)
    before = made(given)
    given.known[:, :, W + 5] += 1
    assert not torch.isclose(before, made(given)).any()


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize(("loss", "outputs"), [("mse", 1), ("quantile", 3), ("laplace", 2)])
def test_shapes_of_outputs(decoding, loss, outputs):
    made, given = network(decoding, loss, num_layers=2, id_size=3), batch()
    assert made(given).shape == (N, B, H, outputs)
    assert made.training_output(given).shape == (N, B, H, outputs)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_series_are_told_apart_by_their_vector(decoding):
    made, given = network(decoding, id_size=3), batch()
    swapped = made(given._replace(series=torch.tensor([0, 3, 3]).expand(N, B)))
    assert torch.equal(made(given)[:, 0], swapped[:, 0])
    assert not torch.isclose(made(given)[:, 1], swapped[:, 1]).any()


def test_a_width_does_not_move_with_the_series():
    made, given = without_correction(network("direct", "normal")), batch()
    torch.testing.assert_close(made(given)[..., 1], torch.zeros(N, B, H))
    assert isinstance(network("recursive"), RecursiveLSTM)
