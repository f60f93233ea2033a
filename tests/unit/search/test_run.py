"""`segdistill search` by real DVC processes, on a pipeline whose stages write their scores at once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna", reason="the extra search is not installed")

from benchmarks.sweeping import FAILING, environment, sleeping_project
from segdistill.core.errors import UserError
from segdistill.params.read import load_params
from segdistill.search.run import Options, search
from support.cli_process import LIMIT_S, call_command, start_command

COMMENT = "# the end of runs, which no search may lose\n"
start, call = partial(start_command, "search"), partial(call_command, "search")


def project_of(folder: Path, seconds: float = 0, **sections: dict) -> Path:
    """Write a project of a control and the run `taught`; a student's score is its alpha, finetuned twice that."""
    project = sleeping_project(folder, ["vanilla", "taught"], seconds)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["runs"]["taught"] |= {"alpha": 0.3, "teacher": "views"}
    params["distill"]["evaluate_every_steps"] = 0  # the search has each trial evaluated once
    for section, values in sections.items():
        params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, width=1000) + COMMENT)
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text())
    header = "step,lr,loss,label_loss,distill_loss,holdout_mean_iou"
    for stage, factor in (("distill", 1), ("steplr-finetune", 2)):
        phase = stage.removeprefix("steplr-")
        body, steps = pipeline["stages"][stage]["do"], params[phase]["steps"]
        curve = f"metrics/runs/${{key}}/{phase}_curve.csv"
        line = f"awk 'BEGIN {{ print {factor} * ${{item.alpha}} }}' | sed 's/^/{steps},0.01,1,1,0,/'"
        body["cmd"] += f" && mkdir -p metrics/runs/${{key}} && (echo {header}; {line}) > {curve}"
        body["outs"].append(curve)
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False, width=1000))
    return project


def trials_in(project: Path) -> dict[str, dict]:
    text = (project / "params.yaml").read_text()
    assert text.endswith(COMMENT)
    return {run: entry for run, entry in yaml.safe_load(text)["runs"].items() if run.startswith("search-")}


def repro(project: Path) -> list[str]:
    """Return the stages that `dvc repro` runs."""
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"Running stage '([\w@-]+)'", done.stdout)


@pytest.mark.slow
def test_trials_are_runs_that_repro_repeats_and_the_rest_is_removed(tmp_path):
    project = project_of(tmp_path / "project")
    arguments = ("--trials", "7", "alpha=0.01:0.5")
    code, out, err = call(project, *arguments)
    assert (code, err) == (0, ""), out + err
    assert "search search: alpha 0.01:0.5, from the run taught; 1 at a time" in out
    finished = re.findall(r"^finished (search-\d+) after \d+ s \((\d) of 7\): holdout mIoU (\S+)%", out, re.MULTILINE)
    pruned = re.findall(r"^pruned (search-\d+) after .*% before finetuning, below the median$", out, re.MULTILINE)
    assert len(pruned) > 0
    assert len(finished) + len(pruned) == 7

    trials = trials_in(project)
    assert list(trials) == [run for run, _, _ in finished]
    steps = load_params(project / "params.yaml").distill.steps
    for run, _, score in finished:
        assert trials[run].keys() == {"alpha", "lr", "student", "teacher", "evaluate_every_steps"}
        assert trials[run]["evaluate_every_steps"] == steps
        assert float(score) == pytest.approx(200 * trials[run]["alpha"], abs=0.006)
    assert f"search search: 7 trials ({len(finished)} finished, {len(pruned)} pruned)" in out
    best = max(trials, key=lambda run: trials[run]["alpha"])
    assert out.split("before finetuning ")[1].split()[1] == best
    assert "judge it by its val miou" in out.lower()

    # What a pruned trial has left is no run any more; the finished ones are.
    assert not (project / f"models/runs/{pruned[0]}/student.onnx").exists()
    assert set(repro(project)) == {f"{stage}@vanilla" for stage in ("distill", "steplr-finetune", "export-onnx")} | {
        f"{stage}@taught" for stage in ("distill", "steplr-finetune", "export-onnx")
    } | {"benchmark", "report"}

    code, again, _ = call(project, *arguments)
    assert code == 0
    assert "started" not in again
    assert again[again.index("search search: 7") :] == out[out.index("search search: 7") :]


