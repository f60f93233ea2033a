"""Scaled, mixed and mirrored views together: teacher, students and control train on them and repeat their bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segdistill.core.errors import UserError
from segdistill.core.provenance import file_sha256
from segdistill.paths import DISTILLED, run_metrics, run_models
from segdistill.student.run import distill
from support.tiny_city import build_logits, tinier_params

RECIPE = {"scale_range": (0.8, 2.0), "mix": "classmix", "mix_probability": 1.0}
RUNS = {
    "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "taught": {"alpha": 0.5, "lr": 0.01, "teacher": "views"},
    "cut": {"alpha": 0.5, "lr": 0.01, "teacher": "views", "mix": "cutmix"},
    "plain": {"alpha": 0.5, "lr": 0.01, "teacher": "views", "mix": "none"},
}


def params_of(**changed):
    crop = {"crop_px": (32, 32)}
    sections = {
        "teacher": RECIPE | crop,
        "distill": RECIPE | crop,
        "teacher_logits": {"mirrored": True, "dtype": "uint8"},
    }
    for section, values in changed.items():
        sections[section] |= values
    return tinier_params(runs=RUNS, **sections)


@pytest.fixture
def here(city, monkeypatch):
    monkeypatch.chdir(city)


@pytest.mark.usefixtures("here")
def test_students_train_on_scaled_mixed_and_mirrored_views():
    manifest = json.loads(Path("data/teacher_logits/views/manifest.json").read_text())
    assert (manifest["scale_range"], manifest["mirrored"]) == ([0.8, 2.0], True)
    hashes = {}
    for run in RUNS:
        for _ in range(2):
            distill(params_of(), run)
            hashes.setdefault(run, set()).add(file_sha256(run_models(run) / DISTILLED))
        assert json.loads((run_metrics(run) / "distill.json").read_text())["mean_loss"] > 0
    assert all(len(found) == 1 for found in hashes.values()), "the same bits twice"
    assert len(set.union(*hashes.values())) == len(RUNS)


@pytest.mark.usefixtures("here")
def test_cache_of_other_scales_is_refused():
    other = params_of(distill={"scale_range": (0.8, 1.5)})
    with pytest.raises(UserError, match=r"scale_range is \[0\.8, 2\.0\] there, \[0\.8, 1\.5\] is needed"):
        distill(other, "taught")
    distill(other, "vanilla")  # a control has no cache


@pytest.mark.usefixtures("here")
def test_scales_that_fit_no_frame_are_refused():
    narrow = params_of(distill={"scale_range": (0.3, 0.4)})
    for refused in (lambda: distill(narrow, "vanilla"), lambda: build_logits(narrow)):
        with pytest.raises(UserError, match=r"distill\.scale_range: found \[0\.3, 0\.4\]; crops of \[32, 32\] fit"):
            refused()
