"""The built-in city: street scenes with Cityscapes labels, drawn by a formula."""
