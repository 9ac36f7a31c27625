"""The commands, one module each: a part that computes a result, and a part that renders it."""
