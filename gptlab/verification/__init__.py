"""Verify a run: its files against their checksums, and its numbers against a replay."""
