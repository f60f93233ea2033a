"""Segmentation networks: parts, weights on disk, and the device that runs them."""
