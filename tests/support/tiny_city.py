"""The tiny profile made tinier, for tests that train in this process: 32x64 frames, the light network, one thread."""

from __future__ import annotations

from pathlib import Path

import yaml

from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from segdistill.teacher.check import check_teacher
from segdistill.teacher_logits.build import teacher_logits

PROFILE = Path(__file__).resolve().parents[2] / "profiles" / "tiny.yaml"
ARCH = "deeplabv3_mobilenet_lite"


def tinier_params(**changed: dict) -> Params:
    """Params of a few steps on a few frames; `changed` is what differs, by section.

    `runs` are taken as given; ARCH is the student of those that name none.
    """
    raw = load_params(PROFILE).model_dump()
    raw["data"] |= {"size_px": (32, 64), "synthetic": {"train_frames": 6, "val_frames": 2}}
    raw["compute"] |= {"threads": 1}
    raw["teacher"] |= {"arch": ARCH, "output_stride": 16, "crop_px": (32, 32), "steps": 2, "log_every_steps": 1}
    raw["distill"] |= {"crop_px": (32, 32), "steps": 3, "log_every_steps": 1, "batch_size": 2}
    raw["distill"] |= {"evaluate_every_steps": 0}
    raw["finetune"] |= {"steps": 2, "decay_every_steps": 1}
    raw["runs"] = {name: run | {"student": ARCH} for name, run in raw["runs"].items()}
    for section, values in changed.items():
        raw[section] = values if section in ("runs", "seeds") else raw[section] | values
    raw["runs"] = {name: {"student": ARCH} | run for name, run in raw["runs"].items()}
    return Params.model_validate(raw)


def build_city(params: Params) -> None:
    """Run prepare, teacher-check and teacher-logits in the current folder."""
    prepare(params.data, params.seed, PREPARED, workers=1)
    check_teacher(params)
    build_logits(params)


def build_logits(params: Params) -> None:
    """Run teacher-logits in the current folder, after the stages before it."""
    for kind in params.teacher_logits.kinds:
        teacher_logits(params, kind)


def save_params(params: Params) -> None:
    """Write params.yaml into the current folder, for stage scripts."""
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
