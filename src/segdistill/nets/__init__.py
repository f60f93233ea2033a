"""Segmentation networks by name (`registry.build`), their losses, their weights on disk, and what computes them."""
