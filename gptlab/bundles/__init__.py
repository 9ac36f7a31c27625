"""Bundles: runs packed into one plain tar that can be verified elsewhere. See docs/bundles.md."""
