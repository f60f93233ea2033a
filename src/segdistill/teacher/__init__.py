"""The teacher: given files or a trained network, checked, stored, and run as one."""
