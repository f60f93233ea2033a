"""Benchmarks of the claims about speed: `python -m benchmarks.run`."""
