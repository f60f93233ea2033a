"""From raw frames to arrays: what the stage prepare runs."""
