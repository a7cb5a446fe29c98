"""Losses against torch's own, and what their outputs are read as."""

from __future__ import annotations

import pytest
import torch

from lstm_fast.forecast.losses import LOSSES, DistributionLoss, QuantileLoss, make_loss


def test_point_losses_are_torchs():
    output, target = torch.randn(5, 3, 1), torch.randn(5, 3)
    for name, function in (
        ("mse", torch.nn.functional.mse_loss),
        ("mae", torch.nn.functional.l1_loss),
        ("huber", torch.nn.functional.huber_loss),
    ):
        assert torch.equal(make_loss(name, ())(output, target), function(output[..., 0], target))


def test_quantile_loss_is_least_at_the_quantiles():
    """By gradient descent on constants, for a sample whose quantiles are known."""
    target = torch.linspace(0, 1, 1001)
    loss = QuantileLoss((50, 80))
    assert loss.quantiles == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9])
    output = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.SGD([output], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        loss(output.expand(1001, 5), target).backward()
        optimizer.step()
    # The loss is flat to 1/1001 around its minimum, and a step of SGD moves by 0.05 / 5 at most.
    torch.testing.assert_close(output.detach(), torch.tensor(loss.quantiles), atol=0.012, rtol=0)


def test_bounds_of_quantiles_never_cross():
    loss = make_loss("quantile", (80, 95))
    output = torch.randn(100, 5)
    (lo95, hi95), (lo80, hi80) = loss.band(output, 95), loss.band(output, 80)
    ordered = torch.stack([lo95, lo80, loss.center(output), hi80, hi95], dim=-1)
    assert torch.equal(ordered, output.sort(dim=-1).values)
    with pytest.raises(ValueError, match=r"levels must be among .*\[80, 95\].* Got 50"):
        loss.band(output, 50)


@pytest.mark.parametrize(
    ("name", "family"),
    [("normal", torch.distributions.Normal), ("laplace", torch.distributions.Laplace)],
)
def test_distribution_loss_and_its_bands(name, family):
    loss = DistributionLoss(name)
    output, target = torch.randn(4, 6, 2), torch.randn(4, 6)
    scale = torch.nn.functional.softplus(output[..., 1]) + loss.MIN_SCALE
    distribution = family(output[..., 0], scale)
    torch.testing.assert_close(loss(output, target), -distribution.log_prob(target).mean())
    lower, upper = loss.band(output, 80)
    torch.testing.assert_close(distribution.cdf(lower), torch.full((4, 6), 0.1))
    torch.testing.assert_close(distribution.cdf(upper), torch.full((4, 6), 0.9))
    assert torch.equal(loss.center(output), output[..., 0])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_as_many_outputs_as_it_reads(name):
    loss = make_loss(name, (80,))
    output = torch.randn(3, len(loss.located), requires_grad=True)
    loss(output, torch.randn(3)).backward()
    assert output.grad is not None
    assert (output.grad != 0).any(dim=0).all()
    lower, upper = loss.band(output, 80)
    assert (upper > lower).all() if loss.has_width else torch.equal(lower, upper)


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"loss must be one of mse, .* Got 'rmse'"):
        make_loss("rmse", ())
