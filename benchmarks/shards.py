"""Bytes that `dvc push` moves after a change of the data, with arrays in shards and in one file each.

    python -m benchmarks.shards            # print the table of docs/scaling.md
    python -m benchmarks.shards --write    # and write it there

Frames and the crops that a small teacher sees are of 32x32 pixels, so that a thousand of them are few megabytes: which
shares of the arrays move depends on the number of frames alone. Bytes are counted in the folder of the remote.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.table import put_between
from segdistill.core.errors import exit_on_user_error
from segdistill.data import shards
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import ViewSpec
from segdistill.formats.header import Header
from segdistill.nets.device import resolve_device
from segdistill.nets.registry import build
from segdistill.nets.weights import save_net
from segdistill.params.model import DataParams, SyntheticParams, TeacherLogitsParams
from segdistill.paths import PREPARED, TEACHER, TEACHER_LOGITS, VAL_CLASSES
from segdistill.prepare.run import prepare
from segdistill.scoring.record import write_archive
from segdistill.teacher_logits.build import build_cache

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
FRAMES, SIZE_PX, VIEWS = 3500, (32, 32), 1
ARCH, CLASSES = "deeplabv3plus_mobilenet", 2
ARRAYS = {"images and labels": PREPARED, "logits": TEACHER_LOGITS / "views"}


def write_frame(root: Path, split: str, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind, pixels in (
        ("images", rng.integers(0, 256, (*SIZE_PX, 3), np.uint8)),
        ("labels", rng.integers(0, CLASSES, SIZE_PX, np.uint8)),
    ):
        path = root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=0)


def write_raw(root: Path, frames: int) -> None:
    """Write a data set of that many train frames, one more to be held out, and one of val."""
    classes = [{"name": "road", "ids": [0], "color": [0, 0, 0]}, {"name": "car", "ids": [1], "color": [9, 9, 9]}]
    root.mkdir()
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": classes, "ignore": [255]}), encoding="utf-8")
    for number in range(frames + 1):
        write_frame(root, "train", f"{number:06d}", number)
    write_frame(root, "val", "0", frames + 1)


def write_teacher() -> None:
    torch.manual_seed(0)
    TEACHER.mkdir(parents=True)
    save_net(TEACHER / "teacher.safetensors", build(ARCH, CLASSES), Header.of_net(ARCH, CLASSES, 16))
    write_archive(TEACHER / VAL_CLASSES, {0: np.zeros(SIZE_PX, np.uint8)})


def pushed(raw: Path, frames: int) -> dict[str, int]:
    """Prepare the data, build the logits, and return the bytes that a push of each adds to the remote."""
    unread = SyntheticParams(train_frames=1, val_frames=1)
    data = DataParams(
        source="folder", root=str(raw), size_px=None, holdout_fraction=1e-6, holdout_by="frames", synthetic=unread
    )
    prepare(data, 0, PREPARED, workers=1)
    opened = PreparedData.open()
    assert abs(len(opened.train) - frames) <= 1
    views = ViewSpec.of(opened, SIZE_PX, VIEWS, 4, seed=0)
    params = TeacherLogitsParams(kinds=("views",), views=VIEWS, stride=4, dtype="float16", batch_size=100)
    build_cache("views", ARRAYS["logits"], opened.train, views, params, resolve_device("cpu", "float32", 1))
    dvc("add", *map(str, ARRAYS.values()))
    added = {}
    for name, folder in ARRAYS.items():
        before = stored_bytes()
        dvc("push", f"{folder}.dvc")
        added[name] = stored_bytes() - before
    return added


def dvc(*arguments: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], check=True, env=environment)


def stored_bytes() -> int:
    return sum(path.stat().st_size for path in Path("store").rglob("*") if path.is_file())


def changes(raw: Path, frames: int) -> dict[str, dict[str, int]]:
    """Return what is pushed at first and after each change of the data, one after the other."""
    middle = frames // 2
    found = {"first push": pushed(raw, frames)}
    write_frame(raw, "train", f"{middle:06d}", 2 * frames)
    found["one image and its label changed"] = pushed(raw, frames)
    write_frame(raw, "train", f"{frames - 1:06d}_and_a_half", 2 * frames + 1)
    found["a frame added at the end"] = pushed(raw, frames + 1)
    write_frame(raw, "train", f"{middle:06d}_and_a_half", 2 * frames + 2)
    found["a frame added in the middle"] = pushed(raw, frames + 2)
    return found


def measured(frames: int) -> str:
    """Return the table, as Markdown."""
    found = {}
    for way, per_shard in (("one file", 10**9), ("shards", shards.FRAMES_PER_SHARD)):
        with tempfile.TemporaryDirectory(prefix="segdistill-bench-") as folder, contextlib.chdir(folder):
            shards.FRAMES_PER_SHARD = per_shard
            for command in (("init", "--no-scm"), ("remote", "add", "-d", "store", "store")):
                dvc(*command)
            Path("store").mkdir()
            write_raw(Path("raw"), frames)
            write_teacher()
            found[way] = changes(Path("raw"), frames)
    columns = [(way, name) for name in ARRAYS for way in found]
    lines = [
        f"{frames:,} train frames of {SIZE_PX[0]}x{SIZE_PX[1]} pixels, K = {VIEWS}; MB that `dvc push` moves:",
        "",
        "| | " + " | ".join(f"{name}, {way}" for way, name in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for change in found["shards"]:
        cells = (f"{found[way][change][name] / 1e6:.2f}" for way, name in columns)
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=FRAMES, help="train frames")
    parser.add_argument("--write", action="store_true", help=f"also write the table into {PAGE.name}")
    given = parser.parse_args()
    with exit_on_user_error():
        text = measured(given.frames)
        print(text)
        if given.write:
            put_between(PAGE, "shards", text)


if __name__ == "__main__":
    main()
