"""The command `lstm-fast`, as `python -m lstm_fast`."""

from lstm_fast.cli import app

if __name__ == "__main__":
    app()
