"""Benchmarks: every backend against its floor, in one run. `python -m benchmarks --help`."""
