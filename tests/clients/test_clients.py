"""Released forecasting libraries train and forecast with our layer as they do with nn.LSTM."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from tests.clients.runs import CLIENTS, STEPS, Client

# A step adds the errors of its gates, some 8 roundings, to what the steps before left.
TOLERANCE = 2 * STEPS * 8 * torch.finfo(torch.float32).eps
# Forecasts by samples: heavy-tailed distributions amplify what differs in their parameters.
SAMPLED = 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: f"{c.library}-{c.model}")
def test_losses_and_forecasts(client: Client, fused: list[None]):
    if importlib.util.find_spec(client.library) is None:
        pytest.skip(f"needs {client.library}: pip install -e '.[clients]'")
    torch.set_num_threads(1)
    expected = client(swap=False)
    assert not fused
    got = client(swap=True)
    assert len(fused) >= STEPS
    assert len(got.losses) == STEPS
    np.testing.assert_allclose(got.losses, expected.losses, TOLERANCE, TOLERANCE)
    bound = SAMPLED if client.model == "DeepAR" else TOLERANCE
    largest = np.abs(expected.forecast).max()
    np.testing.assert_allclose(got.forecast, expected.forecast, atol=bound * largest, rtol=0)
