"""The GPT: architecture, loss, sampling and a summary table."""
