"""The prepared arrays, what a batch draws from them, and the cache of teacher logits."""
