"""What an evaluation costs over the bare forward pass of the network: ours (8), and the usual one (8-usual).

The frames and labels are streets at full size on disk, one frame a batch. The network is untrained: the time of an
evaluation does not depend on the logits. All three keep freed memory, as the stages do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.our_loop import our_compute
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, QUICK, streets_on_disk
from segdistill.data.prepared import Split
from segdistill.data.transforms import normalize
from segdistill.formats.classes import IGNORE
from segdistill.formats.header import MEAN, STD
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.prepare.cityscapes import CLASSES
from segdistill.scoring.evaluate import evaluate
from segdistill.scoring.record import ClassMapArchive, write_archive

NET = "deeplabv3plus_mobilenet"
FRAMES, ROUNDS = 3, 7  # per turn; counted


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 8 and 8-usual; with a GPU also 8-gpu."""
    conditions, rows = _on("cpu", quick)
    if torch.cuda.is_available():
        conditions["gpu"], gpu_rows = _on("cuda", quick)
        torch.use_deterministic_algorithms(False)  # our_compute("cuda") turned them on
        rows += gpu_rows
    return conditions, rows


def _on(device: str, quick: bool) -> tuple[dict, list[Row]]:
    sizes, rounds = (QUICK, 2) if quick else (ON_CPU, ROUNDS)
    compute, street = our_compute(device).in_float32(), streets_on_disk(sizes.frame_px, sizes.frames).split
    split = Split(street.images[:FRAMES], street.labels[:FRAMES], street.names[:FRAMES])
    torch.manual_seed(0)
    net = compute.place(build(NET, CLASSES)).eval()
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "val_classes.npz"
        write_archive(teacher, {i: np.where(labels == IGNORE, 0, labels) for i, labels in enumerate(split.labels)})
        kinds = {
            "bare": bare_forward(net, compute, split),
            "ours": lambda: our_evaluation(net, compute, split, teacher),
            "usual": lambda: usual_evaluation(net, compute, split),
        }
        taken_s = seconds_in_turn(kinds, rounds)
    ours, usual = taken_s["ours"] / taken_s["bare"], taken_s["usual"] / taken_s["bare"]
    suffix = "" if device == "cpu" else "-gpu"
    what = "evaluation of a split with all metrics, mean loss and agreement / bare forward over it"
    rows = [
        ratio_row(f"8{suffix}", what, ours, "at most 1.1"),
        ratio_row(f"8-usual{suffix}", "the usual evaluation, without agreement / bare forward", usual),
    ]
    conditions = {
        "net": f"{NET}, untrained",
        "frame_px": list(split.size_px),
        "frames": len(split),
        "batch": 1,
        "precision": str(compute.dtype).removeprefix("torch."),
        "seconds_per_frame": {kind: round(float(np.median(taken)) / len(split), 4) for kind, taken in taken_s.items()},
        "rounds": rounds,
    }
    return conditions, rows


def bare_forward(net: nn.Module, compute: Compute, split: Split) -> Callable[[], None]:
    """Return a call of the network alone for each frame of `split`, on pixels that are normalised already."""
    inputs = [normalize(torch.from_numpy(np.array(image)[None]).to(compute.device)) for image in split.images]

    @torch.inference_mode()
    def forward() -> None:
        for frame in inputs:
            with compute.autocast():
                net(frame)
        if compute.device.type == "cuda":
            torch.cuda.synchronize()

    return forward


def our_evaluation(net: nn.Module, compute: Compute, split: Split, teacher: Path) -> dict:
    """Return all metrics of `split`, with the teacher's class maps read from the archive `teacher`."""
    return evaluate(
        TorchPredictor(net, compute), split, CLASSES, batch_size=1, teacher_classes=ClassMapArchive(teacher)
    ).metrics


@torch.inference_mode()
def usual_evaluation(net: nn.Module, compute: Compute, split: Split) -> tuple[np.ndarray, float]:
    """Return confusion matrix and mean loss as public code computes them: full-size logits, argmax, int64 histogram."""
    counts, losses = np.zeros((CLASSES, CLASSES), np.int64), []
    mean, std = (torch.tensor(value, device=compute.device).view(3, 1, 1) for value in (MEAN, STD))
    for image, labels in zip(split.images, split.labels, strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(compute.device).float() / 255
        targets = torch.from_numpy(np.array(labels))[None].to(compute.device).long()
        with compute.autocast():
            logits = net((pixels - mean) / std)
        logits = nn.functional.interpolate(logits.float(), size=split.size_px, mode="bilinear", align_corners=False)
        losses.append(nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE).item())
        predicted, true = logits.argmax(1).cpu().numpy().ravel(), targets.cpu().numpy().ravel()
        valid = true < CLASSES
        pairs = CLASSES * true[valid] + predicted[valid]
        counts += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return counts, float(np.mean(losses))
