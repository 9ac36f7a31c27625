"""Terminal output: console, progress bars, tables, charts, JSON and text formatting. Independent of runs."""
