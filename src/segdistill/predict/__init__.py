"""Predict class maps of images and videos with a student.

`inputs` finds the inputs, `images` reads images, `model` opens the model file, `tiles` cuts frames that do not fit into
memory, `outputs` names and writes the output files, `video` reads and writes videos, `speed` measures the time, and
`run` calls these.
"""

# The outputs of a frame: an overlay of image and class colours, the colours alone, the official label ids.
KINDS = ("overlay", "color", "label-ids")
