"""`segdistill sweep --jobs` by real DVC processes, on a pipeline whose stages sleep and write a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from benchmarks.sweeping import FAILING, sleeping_project
from segdistill.core.errors import UserError
from segdistill.core.provenance import THREADS_VARIABLE, usable_cores
from segdistill.params.read import load_params
from segdistill.sweep import local, plan
from support.cli_process import call_command, start_command

RUNS = ["vanilla", "one", "two"]
start, sweep = partial(start_command, "sweep"), partial(call_command, "sweep")


def set_lr(project: Path, run: str, lr: float) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["runs"][run]["lr"] = lr
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def set_seeds(project: Path, *seeds: int) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text()) | {"seeds": list(seeds)}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def locked_stages(project: Path) -> set[str]:
    lock = project / "dvc.lock"
    return set(yaml.safe_load(lock.read_text())["stages"]) if lock.exists() else set()


def stages_of(*runs: str) -> set[str]:
    return {f"{stage}@{run}" for run in runs for stage in ("distill", "steplr-finetune", "export-onnx")}


def repetitions_of(run: str, *seeds: int) -> set[str]:
    return {stage.replace("@", "-repeat@") + f"-{seed}" for stage in stages_of(run) for seed in seeds}


SHARED, LAST = {"prepare", "teacher-check", "teacher-logits@views"}, {"benchmark", "report"}


@pytest.mark.slow
def test_failed_run_stops_no_other_and_the_next_sweep_does_the_rest(tmp_path):
    project = sleeping_project(tmp_path / "project", RUNS, seconds=0.5)
    set_lr(project, "one", FAILING)
    code, out, err = sweep(project, "--jobs", "2")
    assert code == 1
    assert "3 of 3 runs changed; 2 at a time" in out
    assert out.index("started one") < out.index("started two")
    assert sum(line.startswith("finished") for line in out.splitlines()) == 2
    assert "(3 of 3)" in out
    assert "1 of 3 runs failed; benchmark and report wait for them; their logs:\n  - one: scratch/sweep/one.log" in err
    assert "Traceback" not in err
    assert locked_stages(project) == SHARED | stages_of("vanilla", "two")
    assert "failed to reproduce 'distill@one'" in (project / "scratch/sweep/one.log").read_text()

    set_lr(project, "one", 0.01)
    code, out, _ = sweep(project, "--jobs", "2")
    assert code == 0
    assert "1 of 3 runs changed" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("started")] == ["one"]
    assert locked_stages(project) == SHARED | stages_of(*RUNS) | LAST

    code, out, err = sweep(project, "--jobs", "2")
    assert (code, out, err) == (0, "nothing to do: 3 runs, benchmark and report are up to date\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_runs_and_the_same_command_continues(tmp_path, number):
    project = sleeping_project(tmp_path / "project", RUNS, seconds=60)
    process = start(project, "--jobs", "2")
    for line in process.stdout:
        if line.startswith("started one"):
            break
    while "distill@one" not in (project / "scratch/sweep/one.log").read_text():
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)  # long before a run would end
    assert process.returncode == 128 + number
    assert err.endswith("error: stopped; the same command continues with what is not finished\n")
    assert "started two" not in out
    assert locked_stages(project) == SHARED

    # DVC takes a stage of another command for another stage: its runs only have to be shorter.
    (project / "dvc.yaml").write_text((project / "dvc.yaml").read_text().replace("sleep 60", "sleep 0"))
    code, out, err = sweep(project, "--jobs", "2")
    assert code == 0, out + err
    assert "3 of 3 runs changed" in out
    assert locked_stages(project) == SHARED | stages_of(*RUNS) | LAST


@pytest.mark.slow
def test_repetitions_follow_their_run_and_not_one_that_failed(tmp_path):
    project = sleeping_project(tmp_path / "project", RUNS[:2], seconds=0)
    set_lr(project, "one", FAILING)
    set_seeds(project, 0, 1)  # every run has seed 0
    code, out, err = sweep(project, "--jobs", "2")
    assert code == 1
    assert [line.split()[1] for line in out.splitlines() if line.startswith("started")] == [
        "vanilla",
        "one",
        "vanilla-1",
    ]
    assert "1 of 3 runs failed; benchmark and report wait for them; their logs:\n  - one: " in err
    assert locked_stages(project) == SHARED | stages_of("vanilla") | repetitions_of("vanilla", 1)

    set_lr(project, "one", 0.01)
    code, out, err = sweep(project, "--jobs", "2")
    assert code == 0, out + err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("started")] == ["one", "one-1"]
    repeats = {stage for run in RUNS[:2] for stage in repetitions_of(run, 0, 1)}
    assert locked_stages(project) == SHARED | stages_of(*RUNS[:2]) | repeats | LAST


@pytest.mark.slow
def test_failed_shared_stage_starts_no_run(tmp_path):
    project = sleeping_project(tmp_path / "project", RUNS, seconds=0)
    (project / "data").write_text("in the way of the folder")
    code, out, err = sweep(project, "--jobs", "2")
    assert code == 1
    assert "error: a stage that all runs share failed; its message is above" in err
    assert "started" not in out


def test_second_sweep_in_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = load_params(Path(__file__).parents[3] / "profiles/tiny.yaml")
    monkeypatch.setattr(plan, "_in_order", lambda *_: local.sweep(params, 2))
    with pytest.raises(UserError, match="another segdistill sweep runs in this folder"):
        local.sweep(params, 2)


def test_cores_and_gpus_are_shared_out(monkeypatch):
    params = load_params(Path(__file__).parents[3] / "profiles/tiny.yaml")
    monkeypatch.setattr(local, "usable_cores", lambda: 9)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    slots = local.Slots(params, 4)
    found = [slots.environment(slot) for slot in range(4)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["4", "6", "4", "6"]
    assert {environment[THREADS_VARIABLE] for environment in found} == {"2"}

    on_cpu = params.model_copy(update={"compute": params.compute.model_copy(update={"device": "cpu"})})
    assert local.Slots(on_cpu, 4).environment(0)["CUDA_VISIBLE_DEVICES"] == "4, 6"  # left as it is


def test_a_run_on_several_devices_gets_as_many_gpus(monkeypatch):
    params = load_params(Path(__file__).parents[3] / "profiles/tiny.yaml")
    monkeypatch.setattr(local, "usable_cores", lambda: 9)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    compute = params.compute.model_copy(update={"devices": 2})
    slots = local.Slots(params.model_copy(update={"compute": compute}), 3)
    assert [slots.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0,1", "2,3", "0,1"]
    assert "on 4 GPUs" in slots.described


def test_more_threads_than_cores_are_warned_of(monkeypatch, capsys):
    params = load_params(Path(__file__).parents[3] / "profiles/tiny.yaml")
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    for threads, words in ((2, ""), (3, "compute.threads: found 3; 4 runs at a time then share 8 cores")):
        compute = params.compute.model_copy(update={"threads": threads})
        local.Slots(params.model_copy(update={"compute": compute}), 4)
        err = capsys.readouterr().err
        assert words in err
        assert bool(words) == bool(err)


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-11-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-22-bb)\n", ["GPU-11-aa", "GPU-22-bb"]),
        (
            "GPU 0: NVIDIA H100 (UUID: GPU-11-aa)\n  MIG 3g.40gb Device  0: (UUID: MIG-1)\n"
            "  MIG 3g.40gb Device  1: (UUID: MIG-2)\n",
            ["MIG-1", "MIG-2"],
        ),
        ("", []),
    ],
)
def test_gpus_are_named_by_uuid(tmp_path, monkeypatch, listed, names):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert local.visible_gpus() == names
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local.visible_gpus() == []


def test_the_variable_sets_the_threads(monkeypatch):
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    assert usable_cores() == 3
    monkeypatch.setenv(THREADS_VARIABLE, "all")
    with pytest.raises(UserError, match="SEGDISTILL_THREADS: found 'all'; allowed is a number of threads"):
        usable_cores()


def test_checkpoints_may_be_on_a_shared_folder(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from segdistill.training.checkpoint import Checkpointer as C; print(C('a', 'b').folder)",
    ]
    for given, folder in ({"SEGDISTILL_SCRATCH": str(tmp_path)}, tmp_path), ({}, Path("scratch")):
        shown = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True).stdout
        assert Path(shown.strip()) == folder / "a/b"
