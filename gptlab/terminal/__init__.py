"""Output for people: the console, progress bars, tables, charts and text formatting.

Nothing here knows what a run is.
"""
