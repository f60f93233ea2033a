"""The baseline: distillation as public repositories write it, with the teacher run in every step.

It follows the training script of VainF/DeepLabV3Plus-Pytorch (main.py, datasets/cityscapes.py: a dataset of PNG files,
its transforms, the DataLoader, SGD, logits upsampled to pixels inside the network, the loss brought to the host in each
step) and adds the teacher as winycg/CIRKD does (train_kd.py, losses/kd.py: eval mode, no_grad, KL between the softmaxes
of every pixel). Where such scripts differ, the faster way is taken:

- frames are cropped before they become arrays, so that look-up table, flip and normalisation touch the crop only;
- loader workers outlive an epoch, and on a GPU their batches are pinned and copied without waiting;
- the divergence is computed on the logits without transposing them;
- no colour jitter, no random scale: both would cost the baseline more than the library.

Unlike the library it decodes whole PNG files, because a PNG cannot be read in part; it runs the teacher in every step;
and it compares at full resolution. All is float32 in NCHW, torch's defaults.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transforms

from benchmarks.our_loop import STUDENT, TEACHER
from benchmarks.streets import Sizes
from segdistill.formats.classes import IGNORE
from segdistill.nets.registry import build
from segdistill.prepare.cityscapes import CLASSES, TRAIN_ID_OF_LABEL_ID

WORKERS = 2
ALPHA, TEMPERATURE = 0.3, 1.0
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class StreetFiles(Dataset):
    """Random crops of PNG frames: (image float32 (3, H, W), labels int64 (H, W)), `length` of them to an epoch."""

    def __init__(self, png_pairs: list[tuple[Path, Path]], crop_px: tuple[int, int], length: int) -> None:
        self.png_pairs, self.crop_px, self.length = png_pairs, crop_px, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_file, label_file = self.png_pairs[index % len(self.png_pairs)]
        image, labels = Image.open(image_file).convert("RGB"), Image.open(label_file)
        height, width = self.crop_px
        top, left = random.randint(0, image.height - height), random.randint(0, image.width - width)
        image, labels = (frame.crop((left, top, left + width, top + height)) for frame in (image, labels))
        if random.random() < 0.5:
            image, labels = transforms.hflip(image), transforms.hflip(labels)
        pixels = transforms.normalize(transforms.to_tensor(image), MEAN, STD)
        return pixels, torch.from_numpy(TRAIN_ID_OF_LABEL_ID[np.asarray(labels)]).long()


class AsPublished(nn.Module):
    """A DeepLabV3+ of the library with the forward pass of the public code, written out.

    The features are resized and joined, the joined map is convolved, and the logits are resized to pixels.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = net.backbone, net.classifier

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BCHW."""
        logits = self.at_stride_4(images_BCHW)
        return F.interpolate(logits, size=images_BCHW.shape[-2:], mode="bilinear", align_corners=False)

    def at_stride_4(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BChw."""
        low, out = self.backbone(images_BCHW)
        low = self.head.project(low)
        out = F.interpolate(self.head.aspp(out), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.head.classifier(torch.cat([low, out], dim=1))


class UsualLoop:
    """Student and teacher (images_BCHW -> logits_BCHW) in the usual loop; an epoch is `steps` steps long."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        png_pairs: list[tuple[Path, Path]],
        sizes: Sizes,
        steps: int,
        device: torch.device,
    ) -> None:
        self.device, self.student, self.teacher = device, student.to(device).train(), teacher.to(device).eval()
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.files = StreetFiles(png_pairs, sizes.crop_px, steps * sizes.batch)
        self.loader = DataLoader(
            self.files,
            batch_size=sizes.batch,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORE)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.log = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open as long as the loop is

    def epoch(self) -> None:
        """Train on one pass over the loader."""
        for step, (images, labels) in enumerate(self.loader):
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            with torch.no_grad():
                taught = self.teacher(images)
            logits = self.student(images)
            log_student = F.log_softmax(logits / TEMPERATURE, dim=1)
            of_teacher = F.softmax(taught / TEMPERATURE, dim=1)
            divergence = F.kl_div(log_student, of_teacher, reduction="sum") / log_student[:, 0].numel()
            loss = (1 - ALPHA) * self.cross_entropy(logits, labels) + ALPHA * TEMPERATURE**2 * divergence
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            print(f"step {step}, loss {loss.item():.4f}", file=self.log)


def library_nets() -> tuple[nn.Module, nn.Module]:
    """Return student and teacher of the library."""
    return tuple(AsPublished(build(name, CLASSES)) for name in (STUDENT, TEACHER))


def peer_nets() -> tuple[nn.Module, nn.Module]:
    """Return student and teacher of segmentation-models-pytorch."""
    from segmentation_models_pytorch import DeepLabV3Plus

    backbones = "mobilenet_v2", "resnet101"
    return tuple(DeepLabV3Plus(name, encoder_weights=None, classes=CLASSES) for name in backbones)


def usual_epochs(nets: Callable[[], tuple[nn.Module, nn.Module]], *given: object) -> Callable[[], None]:
    """Return a call that trains an epoch of the usual loop on `nets`, for a process where torch has its defaults."""
    torch.backends.cudnn.benchmark = True  # a GPU searches for its fastest convolutions
    return UsualLoop(*nets(), *given).epoch
