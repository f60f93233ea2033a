"""What happens to a file from elsewhere when the pipeline opens it, up to the values that are used; checked a little.

Each function takes a path, and gives nothing; an AssertionError is a file that was believed and should not have been.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import seeds as valid
import torch
from segdistill.predict.classes import class_table

from segdistill.core.errors import UserError
from segdistill.data.arrays import open_array
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import Teaching, origins_of
from segdistill.export.onnx_file import read_metadata
from segdistill.nets.weights import load_net, load_state, read_state, read_torch_checkpoint
from segdistill.params.read import load_params
from segdistill.prepare import images as png_file
from segdistill.prepare.cityscapes import CityscapesFrames
from segdistill.prepare.file_tree import ZipTree
from segdistill.prepare.sources import Frame
from segdistill.formats import curve
from segdistill.scoring.record import ClassMapArchive
from segdistill.tracking import rows
from segdistill.training.job import Data

FRAME = Frame("train", "aachen", "000000", valid.STEMS[0], 0)
MOST_FRAMES = 8  # of a zip, which may list one name many times


class OneFile:
    """Half of a data set in which every file has the same content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def path_of(self, name: str) -> str:
        return name

    def read(self, name: str) -> bytes:
        return self.content


def read_frame_pair(path: Path) -> None:
    """As a photograph beside a good label map, and as a label map beside a good photograph; one of both may do."""
    content, taken = path.read_bytes(), 0
    for image, label_ids in ((content, valid.label_map()), (valid.photograph(), content)):
        try:
            taken += _read_pair(image, label_ids)
        except UserError as error:
            refused = error
    if not taken:
        raise refused


def _read_pair(image: bytes, label_ids: bytes) -> bool:
    source = CityscapesFrames(OneFile(image), OneFile(label_ids))
    read = source.read(FRAME)
    size_px = source.size_px(FRAME)
    assert read.image.dtype == read.classes.dtype == np.uint8
    assert read.image.shape == (*size_px, 3)
    assert read.classes.shape == size_px
    assert ((read.classes < 19) | (read.classes == 255)).all()
    if png_file.fast_decoder() is not None:
        try:
            with patch.object(png_file, "fast_decoder", lambda: None):
                by_pillow = source.read(FRAME)
        except UserError:  # which looks at one checksum more
            return True
        assert np.array_equal(read.image, by_pillow.image)
        assert np.array_equal(read.classes, by_pillow.classes)
    return True


def read_frame_pair_with_pillow(path: Path) -> None:
    """The same where kornia-rs is not installed."""
    with patch.object(png_file, "fast_decoder", lambda: None):
        read_frame_pair(path)


def read_zip(path: Path) -> None:
    """List and read both halves of a city in one zip."""
    source = CityscapesFrames(ZipTree(path, "leftImg8bit"), ZipTree(path, "gtFine"))
    frames, faults = source.list_frames("train")
    for frame in frames[:MOST_FRAMES]:
        source.size_px(frame)
        source.read(frame)
    if faults or not frames:
        raise UserError("\n".join(faults) or "no frames")


def read_npy(path: Path) -> None:
    array = open_array(path, "run: x")
    assert len(array.tobytes()) == array.nbytes <= path.stat().st_size


def read_class_maps(path: Path) -> None:
    archive = ClassMapArchive(path)
    for index in range(2):
        classes = archive(index)
        assert (classes.dtype, classes.ndim) == (np.uint8, 2)
        classes[:0] = 0  # may be written to


def read_safetensors(path: Path) -> None:
    class_table(read_facts(path))
    assert all(isinstance(tensor, torch.Tensor) for tensor in read_state(path).values())


class NetHeader:
    """Loads the net of a header, before tensors that are all zero: a hole in the file, which needs no disk."""

    def __call__(self, path: Path) -> None:
        header, file = path.read_bytes(), path.with_suffix(".safetensors")
        with file.open("wb") as stream:
            stream.write(struct.pack("<Q", len(header)) + header)
            stream.truncate(8 + len(header) + valid.tensor_bytes())
        net, facts = load_net(file)
        assert facts["classes"] == valid.CLASSES
        assert not net.training


def read_torch(path: Path) -> None:
    load_state(valid.Tiny(), read_torch_checkpoint(path), str(path))


def read_onnx(path: Path) -> None:
    facts = read_metadata(path)
    assert len(class_table(facts)) == facts["classes"]


def read_index_and_split(path: Path) -> None:
    data = Data(path.parent)
    data.check_crop("distill.crop_px", (8, 8))
    assert all(isinstance(name, str) for name in (*data.class_names, *data.val.names, data.fingerprint))


def read_manifest(path: Path) -> None:
    """Open the logits beside it, and cut a batch out of them."""
    with contextlib.chdir(path.parent):  # where there is no teacher that they would have to be of
        teaching = Teaching("views", valid.FACTS, path.parent)
    plan = BatchSampler(0, "distill", valid.FRAMES, valid.VIEWS, 2, 0.5, 0.0).plan(0)
    crops = teaching.stored.cut(plan, origins_of(valid.FACTS)[plan.frames, plan.views])
    assert crops.scale is not None
    assert torch.isfinite(crops.floats(torch.device("cpu"))).all()
    assert isinstance(teaching.manifest["teacher_sha256"], str)


def read_curves(path: Path) -> None:
    for point in rows.read_curve(path):
        assert isinstance(point.step, int)
    curve.read_curve(path, 10)


def read_params(path: Path) -> None:
    params = load_params(path)
    for run in params.runs:
        assert params.distill_settings(run).lr > 0
        assert params.finetune_settings(run)[1] >= 0
        params.export_params(run)
