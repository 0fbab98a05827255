"""Checkpoints: a base and the deltas since it, named by a manifest that is written last."""