@pytest.mark.slow
def test_failed_trial_is_named_and_removed_and_no_values_run_twice(tmp_path):
    project = project_of(tmp_path / "project")
    code, out, err = call(project, "--trials", "6", f"lr=0.01,{FAILING}")
    assert (code, err) == (0, "")
    assert re.search(
        r"^failed (search-\d+) after \d+ s: .*'?distill@\1'?.*; log scratch/sweep/\1.log$", out, re.MULTILINE
    )
    assert [entry["lr"] for entry in trials_in(project).values()] == [0.01]
    assert out.count("finished search-") == 1

    project = project_of(tmp_path / "other")
    code, out, err = call(project, "--trials", "20", "--jobs", "2", f"lr={FAILING}", "alpha=0.1:0.9")
    assert code == 1
    assert "error: no trial finished; the logs of those that failed:\n  - search-00" in err
    assert 3 <= out.count("failed search-") <= 4
    assert trials_in(project) == {}
    failed = out.count("failed search-")
    code, out, err = call(project, "--trials", "3", f"lr={FAILING}", "alpha=0.1:0.9")
    assert (code, "started" in out) == (1, False)
    assert err == (
        f"error: no trial finished; the {failed} that failed count and are not tried again: give a larger --trials, or "
        "another --name\n"
    )


@pytest.mark.slow
def test_search_that_is_stopped_or_killed_continues(tmp_path):
    project = project_of(tmp_path / "project", seconds=60)
    arguments = ("--trials", "3", "--jobs", "2", "alpha=0.1:0.9")
    values = {}
    for number in (signal.SIGINT, signal.SIGKILL):
        process = start(project, *arguments)
        for line in process.stdout:
            if found := re.match(r"(?:started|continued) (search-\d+): (.*)", line):
                assert values.setdefault(found[1], found[2]) == found[2]
            if found and found[1] == "search-001":
                break
        while "distill@search-001" not in (project / "scratch/sweep/search-001.log").read_text():
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)  # long before a trial would end
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert err == "error: stopped; the same command continues with what is not finished\n"
        assert trials_in(project).keys() == {"search-000", "search-001"}

    # Two processes at once; DVC takes a stage of another command for another stage: trials only have to be shorter.
    (project / "dvc.yaml").write_text((project / "dvc.yaml").read_text().replace("sleep 60", "sleep 0"))
    processes = [start(project, *arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    printed = "".join(out for out, _ in outputs)
    for run in ("search-000", "search-001"):
        assert printed.count(f"continued {run}: {values[run]}\n") == 1
    assert printed.count("started search-") == printed.count("started search-002") == 1
    assert trials_in(project).keys() == {"search-000", "search-001", "search-002"}


def options(**given: object) -> Options:
    return Options(
        **{"trials": 2, "base": None, "jobs": 1, "storage": "sqlite:///s.db", "name": "s", "prune": True} | given
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"base": "nonesuch"},
            "--base: found 'nonesuch'; allowed are the runs of params.yaml: vanilla, a03-lr01, light",
        ),
        ({"base": "vanilla"}, "found alpha 0.1 with teacher none"),
        ({"name": "My_search"}, "--name: found 'My_search'; allowed are lower-case letters, digits and single dashes"),
        ({"name": "x" * 95}, "--name: found"),
        ({"storage": "nowhere"}, "--storage: found nowhere; Optuna cannot use it"),
    ],
)
def test_bad_option_is_one_message(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = Path(__file__).resolve().parents[3] / "profiles" / "tiny.yaml"
    (tmp_path / "params.yaml").write_text(profile.read_text())
    with pytest.raises(UserError, match=message):
        search(["alpha=0.1:0.9"], options(**given))
    assert (tmp_path / "params.yaml").read_text() == profile.read_text()


def test_runs_of_another_search_are_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = Path(__file__).resolve().parents[3] / "profiles" / "tiny.yaml"
    (tmp_path / "params.yaml").write_text(profile.read_text().replace("  light:", "  s-004:"))
    with pytest.raises(UserError, match="runs: found s-004, of another search; remove them, or take another --name"):
        search(["alpha=0.1:0.9"], options())


def test_runs_on_one_line_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = yaml.safe_load((Path(__file__).resolve().parents[3] / "profiles" / "tiny.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(profile, default_flow_style=True))
    with pytest.raises(UserError, match=r"params\.yaml: cannot add and remove lines of runs; write one run below the"):
        search(["alpha=0.1:0.9"], options())
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_without_optuna_the_command_names_the_extra():
    code = "import sys; sys.modules['optuna'] = None; sys.argv[1:] = ['search', '-n', '2', 'alpha=0.1:0.9']\n"
    code += "from segdistill.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: segdistill search needs Optuna: pip install 'optuna>=5'\n"
