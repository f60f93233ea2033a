"""segdistill: one heavy segmentation teacher, many light students, and which of them to ship."""
__version__ = "0.1.0"
