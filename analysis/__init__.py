"""Run directories as pandas tables, figures and a report. Nothing here imports torch."""
