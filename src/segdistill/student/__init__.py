"""The procedure of the students and the losses that distilling adds."""
