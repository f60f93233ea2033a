"""The runs of a sweep, several at a time."""
