"""One run on several devices: its processes, called ranks, and what they exchange."""
