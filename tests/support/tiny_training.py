"""A training small enough for a test: a network of two layers, frames that it can learn, a teacher's logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import StoredCrops
from segdistill.data.transforms import crop, normalize
from segdistill.formats.classes import IGNORE
from segdistill.nets.device import Compute
from segdistill.nets.resize import upsample
from segdistill.params.model import StudentSettings
from segdistill.student.distillation import Distillation, add_feature_projection
from segdistill.training.batches import CropLoader
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import Job, train

FRAMES, FRAME_PX, CROP_PX, VIEWS, CLASSES = 5, (24, 32), (16, 16), 3, 3
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


class TinyNet(nn.Module):
    """Logits at stride 2, with all that makes resuming hard: batch norm and dropout."""

    def __init__(self, seed: int = 0, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(6, CLASSES, 1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.features_and_logits(images_BCHW)[1]

    def features_and_logits(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(images_BCHW)
        return features, self.classifier(features)


def make_split(shuffled_labels: bool = False) -> Split:
    """Frames whose label is how bright the pixel is: learnable by a 1x1 convolution."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, CLASSES, (FRAMES, FRAME_PX[0] // 4, FRAME_PX[1] // 4)).repeat(4, 1).repeat(4, 2)
    images = (levels[..., None] * 100 + rng.integers(0, 50, (*levels.shape, 3))).astype(np.uint8)
    labels = levels.astype(np.uint8)
    labels[:, 0] = IGNORE
    if shuffled_labels:
        labels = (labels + 1) % CLASSES
    return Split(images, labels, tuple(f"street{i}" for i in range(FRAMES)))


def settings_of(**changed) -> StudentSettings:
    given = {
        "student": "deeplabv3_mobilenet_lite",
        "teacher": "none",
        "lr": 0.1,
        "seed": 0,
        "crop_px": CROP_PX,
        "alpha": 0.0,
        "method": "kl",
        "temperature": 1.0,
        "kl_resolution": "stride",
        "output_stride": 16,
        "init": "random",
        "steps": 8,
        "batch_size": 4,
        "schedule": "poly",
        "decay_every_steps": 3,
        "gamma": 0.5,
        "poly_power": 0.9,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "backbone_lr_factor": 0.5,
        "label_loss": "cross_entropy",
        "focal_gamma": 2.0,
        "flip_probability": 0.5,
        "jitter": 0.3,
        "log_every_steps": 3,
        "evaluate_every_steps": 0,
        "checkpoint_every_steps": 4,
    }
    return StudentSettings.model_construct(**(given | changed))  # frames are smaller than params allow


class FailingBatches(CropLoader):
    """Calls `hook(step)` before handing on the batch of that step."""

    hook = staticmethod(lambda step: None)

    def steps(self, first, end):
        for step, batch in super().steps(first, end):
            self.hook(step)
            yield step, batch


class LogitsOfATeacher:
    """The logits of a teacher on each crop of a batch, NaN for the batches with a seed in `nan_for`."""

    def __init__(self, teacher: nn.Module, split: Split, nan_for: set[int] = frozenset()) -> None:
        self.teacher, self.split, self.nan_for = teacher.eval(), split, nan_for

    @torch.no_grad()
    def crop(self, indices, origins):
        images = np.empty((len(indices.frames), *CROP_PX, 3), np.uint8)
        crop(self.split.images, indices.frames, origins, indices.flips, CROP_PX, images)
        logits = self.teacher(normalize(torch.from_numpy(images))).permute(0, 2, 3, 1).numpy()
        return StoredCrops(torch.from_numpy(logits * np.nan if indices.seed in self.nan_for else logits))

    def prefetch(self, indices, origins):
        return 0


class FeaturesOfATeacher(LogitsOfATeacher):
    """Some channels of the features of a teacher, as stored ones of 4 x 4 cells."""

    channels = 4

    @torch.no_grad()
    def crop(self, indices, origins):
        images = np.empty((len(indices.frames), *CROP_PX, 3), np.uint8)
        crop(self.split.images, indices.frames, origins, indices.flips, CROP_PX, images)
        features, _ = self.teacher.features_and_logits(normalize(torch.from_numpy(images)))
        return StoredCrops(upsample(features[:, : self.channels], (4, 4)).permute(0, 2, 3, 1).contiguous())


def origins() -> np.ndarray:
    return ViewSpec("tiny", FRAMES, FRAME_PX, CROP_PX, VIEWS, stride=4, seed=0).origins()


def make_job(
    net=None,
    hook=None,
    cached=None,
    split=None,
    holdout=None,
    live_teacher=None,
    mixer=None,
    features=None,
    compute=COMPUTE,
    **changed,
) -> Job:
    """A job whose students distil where they have logits or a live teacher; `changed` are settings."""
    net = net or TinyNet()
    settings = settings_of(**changed)
    batches = BatchSampler(0, "distill", FRAMES, VIEWS, settings.batch_size, settings.flip_probability, settings.jitter)
    on_gpu = compute.device.type == "cuda"
    crops = FailingBatches(
        split or make_split(), batches, origins(), CROP_PX, cached, on_gpu, None, mixer, features, threads=1 + on_gpu
    )
    if hook is not None:
        crops.hook = hook
    projection = add_feature_projection(net, features.channels, settings.seed) if features else None
    distillation = Distillation(settings, compute, live_teacher, projection) if cached or live_teacher else None
    scored = {} if holdout is None else {"holdout_mean_iou": holdout}
    return Job("distill/tiny", net, crops, settings, compute, distillation, **scored)


def run(root, key="key", **given) -> tuple[nn.Module, list[dict]]:
    """Train a job with its checkpoints in `root` and return its network and curve."""
    job = make_job(**given)
    with Checkpointer(job.name, key, root) as checkpointer:
        return job.net, train(job, checkpointer)


def assert_same(found, wanted) -> None:
    """Both are (network, curve), equal bit for bit."""
    expected = wanted[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found[0].state_dict().items())
    assert found[1] == wanted[1]


def at(wanted_step: int, action):
    def hook(step: int) -> None:
        if step == wanted_step:
            action()

    return hook


class KilledError(Exception):
    """Stands for a kill: nothing more is saved."""


def killed() -> None:
    raise KilledError


def distilled(alpha=0.4, temperature=2.0, live_teacher=None, nan_for=frozenset(), **settings) -> dict:
    """Arguments of a job that learns from a stored or a live teacher."""
    cached = None if live_teacher else LogitsOfATeacher(TinyNet(seed=9), make_split(), nan_for)
    return {"cached": cached, "live_teacher": live_teacher, "alpha": alpha, "temperature": temperature, **settings}
