"""The run's directory, which is the truth about a run, and its mirror in W&B."""
