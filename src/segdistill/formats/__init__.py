"""Formats on disk that stages share: the class table, the header of weights, curves."""
