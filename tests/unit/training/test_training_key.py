"""The key of a checkpoint: settings that change the training, and weights by content, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from segdistill.core.errors import UserError
from segdistill.formats.curve import write_curve
from segdistill.formats.header import Header
from segdistill.nets.registry import build
from segdistill.nets.weights import save_net
from segdistill.paths import CHECKPOINTS, INITIAL_WEIGHTS, PREPARED
from segdistill.prepare.run import prepare
from segdistill.student import run as student
from segdistill.student.run import distill
from segdistill.teacher import check as teacher
from segdistill.teacher.check import check_teacher
from segdistill.training import job as training_job
from segdistill.training.checkpoint import Checkpointer
from support.tiny_city import ARCH, tinier_params

ROOT = Path(__file__).resolve().parents[3]
RUNS = {"vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"}}


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    prepare(tinier_params().data, 0, folder / PREPARED, workers=1)
    return folder


@pytest.fixture
def here(city, tmp_path, monkeypatch):
    shutil.copytree(city, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FoundError(Exception):
    """Ends a training where it would look for its checkpoint."""


@pytest.fixture
def key_of(here, monkeypatch):
    """Gives the key of a teacher's or a control's training with changed settings."""

    def found(job: str, key: str) -> None:
        raise FoundError(key)

    monkeypatch.setattr(training_job, "Checkpointer", found)

    def key_of(section: str, teacher: dict | None = None, **changed) -> str:
        params = tinier_params(**({"runs": RUNS, "teacher": teacher or {}} | {section: changed}))
        with pytest.raises(FoundError) as end:
            distill(params, "vanilla") if section == "distill" else check_teacher(params)
        return str(end.value)

    return key_of


@pytest.mark.parametrize("section", ["teacher", "distill"])
def test_settings_change_the_key(key_of, section):
    before = key_of(section)
    assert key_of(section, checkpoint_every_steps=1) == before
    for changed in (
        *({"momentum": 0.5}, {"steps": 9}, {"log_every_steps": 2}, {"evaluate_every_steps": 1}),
        *({"warmup_steps": 1}, {"ema_decay": 0.9}, {"decay_norm_and_bias": False}, {"optimizer": "adamw"}),
        *({"label_loss": "ohem"}, {"ohem_threshold": 0.5}, {"class_weights": "inverse_log"}),
    ):
        assert key_of(section, **changed) != before


def test_batch_size_of_evaluation_changes_the_key_of_trainings_that_evaluate(key_of):
    keys = [key_of("evaluation", batch_size=size) for size in (1, 2)]
    assert keys[0] == keys[1]
    keys = [key_of("evaluation", {"evaluate_every_steps": 1}, batch_size=size) for size in (1, 2)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"min_mean_iou": 0.01},
        {"flip": True, "scales": (0.5, 1.0)},
        {"onnx_mean": (0.0, 0.0, 0.0), "onnx_std": (1.0, 1.0, 1.0)},
    ],
)
def test_how_a_trained_teacher_is_run_does_not_change_the_key(key_of, changed):
    assert key_of("teacher", **changed) == key_of("teacher")


@pytest.mark.parametrize(("section", "folder"), [("teacher", "checkpoints"), ("distill", "initial_weights")])
def test_initial_weights_change_the_key_by_content(key_of, here, capsys, section, folder):
    seen, unseen = here / folder / "a.safetensors", here / "b.safetensors"
    save_net(seen, build(ARCH, 19, 16), Header.of_net(ARCH, 19, 16))
    first = key_of(section, init=str(seen))
    shutil.copy(seen, unseen)
    assert capsys.readouterr().err == ""
    assert key_of(section, init="b.safetensors") == first
    path = "teacher.init" if section == "teacher" else "runs.vanilla.init"
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: DVC does not see changes to b.safetensors; put it into {folder}/")
    save_net(unseen, build(ARCH, 19, 16), Header.of_net(ARCH, 19, 16))
    assert key_of(section, init="b.safetensors") != first


def test_teacher_file_that_dvc_does_not_see_is_warned_of(here, capsys):
    save_net(here / "checkpoints/a.safetensors", build(ARCH, 19, 16), Header.of_net(ARCH, 19, 16))
    shutil.copy("checkpoints/a.safetensors", "b.safetensors")
    check_teacher(tinier_params(teacher={"checkpoint": "checkpoints/a.safetensors"}))
    assert "warning" not in capsys.readouterr().err
    check_teacher(tinier_params(teacher={"checkpoint": "b.safetensors"}))
    assert capsys.readouterr().err.count("warning: teacher.checkpoint: DVC does not see changes to b.safetensors") == 1


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_training_is_locked_until_its_outputs_are_written(here, monkeypatch, stage):
    module = student if stage == "distill" else teacher
    held = []

    def write_and_check(*arguments) -> None:
        job = "distill/vanilla" if stage == "distill" else "teacher"
        with (
            pytest.raises(UserError, match="another process works on"),
            Checkpointer(job, "x", wait_s=0),
        ):
            pass
        held.append(job)
        write_curve(*arguments)

    monkeypatch.setattr(module, "write_curve", write_and_check)
    params = tinier_params(runs=RUNS)
    distill(params, "vanilla") if stage == "distill" else check_teacher(params)
    (job,) = held
    with Checkpointer(job, "x", wait_s=0):
        pass


def test_stages_depend_on_the_folders_of_their_weights():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for folder, only in ((str(CHECKPOINTS), "teacher-check"), (str(INITIAL_WEIGHTS), "distill")):
        assert [name for name, stage in stages.items() if folder in stage.get("do", stage)["deps"]] == [only]
        kept = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        assert kept.stdout.split() == [f"{folder}/README.md"], "the folder is there in every clone"


def test_network_of_a_member_that_dvc_does_not_see_is_warned_of(here, capsys):
    files = []
    for arch in (ARCH, "lraspp_mobilenet_v3_large"):
        files.append(f"checkpoints/{arch}.safetensors")
        save_net(files[-1], build(arch, 19, 16), Header.of_net(arch, 19, 16))
    check_teacher(tinier_params(teacher={"checkpoint": tuple(files)}))
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "lraspp_mobilenet_v3_large.py, the network of checkpoints/lraspp_mobilenet_v3_large.safetensors;" in warning
    assert "DVC does not see changes to" in warning and "teacher.arch" in warning
