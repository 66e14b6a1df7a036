"""The training loop, checkpoints and logs: it knows no algorithm."""
