"""params.yaml: allowed values are read, all others are refused by their params path."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pydantic
import pytest
from dvc.utils.serialize import parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.core.errors import UserError
from segdistill.core.yaml_file import read_mapping
from segdistill.params.read import load_params

ROOT = Path(__file__).parents[3]
TINY = (ROOT / "profiles" / "tiny.yaml").read_text(encoding="utf-8")
OTHER_RUNS = "\nruns:\n  vanilla: {student: deeplabv3plus_mobilenet, alpha: 0.0, lr: 0.01, teacher: none}\n"


@pytest.fixture
def load(tmp_path):
    """Write `text` as a params file and read it."""

    def load(text: str | bytes):
        path = tmp_path / "params.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_params(path)

    return load


def load_mapping(text: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(text)
        return read_mapping(path, "keys", "")


def tiny(*changes: tuple[str, str]) -> str:
    """Return the tiny profile with each text replaced by another, once."""
    text = TINY
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def tiny_with_run(run: str) -> str:
    """Return the tiny profile with a control and one run, given as its YAML line."""
    if "student:" not in run:
        run = run.replace("{alpha", "{student: deeplabv3plus_mobilenet, alpha")
    return TINY[: TINY.index("\nruns:")] + OTHER_RUNS + f"  {run}\n"


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=str)
def test_profiles_load(path):
    params = load_params(path)
    for run in params.runs:
        assert params.distill_settings(run).lr > 0
        assert params.finetune_settings(run).steps >= 0


ERRORS = {
    "model with a slash": (
        tiny(("model: segdistill-student", "model: ours/student")),
        ['tracking.model: found "ours/student"'],
    ),
    "unknown key": (tiny(("  momentum: 0.9", "  momentun: 0.9")), ["teacher.momentun: unknown key", "momentum"]),
    "unknown section": (TINY + "trainer: {}\n", ["trainer: unknown key", "distill"]),
    "missing key": (tiny(("  lr: 0.02\n", "")), ["teacher.lr: missing"]),
    "missing section": (tiny(("evaluation:", "tracking2:")), ["evaluation: missing", "tracking2: unknown key"]),
    "wrong type": (tiny(("  steps: 8", "  steps: many")), ['teacher.steps: found "many"']),
    "one of two types": (
        tiny(("cross_fit: false", "cross_fit: 1")),
        ["(1):", "teacher.cross_fit: found 1; input should be False or greater than or equal to 2"],
    ),
    "neither text nor list": (
        tiny(("checkpoint: null", "checkpoint: {a: 1}")),
        ["(1):", 'teacher.checkpoint: found {"a": 1}; input should be a valid string or a valid array'],
    ),
    "a wrong item": (
        tiny(("warmup_frames: 1,", "warmup_frames: 1, engines: [onnx],")),
        ["(1):", 'benchmark.engines.0: found "onnx"'],
    ),
    "an engine twice": (
        tiny(("warmup_frames: 1,", "warmup_frames: 1, engines: [torch, torch],")),
        ["benchmark.engines: found ['torch', 'torch']; each engine at most once"],
    ),
    "half a step": (tiny(("  steps: 8", "  steps: 12.5")), ["teacher.steps: found 12.5"]),
    "no steps": (tiny(("  steps: 8", "  steps: 0")), ["teacher.steps: found 0", "greater than or equal to 1"]),
    "batch of 1": (tiny(("  batch_size: 4", "  batch_size: 1")), ["teacher.batch_size: found 1"]),
    "quoted number": (tiny(("  lr: 0.02", '  lr: "0.02"')), ['teacher.lr: found "0.02"']),
    "quoted truth": (tiny(("live: true", 'live: "true"')), ['tracking.live: found "true"']),
    "lr 0": (tiny(("  lr: 0.02", "  lr: 0")), ["teacher.lr: found 0", "greater than 0"]),
    "lr negative": (tiny(("  lr: 0.02", "  lr: -0.1")), ["teacher.lr: found -0.1"]),
    "lr NaN": (tiny(("  lr: 0.02", "  lr: .nan")), ["teacher.lr: found NaN", "finite"]),
    "lr infinite": (tiny(("  lr: 0.02", "  lr: .inf")), ["teacher.lr: found Infinity", "finite"]),
    "null": (tiny(("  lr: 0.02", "  lr: null")), ["teacher.lr: found null"]),
    "unknown arch": (
        tiny(("arch: deeplabv3plus_mobilenet", "arch: resnet")),
        ['teacher.arch: found "resnet"', "lraspp"],
    ),
    "misspelt arch": (
        tiny(("arch: deeplabv3plus_mobilenet", "arch: deeplabv3plus_mobilnet")),
        ['teacher.arch: found "deeplabv3plus_mobilnet"', "(nearest: deeplabv3plus_mobilenet, "],
    ),
    "timm without a backbone": (
        tiny(("arch: deeplabv3plus_mobilenet", "arch: deeplabv3plus_timm")),
        ["teacher.backbone: found null; deeplabv3plus_timm needs a model of timm"],
    ),
    "backbone of a network that has its own": (
        tiny(("arch: deeplabv3plus_mobilenet", "arch: deeplabv3plus_mobilenet\n  backbone: tf_efficientnet_lite0")),
        ["teacher.backbone: found 'tf_efficientnet_lite0'; deeplabv3plus_mobilenet has its own"],
    ),
    "backbone of another place": (
        tiny(("arch: deeplabv3plus_mobilenet", "arch: deeplabv3plus_timm\n  backbone: hf-hub:a/b")),
        ['teacher.backbone: found "hf-hub:a/b"'],
    ),
    "backbone of no student": (
        tiny(("distill:", "distill:\n  backbone: tf_efficientnet_lite0")),
        ["distill.backbone: found 'tf_efficientnet_lite0'; no run has a student that takes one"],
    ),
    "backbone of a student that has its own": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, backbone: tf_efficientnet_lite0}"),
        ["runs.a.backbone: found 'tf_efficientnet_lite0'; deeplabv3plus_mobilenet has its own"],
    ),
    "timm student without a backbone": (
        tiny_with_run("a: {student: lraspp_timm, alpha: 0.3, lr: 0.01, teacher: views}"),
        ["runs.a.backbone: found null; lraspp_timm needs"],
    ),
    "unknown kind": (tiny(("kinds: [views]", "kinds: [view]")), ['teacher_logits.kinds.0: found "view"']),
    "more channels than are stored": (
        tiny(("feature_channels: 0", "feature_channels: 257")),
        ["teacher_logits.feature_channels: found 257", "less than or equal to 256"],
    ),
    "features of an ensemble": (
        tiny(("feature_channels: 0", "feature_channels: 64"), ("  flip: false", "  flip: true")),
        ["teacher_logits.feature_channels: found 64 with the teacher deeplabv3plus_mobilenet, flipped; features are"],
    ),
    "features of a cross-fitted teacher": (
        tiny(("feature_channels: 0", "feature_channels: 64"), ("cross_fit: false", "cross_fit: 2")),
        ["found 64 with the teacher deeplabv3plus_mobilenet, cross-fitted; features are those of one torch network"],
    ),
    "features of an ONNX file": (
        tiny(("feature_channels: 0", "feature_channels: 64"), ("checkpoint: null", "checkpoint: checkpoints/a.onnx")),
        ["teacher_logits.feature_channels: found 64 with the teacher a.onnx; features are those of one torch network"],
    ),
    "features of crops of no whole cells": (
        tiny(
            ("feature_channels: 0", "feature_channels: 64"),
            ("  crop_px: [64, 64]\n  method", "  crop_px: [64, 56]\n  method"),
        ),
        ["teacher_logits.feature_channels: found 64 with distill.crop_px [64, 56]; allowed are multiples of 16"],
    ),
    "features without views": (
        tiny(("feature_channels: 0", "feature_channels: 64"), ("kinds: [views]", "kinds: [frame]")),
        ["teacher_logits.feature_channels: found 64 with teacher_logits.kinds ['frame']; features are of views"],
    ),
    "feature weight without features": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, feature_weight: 0.5}"),
        ["runs.a.feature_weight: found 0.5 with teacher views and teacher_logits.feature_channels 0; features are"],
    ),
    "feature weight of a control": (
        tiny_with_run("a: {alpha: 0.0, lr: 0.01, teacher: none, feature_weight: 0.5}"),
        ["runs.a.feature_weight: found 0.5 with teacher none"],
    ),
    "negative feature weight": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, feature_weight: -1}"),
        ["runs.a.feature_weight: found -1", "greater than or equal to 0"],
    ),
    "feature weight in finetune": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, finetune: {feature_weight: 1}}"),
        ["runs.a.finetune.feature_weight: unknown key"],
    ),
    "key of limit_views_to": (
        tiny(("limit_views_to: null", "limit_views_to: {distill_steps: 5, finetune_steps: 0, batch: 4}")),
        [
            "teacher_logits.limit_views_to.batch: unknown key; allowed: batch_size, distill_steps, finetune_steps",
            "limit_views_to.batch_size: missing",
        ],
    ),
    "kind twice": (tiny(("kinds: [views]", "kinds: [views, views]")), ["teacher_logits.kinds", "at most once"]),
    "crop beyond frame": (
        tiny(("size_px: [64, 128]", "size_px: [60, 128]")),
        ["teacher.crop_px: found [64, 64]", "distill.crop_px: found [64, 64]", "[60, 128]"],
    ),
    "crop off the grid": (
        tiny(("  crop_px: [64, 64]\n  method", "  crop_px: [62, 64]\n  method")),
        ["distill.crop_px: found [62, 64]", "multiples of teacher_logits.stride 4"],
    ),
    "scales from large to small": (
        tiny(("scale_range: [1.0, 1.0]", "scale_range: [2.0, 0.5]")),
        ["teacher.scale_range: found [2.0, 0.5]; allowed is [smallest, largest]"],
    ),
    "scale 0": (tiny(("scale_range: [1.0, 1.0]", "scale_range: [0, 1.0]")), ["teacher.scale_range.0: found 0"]),
    "scales that do not fit into the frame": (
        tiny(("scale_range: [1.0, 1.0]", "scale_range: [0.5, 0.9]")),
        ["teacher.scale_range: found [0.5, 0.9]; crops of [64, 64] fit into the frames [64, 128] at scales from 1.0"],
    ),
    "scaled crops of whole-frame logits": (
        tiny(
            ("kinds: [views]", "kinds: [views, frame]"), ("scale_range: [1.0, 1.0]", "scale_range: [1.0, 1.1]")
        ).replace("scale_range: [1.0, 1.0]", "scale_range: [1.0, 2.0]"),
        ["teacher_logits.kinds: found frame with distill.scale_range [1.0, 2.0]"],
    ),
    "run's own scales": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, scale_range: [1.0, 2.0]}"),
        ["runs.a.scale_range: unknown key"],
    ),
    "scales that leave nothing of a crop": (
        tiny(("  scales: [1.0]", "  scales: [0.25, 1.0]")),
        ["teacher.scales: found [0.25, 1.0]", "at [16, 16]", "at least 32 pixels a side"],
    ),
    "frames to time that are too small": (
        tiny(("frames: 5, size_px: null", "frames: 5, size_px: [31, 64]")),
        ["benchmark.size_px: found [31, 64]; at least 32 pixels a side"],
    ),
    "crop of one side": (tiny(("crop_px: [64, 64]", "crop_px: [64]")), ["teacher.crop_px.1"]),
    "synthetic without size": (tiny(("size_px: [64, 128]", "size_px: null")), ["data.size_px: found null"]),
    "city without labels": (
        tiny(("  synthetic: {", "  unlabelled: more\n  synthetic: {")),
        ["data.unlabelled: found 'more'; the synthetic city has labels"],
    ),
    "stride that cannot be": (
        tiny(
            ("arch: deeplabv3plus_mobilenet\n  output_stride: 8", "arch: lraspp_mobilenet_v3_large\n  output_stride: 8")
        ),
        ["teacher.output_stride: found 8", "can be built at 16"],
    ),
    "alpha and weights": (
        tiny_with_run("a: {alpha: 0.3, label_weight: 1.0, distill_weight: 0.8, lr: 0.01, teacher: views}"),
        ["runs.a: found alpha 0.3 and label_weight 1.0 and distill_weight 0.8; allowed is alpha alone, or both"],
    ),
    "one weight": (
        tiny_with_run("a: {student: deeplabv3plus_mobilenet, distill_weight: 0.8, lr: 0.01, teacher: views}"),
        ["runs.a: found distill_weight 0.8; allowed is alpha alone, or both label_weight and distill_weight"],
    ),
    "no weight": (
        tiny_with_run("a: {student: deeplabv3plus_mobilenet, lr: 0.01, teacher: views}"),
        ["runs.a: found no alpha; allowed is alpha alone, or both label_weight and distill_weight"],
    ),
    "control with a weight": (
        tiny(("alpha: 0.0", "label_weight: 1.0, distill_weight: 0.5")),
        ["runs.vanilla: found distill_weight 0.5 with teacher none; a control has distill_weight 0 and teacher none"],
    ),
    "control with a factor": (
        tiny(("alpha: 0.0", "label_weight: 2.0, distill_weight: 0.0")),
        ["runs.vanilla.label_weight: found 2.0 with distill_weight 0; allowed is 1"],
    ),
    "finetune's one weight": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, finetune: {label_weight: 1.0}}"),
        ["runs.a.finetune: found label_weight 1.0; allowed is alpha alone"],
    ),
    "control that finetunes with a weight": (
        tiny(("teacher: none}", "teacher: none, finetune: {label_weight: 1.0, distill_weight: 0.5}}")),
        ["runs.vanilla.finetune.distill_weight: found 0.5; a control has no teacher"],
    ),
    "pixels of a method without pixels": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, method: channel_kl, distill_where: right}"),
        ["runs.a.distill_where: found right with method channel_kl"],
    ),
    "average that never moves": (
        tiny(("  momentum: 0.9", "  momentum: 0.9\n  ema_decay: 1.0")),
        ["teacher.ema_decay: found 1.0", "less than 1"],
    ),
    "warm-up beyond the steps": (
        tiny(
            ("  momentum: 0.9", "  momentum: 0.9\n  warmup_steps: 9"), ("finetune: {", "finetune: {warmup_steps: 7, ")
        ),
        ["teacher.warmup_steps: found 9; at most the steps, 8", "runs.light.finetune.warmup_steps: found 7"],
    ),
    "alpha over 1": (tiny(("alpha: 0.3", "alpha: 1.2")), ["runs.a03-lr01.alpha: found 1.2"]),
    "control with alpha": (
        tiny(
            (
                "vanilla:  {student: deeplabv3plus_mobilenet, alpha: 0.0",
                "vanilla:  {student: deeplabv3plus_mobilenet, alpha: 0.1",
            )
        ),
        ["runs.vanilla: found alpha 0.1 with teacher none"],
    ),
    "teacher with alpha 0": (tiny(("alpha: 0.3", "alpha: 0.0")), ["runs.a03-lr01: found alpha 0.0", "views"]),
    "kind that is not built": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: online}"),
        ["runs.a.teacher: found online", "['views']"],
    ),
    "no control": (
        tiny(("  vanilla:  {student: deeplabv3plus_mobilenet, alpha: 0.0, lr: 0.01, teacher: none}\n", "")),
        ["runs: no control", "alpha 0 and teacher none"],
    ),
    "no runs": (TINY[: TINY.index("\nruns:")] + "\nruns: {}\n", ["runs: found {}"]),
    "ill-named run": (tiny(("a03-lr01:", "a0.3:")), ["runs.a0.3: a run is named by up to 100 lower-case letters"]),
    "run in capitals": (tiny(("a03-lr01:", "Alpha:")), ["runs.Alpha: a run is named by"]),
    "run's unknown key": (
        tiny(("lr: 0.01, teacher: views}", "lr: 0.01, teacher: views, temprature: 2.0}")),
        ["runs.a03-lr01.temprature: unknown key", "temperature"],
    ),
    "run's own crop": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, crop_px: [32, 32]}"),
        ["runs.a.crop_px: unknown key"],
    ),
    "run's override out of bounds": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, steps: 0}"),
        ["runs.a.steps: found 0"],
    ),
    "temperature at which the loss has no digits": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, temperature: 1e5}"),
        ["runs.a.temperature: found 100000.0", "10000"],
    ),
    "run's stride that cannot be": (
        tiny_with_run(
            "a: {alpha: 0.3, lr: 0.01, teacher: views, student: lraspp_mobilenet_v3_large, output_stride: 8}"
        ),
        ["runs.a.output_stride: found 8"],
    ),
    "network that ImageNet's weights do not fit": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, student: pidnet_s, output_stride: 8, init: imagenet}"),
        ["runs.a.init: found imagenet; there are no ImageNet weights for pidnet_s, allowed are random and a file"],
    ),
    "run's finetune, unknown key": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, finetune: {step: 3}}"),
        ["runs.a.finetune.step: unknown key", "steps"],
    ),
    "run's finetune, wrong value": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, finetune: {alpha: 2.0}}"),
        ["runs.a.finetune.alpha: found 2.0"],
    ),
    "run's export, unknown key": (
        tiny_with_run("a: {alpha: 0.3, lr: 0.01, teacher: views, export: {int8: true}}"),
        ["runs.a.export.int8: unknown key", "opset"],
    ),
    "control that finetunes with alpha": (
        tiny(("teacher: none}", "teacher: none, finetune: {alpha: 0.5}}")),
        ["runs.vanilla.finetune.alpha: found 0.5"],
    ),
    "duplicate key": (tiny(("seed: 0\n", "seed: 0\nseed: 1\n")), ["line 4: key seed occurs twice"]),
    "duplicate run": (tiny(("  light:", "  vanilla:")), ["key vanilla occurs twice"]),
    "name of a run that is a number": (TINY + "  12: {}\n", ["key 12 is not text to YAML; write it in quotes"]),
    "name of a run that is a float": (TINY + "  1e3: {}\n", ["key 1e3 is not text to YAML"]),
    "name of a run that is nothing": (TINY + "  null: {}\n", ["key null is not text to YAML"]),
    "name of a run that is a date": (TINY + "  2024-05-01: {}\n", ["2024-05-01 is ambiguous in YAML"]),
    "name of a run that is a truth value": (TINY + "  on: {}\n", ["on is ambiguous in YAML"]),
    "long name of a run": (tiny(("  light:", f"  {'a' * 101}:")), [f"runs.{'a' * 101}: a run is named by up to 100"]),
    "octal number": (tiny(("seed: 0", "seed: 010")), ["line 3: 010 is ambiguous in YAML; write it in quotes if"]),
    "thousands": (tiny(("  steps: 8", "  steps: 1_000")), ["1_000 is ambiguous in YAML"]),
    "minutes": (tiny(("experiment: segdistill", "experiment: 1:30")), ["1:30 is ambiguous in YAML"]),
    "yes for true": (tiny(("live: true", "live: yes"), ("seed: 0", "seed: 0o7")), ["(2):", "yes is", "0o7 is"]),
    "home folder": (
        tiny(("source: synthetic ", "source: cityscapes "), ("root: data/raw", "root: ~/cityscapes")),
        ["data.root: found '~/cityscapes'; DVC does not expand ~, so write the path in full: /"],
    ),
    "empty": ("", ["allowed is a mapping of sections"]),
    "a list": ("- 1\n- 2\n", ["found list"]),
    "not YAML": ("seed: [0\n", ["not YAML"]),
    "not UTF-8": (b"seed: \xff\xfe\n", ["not UTF-8"]),
    "an alias": (tiny(("seed: 0", "seed: &a 0")) + "more: *a\n", ["alias *a (line", "written out"]),
    "lists in lists": ("seed: " + "[" * 30 + "]" * 30, ["seed.0.0", "nested lists and mappings; at most 20 levels"]),
    "endless lists": ("seed: " + "[" * 3000, ["not YAML"]),
    "a number beyond all": (tiny(("seed: 0", "seed: 0x" + "f" * 5000)), ["seed: found a number of 20000 bits"]),
    "half a character": (
        tiny(("experiment: segdistill", r'experiment: "\ud800"')),
        ["tracking.experiment", "half a character"],
    ),
    "a name with a line break": (TINY + '"a\\nb": 1\n', ['"a\\nb": unknown key']),
    "a number without digits": (tiny(("seed: 0", "seed: !!int ''")), ["not YAML"]),
    "a tag that runs code": ("seed: !!python/object/apply:os.getpid []\n", ["not YAML"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_its_params_path(load, name):
    text, parts = ERRORS[name]
    with pytest.raises(UserError) as error:
        load(text)
    assert "params.yaml" in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml: no such file.*cp profiles"):
        load_params(tmp_path / "params.yaml")


def test_all_wrong_values_are_named_at_once(load):
    text = tiny(("  lr: 0.02", "  lr: 0"), ("alpha: 0.3", "alpha: 3"), ("live: true", "live: 1"))
    with pytest.raises(UserError) as error:
        load(text)
    assert "(3):" in str(error.value)
    assert all(path in str(error.value) for path in ("teacher.lr", "runs.a03-lr01.alpha", "tracking.live"))


def test_all_errors_between_sections_are_named_at_once(load):
    text = tiny(("size_px: [64, 128]", "size_px: [64, 60]"), ("vanilla: ", "A.b:"), ("alpha: 0.0", "alpha: 0.4"))
    with pytest.raises(UserError) as error:
        load(text)
    for part in ("teacher.crop_px", "distill.crop_px", "runs.A.b: a run is named", "runs.A.b: found alpha 0.4"):
        assert part in str(error.value)


@pytest.mark.parametrize("run", ["seed: 1", "batch_size: 8", "steps: 13", "finetune: {steps: 13}"])
def test_run_that_draws_views_that_are_not_stored_is_refused(load, run):
    stored = TINY.replace(
        "limit_views_to: null", "limit_views_to: {distill_steps: 12, finetune_steps: 12, batch_size: 4}"
    )
    stored = (
        stored[: stored.index("\nruns:")]
        + OTHER_RUNS
        + "  a: {student: deeplabv3plus_mobilenet, alpha: 0.3, lr: 0.01, teacher: views%s}\n"
    )
    assert load(stored % "").teacher_logits.limit_views_to.steps == {"distill": 12, "finetune": 12}
    # Without a teacher in the further steps, none of these views is needed there.
    assert load(stored % ", finetune: {steps: 13, alpha: 0.0}")
    with pytest.raises(
        UserError, match=r"runs\.a: found \{.*seed \d; teacher_logits.limit_views_to stores what up to \{"
    ):
        load(stored % f", {run}")


def readings(text: str) -> list:
    """Return how read_mapping and DVC read a value without quotes; an exception for what one refuses."""
    found = []
    for read in (lambda: load_mapping(f"k: {text}"), lambda: parse_yaml(f"k: {text}", "k")):
        try:
            found.append(read()["k"])
        except Exception as error:  # noqa: BLE001 - DVC raises many kinds
            found.append(error)
    return found


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    st.text("0123456789._:+-eEobxaf", min_size=1, max_size=7)
    | st.sampled_from(["yes", "No", "oN", "OFF", "y", "n", "true", "~"])
)
def test_value_is_read_as_dvc_reads_it_or_refused(text):
    ours, dvcs = readings(text)
    assert isinstance(ours, UserError) or (ours, type(ours)) == (dvcs, type(dvcs)) or ours != ours


@pytest.mark.parametrize("text", ["1e3-cosine", "5e-4-cosine", "2.5d", "1.5.2", ".5x", "1e\u0663"])
def test_text_that_starts_as_a_number_is_text(text):
    assert readings(text) == [text, text]


def test_run_may_be_named_after_its_learning_rate(load):
    assert "5e-4-cosine" in load(tiny(("  light:", "  5e-4-cosine:"))).runs


@pytest.mark.parametrize("name", ["12", "on", "1e3", "2024-05-01", "null"])
def test_run_may_have_any_name_in_quotes(load, name):
    assert name in load(tiny(("  light:", f"  '{name}':"))).runs


@pytest.mark.parametrize(
    ("written", "number"), [("1e-4", 1e-4), ("1E+0", 1.0), ("5e-1", 0.5), (".5", 0.5), ("1", 1.0), ("2.", 2.0)]
)
def test_numbers_are_read_as_dvc_reads_them(load, written, number):
    assert load(tiny(("  lr: 0.02", f"  lr: {written}"))).teacher.lr == number


def test_overrides_reach_distill(load):
    run = "a: {alpha: 0.3, lr: 0.05, teacher: views, steps: 3, temperature: 2.0, seed: 7, student: deeplabv3_resnet50}"
    params = load(tiny_with_run(run))
    found = params.distill_settings("a")
    assert (found.alpha, found.lr, found.steps, found.temperature, found.seed) == (0.3, 0.05, 3, 2.0, 7)
    assert (found.student, found.batch_size) == ("deeplabv3_resnet50", params.distill.batch_size)


def test_a_backbone_becomes_part_of_the_name_of_the_network(load):
    run = "a: {student: deeplabv3plus_timm, alpha: 0.3, lr: 0.05, teacher: views"
    text = tiny_with_run(f"{run}}}\n  b: {run[3:]}, backbone: resnet18}}")
    params = load(text.replace("distill:", "distill:\n  backbone: tf_efficientnet_lite0", 1))
    found = {name: params.finetune_settings(name).network for name in params.runs}
    assert found == {
        "vanilla": "deeplabv3plus_mobilenet",
        "a": "deeplabv3plus_timm:tf_efficientnet_lite0",
        "b": "deeplabv3plus_timm:resnet18",
    }
    assert params.distill_settings("vanilla").backbone is None
    around = "arch: lraspp_timm\n  backbone: resnet18\n  output_stride: 16"
    teacher = load(tiny(("arch: deeplabv3plus_mobilenet\n  output_stride: 8", around))).teacher
    assert teacher.network == teacher.described == "lraspp_timm:resnet18"


def test_overrides_stay_with_their_run(load):
    params = load(tiny_with_run("a: {alpha: 0.3, lr: 0.05, teacher: views, steps: 3, seed: 7}"))
    found = params.distill_settings("vanilla")
    assert (found.steps, found.seed) == (params.distill.steps, params.seed)


def test_override_to_0_is_kept(load):
    run = "a: {alpha: 0.3, lr: 0.05, teacher: views, momentum: 0.0, evaluate_every_steps: 0, seed: 0}"
    found = load(tiny_with_run(run).replace("seed: 0", "seed: 5", 1)).distill_settings("a")
    assert (found.momentum, found.evaluate_every_steps, found.seed) == (0.0, 0, 0)


SEEDED = tiny_with_run("a: {alpha: 0.3, lr: 0.05, teacher: views, seed: 7, finetune: {steps: 2}, export: {opset: 20}}")


def with_seeds(seeds: str, text: str = SEEDED) -> str:
    assert "\nseeds: []" in text
    return text.replace("\nseeds: []", f"\nseeds: {seeds}", 1)


def test_each_run_is_repeated_with_each_further_seed(load):
    params = load(with_seeds("[0, 1, 7]"))
    # vanilla has the global seed, 0, already, and a has 7.
    assert params.students() == ("vanilla", "vanilla-1", "vanilla-7", "a", "a-0", "a-1")
    assert [params.seed_of(name) for name in params.students()] == [0, 1, 7, 7, 0, 1]
    assert load(TINY).students() == tuple(load(TINY).runs)


def test_a_repetition_has_all_settings_of_its_run_but_the_seed(load):
    params = load(with_seeds("[1]"))
    for of in (params.distill_settings, params.finetune_settings):
        assert of("a-1") == of("a").model_copy(update={"seed": 1})
    assert (params.export_params("a-1").opset, params.finetune_params("a-1").steps) == (20, 2)
    assert params.finetune_settings("vanilla-1").alpha == 0


def test_params_without_seeds_repeat_nothing(load):
    assert load(SEEDED.replace("\nseeds: []", "\n#", 1)).students() == ("vanilla", "a")


@pytest.mark.parametrize(
    ("seeds", "run", "message"),
    [
        ("[1, 1]", "b: {alpha: 0.3, lr: 0.05, teacher: views}", "seeds: found [1, 1]; each seed at most once"),
        ("[-1]", "b: {alpha: 0.3, lr: 0.05, teacher: views}", "seeds.0: found -1"),
        (
            "[3]",
            "vanilla-3: {alpha: 0.3, lr: 0.05, teacher: views}",
            "runs.vanilla-3: this name is taken, by the repetition of vanilla",
        ),
        (
            "[0]",
            "vanilla-0: {alpha: 0.3, lr: 0.05, teacher: views}",
            "runs.vanilla-0: this name is taken, by the repetition of vanilla",
        ),
        ("[12]", f"{'b' * 98}: {{alpha: 0.3, lr: 0.05, teacher: views}}", "behind it, more than 100 characters"),
    ],
)
def test_seeds_that_cannot_be_are_refused(load, seeds, run, message):
    with pytest.raises(UserError) as refused:
        load(with_seeds(seeds, tiny_with_run(run)))
    assert message in str(refused.value)


def test_seeds_need_all_views(load):
    limited = SEEDED.replace("seed: 7, ", "").replace(
        "limit_views_to: null", "limit_views_to: {distill_steps: 50, finetune_steps: 50, batch_size: 4}"
    )
    load(with_seeds("[0]", limited))
    with pytest.raises(
        UserError, match=r"seeds: found \[0, 1\]; .* stores only what seed 0 draws, and null stores all"
    ):
        load(with_seeds("[0, 1]", limited))


def test_finetune_null_takes_lr_and_alpha_of_the_run(load):
    found = load(TINY).finetune_settings("a03-lr01")
    assert (found.lr, found.alpha, found.steps) == (0.01, 0.3, 6)


def test_finetune_has_its_own_schedule(load):
    found = load(TINY).finetune_settings("light")
    assert (found.schedule, found.decay_every_steps, found.gamma) == ("step", 3, 0.1)


def test_finetune_keeps_other_settings_of_the_run(load):
    found = load(TINY).finetune_settings("light")
    assert (found.student, found.method, found.temperature) == ("deeplabv3_mobilenet_lite", "sigmoid_kl", 0.01)


def test_finetune_has_its_own_warmup(load):
    run = "a: {alpha: 0.3, lr: 0.05, teacher: views, warmup_steps: 4}"
    params = load(tiny_with_run(run))
    assert (params.distill_settings("a").warmup_steps, params.finetune_settings("a").warmup_steps) == (4, 0)
    params = load(tiny_with_run(run.replace("4}", "4, finetune: {warmup_steps: 2}}")))
    assert params.finetune_settings("a").warmup_steps == 2


BOTH = "label_weight: 1.0, distill_weight: 0.8"


@pytest.mark.parametrize(
    ("run", "further", "first_weights", "further_weights"),
    [
        ("alpha: 0.3", "steps: 2", (0.7, 0.3), (0.7, 0.3)),
        (BOTH, "steps: 2", (1.0, 0.8), (1.0, 0.8)),
        (BOTH, "alpha: 0.1", (1.0, 0.8), (0.9, 0.1)),
        ("alpha: 0.3", "label_weight: 0.5, distill_weight: 2.0", (0.7, 0.3), (0.5, 2.0)),
    ],
)
def test_finetune_has_the_weights_of_the_run_or_its_own(load, run, further, first_weights, further_weights):
    line = f"a: {{student: deeplabv3plus_mobilenet, {run}, lr: 0.05, teacher: views, finetune: {{{further}}}}}"
    params = load(tiny_with_run(line))
    assert params.distill_settings("a").loss_weights == pytest.approx(first_weights)
    assert params.finetune_settings("a").loss_weights == pytest.approx(further_weights)


@pytest.mark.parametrize("control", ["alpha: 0.0", "label_weight: 1.0, distill_weight: 0.0"])
def test_control_finetunes_as_a_control(load, control):
    text = tiny(("alpha: 0.0", control), ("lr: null, alpha: null}", "lr: null, alpha: 0.5}"))
    assert load(text).finetune_settings("vanilla").loss_weights == (1.0, 0.0)


def test_overrides_reach_finetune(load):
    run = "a: {alpha: 0.3, lr: 0.05, teacher: views, finetune: {steps: 2, lr: 1e-3, alpha: 0.1, schedule: poly}}"
    params = load(tiny_with_run(run))
    found = params.finetune_settings("a")
    assert (found.steps, found.lr, found.alpha, found.schedule) == (2, 1e-3, 0.1, "poly")
    assert params.finetune_settings("vanilla").steps == 6


def test_no_finetune_steps(load):
    params = load(tiny_with_run("a: {alpha: 0.3, lr: 0.05, teacher: views, finetune: {steps: 0}}"))
    assert params.finetune_settings("a").steps == 0


def test_overrides_reach_export(load):
    params = load(tiny_with_run("a: {alpha: 0.3, lr: 0.05, teacher: views, export: {opset: 20}}"))
    assert [params.export_params(run).opset for run in ("vanilla", "a")] == [18, 20]


@pytest.mark.parametrize("section", [None, "data", "distill", "teacher"])
def test_models_are_frozen(load, section):
    params = load(TINY)
    model = getattr(params, section) if section else params
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(model, next(iter(type(model).model_fields)), 1)


def test_a_run_is_frozen(load):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load(TINY).runs["vanilla"].alpha = 0.5
