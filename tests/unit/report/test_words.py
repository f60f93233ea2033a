"""The answer in sentences: what to ship, whether distilling helped beyond chance, and what limits the claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segdistill.report.words import answer, covered, over_all_settings
from segdistill.results.gains import Gain, ValGroups
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import write_sweep
from support.rows import one


def text_of(summary: Summary) -> str:
    return " ".join(answer(summary).reasons)


def over_seeds(gains: list[float], **options) -> Summary:
    rows = [one(f"v-s{seed}", 0.5 + seed / 100, role="control", seed=seed) for seed in range(len(gains))]
    rows += [one(f"a-s{seed}", 0.5 + seed / 100 + gain, seed=seed) for seed, gain in enumerate(gains)]
    return of_rows(rows, {}, **options)


def test_control_can_be_the_pick() -> None:
    rows = [one("vanilla", 0.50, role="control"), one("a03", 0.48)]
    found = answer(of_rows(rows, {}))
    assert found.headline == "Ship vanilla as float32 ONNX"
    assert "no result of distilling" in " ".join(found.reasons)
    assert "a03: One seed cannot tell" in " ".join(found.reasons)


def test_slower_but_better_control_is_named() -> None:
    rows = [one("vanilla", 0.50, role="control"), one("a03", 0.495, onnx_float32_p50_ms=4.0)]
    text = text_of(of_rows(rows, {}))
    assert "0.5 points below the control vanilla" in text
    assert "picked for its speed" in text


@pytest.mark.parametrize("gain", [0.01, 0.06, 0.30])
def test_one_seed_is_never_called_a_gain(gain: float) -> None:
    text = text_of(of_rows([one("vanilla", 0.50, role="control"), one("a03", 0.50 + gain)], {}))
    assert "One seed cannot tell distilling from chance" in text
    assert "helped" not in text


@pytest.mark.parametrize(
    ("gains", "start"),
    [
        ([0.05, 0.06, 0.055], "Distilling helped: over 3 seeds the gain in PyTorch is +5.5 points, 95% interval"),
        ([0.05, -0.02, 0.04], "It is not shown that distilling helped: over 3 seeds"),
    ],
)
def test_claim_follows_the_interval(gains: list[float], start: str) -> None:
    assert start in text_of(over_seeds(gains))


def test_claim_says_when_distilling_hurt() -> None:
    summary = over_seeds([-0.002, -0.0021, -0.0019])
    fast = [replace(row, onnx_float32_p50_ms=4.0) if row.role == "student" else row for row in summary.rows]
    assert "Distilling hurt: over 3 seeds the gain in PyTorch is \N{MINUS SIGN}0.2 points" in text_of(of_rows(fast, {}))


def test_claim_says_what_val_cannot_show() -> None:
    summary = over_seeds([0.05, 0.06, 0.055])
    one_group = text_of(replace(summary, val_groups=ValGroups(1, 0)))
    assert "All val frames are of one city or recording" in one_group
    shared = text_of(replace(summary, val_groups=ValGroups(3, 2)))
    assert "Train has frames of 2 of the 3 cities or recordings of val" in shared
    assert "do not say which frames belong together" in text_of(summary)


def over_seeds_and_unseen(gains: list[float], unseen: list[float]) -> Summary:
    rows = [
        replace(row, unseen_mean_iou=0.3 + (unseen[row.seed] if row.role == "student" else 0))
        for row in over_seeds(gains).rows
    ]
    return replace(of_rows(rows, {}), val_groups=ValGroups(1, 1, unseen=2))


def test_claim_rests_on_the_unseen_drives() -> None:
    text = text_of(over_seeds_and_unseen([0.02, 0.021, 0.019], [-0.017, -0.018, -0.016]))
    assert "Distilling hurt: over 3 seeds the gain on unseen drives, in PyTorch, is \N{MINUS SIGN}1.7 points" in text
    assert "; on val it is +2.0 points, 95% interval" in text
    assert "Distilling helped" not in text
    text = text_of(over_seeds_and_unseen([0.02, 0.021, 0.019], [0.01, 0.011, 0.012]))
    assert "Distilling helped: over 3 seeds the gain on unseen drives, in PyTorch, is +1.1 points" in text


def test_one_unseen_drive_is_named_as_one() -> None:
    summary = over_seeds_and_unseen([0.02, 0.021, 0.019], [0.01, 0.011, 0.012])
    text = text_of(replace(summary, val_groups=ValGroups(1, 1, unseen=1)))
    assert "The claim rests on one unseen drive, so this says nothing about other places" in text


def test_file_to_ship_has_its_own_mean_iou_on_the_unseen_drives() -> None:
    rows = [one("vanilla", 0.5, 0.5, role="control"), one("a03", 0.6, 0.6, int8_unseen_mean_iou=0.382)]
    expected = "models/runs/a03/student.int8.onnx: val mIoU 60.0%, mIoU 38.2% on the unseen drives, 5.0 ms per image"
    assert expected in text_of(of_rows(rows, {}))
    assert "unseen" not in text_of(of_rows([rows[0], replace(rows[1], int8_unseen_mean_iou=None)], {}))
    as_float32 = replace(rows[1], onnx_int8_p50_ms=20.0, unseen_mean_iou=0.39)
    text = text_of(of_rows([rows[0], as_float32], {}))
    assert "student.onnx: val mIoU 60.0%, 10.0 ms per image" in text


def test_intervals_name_the_stretches_that_they_cover() -> None:
    gain = Gain(0.02, seeds=3, groups=10, low=0.01, high=0.03)
    one = covered(gain, 1, "All val frames are of one drive", "drives")
    assert one.startswith("All val frames are of one drive, of which the interval covers 10 stretches, so this says")
    assert "seeds and 10 stretches of the 2 drives, which are too few to show" in covered(gain, 2, "", "drives")
    assert covered(replace(gain, groups=4), 4, "", "drives") == "The interval covers seeds and the 4 drives."


def test_claim_covers_groups_of_frames(tmp_path: Path) -> None:
    params = write_sweep(tmp_path / "metrics", [0.5, 0.52, 0.51], {"a03": [0.03, 0.031, 0.029]})
    text = text_of(summarise(params, tmp_path / "metrics"))
    assert "Distilling helped" in text
    assert "covers seeds and the 3 cities or recordings of val" in text


def test_settings_are_counted() -> None:
    rows = [one("vanilla", 0.5, role="control"), one("a", 0.52), one("b", 0.51), one("c", 0.41, alpha=0.2)]
    rows[2] = replace(rows[2], alpha=0.1)
    text = text_of(of_rows(rows, {}))
    assert "Of 3 distilled settings with a control of their network and recipe, 2 are above it in PyTorch" in text
    assert "(best: a with +2.0 points" in text
    assert "mean of all \N{MINUS SIGN}2.0 points); with one seed of each, nothing tells any of this from chance" in text


def test_gain_of_another_recipe_is_not_said_to_be_of_distilling() -> None:
    rows = [replace(row, lr=0.01, recipe="x") for row in over_seeds([0.05, 0.06, 0.055]).rows]
    assert "Distilling helped" in text_of(of_rows(rows, {}))
    rows = [replace(row, lr=0.02, recipe="y") if row.role == "student" else row for row in rows]
    text = text_of(of_rows(rows, {}))
    assert "Distilling helped" not in text
    assert "its control v-s0 was trained by another recipe (lr 0.02 against 0.01), so the gain in PyTorch (+5.5" in text
    assert "No distilled run has a control of its own recipe" in text
    # Another setting, of the recipe of the control, is counted; this one is not.
    summary = of_rows([*rows, *(replace(row, run=f"b-{row.run}", lr=0.01, recipe="x") for row in rows[3:])], {})
    assert over_all_settings(summary).startswith("b-a: Distilling helped: over 3 seeds the gain in PyTorch is +5.5")


def test_nothing_to_ship_below_the_floor() -> None:
    rows = [one("teacher", 0.8, role="teacher"), one("vanilla", 0.3, role="control"), one("a03", 0.35)]
    found = answer(of_rows(rows, {}))
    assert found.headline == "Nothing to ship yet"
    assert "has a val mIoU of 35.0%; a file to ship needs at least 40.0% (half of the teacher's)" in found.reasons[0]
    unscored = answer(of_rows([one("a03", None, float32_mean_iou=None)], {}))
    assert (unscored.headline, unscored.reasons[0]) == (
        "Nothing to ship yet",
        "No exported file has a defined val mIoU.",
    )


def test_finetuning_that_lost_is_named() -> None:
    steps = {"finetune_steps": 100}
    rows = [one("vanilla", 0.5, role="control", distilled_mean_iou=0.4, **steps)]
    rows += [one("a", 0.52, distilled_mean_iou=0.6, **steps), one("b", 0.1, distilled_mean_iou=0.4, **steps)]
    text = text_of(of_rows(rows, {}))
    assert "Finetuning lowered val mIoU in 2 of 3 runs: a, from 60.0% to 52.0%" in text
    assert "Finetuning" not in text_of(of_rows(rows[:1], {}))
    assert "Finetuning" not in text_of(of_rows([replace(rows[1], finetune_steps=0)], {}))


def test_busy_machine_is_named_and_no_speed_is_claimed() -> None:
    rows = [one("teacher", 0.7, role="teacher", onnx_float32_p50_ms=50.0), one("a", 0.6)]
    busy = text_of(of_rows(rows, {"conditions": {"load_1min_after": 9.0, "cpus": 2}}))
    assert "Do not rely on the latencies: the machine was busy while they were taken: load 9.0 for 2 cores" in busy
    assert "times as fast" not in busy
    assert "5.0 times as fast" in text_of(of_rows(rows, {}))


def test_weaker_teacher_is_named() -> None:
    teacher = one("teacher", 0.4, role="teacher", onnx_float32_p50_ms=50.0)
    rows = [teacher, one("vanilla", 0.50, role="control"), one("a03", 0.51)]
    assert "higher than the teacher (40.0%)" in text_of(of_rows(rows, {}))
    strong = [one("teacher", 0.68, role="teacher", onnx_float32_p50_ms=50.0), *rows[1:]]
    kept = "keeps 75% of the teacher's mIoU (68.0%); it is 5.0 times as fast as the teacher in float32 ONNX"
    assert kept in text_of(of_rows(strong, {}))


def test_files_of_one_form_are_compared() -> None:
    teacher = one("teacher", 0.68, 0.60, role="teacher", onnx_float32_p50_ms=50.0, onnx_int8_p50_ms=15.0)
    text = text_of(of_rows([teacher, one("vanilla", 0.5, 0.5, role="control"), one("a", 0.6, 0.61)], {}))
    assert "3.0 times as fast as the teacher in int8 ONNX and 10.0 times as fast as the teacher in float32 ONNX" in text
    assert "above the control vanilla (both int8; trained without a teacher)" in text


@pytest.mark.parametrize(("parameters", "engine"), [(40_000_000, "PyTorch"), (None, "PyTorch and ONNX")])
def test_teacher_of_several_parts_is_shown_in_the_form_it_was_timed_in(parameters: int | None, engine: str) -> None:
    timed = {"onnx_float32_p50_ms": None, "torch_p50_ms": 90.0, "parameters": parameters}
    teacher = one("teacher", 0.68, role="teacher", **timed)
    summary = of_rows([teacher, one("vanilla", 0.50, role="control"), one("a03", 0.51)], {})
    assert (summary.files[0].p50_ms, summary.files[0].on_front) == (90.0, True)
    assert summary.teacher.timed("int8") == (engine, 90.0)
    assert f"9.0 times as fast as the teacher in {engine}." in text_of(summary)
    assert replace(teacher, torch_p50_ms=None).timed() is None


def quantised(gate: str, losses: list[float], layers: list[str], bound: float = 0.5) -> dict:
    best = min(losses)
    return {
        "gate": gate,
        "holdout_loss": best,
        "float_layers": layers,
        "max_int8_loss": bound,
        "tries": [{"holdout_loss": loss} for loss in losses],
    }


def test_int8_files_that_needed_more_than_the_first_try_are_named() -> None:
    ways = {
        "plain": quantised("min-max", [0.2], []),
        "narrow": quantised("percentile 99.9", [1.5, 0.4], []),
        "float": quantised("layers in float", [3.0, 1.0, 0.9], ["a", "b"]),
        "unmeasured": {"gate": "min-max", "max_int8_loss": None, "tries": []},
    }
    rows = [one(run, 0.5, 0.49, files={"export": {"quantisation": way}}) for run, way in ways.items()]
    text = text_of(of_rows([one("vanilla", 0.5, role="control"), *rows], {}))
    narrow = "On the holdout the int8 file of narrow is at −0.4 points of mIoU against float32, with percentile 99.9"
    assert f"{narrow} (min-max: −1.5)." in text
    assert "of float is at −0.9 points of mIoU" in text
    assert "with 2 layers left in float32 (min-max: −3.0), more than export.max_int8_loss allows (0.5)." in text
    assert "of plain" not in text
    assert "of unmeasured" not in text


def test_openvino_is_compared_on_the_file_that_is_picked() -> None:
    files = {"latency": {"openvino_int8": {"agreement_with_onnxruntime": 0.985}}}
    rows = [one("vanilla", 0.5, role="control"), one("a03", 0.6, 0.6, openvino_int8_p50_ms=2.5, files=files)]
    expected = (
        "OpenVINO runs the same file 2.0 times as fast as onnxruntime (2.5 against 5.0 ms) and names the same class"
    )
    assert f"{expected} on 98.5% of the pixels; pick and mIoU" in text_of(of_rows(rows, {}))
    assert "OpenVINO" not in text_of(replace(of_rows(rows, {}), busy="the machine was busy"))
    rows = [one("a03", 0.6, openvino_float32_p50_ms=12.0, openvino_bfloat16_p50_ms=4.0)]
    assert "the same file in bfloat16 2.5 times as fast" in text_of(of_rows(rows, {}))
    assert "OpenVINO" not in text_of(of_rows([one("a03", 0.6)], {}))
    assert "OpenVINO" not in text_of(of_rows([one("a03", 0.6, openvino_float32_p50_ms=12.0)], {}))  # slower
