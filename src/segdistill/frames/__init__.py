"""Frames and labels as mapped arrays, and what a batch draws from them."""
