"""The teacher's logits as they lie on disk, and the cache they make up."""
