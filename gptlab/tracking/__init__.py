"""A run's directory, the only source of truth about the run: its records, metrics, lock and provenance."""
