"""distill and steplr-finetune: all kinds of teacher, the control, all options of a run, and the same bytes twice."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.provenance import file_sha256
from segdistill.data.prepared import PreparedData
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.export.run import export_run
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.nets.weights import load_net
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from segdistill.scoring.evaluate import evaluate
from segdistill.scoring.record import ValRecord
from segdistill.student.run import distill, finetune
from segdistill.teacher.check import check_teacher
from segdistill.training import job as training_job
from segdistill.training.checkpoint import Checkpointer
from support.tiny_city import build_logits, tinier_params

KINDS = ("views", "frame", "online")
RUNS = {"vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"}} | {
    kind: {"alpha": 0.5, "lr": 0.01, "teacher": kind} for kind in KINDS
}


def params_of(**changed):
    return tinier_params(teacher_logits={"kinds": KINDS}, runs=RUNS | changed)


def params_in(precision: str):
    params = params_of()
    return params.model_copy(update={"compute": params.compute.model_copy(update={"precision": precision})})


@pytest.fixture
def here(city, tmp_path, monkeypatch):
    for name in ("data", "models", "metrics"):
        shutil.copytree(city / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(run: str, name: str = "distilled") -> str:
    return file_sha256(f"models/runs/{run}/{name}.safetensors")


def curve(run: str, phase: str = "distill") -> list[dict]:
    with Path(f"metrics/runs/{run}/{phase}_curve.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("kind", KINDS)
def test_student_learns_from_every_kind_of_teacher(here, kind):
    distill(params_of(), kind)
    assert [row["step"] for row in curve(kind)] == ["1", "2", "3"]
    for row in curve(kind):
        loss = 0.5 * float(row["label_loss"]) + 0.5 * float(row["distill_loss"])
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(row["distill_loss"]) > 0
    assert 0 <= read_json(f"metrics/runs/{kind}/distill.json")["teacher_agreement"] <= 1


def test_control_needs_no_teacher(here):
    shutil.rmtree("data/teacher_logits")
    shutil.rmtree("models/teacher")
    distill(params_of(), "vanilla")
    finetune(params_of(), "vanilla")
    assert all(float(row["distill_loss"]) == 0 for row in curve("vanilla"))
    assert "teacher_agreement" not in read_json("metrics/runs/vanilla/finetune.json")


def test_missing_logits_are_reported(here):
    shutil.rmtree("data/teacher_logits/views")
    with pytest.raises(UserError, match=r"data/teacher_logits/views: no readable manifest"):
        distill(params_of(), "views")


def test_control_and_student_have_the_same_first_batch(here):
    # In step 1 the same network gets the same crops, so the label losses are equal to the bit.
    distill(params_of(), "vanilla")
    distill(params_of(), "views")
    first, other = curve("vanilla"), curve("views")
    assert first[0]["label_loss"] == other[0]["label_loss"]
    assert first[2]["label_loss"] != other[2]["label_loss"]


def test_cached_views_give_the_loss_of_the_live_teacher(here):
    # Without flips, in float32: the first distillation loss is the same number but for float16 storage.
    still = {kind: RUNS[kind] | {"flip_probability": 0.0} for kind in ("views", "online")}
    for kind in still:
        distill(params_of(**still), kind)
    stored, live = (float(curve(kind)[0]["distill_loss"]) for kind in still)
    assert stored == pytest.approx(live, rel=0.2)


def test_training_gives_the_same_bytes_twice_and_others_with_another_seed(here):
    distill(params_of(), "views")
    finetune(params_of(), "views")
    first = weights("views"), weights("views", "finetuned"), Path("metrics/runs/views/finetune.json").read_bytes()
    distill(params_of(), "views")
    finetune(params_of(), "views")
    assert first == (
        weights("views"),
        weights("views", "finetuned"),
        Path("metrics/runs/views/finetune.json").read_bytes(),
    )
    distill(params_of(views=RUNS["views"] | {"seed": 5}), "views")
    assert weights("views") != first[0]


def test_a_repetition_gives_the_bytes_of_a_run_with_its_seed(here):
    repeated = params_of().model_copy(update={"seeds": (5,)})
    distill(repeated, "views-5")
    finetune(repeated, "views-5")
    by_hand = params_of(views=RUNS["views"] | {"seed": 5})
    distill(by_hand, "views")
    finetune(by_hand, "views")
    for name in ("distilled", "finetuned"):
        assert weights("views-5", name) == weights("views", name)


def test_resume_ignores_the_checkpoint_of_other_code(here, monkeypatch):
    keys, edited = [], here / "edited.py"

    class Seen(Checkpointer):
        def __init__(self, job: str, key: str) -> None:
            keys.append(key)
            super().__init__(job, key)

    module = types.ModuleType("segdistill.edited")
    module.__file__ = str(edited)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(training_job, "Checkpointer", Seen)
    for code in ("before", "before", "after"):
        edited.write_text(code)
        distill(params_of(), "vanilla")
    assert keys[0] == keys[1] != keys[2]


def test_finetune_writes_the_record_of_val(here):
    distill(params_of(), "vanilla")
    assert not Path("metrics/runs/vanilla/val").exists()
    finetune(params_of(), "vanilla")
    record, metrics = ValRecord(Path("metrics/runs/vanilla/val")), read_json("metrics/runs/vanilla/finetune.json")
    val = PreparedData.open().val
    assert record.frame_names == dict(enumerate(val.names))
    assert record.counts_CC.sum() == np.count_nonzero(np.asarray(val.labels) != 255)
    assert record.counts_CC.trace() / record.counts_CC.sum() == metrics["overall_acc"]
    right = sum(np.count_nonzero(record.classes(index) == val.labels[index]) for index in range(len(val)))
    assert right == record.counts_CC.trace(), "frames of 64 pixels are stored unreduced"


def test_finished_models_are_scored_on_unseen_drives_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = tinier_params(data={"unseen_groups": ("juniper",)}, runs={"vanilla": RUNS["vanilla"]})
    prepare(params.data, params.seed, PREPARED, workers=1)
    data = PreparedData.open()
    assert {name.split("_")[0] for name in data.unseen.names} == {"juniper"}
    assert not {"juniper"} & {group for split in ("train", "holdout", "val") for group in data.frame_groups[split]}
    check_teacher(params)
    distill(params, "vanilla")
    finetune(params, "vanilla")
    for model, metrics, record in (
        ("models/teacher/teacher", "metrics/teacher.json", "metrics/val/unseen"),
        ("models/runs/vanilla/finetuned", "metrics/runs/vanilla/finetune.json", "metrics/runs/vanilla/val/unseen"),
    ):
        net, _ = load_net(f"{model}.safetensors")
        predictor = TorchPredictor(net, device_of(params.compute).in_float32())
        expected = evaluate(predictor, data.unseen, len(data.table), 1).metrics
        assert read_json(metrics)["unseen"]["mean_iou"] == pytest.approx(expected["mean_iou"])
        assert read_json(metrics)["unseen"]["mean_iou"] != read_json(metrics)["mean_iou"]
        assert ValRecord(Path(record)).frame_names == dict(enumerate(data.unseen.names))
    assert "unseen" not in read_json("metrics/runs/vanilla/distill.json")
    assert read_json("metrics/teacher.json")["unseen_groups"] == 1

    export_run(params, "vanilla")
    exported = read_json("metrics/runs/vanilla/export.json")
    file = OnnxPredictor("models/runs/vanilla/student.int8.onnx", 1)
    expected = evaluate(file, data.unseen, len(data.table), 1).metrics
    found = exported["int8"]["unseen"]
    assert found.keys() == read_json("metrics/runs/vanilla/finetune.json")["unseen"].keys()
    assert (found["mean_iou"], found["mean_loss"]) == pytest.approx((expected["mean_iou"], expected["mean_loss"]))
    assert found["mean_iou"] != exported["int8"]["mean_iou"]
    assert not {"torch", "float32"} & {name for name, row in exported.items() if "unseen" in row}


def test_finetune_continues_from_the_distilled_student(here):
    distill(params_of(), "views")
    finetune(params_of(views=RUNS["views"] | {"finetune": {"steps": 0}}), "views")
    assert curve("views", "finetune") == []
    distilled, finetuned = (read_json(f"metrics/runs/views/{name}.json") for name in ("distill", "finetune"))
    assert distilled["class_iou"] == finetuned["class_iou"]
    finetune(params_of(), "views")
    assert [float(row["lr"]) for row in curve("views", "finetune")] == pytest.approx([0.01, 0.001])
    assert read_json("metrics/runs/views/finetune.json")["mean_loss"] != distilled["mean_loss"]


def image_names(phase: str) -> list[str]:
    return sorted(path.name for path in Path(f"metrics/runs/vanilla/{phase}_images").iterdir())


def test_images_of_a_holdout_frame_are_saved_by_step(here):
    distill(params_of(vanilla=RUNS["vanilla"] | {"evaluate_every_steps": 2}), "vanilla")
    assert image_names("distill") == [
        f"00000_{name}.png" for name in ("step_000000", "step_000002", "step_000003", "truth")
    ]
    still = params_of(vanilla=RUNS["vanilla"] | {"finetune": {"steps": 0}})
    finetune(still, "vanilla")
    assert image_names("finetune") == ["00000_step_000000.png", "00000_truth.png"]
    last, given = (
        Path(f"metrics/runs/vanilla/{name}.png").read_bytes()
        for name in ("distill_images/00000_step_000003", "finetune_images/00000_step_000000")
    )
    assert last == given, "finetune starts from the distilled network"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_export_scores_every_file_and_its_agreement_with_the_teacher(here, precision):
    params = params_in(precision)
    distill(params, "vanilla")
    finetune(params, "vanilla")
    export_run(params, "vanilla")
    rows = read_json("metrics/runs/vanilla/export.json")
    assert rows["torch"]["mean_loss"] == pytest.approx(read_json("metrics/runs/vanilla/finetune.json")["mean_loss"])
    assert rows["float32"]["class_agreement_with_torch"] > 0.999
    assert rows["float32"]["max_logit_difference_relative"] < 1e-4
    for kind, name in (("float32", "student.onnx"), ("int8", "student.int8.onnx")):
        assert rows[kind]["bytes"] == Path(f"models/runs/vanilla/{name}").stat().st_size
        assert 0 <= rows[kind]["teacher_agreement"] <= 1
    assert "unseen" not in rows["int8"]


@pytest.mark.parametrize(
    "override",
    [
        {"method": "channel_kl", "temperature": 4.0},
        {"method": "sigmoid_kl", "temperature": 0.01, "label_loss": "focal"},
        {"kl_resolution": "full", "schedule": "poly"},
        {"jitter": 0.5, "weight_decay": 0.0, "backbone_lr_factor": 0.1},
        {"student": "deeplabv3plus_mobilenet_tv", "output_stride": 8},
        {"student": "deeplabv3plus_mobilenet_separable", "schedule": "step", "decay_every_steps": 1},
        {"distill_where": "right", "kl_resolution": "full"},
        {"distill_where": "label_probability"},
        {"label_loss": "ohem", "class_weights": "inverse_log"},
        {"alpha": None, "label_weight": 1.0, "distill_weight": 0.8},
        {"optimizer": "adamw", "decay_norm_and_bias": False, "warmup_steps": 2, "ema_decay": 0.99},
        {"student": "lraspp_mobilenet_v3_large"},
        {"student": "deeplabv3_mobilenet_v3_large"},
        # At stride 64 a crop is one pixel: batch norm has as many values as the batch has crops.
        {"student": "ddrnet23_slim", "output_stride": 8, "batch_size": 6},
        {"student": "pidnet_s", "output_stride": 8, "batch_size": 6, "label_loss": "focal"},
    ],
    ids=lambda override: "-".join(map(str, override.values())),
)
def test_every_option_of_a_run_trains(here, override):
    distill(params_of(views=RUNS["views"] | override), "views")
    losses = [float(row["loss"]) for row in curve("views")]
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    _, header = load_net("models/runs/views/distilled.safetensors")
    assert header.params | override == header.params


def test_weights_of_both_losses_may_replace_alpha(here):
    by_weights = {"alpha": None, "label_weight": 0.5, "distill_weight": 0.5, "lr": 0.01, "teacher": "views"}
    control = {"label_weight": 1.0, "distill_weight": 0.0, "lr": 0.01, "teacher": "none"}
    found = []
    for run in ("views", "vanilla"):
        for params in (params_of(), params_of(views=by_weights, vanilla=control)):
            distill(params, run)
            finetune(params, run)
            found.append((curve(run), curve(run, "finetune")))
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_finetune_with_distill_weight_0_continues_as_a_control(here):
    by_weights = {"label_weight": 1.0, "distill_weight": 0.8, "lr": 0.01, "teacher": "views"}
    distill(params_of(), "views")
    found = []
    for further in ({"alpha": 0.0}, {"label_weight": 1.0, "distill_weight": 0.0}):
        finetune(params_of(views=by_weights | {"finetune": further}), "views")
        found.append(curve("views", "finetune"))
    assert found[0] == found[1]
    assert all(float(row["distill_loss"]) == 0 and row["loss"] == row["label_loss"] for row in found[0])


def test_bfloat16_trains_close_to_float32(here):
    def losses(precision: str) -> list[float]:
        distill(params_in(precision), "views")
        assert read_json(Path("metrics/runs/views/distill.json"))["training_precision"] == precision
        return [float(row["loss"]) for row in curve("views")]

    exact, found = losses("float32"), losses("bfloat16")
    assert found != exact
    assert found == pytest.approx(exact, rel=0.05)
    assert all(
        value.dtype != torch.bfloat16 for value in load_net("models/runs/views/distilled.safetensors")[0].parameters()
    )


def test_limited_views_teach_the_same_as_all_views(here):
    limit_views_to = {"distill_steps": 3, "finetune_steps": 2, "batch_size": 2}
    runs = {name: RUNS[name] for name in ("vanilla", "views")}
    params = tinier_params(teacher_logits={"kinds": ("views",), "limit_views_to": limit_views_to}, runs=runs)
    distill(params, "views")
    from_all, _ = load_net("models/runs/views/distilled.safetensors")
    build_logits(params)
    assert 0 < len(np.load("data/teacher_logits/views/logits-00000.npy")) <= 10
    distill(params, "views")
    from_drawn, _ = load_net("models/runs/views/distilled.safetensors")
    finetune(params, "views")
    # Logits of other batches of the teacher are rounded differently.
    for name, value in from_all.state_dict().items():
        torch.testing.assert_close(from_drawn.state_dict()[name], value, rtol=0, atol=1e-4)
