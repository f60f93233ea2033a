"""A small teacher with its prepared data, and what its cache of logits is asked for."""

from __future__ import annotations

import numpy as np
import torch

from segdistill.core.files import write_json
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import Teaching, geometry, origins_of
from segdistill.formats.header import Header
from segdistill.nets.device import Compute
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.nets.weights import save_net
from segdistill.params.model import TeacherLogitsParams
from segdistill.scoring.record import write_archive

ARCH, CLASSES, FRAMES = "deeplabv3plus_mobilenet", 6, 3


FRAME_PX, CROP_PX, VIEWS, STRIDE = (48, 80), (32, 48), 2, 4


COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


def logits_params(dtype="float16", stride=STRIDE, kinds=("views",)) -> TeacherLogitsParams:
    return TeacherLogitsParams(kinds=kinds, views=VIEWS, stride=stride, dtype=dtype, batch_size=4)


def facts_of(split: Split, stride: int = STRIDE) -> dict:
    return geometry(split, "data", 1, CROP_PX, VIEWS, stride)


def write_prepared(root) -> None:
    """A prepared train split of smooth noise, in which neighbouring pixels resemble each other."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (FRAMES, 3, 6, 10))).float()
    images = upsample(coarse, FRAME_PX).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    (root / "train").mkdir(parents=True)
    np.save(root / "train" / "images.npy", images)
    np.save(root / "train" / "labels.npy", rng.integers(0, CLASSES, images.shape[:3], np.uint8))
    splits = {"train": {"frames": [{"name": f"street{i}"} for i in range(FRAMES)]}}
    write_json(root / "index.json", {"fingerprint": "data", "classes": ["road"], "splits": splits})


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


def plan_of(flip_probability: float):
    return BatchSampler(0, "distill", FRAMES, VIEWS, 6, flip_probability, 0.0).plan(0)


def floats(teaching: Teaching, flip_probability: float = 0.0) -> np.ndarray:
    """The logits of a planned batch as the loss gets them, float32 (B, h, w, C)."""
    plan = plan_of(flip_probability)
    crops = teaching.stored.cut(plan, origins_of(teaching.facts)[plan.frames, plan.views])
    return crops.floats(COMPUTE.device).permute(0, 2, 3, 1).numpy()
