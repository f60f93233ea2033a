"""Build a training from params and run it: the part that the teacher and the students share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.core.provenance import code_hash, file_sha256, package_versions, settings_hash
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import BatchSampler, ViewSpec, generator
from segdistill.data.teacher_cache import TeacherCache
from segdistill.nets.device import Compute, device_of
from segdistill.nets.registry import build_of_params, check_logits
from segdistill.nets.weights import (
    check_rebuilds,
    check_values,
    imagenet_backbone_state,
    load_initial,
    load_state,
    read_weights,
)
from segdistill.parallel import ranks
from segdistill.params.model import Params, TrainingParams, TrainingSettings
from segdistill.scoring.label_losses import inverse_log_weights
from segdistill.training.batches import CropLoader
from segdistill.training.checkpoint import FOLD_TRAININGS, Checkpointer
from segdistill.training.holdout import IMAGES, HoldoutEvaluator
from segdistill.training.loop import AddedLoss, Job, step_forward, train
from segdistill.training.mixing import Mixer

MAX_LOADER_THREADS = 8  # with a GPU; more do not copy faster
# Settings that do not change a training. `init` enters the key by the content of its file.
_WITHOUT_EFFECT = {
    *("init", "checkpoint_every_steps", "min_mean_iou"),
    *("checkpoint", "flip", "scales", "onnx_mean", "onnx_std"),  # how a trained teacher is run
    "cross_fit",  # `Training.frames` has what a fold draws from
}


@dataclass(frozen=True)
class Training:
    """A network to train, and where its data and losses come from.

    Attributes:
        name: PHASE/RUN, teacher, or FOLD_TRAININGS/FOLD; PHASE also names the draws of the batches.
        net: trained in place.
        settings: resolved, with lr, seed, and the loss weights of a student.
        views: the crops to draw from.
        start: of the initial weights, see `init_fingerprint`.
        cache: the teacher logits that batches carry; None for a teacher and for a control.
        distillation: the loss that it adds; None likewise.
        frames: the train frames to draw from, int (M,); None is all of them.
    """

    name: str
    net: nn.Module
    settings: TrainingSettings
    views: ViewSpec
    start: str
    cache: TeacherCache | None = None
    distillation: AddedLoss | None = None
    frames: np.ndarray | None = None


def run_training(training: Training, params: Params, data: PreparedData) -> tuple[list[dict], Checkpointer]:
    """Train `training.net` in place, continuing from an unfinished training of the same settings.

    Returns:
        The curve, and the checkpointer, whose folder has images of the holdout. The caller clears it after writing the
        outputs; until then it is locked.
    """
    name, settings, views, compute = training.name, training.settings, training.views, device_of(params.compute)
    phase = name.split("/")[0]
    # `params.read` checks compute.devices; a torchrun of several nodes may start other numbers.
    if settings.batch_size % ranks.count() or (settings.compile and ranks.count() > 1):
        found = f"batches of {settings.batch_size} crops on {ranks.count()} devices, compile {settings.compile}"
        raise UserError(f"{name}: found {found}; allowed are as many crops for each device, and compile false")
    # Frames without labels teach nothing without a teacher.
    frames = views.frames - (0 if training.cache is not None else data.unlabelled_frames)
    batches = BatchSampler(
        settings.seed,
        phase,
        frames,
        views.views,
        settings.batch_size,
        settings.flip_probability,
        settings.jitter,
        drawn_from=training.frames,
    )
    stored = features = None
    if training.cache is not None:
        training.cache.check_holds(name, batches, settings.steps)
        stored = training.cache.stored
        if training.distillation is not None and training.distillation.reads_features:
            features = training.cache.features
    mixer = None
    if settings.mix != "none":
        mixer = Mixer(settings.mix, settings.mix_probability, settings.seed, phase, views.stride)
    crops = CropLoader(
        data.train,
        batches,
        views.origins(),
        views.crop_px,
        stored,
        pinned=compute.device.type == "cuda",
        sizes=views.sizes(),
        mixer=mixer,
        features=features,
        threads=loader_threads(compute),
    )

    # The key of the checkpoint covers all that the result depends on, the code itself too: its version does not change
    # with an edit, and half a training by each would be neither's.
    key = settings_hash(
        settings.model_dump(exclude=_WITHOUT_EFFECT),
        views.facts(),
        training.start,
        training.cache and training.cache.manifest.facts(),
        None if training.frames is None else training.frames.tolist(),
        params.evaluation.images > 0,
        # Frames of another batch may be rounded otherwise.
        settings.evaluate_every_steps and params.evaluation.batch_size,
        (package_versions("torch", "numpy"), code_hash()),
        (compute.device.type, str(compute.dtype), compute.threads),
    )
    with contextlib.ExitStack() as held:
        checkpointer = Checkpointer(name, key)
        if ranks.is_first():  # it holds the training for all
            held.enter_context(checkpointer)
        evaluator = HoldoutEvaluator(params, data, settings, checkpointer.folder / IMAGES)
        evaluator.save_start(training.net)
        section = "teacher" if name.split("/")[0] in ("teacher", FOLD_TRAININGS) else "distill"
        forward = None
        if settings.compile:
            forward = compiled(step_forward(training.net, training.distillation), name, f"{section}.compile")
        weights = None
        if settings.class_weights == "inverse_log":
            frequency_C = torch.tensor(data.class_frequency("train"), dtype=torch.float32)
            weights = inverse_log_weights(frequency_C).to(compute.device)
        job = Job(
            name,
            training.net,
            crops,
            settings,
            compute,
            training.distillation,
            holdout_mean_iou=evaluator,
            forward=forward,
            class_weights=weights,
        )
        curve = train(job, checkpointer)
        held.pop_all()  # the caller releases the lock after writing the outputs
    return curve, checkpointer


def loader_threads(compute: Compute) -> int:
    """Return how many threads crop a batch: several for a GPU; on a CPU one, because the step needs the others."""
    return min(ranks.share_of_threads(compute.threads), MAX_LOADER_THREADS) if compute.device.type == "cuda" else 1


def initial_net(arch: str, classes: int, settings: TrainingParams, seed: int, params_path: str) -> nn.Module:
    """Return a network before its first step: random weights from `seed`, then ImageNet's backbone or a weights file.

    `params_path` is the path that a message about `init` names.
    """
    torch.manual_seed(int(generator(seed, "initial weights").integers(2**63)))
    net = built_net(arch, classes, settings.output_stride, params_path.removesuffix(".init"))
    if settings.init == "imagenet":
        try:
            state = imagenet_backbone_state(arch)
        except UserError as error:
            raise UserError(f"{params_path}: {error}") from error
        load_state(net.get_submodule("backbone"), state, source="ImageNet weights")
    elif settings.init != "random":
        state = read_weights(settings.init, params_path)
        check_values(state, source=settings.init)
        load_initial(net, arch, state, source=settings.init)
    return net


def built_net(network: str, classes: int, output_stride: int, params_path: str) -> nn.Module:
    """Return a new network, whose file may be the user's own.

    Raises:
        UserError: it cannot be built, gives no logits of so many classes, or its weights do not make it again.
    """
    net = build_of_params(params_path, network, classes, output_stride)
    check_logits(net, network, classes)
    check_rebuilds(net, network, classes, output_stride)
    return net


def init_fingerprint(init: str) -> str:
    """Return the source of initial weights, for the key of a checkpoint: a file by the hash of its content."""
    return init if init in ("random", "imagenet") else file_sha256(init)


def warn_if_unseen(params_path: str, file: str, folder: Path) -> None:
    """Warn when DVC does not see changes to `file`, which a params path names, in the `folder` that a stage depends on.

    DVC hashes a linked file by its content, but does not look into a linked folder inside the folder that it hashes.
    """
    path, seen = (Path(os.path.abspath(name)) for name in (file, folder))  # noqa: PTH100 - resolve would follow links
    is_inside = path.is_relative_to(seen)
    if not is_inside or any(
        above.is_symlink() for above in path.parents if above != seen and above.is_relative_to(seen)
    ):
        remedy = f"put it into {folder}/, or force the stage (dvc repro -f -s) when it has changed"
        logger.warning("%s: DVC does not see changes to %s; %s", params_path, file, remedy)


def compiled(net: Callable[[Tensor], Any], name: str, params_path: str) -> Callable[[Tensor], Any]:
    """Return `net` as a function that torch's compiler makes at its first call: equal up to rounding, dropout included.

    `net` is a network or a method of it. The function shares its weights, and the network stays unchanged. Later
    processes find what torch compiled in its cache.

    Raises:
        UserError: (the function) torch cannot compile here.
    """
    fast = torch.compile(net, dynamic=False, options={"fallback_random": True})
    is_first_call = True

    def forward(images_BCHW: Tensor) -> Any:
        nonlocal is_first_call
        if is_first_call:
            logger.info("%s: torch compiles the network, for a minute or two where it has not done so before", name)
            is_first_call = False
        try:
            return fast(images_BCHW)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = " ".join(str(error).split())[:200]
            raise UserError(
                f"{params_path}: found true; torch cannot compile here ({cause}); allowed is false, "
                "or true where a C++ compiler (CPU) or Triton (CUDA) is installed"
            ) from None

    return forward
