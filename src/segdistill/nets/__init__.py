"""Segmentation networks by name: `registry.build`, `resize.upsample`, and `adapters` for weights from elsewhere."""
