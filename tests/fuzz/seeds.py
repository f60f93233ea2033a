"""Small valid files of every kind that is read, built in memory, and the files that their readers need as well."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import Manifest
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import KEY, Header
from segdistill.nets.registry import build_uninitialized
from segdistill.nets.weights import save_net
from segdistill.paths import VAL_CLASSES
from segdistill.scoring.record import write_archive
from segdistill.teacher_logits.writer import LogitsWriter, stored_shape

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
STEMS = ("aachen_000000_000019", "bochum_000001_000019")
SIZE_PX, CROP_PX, FRAMES, VIEWS, CLASSES = (8, 16), (8, 8), 3, 2, 4
TABLE = ClassTable(("sky", "sea", "land", "ship"), (0, 7, 9, 200), ((0, 0, 0), (1, 2, 3), (255, 0, 0), (9, 9, 9)))
SPEC = ViewSpec("data", FRAMES, SIZE_PX, CROP_PX, VIEWS, stride=4, seed=0)
HEADER = "step,lr,loss,label_loss,distill_loss,holdout_mean_iou\n"


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _saved(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@functools.cache
def photograph() -> bytes:
    return _saved(Image.fromarray(_rng().integers(0, 256, (*SIZE_PX, 3), np.uint8)))


@functools.cache
def label_map() -> bytes:
    return _saved(Image.fromarray(_rng().integers(0, 34, SIZE_PX, np.uint8)))


def pngs() -> list[bytes]:
    """Return a photograph, and label maps: greyscale, and palettes of 8 and 4 bits."""
    indexed = []
    for colours in (16, 256):  # 4 and 8 bits
        image = Image.fromarray(_rng().integers(0, 16, SIZE_PX, np.uint8))
        image.putpalette(bytes(range(256)) * 3 if colours == 256 else bytes(range(48)))
        indexed.append(_saved(image))
    return [photograph(), label_map(), *indexed]


def zips() -> list[bytes]:
    """Return both halves of a city in one file, stored and deflated."""
    packed = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", how) as archive:
            for stem in STEMS:
                city = stem.split("_")[0]
                archive.writestr(f"leftImg8bit/train/{city}/{stem}_leftImg8bit.png", photograph())
                archive.writestr(f"gtFine/train/{city}/{stem}_gtFine_labelIds.png", label_map())
        packed.append(stream.getvalue())
    return packed


def npys() -> list[bytes]:
    saved = []
    for array in (np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), np.zeros((3, 5), np.float16), np.zeros(0, "f4")):
        stream = io.BytesIO()
        np.save(stream, array)
        saved.append(stream.getvalue())
    return saved


def npzs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        maps = _rng().integers(0, 19, (2, *SIZE_PX), np.uint8)
        write_archive(Path(folder) / "a.npz", dict(enumerate(maps)))
        return [(Path(folder) / "a.npz").read_bytes()]


class Tiny(nn.Module):
    """A network of few weights under the names that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.classifier = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, CLASSES, 1))


def safetensors() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_net(Path(folder) / "a.safetensors", Tiny(), Header.of_net("deeplabv3_mobilenet_lite", TABLE, 16))
        return [(Path(folder) / "a.safetensors").read_bytes()]


@functools.cache
def _net_header() -> bytes:
    arch = "deeplabv3_mobilenet_lite"
    with tempfile.TemporaryDirectory() as folder:
        save_net(Path(folder) / "a.safetensors", build_uninitialized(arch, CLASSES), Header.of_net(arch, TABLE, 16))
        with (Path(folder) / "a.safetensors").open("rb") as stream:
            return stream.read(struct.unpack("<Q", stream.read(8))[0])


def net_headers() -> list[bytes]:
    """Return the header of a weights file of a whole network; its tensors are zeros, see `NetHeader`."""
    return [_net_header()]


