"""Predict class maps of images and videos with a student.

`inputs` finds the inputs, `images` reads them, `model` opens the model, `tiles` cuts frames that do not fit into
memory, `outputs` names and writes the output files, `video` handles videos, `speed` measures the time, and `run` calls
these.
"""

# The outputs of a frame: an overlay of image and class colours, the colours alone, the official label ids.
KINDS = ("overlay", "color", "label-ids")
