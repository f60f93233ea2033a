"""Cross-fitted teachers: each train frame gets the logits of a teacher that did not see its city in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.provenance import file_sha256
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import TeacherCache, teacher_sha256
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.resize import upsample
from segdistill.nets.weights import load_net
from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.paths import PREPARED, TEACHER
from segdistill.prepare.run import prepare
from segdistill.student.run import distill
from segdistill.teacher.check import check_teacher, fold_of_frames
from segdistill.teacher.model import WHOLE
from segdistill.teacher_logits.build import teacher_logits
from segdistill.training.checkpoint import FOLD_TRAININGS, clear_removed
from segdistill.training.loop import update
from support.tiny_city import save_params, tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")


def params_of(**teacher) -> Params:
    return tinier_params(
        compute={"precision": "float32"},
        data={"synthetic": {"train_frames": 12, "val_frames": 2}},  # of eight cities
        teacher={"cross_fit": 2, "checkpoint_every_steps": 1} | teacher,
        teacher_logits={"kinds": ("views", "frame"), "dtype": "float32"},
    )


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A folder with prepared data, a cross-fitted teacher and its logits."""
    folder = tmp_path_factory.mktemp("city")
    params = params_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(params.data, params.seed, PREPARED, workers=1)
        check_teacher(params)
        for kind in ("views", "frame"):
            teacher_logits(params, kind)
    return folder


@pytest.fixture
def here(city, monkeypatch):
    """The folder itself, to be read only."""
    monkeypatch.chdir(city)
    return city


@pytest.fixture
def copied(city, tmp_path, monkeypatch):
    shutil.copytree(city, tmp_path / "city")
    monkeypatch.chdir(tmp_path / "city")


def spec_of(params: Params, data: PreparedData) -> ViewSpec:
    logits = params.teacher_logits
    return ViewSpec.of(data, params.distill.crop_px, logits.views, logits.stride, params.seed)


def digests(folder: Path = TEACHER) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def folds() -> np.ndarray:
    return np.array(read_json(TEACHER / "folds.json")["fold_of_frame"])


@pytest.mark.parametrize(
    ("groups", "count", "expected"),
    [
        ("aabbbc", 3, [1, 1, 0, 0, 0, 2]),
        ("aabbbc", 2, [1, 1, 0, 0, 0, 1]),
        ("abab", 5, [0, 1, 0, 1]),  # two cities are two folds
        ("aaaaa", 2, [0, 0, 0, 1, 1]),  # one recording: neighbouring frames stay together
        ("abcdef", 3, [0, 0, 1, 1, 2, 2]),  # no groups: likewise
    ],
)
def test_groups_stay_together_and_folds_are_even(groups, count, expected):
    assert fold_of_frames(tuple(groups), count).tolist() == expected


def test_more_folds_than_frames_are_refused():
    with pytest.raises(UserError, match=r"teacher\.cross_fit: found 4; the data has 3 train frames"):
        fold_of_frames("aaa", 4)


def test_more_folds_than_frames_are_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = tinier_params(teacher={"cross_fit": 1000})  # frames of as many cities
    prepare(params.data, params.seed, PREPARED, workers=1)
    monkeypatch.setattr("segdistill.teacher.check.run_training", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"teacher\.cross_fit: found 1000; the data has 5 train frames"):
        check_teacher(params)


def test_batches_hold_only_the_frames_to_draw_from():
    allowed = np.array([1, 4, 5])
    sampler = BatchSampler(0, "teacher", 6, 2, 2, 0.5, 0.1, allowed)
    drawn = np.concatenate([sampler.indices(step).frames for step in range(6)])
    assert [sorted(drawn[first : first + 3]) for first in range(0, 12, 3)] == [[1, 4, 5]] * 4, "each once an epoch"
    assert (sampler.drawn(6).any(1) == np.isin(np.arange(6), allowed)).all()


