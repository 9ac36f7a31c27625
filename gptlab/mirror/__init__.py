"""The W&B mirror: copies a run's directory to Weights & Biases from a process of its own."""
