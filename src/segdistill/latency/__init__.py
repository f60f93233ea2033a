"""Measure the latency of every network on every engine, interleaved."""
