"""Class maps of images and videos, by a model file of ours.

`inputs` finds what is to be predicted, `images` reads it, `model` opens the model, `tiles` cuts frames that are too
large for it, `outputs` says which files come out and writes them, `video` does the same for a video, `speed` takes the
time, and `run` puts these together.
"""

# What can be written of a frame: the image half covered by colours, the colours, the official label ids.
KINDS = ("overlay", "color", "label-ids")