def test_a_teacher_is_trained_without_each_fold(here, tmp_path, monkeypatch):
    groups, of_frame = PreparedData.open().frame_groups["train"], folds()
    assert 1 < len(set(groups)) < len(groups)
    assert {len({of_frame[i] for i, own in enumerate(groups) if own == group}) for group in groups} == {1}
    seen = []
    monkeypatch.setattr("segdistill.training.loop.update", lambda job, *rest: seen.append(job) or update(job, *rest))
    shutil.copytree(here / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    check_teacher(params_of())
    jobs = {job.name: job for job in seen}
    assert list(jobs) == ["teacher", f"{FOLD_TRAININGS}/0", f"{FOLD_TRAININGS}/1"]
    for fold in (0, 1):
        batches = jobs[f"{FOLD_TRAININGS}/{fold}"].batches.batches
        drawn = batches.drawn(50).any(1)
        assert (drawn == (of_frame != fold)).all()
    assert jobs["teacher"].batches.batches.drawn(50).any(1).all()
    states = [load_net(file)[0].state_dict() for file in TEACHER.rglob("teacher.safetensors")]
    assert len(states) == 3
    key = next(name for name in states[0] if name.endswith("weight"))
    assert len({state[key].numpy().tobytes() for state in states}) == 3


def test_the_teacher_itself_is_the_one_without_cross_fitting(here, tmp_path, monkeypatch):
    expected = file_sha256(TEACHER / "teacher.safetensors")
    shutil.copytree(here / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    check_teacher(params_of(cross_fit=False))
    assert not (TEACHER / "folds.json").exists()
    assert file_sha256(TEACHER / "teacher.safetensors") == expected == teacher_sha256(TEACHER)
    assert "cross_fit" not in read_json("metrics/teacher.json")


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_logits_of_a_frame_are_those_of_the_fold_that_did_not_see_it(here, kind):
    params, data, of_frame = params_of(), PreparedData.open(), folds()
    spec = spec_of(params, data)
    stored = np.load(f"data/teacher_logits/{kind}/logits-00000.npy")
    compute = Compute(torch.device("cpu"), torch.float32, 1)
    nets = [TorchPredictor(load_net(TEACHER / f"fold{fold}" / "teacher.safetensors")[0], compute) for fold in (0, 1)]
    assert sorted(set(of_frame)) == [0, 1]
    for frame, fold in enumerate(of_frame):
        top, left = spec.origins()[frame, 0]
        image = data.train.images[frame]
        if kind == "views":
            image = image[top : top + spec.crop_px[0], left : left + spec.crop_px[1]]
        found = stored[frame, 0] if kind == "views" else stored[frame]
        own, other = (
            upsample(nets[number].logits(np.array(image)[None]), found.shape[:2])[0].permute(1, 2, 0).numpy()
            for number in (fold, 1 - fold)
        )
        np.testing.assert_allclose(found, own, rtol=1e-3, atol=1e-4)
        assert np.abs(found - other).max() > 1e-3


def test_frame_of_no_fold_gets_the_logits_of_the_teacher_of_all(copied):
    """As frames without labels do, which no teacher sees in training."""
    facts, before = read_json(TEACHER / "folds.json"), np.load("data/teacher_logits/frame/logits-00000.npy")
    (TEACHER / "folds.json").write_text(json.dumps(facts | {"fold_of_frame": [WHOLE, *facts["fold_of_frame"][1:]]}))
    teacher_logits(params_of(), "frame")
    found = np.load("data/teacher_logits/frame/logits-00000.npy")
    whole = TorchPredictor(load_net(TEACHER / "teacher.safetensors")[0], Compute(torch.device("cpu"), torch.float32, 1))
    image = np.array(PreparedData.open().train.images[:1])
    expected = upsample(whole.logits(image), found.shape[1:3])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(before[0] - expected).max() > 1e-3
    assert np.array_equal(found[1:], before[1:])
    assert sum(read_json("metrics/teacher_logits/frame.json")["cross_fit"]["frames"]) == len(found) - 1


def test_manifest_and_metrics_say_that_it_is_cross_fitted(here):
    expected = {"folds": 2, "frames": np.bincount(folds()).tolist()}
    for file in ("data/teacher_logits/views/manifest", "metrics/teacher_logits/views", "metrics/teacher"):
        assert read_json(f"{file}.json")["cross_fit"] == expected


def test_hash_of_the_teacher_covers_the_folds(copied):
    before = teacher_sha256(TEACHER)
    assert read_json("metrics/teacher.json")["weights_sha256"] == before
    params, data = params_of(), PreparedData.open()
    spec = spec_of(params, data)
    assert TeacherCache("views", spec).manifest.teacher_sha256 == before
    facts = read_json(TEACHER / "folds.json")
    (TEACHER / "folds.json").write_text(json.dumps(facts | {"fold_of_frame": facts["fold_of_frame"][::-1]}))
    assert teacher_sha256(TEACHER) != before
    with pytest.raises(UserError, match="teacher_sha256 is"):
        TeacherCache("views", spec)


def test_student_learns_from_a_cross_fitted_teacher(copied):
    distill(params_of(), "a03-lr01")
    assert load_net("models/runs/a03-lr01/distilled.safetensors")[1].teacher_sha256 == teacher_sha256(TEACHER)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("job", "step"), [("teacher", 1), (f"{FOLD_TRAININGS}/0", 1), (f"{FOLD_TRAININGS}/1", 0)])
def test_killed_training_ends_with_the_same_bytes_and_repeats_no_finished_one(here, tmp_path, monkeypatch, job, step):
    expected, steps = digests(here / TEACHER), []
    shutil.copytree(here / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def watched(own, optimizer, number, batch):
        if (own.name, number) == (job, step) and (job, "killed") not in steps:
            steps.append((job, "killed"))
            raise KilledError
        steps.append((own.name, number))
        return update(own, optimizer, number, batch)

    monkeypatch.setattr("segdistill.training.loop.update", watched)
    with pytest.raises(KilledError):
        check_teacher(params_of())
    assert not TEACHER.exists()
    check_teacher(params_of())
    assert digests() == expected
    steps.remove((job, "killed"))
    trainings = ("teacher", f"{FOLD_TRAININGS}/0", f"{FOLD_TRAININGS}/1")
    assert steps == [(name, number) for name in trainings for number in range(2)], "each step runs once"
    assert not list(Path("scratch").rglob("state.pt"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: shutil.rmtree(TEACHER / "fold1"), r"models/teacher/fold1: not the teacher that folds\.json names"),
        (
            lambda: shutil.copy(TEACHER / "fold0/teacher.safetensors", TEACHER / "fold1/teacher.safetensors"),
            r"models/teacher/fold1: not the teacher that folds\.json names; run: dvc repro teacher-check",
        ),
        (
            lambda: (TEACHER / "folds.json").write_text('{"sha256": [], "fold_of_frame": [0]}'),
            r"models/teacher/folds\.json: has folds of 1 train frames, the data has \d",
        ),
    ],
    ids=["missing", "another", "other data"],
)
def test_folds_that_do_not_fit_are_refused(copied, spoil, message):
    spoil()
    with pytest.raises(UserError, match=message):
        teacher_logits(params_of(), "views")


def test_scratch_of_folds_is_cleared_when_params_name_none(tmp_path):
    for fold in (0, 1, 2):
        (tmp_path / FOLD_TRAININGS / str(fold)).mkdir(parents=True)
        (tmp_path / FOLD_TRAININGS / str(fold) / "lock").touch()
    clear_removed(params_of(), tmp_path)
    assert sorted(path.name for path in (tmp_path / FOLD_TRAININGS).iterdir()) == ["0", "1"]
    clear_removed(params_of(cross_fit=False), tmp_path)
    assert list((tmp_path / FOLD_TRAININGS).iterdir()) == []


@pytest.mark.parametrize(
    ("teacher", "kinds", "message"),
    [
        ({"cross_fit": 2}, ["views", "online"], r"teacher_logits\.kinds: found online with teacher\.cross_fit 2"),
        ({"cross_fit": 2, "checkpoint": "a.pth"}, ["views"], r"teacher\.cross_fit: found 2 with the checkpoint"),
        ({"cross_fit": 1}, ["views"], r"teacher\.cross_fit.*found 1"),
        ({"cross_fit": True}, ["views"], r"teacher\.cross_fit.*found true"),
    ],
)
def test_params_that_do_not_go_with_cross_fitting_are_refused(tmp_path, monkeypatch, teacher, kinds, message):
    monkeypatch.chdir(tmp_path)
    save_params(tinier_params())
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["teacher"] |= teacher
    raw["teacher_logits"]["kinds"] = kinds
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        load_params()
