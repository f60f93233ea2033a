"""The tiny profile made tinier, for tests that train in this process: 32x64 frames, the light net, one thread."""

from __future__ import annotations

from pathlib import Path

import yaml

from segdistill.data.prepared import PREPARED, open_split, read_index
from segdistill.data.teacher_cache import FOLDER, geometry
from segdistill.nets.device import device_of
from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.prepare.run import prepare
from segdistill.teacher.check import check_teacher
from segdistill.teacher_logits.build import build_cache

PROFILE = Path(__file__).resolve().parents[2] / "profiles" / "tiny.yaml"
ARCH = "deeplabv3_mobilenet_lite"


def tinier_params(**changed: dict) -> Params:
    """Params of a few steps on a few frames; `changed` is what differs, by section (runs are taken as given)."""
    raw = load_params(PROFILE).model_dump()
    raw["data"] |= {"size_px": (32, 64), "synthetic": {"train_frames": 6, "val_frames": 2}}
    raw["compute"] |= {"threads": 1}
    raw["tracking"] |= {"live": False}
    raw["teacher"] |= {"arch": ARCH, "output_stride": 16, "crop_px": (32, 32), "steps": 2, "log_every_steps": 1}
    raw["distill"] |= {"student": ARCH, "crop_px": (32, 32), "steps": 3, "log_every_steps": 1, "batch_size": 2}
    raw["distill"] |= {"evaluate_every_steps": 0}
    raw["finetune"] |= {"steps": 2, "decay_every_steps": 1}
    for section, values in changed.items():
        raw[section] = values if section == "runs" else raw[section] | values
    return Params.model_validate(raw)


def build_city(params: Params) -> None:
    """Run prepare, teacher-check and teacher-logits in the current folder."""
    prepare(params.data, params.seed, PREPARED, workers=1)
    check_teacher(params)
    build_logits(params)


def build_logits(params: Params) -> None:
    """Run teacher-logits in the current folder, after the stages before it."""
    train, fingerprint, logits = open_split("train"), read_index()["fingerprint"], params.teacher_logits
    facts = geometry(train, fingerprint, params.seed, params.distill.crop_px, logits.views, logits.stride)
    for kind in logits.kinds:
        build_cache(kind, FOLDER / kind, train, facts, logits, device_of(params.compute))


def save_params(params: Params) -> None:
    """Write params.yaml into the current folder, for stage scripts."""
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
