"""From params to a job of the training loop: what every training, teacher or student, is put together from."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
from torch import nn

from segdistill.base.errors import InputError
from segdistill.base.params import Params, TrainingParams
from segdistill.frames.dataset import PREPARED, open_split, read_classes, read_index
from segdistill.frames.rng import Batches, generator
from segdistill.logits.teacher_cache import Teaching, origins_of
from segdistill.nets.adapters import check_values, imagenet_backbone_state, load_state, read_torch_checkpoint
from segdistill.nets.checkpoint import read_state
from segdistill.nets.compute import Compute, choose
from segdistill.nets.freed_memory import keep_freed_memory
from segdistill.nets.registry import build
from segdistill.provenance import code_hash, file_sha256, package_versions, settings_hash
from segdistill.training.compiled import compiled
from segdistill.training.crops import CropBatches
from segdistill.training.follower import PICTURES, followed
from segdistill.training.holdout import Watch
from segdistill.training.scratch import Scratch
from segdistill.training.train_loop import CURVE_FILE, Distillation, Job, train

# Settings that change nothing of a training itself. What `init` names is told by `start`, by content.
_WITHOUT_EFFECT = {
    *("init", "checkpoint_every_steps", "min_mean_iou"),
    *("checkpoint", "flip", "scales", "onnx_mean", "onnx_std"),  # how a teacher is asked, once it is trained
}


class Data:
    """The prepared data as a training sees it."""

    def __init__(self, root: Path = PREPARED) -> None:
        self.fingerprint: str = read_index(root)["fingerprint"]
        self.table = read_classes(root)
        self.class_names = list(self.table.names)
        self.train, self.holdout, self.val = (open_split(name, root) for name in ("train", "holdout", "val"))

    def check_crop(self, path: str, crop_px: tuple[int, int]) -> None:
        """Raise an InputError when a crop does not fit into the frames."""
        if crop_px[0] > self.train.size_px[0] or crop_px[1] > self.train.size_px[1]:
            raise InputError(f"{path}: found {list(crop_px)}; at most the frames' size {list(self.train.size_px)}")


def compute_of(params: Params) -> Compute:
    """The device, precision and threads that params ask for; on a CPU freed memory is kept from here on."""
    compute = choose(params.compute.device, params.compute.precision, params.compute.threads)
    if compute.device.type == "cpu":
        keep_freed_memory()
    return compute


def initial_net(arch: str, classes: int, output_stride: int, init: str, seed: int, path: str) -> nn.Module:
    """A net before its first step: random weights from `seed`, then ImageNet's backbone or a weights file over them.

    `path` is the params path that a message about `init` names.
    """
    torch.manual_seed(int(generator(seed, "initial weights").integers(2**63)))
    net = build(arch, classes, output_stride)
    if init == "imagenet":
        load_state(net.backbone, imagenet_backbone_state(arch), source="torchvision's ImageNet weights")
    elif init != "random":
        state = read_weights(init, path)
        load_state(net, state, source=init)
        check_values(state, source=init)
    return net


def start_of(init: str) -> str:
    """What a net starts from, for the key of a scratch folder: a file by its content, which may be replaced."""
    return init if init in ("random", "imagenet") else file_sha256(init)


def warn_if_unseen(path: str, file: str, folder: str) -> None:
    """Say so when `file`, named by the params path `path`, is not in the `folder` that the running stage depends on."""
    if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):  # noqa: PTH100 - DVC follows links
        remedy = f"put it into {folder}/, or force the stage (dvc repro -f -s) when it has changed"
        print(f"warning: {path}: DVC does not see changes to {file}; {remedy}", file=sys.stderr)


def read_weights(file: str | Path, path: str) -> dict[str, torch.Tensor]:
    """The state dict of a .safetensors, .pth or .pt file named by the params path `path`."""
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{path}: found {str(file)!r}; no such file")
    return read_state(file) if file.suffix.lower() == ".safetensors" else read_torch_checkpoint(file)


def watch_of(params: Params, data: Data, settings: TrainingParams, folder: Path) -> Watch:
    """What scores a net on the holdout and keeps pictures of that in `folder`, if params ask for any."""
    evaluation = params.evaluation
    compute = compute_of(params)
    return Watch(data.holdout, data.table, evaluation.batch_size, compute, settings, folder, evaluation.pictures > 0)


def train_net(
    name: str,
    net: nn.Module,
    settings: TrainingParams,
    facts: dict,
    *,
    lr: float,
    seed: int,
    start: str,
    params: Params,
    data: Data,
    teaching: Teaching | None = None,
    distillation: Distillation | None = None,
) -> tuple[list[dict], Scratch]:
    """Train `net` in place, going on from an unfinished training of the same settings.

    Args:
        name: of the job, PHASE/RUN or teacher; what stands first also names the draws of the batches.
        facts: `geometry` of the crops that are drawn from.
        start: what the net starts from, see `start_of`.

    Returns:
        The curve, and the scratch folder with pictures of the holdout: held until it is cleared, once the outputs are
        written.
    """
    compute = compute_of(params)
    batches = Batches(
        seed,
        name.split("/")[0],
        len(data.train),
        facts["views"],
        settings.batch_size,
        settings.flip_probability,
        settings.jitter,
    )
    cached = teaching.drawn_from(name, batches, settings.steps) if teaching is not None else None
    crops = CropBatches(
        data.train, batches, origins_of(facts), tuple(facts["crop_px"]), cached, pinned=compute.device.type == "cuda"
    )

    what_matters = (settings.model_dump(exclude=_WITHOUT_EFFECT), lr, seed, facts, start)
    what_matters += (teaching and teaching.manifest, params.evaluation.pictures > 0)
    # Frames of another batch may be rounded otherwise.
    what_matters += (settings.evaluate_every_steps and params.evaluation.batch_size,)
    phase, run = name.split("/") if "/" in name else ("train", name)
    with contextlib.ExitStack() as held:
        scratch = held.enter_context(Scratch(name, _state_key(what_matters, compute)))
        with followed(run, phase, scratch.folder / CURVE_FILE, enabled=params.tracking.live):
            watch = watch_of(params, data, settings, scratch.folder / PICTURES)
            watch.picture_start(net)
            path = "teacher.compile" if name == "teacher" else "distill.compile"
            forward = compiled(net, name, path) if settings.compile else None
            curve = train(Job(name, net, crops, settings, lr, compute, distillation, watch, forward), scratch)
        held.pop_all()  # whoever writes the outputs lets go of it
    return curve, scratch


def _state_key(settings: tuple, compute: Compute) -> str:
    """A hash of all that a saved state is of: a training goes on from one with the same key only.

    It covers the code itself, whose version says nothing of an edit: half a training by each would be neither's.
    """
    by = (package_versions("torch", "numpy"), code_hash())
    return settings_hash(settings, by, (str(compute.device), str(compute.dtype), compute.threads))
