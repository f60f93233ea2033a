"""segdistill: one heavy segmentation teacher, many light students, and which of them to ship."""
