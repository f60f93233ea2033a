"""Open a file as the pipeline does, up to the values that it uses, and check some of them.

Each function takes a path and returns nothing; an AssertionError means that a damaged file was accepted.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import seeds as valid
import torch

from segdistill.core.errors import UserError
from segdistill.data.arrays import open_array
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import TeacherCache
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.formats import curve
from segdistill.formats.header import read_header
from segdistill.nets.weights import load_net, load_state, read_state, read_torch_checkpoint
from segdistill.params.read import load_params
from segdistill.prepare import images as png_file
from segdistill.prepare.cityscapes import CityscapesFrames
from segdistill.prepare.file_tree import ZipTree
from segdistill.prepare.sources import Frame
from segdistill.scoring.record import ClassMapArchive

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
    """Read it as a photograph with a good label map, and as a label map with a good photograph; one of both may do."""
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
    frames, errors = source.list_frames("train")
    for frame in frames[:MOST_FRAMES]:
        source.size_px(frame)
        source.read(frame)
    if errors or not frames:
        raise UserError("\n".join(errors) or "no frames")


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
    assert read_header(path).classes > 0
    assert all(isinstance(tensor, torch.Tensor) for tensor in read_state(path).values())


class NetHeader:
    """Load the network of a header, before tensors that are all zero: a hole in the file, which needs no disk."""

    def __call__(self, path: Path) -> None:
        content, file = path.read_bytes(), path.with_suffix(".safetensors")
        with file.open("wb") as stream:
            stream.write(struct.pack("<Q", len(content)) + content)
            stream.truncate(8 + len(content) + valid.tensor_bytes())
        net, header = load_net(file)
        assert header.classes == valid.CLASSES
        assert not net.training


def read_torch(path: Path) -> None:
    load_state(valid.Tiny(), read_torch_checkpoint(path), str(path))


def read_onnx(path: Path) -> None:
    header = OnnxPredictor(path, threads=1).header
    assert header.table is None or len(header.table) == header.classes


def read_index_and_split(path: Path) -> None:
    data = PreparedData.open(path.parent)
    data.check_crop("distill", (8, 8), (1.0, 1.0))
    assert all(isinstance(name, str) for name in (*data.table.names, *data.val.names, data.fingerprint))


def read_manifest(path: Path) -> None:
    """Open the logits of the folder, and crop a batch from them."""
    with contextlib.chdir(path.parent):  # where there is no teacher to compare them with
        cache = TeacherCache("views", valid.SPEC, path.parent)
    indices = BatchSampler(0, "distill", valid.FRAMES, valid.VIEWS, 2, 0.5, 0.0).indices(0)
    crops = cache.stored.crop(indices, valid.SPEC.origins()[indices.frames, indices.views])
    assert crops.scale is not None
    assert torch.isfinite(crops.floats(torch.device("cpu"))).all()
    assert isinstance(cache.manifest.teacher_sha256, str)


def read_curves(path: Path) -> None:
    for point in curve.read_curve(path, 10):
        assert isinstance(point["step"], int)


def read_params(path: Path) -> None:
    params = load_params(path)
    for run in params.runs:
        assert params.distill_settings(run).lr > 0
        assert params.finetune_settings(run).steps >= 0
        params.export_params(run)
