"""What lies on disk between stages: the class table, the header of weights, curves."""
