"""A training that is killed again and again ends with the same bytes as one that is left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from segdistill.core.provenance import file_sha256
from segdistill.nets.weights import load_net
from segdistill.student.run import distill, finetune
from segdistill.teacher.check import check_teacher
from support.tiny_city import build_city, tinier_params

pytestmark = pytest.mark.slow
KILLS = 4  # of each phase; unit/training/test_train_resume.py kills at every step
RUN = "a03-lr01"
STEPS = {"steps": 14, "checkpoint_every_steps": 1, "evaluate_every_steps": 5, "jitter": 0.3}
PHASES = {
    "teacher": (lambda: check_teacher(params()), "models/teacher/teacher.safetensors"),
    "distill": (lambda: distill(params(), RUN), f"models/runs/{RUN}/distilled.safetensors"),
    "finetune": (lambda: finetune(params(), RUN), f"models/runs/{RUN}/finetuned.safetensors"),
}


def params():
    return tinier_params(teacher=STEPS, distill=STEPS, finetune={"steps": 14, "decay_every_steps": 4})


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A folder in which all phases have run without a break, and the seconds that a student's phase took."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_city(params())
        started_s = time.monotonic()
        distill(params(), RUN)
        finetune(params(), RUN)
    return folder, (time.monotonic() - started_s) / 2


def outputs(phase: str) -> dict[str, str]:
    """Hashes of everything that a phase writes."""
    metrics = Path("metrics") if phase == "teacher" else Path("metrics/runs") / RUN
    files = [Path(PHASES[phase][1]), metrics / f"{phase}.json", metrics / f"{phase}_curve.csv"]
    files += sorted((metrics / f"{phase}_images").iterdir())
    return {str(file): file_sha256(file) for file in files}


def start(phase: str) -> multiprocessing.Process:
    """The phase in a process of its own, forked: nothing is imported again. One thread, so nothing is shared."""

    def work() -> None:
        os.setsid()
        PHASES[phase][0]()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.parametrize("phase", list(PHASES))
def test_kills_at_any_time_change_nothing(city, phase, tmp_path, monkeypatch, capfd):
    folder, phase_s = city
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    expected, weights = outputs(phase), Path(PHASES[phase][1])
    rng, kills, resumed = random.Random(phase), 0, 0
    while kills < KILLS:
        for file in expected:
            Path(file).unlink(missing_ok=True)
        process = start(phase)
        deadline = time.monotonic() + rng.uniform(0.1, 0.9) * phase_s
        while time.monotonic() < deadline and process.is_alive():
            time.sleep(0.005)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if weights.exists():
            load_net(weights)  # whole, although the kill may have come right behind it
        resumed += any(Path("scratch").rglob("state.pt"))
    assert resumed > 0, "no kill met a training that had saved anything"
    process = start(phase)
    process.join()
    assert process.exitcode == 0
    assert "continues after step" in capfd.readouterr().err
    assert outputs(phase) == expected
