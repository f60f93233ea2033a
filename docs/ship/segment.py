"""Segment images with an exported student: needs numpy, Pillow and onnxruntime, and nothing of segdistill.

    python segment.py student.int8.onnx street.jpg

writes street_classes.png (the class of each pixel) and street_overlay.png (image and colours, with a legend).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

MIN_PX = 32  # of each side


def open_student(path: str, threads: int = 0) -> tuple[onnxruntime.InferenceSession, dict]:
    """Return a session on the CPU and the facts in the file's metadata; 0 threads are all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["segdistill"])


def legend(classes: np.ndarray, facts: dict) -> Image.Image:
    """Return an image that names the classes of a class map, the most frequent first, with their colours."""
    counts = np.bincount(classes.ravel(), minlength=len(facts["class_names"]))
    present = [number for number in np.argsort(-counts, kind="stable") if counts[number]]
    image = Image.new("RGB", (160, 16 * len(present)), "white")
    draw = ImageDraw.Draw(image)
    for row, number in enumerate(present):
        draw.rectangle((3, 16 * row + 3, 13, 16 * row + 13), fill=tuple(facts["colors"][number]))
        share = counts[number] / classes.size
        name = facts["class_names"][number].encode("latin-1", "replace").decode("latin-1")  # what Pillow's font has
        draw.text((20, 16 * row + 2), f"{name} {share:.1%}", fill="black")
    return image


def main(model: str, file: str) -> None:
    """Segment one image file."""
    session, facts = open_student(model)
    frame = np.asarray(Image.open(file).convert("RGB"))
    if min(frame.shape[:2]) < MIN_PX:
        sys.exit(f"{file}: found {frame.shape[1]}x{frame.shape[0]} pixels; at least {MIN_PX} a side are allowed")
    (batch,) = session.run(["classes"], {"image": frame[None]})
    classes = batch[0]

    out = Path(file).with_suffix("")
    Image.fromarray(classes).save(f"{out}_classes.png")
    colors = np.array(facts["colors"], np.uint8)[classes]
    mixed = Image.fromarray(((frame.astype(np.uint16) + colors) // 2).astype(np.uint8))
    names = legend(classes, facts)
    page = Image.new("RGB", (mixed.width + names.width, max(mixed.height, names.height)), "white")
    page.paste(mixed, (0, 0))
    page.paste(names, (mixed.width, 0))
    page.save(f"{out}_overlay.png")
    print(f"{file}: {', '.join(facts['class_names'][number] for number in np.unique(classes))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
