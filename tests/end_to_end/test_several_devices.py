"""Stages on several ranks: a killed one, a stop, a resume on another number of them, and what all stages write."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from segdistill.core.files import read_json
from segdistill.data.prepared import PreparedData
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.nets.weights import load_net
from segdistill.scoring.evaluate import evaluate
from segdistill.teacher_logits.build import teacher_logits
from support.tiny_city import build_city, save_params, tinier_params

pytestmark = pytest.mark.slow
STAGES = Path(__file__).resolve().parents[2] / "stages"
RUN, STEPS = "a03-lr01", 40
ALL_STAGES = f"""
from segdistill.core.stage import stage_process
with stage_process():
    from segdistill.parallel.launch import on_devices
    from segdistill.params.read import load_params
    from segdistill.student.run import distill, finetune
    from segdistill.teacher.check import check_teacher
    from segdistill.teacher_logits.build import teacher_logits
    params = load_params()
    with on_devices(params.compute):
        check_teacher(params)
        teacher_logits(params, "views")
        distill(params, "{RUN}")
        finetune(params, "{RUN}")
"""


def params_of(devices: int, **distill):
    return tinier_params(
        compute={"devices": devices},
        teacher={"batch_size": 4},
        teacher_logits={"feature_channels": 16},
        distill={"batch_size": 4} | distill,
    )


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """A folder with prepared data, teacher and logits of one process."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_city(params_of(1))
    return folder


class Stage:
    """A running stage."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder, self.said = folder, folder / "said.txt"
        with self.said.open("w") as said:
            self.process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=said, stderr=said)

    def wait_for_step(self, least: int) -> int:
        """Wait until a checkpoint of at least that step is there; return its step."""
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            if (done := step_on_disk(self.folder)) >= least:
                return done
            time.sleep(0.02)
        raise TimeoutError(self.said.read_text())

    def ranks(self) -> dict[int, psutil.Process]:
        """Return its ranks by their numbers."""
        return {int(child.environ()["RANK"]): child for child in psutil.Process(self.process.pid).children()}

    def ends(self) -> tuple[int, list[str]]:
        """Return its exit code and the lines that it printed."""
        exit_code = self.process.wait(60)
        return exit_code, self.said.read_text().splitlines()


def step_on_disk(folder: Path) -> int:
    states = list((folder / "scratch" / "distill" / RUN).glob("*/state.pt"))
    return torch.load(states[0], weights_only=True)["step"] if states else 0


def errors_in(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(("distill/", "warning: "))]


def test_killed_rank_then_killed_stage_then_stop_then_one_process(city, monkeypatch):
    monkeypatch.chdir(city)
    settings = {"steps": STEPS, "checkpoint_every_steps": 1}
    save_params(params_of(2, **settings))
    command = (str(STAGES / "distill.py"), "--run", RUN)

    stage = Stage(city, *command)
    stage.wait_for_step(2)
    ranks = stage.ranks()
    assert sorted(ranks) == [0, 1]
    ranks[1].kill()
    exit_code, lines = stage.ends()
    lost = "error: rank 1 of 2 was killed by SIGKILL, which ended the run; dvc repro continues from the last checkpoint"
    assert (exit_code, errors_in(lines)) == (1, [lost])
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())

    stage = Stage(city, *command)
    first = stage.wait_for_step(step_on_disk(city) + 2)
    ranks = stage.ranks()
    stage.process.kill()
    stage.process.wait()
    _, alive = psutil.wait_procs(ranks.values(), timeout=20)
    assert alive == []  # they end after their step, as a stage does whose DVC is killed

    stage = Stage(city, *command)
    stage.wait_for_step(max(first, step_on_disk(city)) + 2)
    stage.process.send_signal(signal.SIGTERM)
    exit_code, lines = stage.ends()
    done = step_on_disk(city)
    stopped = f"error: distill/{RUN}: stopped after step {done} of {STEPS}; dvc repro continues from there"
    assert (exit_code, errors_in(lines)) == (1, [stopped])
    assert any(line.startswith(f"distill/{RUN}: continues after step ") for line in lines)
    assert done < STEPS

    save_params(params_of(1, **settings))
    exit_code, lines = Stage(city, *command).ends()
    assert exit_code == 0
    assert f"distill/{RUN}: continues after step {done} of {STEPS}" in lines
    curve = np.loadtxt(Path("metrics/runs") / RUN / "distill_curve.csv", delimiter=",", skiprows=1, usecols=0)
    assert curve.tolist() == list(range(1, STEPS + 1))


def test_all_stages_write_what_one_process_writes(city, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prepared").symlink_to(city / "data" / "prepared")
    Path("data").mkdir()
    Path("prepared").rename("data/prepared")
    params = params_of(2)
    save_params(params)
    Path("all.py").write_text(ALL_STAGES)
    done = subprocess.run([sys.executable, "all.py"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finetune") <= 2, done.stderr  # the first rank alone says how far it is

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    written = files(Path("data/teacher_logits")) | files(Path("metrics/teacher_logits"))
    teacher_logits(params, "views")
    assert written == files(Path("data/teacher_logits")) | files(Path("metrics/teacher_logits"))
    assert any("features" in name for name in written)

    data = PreparedData.open()
    net, header = load_net(Path("models/runs") / RUN / "finetuned.safetensors")
    predictor = TorchPredictor(net, device_of(params.compute).in_float32())
    found = evaluate(predictor, data.val, header.classes, params.evaluation.batch_size).metrics
    on_disk = read_json(Path("metrics/runs") / RUN / "finetune.json")
    assert {key: on_disk[key] for key in ("mean_loss", "overall_acc", "mean_iou")} == {
        key: found[key] for key in ("mean_loss", "overall_acc", "mean_iou")
    }
    names = (Path("metrics/runs") / RUN / "val" / "frames.csv").read_text().splitlines()
    assert len(names) == 1 + len(data.val)
