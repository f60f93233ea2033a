"""Model files of one small random net of 19 classes, whose signals neither vanish nor explode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import write_float32, write_int8
from segdistill.formats.header import Header
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.nets.weights import save_net
from segdistill.prepare.cityscapes import TABLE

ARCH, CLASSES, OPSET, TRACED_PX = "deeplabv3_mobilenet_lite", 19, 18, (64, 96)


def smooth_frame(size_px: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return smooth noise uint8 (H, W, 3): neighbouring pixels are alike, as in a photograph."""
    cells = (1, 3, size_px[0] // 8 + 2, size_px[1] // 8 + 2)
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, cells))
    return upsample(coarse, size_px)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def random_net(classes: int = CLASSES, seed: int = 0) -> torch.nn.Module:
    """Return a random net whose batch norms have seen inputs, and to which all classes are about equally likely."""
    torch.manual_seed(seed)
    net = build(ARCH, classes).train()
    with torch.no_grad():
        for start in (0, 4):
            frames = np.stack([smooth_frame(TRACED_PX, seed) for seed in range(start, start + 4)])
            net(normalize(torch.from_numpy(frames)))
        logits = net.eval()(normalize(torch.from_numpy(frames)))
        net.classifier.classifier[-1].bias -= logits.mean((0, 2, 3))
    return net


class ModelFiles:
    """The three files of a net: safetensors, float32 ONNX, int8 ONNX."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        net, header = random_net(seed=seed), Header.of_net(ARCH, TABLE, 16)
        folder.mkdir(parents=True, exist_ok=True)
        self.torch, self.float32 = folder / "finetuned.safetensors", folder / "student.onnx"
        self.int8 = folder / "student.int8.onnx"
        save_net(self.torch, net, header)
        write_float32(self.float32, net, header, OPSET, TRACED_PX)
        write_int8(self.int8, net, header, OPSET, np.stack([smooth_frame(TRACED_PX, seed) for seed in (20, 21)]))
