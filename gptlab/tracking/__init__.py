"""The run's directory, which is the only source of truth about a run."""
