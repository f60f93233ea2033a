"""The training loop and its parts, shared by teacher and students."""
