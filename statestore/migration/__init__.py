"""Moves a state from any place to any other while nobody uses it."""
