"""Measurements of lstm_fast against torch.nn.LSTM: `make bench`."""
