"""Runs side by side: their settings, metrics and pixels, for the command line."""
