"""Training: settings, the optimizer, the loop, checkpoints."""
