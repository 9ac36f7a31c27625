"""Checkpoints: what they hold, how they are written, read and retained.

Only `manifest` and `retention` work without torch.
"""
