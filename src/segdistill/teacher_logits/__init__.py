"""Builds the cache of teacher logits."""
