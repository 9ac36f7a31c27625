"""The W&B mirror: a separate process that copies a run's directory to Weights & Biases."""
