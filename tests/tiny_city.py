"""The tiny profile made tinier, for tests that train in this process: 32x64 frames, the light net, one thread."""

from __future__ import annotations

from pathlib import Path

from segdistill.params import Params
from segdistill.params_file import load_params

PROFILE = Path(__file__).resolve().parents[1] / "profiles" / "tiny.yaml"
ARCH = "deeplabv3_mobilenet_lite"


def tinier_params(**changed: dict) -> Params:
    """Params of a few steps on a few frames; `changed` is what differs, by section (runs are taken as given)."""
    raw = load_params(PROFILE).model_dump()
    raw["data"] |= {"size_px": (32, 64), "synthetic": {"train_frames": 6, "val_frames": 2}}
    raw["compute"] |= {"threads": 1}
    raw["tracking"] |= {"live": False}
    raw["teacher"] |= {"arch": ARCH, "crop_px": (32, 32), "steps": 2, "log_every_steps": 1}
    raw["distill"] |= {"student": ARCH, "crop_px": (32, 32), "steps": 3, "log_every_steps": 1, "batch_size": 2}
    raw["distill"] |= {"evaluate_every_steps": 0}
    raw["finetune"] |= {"steps": 2, "decay_every_steps": 1}
    for section, values in changed.items():
        raw[section] = values if section == "runs" else raw[section] | values
    return Params.model_validate(raw)
