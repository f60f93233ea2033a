"""A small teacher with its prepared data, and the spec of its cache of logits."""

from __future__ import annotations

import numpy as np
import torch

from segdistill.core.files import write_json
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import BatchIndices, BatchSampler, ViewSpec
from segdistill.data.shards import shard_file
from segdistill.data.teacher_cache import TeacherCache
from segdistill.formats.header import Header
from segdistill.nets.device import Compute
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.nets.weights import save_net
from segdistill.params.model import TeacherLogitsParams
from segdistill.scoring.record import write_archive

ARCH, CLASSES, FRAMES = "deeplabv3plus_mobilenet", 6, 3
LOGITS, SCALE, FEATURES, FEATURES_SCALE = (
    shard_file(name, 0) for name in ("logits", "scale", "features", "features_scale")
)
FRAME_PX, CROP_PX, VIEWS, STRIDE = (48, 80), (32, 48), 2, 4
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


def logits_params(dtype="float16", stride=STRIDE, kinds=("views",)) -> TeacherLogitsParams:
    return TeacherLogitsParams(kinds=kinds, views=VIEWS, stride=stride, dtype=dtype, batch_size=4)


def spec_of(data: PreparedData, stride: int = STRIDE) -> ViewSpec:
    return ViewSpec.of(data, CROP_PX, VIEWS, stride, seed=1)


def write_prepared(root) -> None:
    """Write a prepared train split of smooth noise, in which neighbouring pixels resemble each other."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (FRAMES, 3, 6, 10))).float()
    images = upsample(coarse, FRAME_PX).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    (root / "train").mkdir(parents=True)
    np.save(root / "train" / "images-00000.npy", images)
    np.save(root / "train" / "labels-00000.npy", rng.integers(0, CLASSES, images.shape[:3], np.uint8))
    splits = {"train": {"frames": [{"name": f"street{i}"} for i in range(FRAMES)]}}
    table = {"classes": ["road"], "label_ids": [7], "colors": [[128, 64, 128]]}
    write_json(root / "index.json", {"fingerprint": "data", "splits": splits} | table)


def write_teacher(folder, scale: float = 1.0, spoil: float | None = None) -> None:
    torch.manual_seed(0)
    net = build(ARCH, CLASSES)
    with torch.no_grad():
        last = net.classifier.classifier[-1]
        last.weight *= scale
        if spoil is not None:
            last.weight[0, 0] = spoil
    save_net(folder / "teacher.safetensors", net, Header.of_net(ARCH, CLASSES, 16))
    write_archive(folder / "val_classes.npz", {0: np.full(FRAME_PX, 3, np.uint8)})


def indices_of(flip_probability: float) -> BatchIndices:
    return BatchSampler(0, "distill", FRAMES, VIEWS, 6, flip_probability, 0.0).indices(0)


def floats(cache: TeacherCache, flip_probability: float = 0.0) -> np.ndarray:
    """Return the logits of a batch as the loss gets them, float32 (B, h, w, C)."""
    indices = indices_of(flip_probability)
    crops = cache.stored.crop(indices, cache.spec.origins()[indices.frames, indices.views])
    return crops.floats(COMPUTE.device).permute(0, 2, 3, 1).numpy()