@functools.cache
def tensor_bytes() -> int:
    """Return how long the tensors behind `net_headers` are."""
    header = json.loads(_net_header())
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def checkpoints() -> list[bytes]:
    """Return what torch.save writes: bare, wrapped, of half precision, from a parallel wrapper."""
    state = Tiny().state_dict()
    wrapped = {"model_state": state, "epoch": 3, "best_score": np.float64(0.5), "args": {"lr": [0.1, None]}}
    halves = {key: value.half() for key, value in state.items()}
    parallel = OrderedDict((f"module.{key}", value) for key, value in state.items())
    return [_torch_saved(content) for content in (state, wrapped, halves, {"state_dict": parallel})]


def legacy_checkpoints() -> list[bytes]:
    """Return the same of older releases of torch, without a zip around it."""
    state = Tiny().state_dict()
    return [_torch_saved(content, zipped=False) for content in (state, {"model": state, "epoch": 3})]


def _torch_saved(content: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def onnx_models() -> list[bytes]:
    """Return a model with the inputs, outputs, metadata and kinds of operators of an exported student."""
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, inputs: str, output: str, **attributes):
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    rng = _rng()
    constants = {
        "weights": rng.integers(-9, 9, (CLASSES, 3, 1, 1)).astype(np.int8),
        "scale": np.float32(0.1),
        "scales": np.array([1, 1, 0.5, 0.5], np.float32),
    }
    nodes = [
        node("Cast", "image", "floats", to=TensorProto.FLOAT),
        node("Transpose", "floats", "pixels", perm=[0, 3, 1, 2]),
        node("DequantizeLinear", "weights scale", "kernel"),
        node("Conv", "pixels kernel", "convolved", kernel_shape=[1, 1]),
        node("Resize", "convolved scales", "logits", mode="linear"),
        node("ArgMax", "convolved", "largest", axis=1, keepdims=0),
        node("Cast", "largest", "classes", to=TensorProto.UINT8),
    ]
    nodes[4].input.insert(1, "")  # no region of interest
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info("classes", TensorProto.UINT8, ["n", "h", "w"]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES, "u", "v"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    header = Header.of_net("deeplabv3_mobilenet_lite", TABLE, 16)
    helper.set_model_props(model, {KEY: header.text()})
    return [model.SerializeToString()]


def indices() -> list[bytes]:
    splits = {
        name: {"frames": [{"name": f"{name}{row}", "city": "aachen"} for row in range(FRAMES)], "class_frequency": [1]}
        for name in ("train", "holdout", "val")
    }
    index = {"source": "synthetic", "size_px": list(SIZE_PX), "classes": ["road", "car"], "fingerprint": "data"}
    index |= {"label_ids": [7, 26], "colors": [[128, 64, 128], [0, 0, 142]]}
    return [json.dumps(index | {"splits": splits}).encode()]


def write_split(folder: Path) -> None:
    """Write the arrays of `indices`."""
    for name in ("train", "holdout", "val"):
        (folder / name).mkdir()
        np.save(folder / name / "images-00000.npy", np.zeros((FRAMES, *SIZE_PX, 3), np.uint8))
        np.save(folder / name / "labels-00000.npy", np.zeros((FRAMES, *SIZE_PX), np.uint8))


def manifests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        arrays = write_logits(Path(folder))
    return [json.dumps(Manifest("views", SPEC, "uint8", "0" * 64, arrays).facts()).encode()]


def write_logits(folder: Path) -> dict:
    """Write the logits of `manifests` and return their arrays."""
    shape = stored_shape("views", SPEC, CLASSES)
    with LogitsWriter(folder, "uint8", shape) as writer:
        writer.append(_rng().normal(size=(FRAMES * VIEWS, *shape[2:])).astype(np.float32))
    write_archive(folder / VAL_CLASSES, dict.fromkeys(range(FRAMES), np.zeros(SIZE_PX, np.uint8)))
    return writer.arrays


def curves() -> list[bytes]:
    lines = [f"{step},0.01,{3 / step},1.5,0.25,{0.2 if step % 3 == 0 else ''}\n" for step in range(1, 10)]
    return [(HEADER + "".join(lines)).encode(), HEADER.encode(), b""]


def params_files() -> list[bytes]:
    return [(PROFILES / "tiny.yaml").read_bytes()]
