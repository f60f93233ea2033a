"""The students: their procedure, and the losses that distillation adds."""
