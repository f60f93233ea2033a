"""Plumbing that every package may import: errors, files, processes, progress, provenance, classes. Loads no torch."""
