"""Metrics folders as the stages write them: of three runs with easy numbers, and of a sweep over several seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.core.files import write_json, write_text
from segdistill.formats.classes import ClassTable
from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.scoring.record import LEGEND, ValRecorder

PROFILE = Path(__file__).parents[2] / "profiles" / "tiny.yaml"
RUNS = {
    "vanilla": {"student": "deeplabv3plus_mobilenet", "alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "a03": {"student": "deeplabv3plus_mobilenet", "alpha": 0.3, "lr": 0.01, "teacher": "views"},
    "light": {"student": "deeplabv3_mobilenet_lite", "alpha": 0.6, "lr": 0.01, "teacher": "views"},
}
HEADER = "step,lr,loss,label_loss,distill_loss,holdout_mean_iou\n"
SIZE_PX = (8, 16)
FACTS = {"parameters": 5_000_000, "weights_sha256": "0", "data_fingerprint": "data"}
GROUPS = ("city_a", "city_a", "city_b", "city_b", "city_c")  # of the five frames of val
TABLE = ClassTable(("road", "traffic light", "train"), (7, 19, 31), ((128, 64, 128), (250, 170, 30), (0, 80, 100)))
# Pixels of each val frame, all of them road, that a model calls a traffic light: of 128.
WRONG_PX = {
    "teacher": (0, 0, 0, 0, 0),
    "vanilla": (64, 32, 32, 0, 16),
    "a03": (0, 32, 48, 0, 16),
    "light": (128, 128, 128, 128, 128),
}


def _timed(p50_ms: float) -> dict:
    return {
        "forward_p50_ms": p50_ms - 2,
        "forward_p95_ms": p50_ms - 1,
        "forward_mean_ms": p50_ms - 1.5,
        "end_to_end_p50_ms": p50_ms,
        "end_to_end_p95_ms": p50_ms + 2,
        "end_to_end_mean_ms": p50_ms + 1,
        "end_to_end_total_ms": 10 * (p50_ms + 1),
    }


BENCHMARK = {
    "conditions": {
        "processor": "a <fast> one",
        "threads": 2,
        "device": "cpu",
        "size_px": [64, 128],
        "frames": 10,
        "warmup_frames": 1,
        "batch": 1,
        "versions": {"torch": "2.15"},
        "date": "2026-01-01",
    },
    "networks": {
        "big_os16": {"torch": _timed(100), "onnx_float32": _timed(90)},
        "small_os16": {
            "torch": _timed(40),
            "torch_best": _timed(32) | {"how": "channels_last"},
            "onnx_float32": _timed(30),
            "onnx_int8": _timed(20),
        },
        "light_os16": {"torch": _timed(25), "onnx_float32": _timed(15)},
    },
    "models": {"teacher": "big_os16", "vanilla": "small_os16", "a03": "small_os16", "light": "light_os16"},
}


# The tests rely on these values, even when the profile changes.
FIXED = {
    "seed": 0,
    "distill": {"steps": 10},
    "finetune": {"steps": 6, "gamma": 0.1},
    "export": {"opset": 18},
}


def sweep_params(**changed: dict) -> Params:
    """Return the tiny profile with three runs; `changed` is what differs, by section."""
    raw = load_params(PROFILE).model_dump()
    for sections in (FIXED, changed):
        for section, values in sections.items():
            raw[section] = raw[section] | values if isinstance(values, dict) else values
    return Params.model_validate(raw | {"runs": RUNS})


def scores(mean_iou: float) -> dict:
    return {
        "mean_loss": 0.5,
        "overall_acc": 0.9,
        "mean_acc": mean_iou + 0.1,
        "freqw_acc": 0.8,
        "mean_iou": mean_iou,
        "class_iou": {"road": 2 * mean_iou - 0.1, "traffic_light": 0.1, "train": None},
    }


def write_metrics(metrics: Path) -> Path:
    """Write the whole folder of RUNS: `light` has no int8 file, and its finetuning had no step."""
    write_teacher(metrics, BENCHMARK)
    for run, distilled, finetuned, int8 in (
        ("vanilla", 0.4, 0.5, 0.49),
        ("a03", 0.45, 0.53, 0.525),
        ("light", 0.4, 0.47, None),
    ):
        agreement = {} if run == "vanilla" else {"teacher_agreement": 0.9}
        write_run(metrics, run, distilled, finetuned, int8, agreement)
    write_text(metrics / "runs" / "light" / "finetune_curve.csv", HEADER)
    return metrics


def write_teacher(metrics: Path, benchmark: dict) -> None:
    """Write what is there once for all runs."""
    facts = FACTS | {"arch": "big", "parameters": 40_000_000, "val_groups": len(set(GROUPS)), "val_groups_in_train": 0}
    write_json(metrics / "teacher.json", scores(0.72) | facts)
    write_json(metrics / "benchmark.json", benchmark)
    write_text(metrics / "teacher_curve.csv", HEADER)
    write_record(metrics / "val", "teacher")
    _image(metrics / "images" / "00003_image.png", is_class_map=False)
    write_json(metrics / "images" / LEGEND, TABLE.facts())
    for name in ("truth", "teacher"):
        _image(metrics / "images" / f"00003_{name}.png", is_class_map=True)


def write_run(
    metrics: Path, run: str, distilled: float, finetuned: float, int8: float | None, agreement: dict | None = None
) -> None:
    """Write the folder of a run with these val mIoU."""
    folder, agreement = metrics / "runs" / run, agreement or {}
    write_json(folder / "distill.json", scores(distilled) | FACTS | agreement)
    write_json(folder / "finetune.json", scores(finetuned) | FACTS | agreement)
    exported = {
        "torch": scores(finetuned) | {"teacher_agreement": 0.8},
        "float32": scores(finetuned) | {"bytes": 21_000_000},
    }
    if int8 is not None:
        exported["int8"] = scores(int8) | {"bytes": 5_500_000}
    write_json(folder / "export.json", exported)
    write_text(folder / "distill_curve.csv", HEADER + "5,0.01,2.0,2.5,1.5,\n10,0.01,1.0,1.5,0.5,0.25\n")
    write_text(folder / "finetune_curve.csv", HEADER + "6,0.01,0.5,0.75,0.25,0.5\n")
    _image(folder / "images" / "00003_student.png", is_class_map=True)
    write_record(folder / "val", run)


def write_sweep(metrics: Path, controls: list[float], gains: dict[str, list[float]]) -> Params:
    """Write a sweep over seeds and return its params: `controls` are the mIoU of the control by seed.

    `gains` are by how much a setting is above them; the names of its runs end in -s0, -s1, ...
    """
    runs, networks, models = {}, {}, {"teacher": "big_os16"}
    for number, (setting, own) in enumerate({"vanilla": [0.0] * len(controls), **gains}.items()):
        kind = {"alpha": 0.0, "teacher": "none"} if number == 0 else {"alpha": number / 10, "teacher": "views"}
        for seed, gain in enumerate(own):
            run = f"{setting}-s{seed}"
            runs[run] = {"student": "deeplabv3plus_mobilenet", "lr": 0.01, "seed": seed} | kind
            mean_iou = controls[seed] + gain
            write_run(metrics, run, mean_iou - 0.02, mean_iou, mean_iou - 0.005)
            models[run] = f"small{number % 3}_os16"
            networks[models[run]] = {"torch": _timed(40 + number % 3), "onnx_float32": _timed(30 + 4 * (number % 3))}
            networks[models[run]] |= {"onnx_int8": _timed(20 + 3 * (number % 3))}
    benchmark = BENCHMARK | {"networks": BENCHMARK["networks"] | networks, "models": models}
    write_teacher(metrics, benchmark)
    return Params.model_validate(sweep_params().model_dump() | {"runs": runs})


def write_record(folder: Path, model: str, size_px: tuple[int, int] = SIZE_PX, seed: int | None = None) -> None:
    """Write what `model` did on five frames of val, wrong in WRONG_PX; with a `seed` images and classes are noise."""
    rng = None if seed is None else np.random.default_rng(seed)
    recorder = ValRecorder(TABLE, tuple(f"city_000000_{frame:06d}" for frame in range(5)), GROUPS)
    for frame, wrong_px in enumerate(WRONG_PX.get(model, WRONG_PX["a03"])):
        classes = np.zeros(size_px, np.uint8)
        classes.flat[:wrong_px] = 1
        counts = np.zeros((3, 3), np.int64)
        counts[0, :2] = classes.size - wrong_px, wrong_px
        noise = classes if rng is None else rng.integers(0, 3, size_px).astype(np.uint8)
        recorder.add(frame, noise, counts)
        if model == "teacher":
            photograph = np.full((*size_px, 3), 90, np.uint8) if rng is None else rng.integers(0, 255, (*size_px, 3))
            recorder.add_image(frame, "image", photograph.astype(np.uint8))
            recorder.add_image(frame, "truth", np.zeros(size_px, np.uint8))
    recorder.write(folder)


def _image(path: Path, is_class_map: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_class_map:
        image = Image.fromarray(np.zeros(SIZE_PX, np.uint8))
        image.putpalette(TABLE.palette.tobytes())
    else:
        image = Image.fromarray(np.full((*SIZE_PX, 3), 90, np.uint8))
    image.save(path)
