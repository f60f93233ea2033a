"""Write CamVid, in the form of the SegNet tutorial, as a Cityscapes tree.

    python tools/camvid_to_cityscapes.py CAMVID data/camvid

CAMVID is the folder with train/, trainannot/, val/ and valannot/ (367 and 101 frames of 360x480, 11 classes). The tree
has the official layout, so that the pipeline reads it as it reads Cityscapes. The 11 classes are among the 19 that
Cityscapes evaluates; the other 8 never occur.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.core.errors import UserError, exit_on_user_error
from segdistill.core.files import atomic_directory

# The data set's order: sky building pole road pavement tree sign fence car pedestrian bicyclist void, as labelIds.
LABEL_IDS = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 25, 0], dtype=np.uint8)


def convert(camvid: Path, out: Path) -> dict[str, int]:
    """Write every frame of `camvid` below `out`; returns frames by split.

    Raises:
        UserError: a folder or label is missing, or a label holds a class outside the table.
    """
    counts = {}
    with atomic_directory(out) as tree:
        for split in ("train", "val"):
            photographs = sorted((camvid / split).glob("*.png"))
            if not photographs:
                raise UserError(
                    f"{camvid / split}: no PNG files; allowed is the folder of the SegNet tutorial's CamVid"
                )
            for photograph in photographs:
                _convert_frame(photograph, camvid / f"{split}annot" / photograph.name, tree, split)
            counts[split] = len(photographs)
    return counts


def _convert_frame(photograph: Path, annotation: Path, tree: Path, split: str) -> None:
    sequence, _, number = photograph.stem.partition("_")
    city = f"cam{sequence.lower()}"
    stem = f"{city}_000000_{int(number.lstrip('f')):06d}"
    image = tree / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    label = tree / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
    if not annotation.is_file():
        raise UserError(f"{annotation}: missing; every frame of {split}/ needs its label there")
    classes = np.asarray(Image.open(annotation))
    if classes.max() >= len(LABEL_IDS):
        raise UserError(f"{annotation}: holds class {classes.max()}; allowed are 0 to {len(LABEL_IDS) - 1}")
    for path, pixels in ((image, np.asarray(Image.open(photograph).convert("RGB"))), (label, LABEL_IDS[classes])):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with exit_on_user_error():
        for split, frames in convert(arguments.camvid, arguments.out).items():
            print(f"{split}: {frames} frames")


if __name__ == "__main__":
    main()
