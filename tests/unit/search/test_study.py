"""Trials in SQLite: several processes, trials that were left, values that come twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from segdistill.core.errors import UserError
from segdistill.search.space import parse_space
from segdistill.search.study import OpenTrial, Study, storage_errors
from support.mlflow_on_postgresql import postgresql

SPACE = parse_space(["alpha=0.1:0.9", "lr=0.001:0.1:log", "temperature=1,2,4"])
FACTS = {"base": "a03-lr01"}
STORAGE = "sqlite:///search.db"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def study_of(space=SPACE, seed: int = 0, facts: dict = FACTS) -> Study:
    return Study(STORAGE, "s", space, facts, seed)


def finish(trial: OpenTrial | None, score: float = 0.5) -> None:
    assert trial is not None
    trial.report(score)
    trial.finish(score)


def test_values_are_a_function_of_seed_and_earlier_results(tmp_path, monkeypatch):
    def values(folder: str, seed: int) -> list[dict]:
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        found = []
        for _ in range(12):  # Optuna's sampler draws ten at random, then by the results
            trial = study_of(seed=seed).next_trial(12)
            assert trial is not None
            found.append(trial.values)
            finish(trial, trial.values["alpha"])
        return found

    first = values("first", 0)
    assert first == values("again", 0)
    assert first != values("other", 1)
    assert all(0.1 <= one["alpha"] <= 0.9 and 0.001 <= one["lr"] <= 0.1 for one in first)
    assert {one["temperature"] for one in first} == {1, 2, 4}
    assert len({one["alpha"] for one in first}) == 12


def test_values_at_the_upper_end_are_plain_numbers():
    study, found = study_of(parse_space(["alpha=0.1:0.1000000000000001", "steps=1:2"])), []  # seven floats
    while (trial := study.next_trial(8)) is not None:
        found.append(trial.values)
        finish(trial)
    assert max(values["alpha"] for values in found) > 0.10000000000000006
    assert {(type(values["alpha"]), type(values["steps"])) for values in found} == {(float, int)}


def test_trials_end_at_the_limit_and_more_can_follow():
    study = study_of()
    for _ in range(3):
        finish(study.next_trial(3))
    assert study.next_trial(3) is None
    trial = study_of().next_trial(4)
    assert trial is not None and trial.run == "s-003" and trial.is_new
    trial.fail()
    assert study.next_trial(4) is None
    assert study.counts() == {"finished": 3, "pruned": 0, "failed": 1, "running": 0}


def test_trial_that_was_left_is_continued_with_its_values():
    trial = study_of().next_trial(5)
    assert trial is not None
    trial.report(0.3)
    trial.leave()
    again = study_of().next_trial(5)
    assert again is not None
    assert (again.run, again.values, again.is_new) == (trial.run, trial.values, False)
    assert again.report(0.3) is False
    assert study_of().next_trial(5).run == "s-001"  # the first one is being run


def test_trial_of_a_killed_process_is_continued_but_none_of_another_folder(tmp_path, monkeypatch):
    code = (
        "from test_study import *\n"
        "study = study_of()\n"
        "finish(study.next_trial(5))\n"
        "trial = study.next_trial(5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    elsewhere = Study("sqlite:///../search.db", "s", SPACE, FACTS, 0).next_trial(5)
    assert elsewhere is not None and (elsewhere.run, elsewhere.is_new) == ("s-002", True)
    monkeypatch.chdir(tmp_path)
    continued = study_of().next_trial(5)
    assert continued is not None and (continued.run, continued.is_new) == ("s-001", False)


def test_only_a_trial_below_the_median_of_five_is_pruned():
    study = study_of()
    for score in (0.1, 0.2, 0.3, 0.4):
        finish(study.next_trial(9), score)
    low = study.next_trial(9)
    assert low is not None and low.report(0.01) is False  # four have finished
    low.finish(0.01)
    low = study.next_trial(9)
    assert low is not None and low.report(0.15) is True  # the median is 0.2
    low.prune()
    high = study.next_trial(9)
    assert high is not None and high.report(0.25) is False
    high.finish(0.6)
    assert study.counts() == {"finished": 6, "pruned": 1, "failed": 0, "running": 0}
    assert [one.run for one in study.results()] == ["s-006", "s-003", "s-002", "s-001", "s-000", "s-004"]
    assert (study.results()[0].score, study.results()[0].distilled_score) == (0.6, 0.25)


def test_values_that_come_twice_are_not_run_twice():
    study = study_of(parse_space(["temperature=1,2"]))
    runs = {}
    while (trial := study.next_trial(20)) is not None:
        runs[trial.run] = trial.values["temperature"]
        finish(trial, trial.values["temperature"] / 10)
    assert sorted(runs.values()) == [1, 2]
    assert study.counts()["finished"] == 20
    assert [one.values["temperature"] for one in study.results()] == [2, 1]


def test_search_of_other_values_is_refused():
    study_of()
    with pytest.raises(
        UserError, match=r"--name: the search 's' in sqlite:///search.db began with other .*a03-lr01, now"
    ):
        study_of(facts={"base": "light"})


@pytest.mark.parametrize(
    ("storage", "cause"),
    [
        ("sqlite:////nonesuch/search.db", "unable to open database file"),
        ("search.db", "Could not parse SQLAlchemy URL"),
        ("nonesuch://user:hunter2@host/name", "nonesuch"),
    ],
)
def test_storage_that_cannot_be_opened_is_one_message(storage, cause):
    with pytest.raises(UserError, match="--storage: found .* allowed are sqlite:///FILE") as raised:
        Study(storage, "s", SPACE, FACTS, 0)
    assert cause in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_storage_that_breaks_later_is_one_message():
    study = study_of()
    Path("search.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="--storage: found sqlite:///search.db; Optuna cannot use it"):  # noqa: SIM117
        with storage_errors(STORAGE):
            study.next_trial(3)


def four_processes(storage: str, folders: list[Path]) -> list[str]:
    """Return what four processes print that finish trials until there are 24, one line a trial."""
    code = (
        "from test_study import *\n"
        f"study = Study({storage!r}, 's', SPACE, FACTS, 0)\n"
        "while (trial := study.next_trial(24)) is not None:\n"
        "    print(trial.run, trial.is_new, flush=True)\n"
        "    finish(trial, trial.values['alpha'])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=folder, **pipes) for folder in folders]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [err for _, err in outputs]
    return sorted(line for out, _ in outputs for line in out.splitlines())


@pytest.mark.slow
def test_four_processes_share_a_study_without_gaps_and_without_doubles(tmp_path):
    assert four_processes(STORAGE, [tmp_path] * 4) == [f"s-{number:03d} True" for number in range(24)]
    assert study_of().counts() == {"finished": 24, "pruned": 0, "failed": 0, "running": 0}
    assert all(one.distilled_score == one.values["alpha"] for one in study_of().results())


@pytest.mark.slow
def test_processes_of_two_machines_share_a_study_on_postgresql(tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with postgresql() as storage:
        found = four_processes(storage, folders * 2)
        # Each folder takes one trial at a time, so the two may begin a last one at once.
        assert found[:24] == [f"s-{number:03d} True" for number in range(24)]
        assert len(found) <= 25
        study = Study(storage, "s", SPACE, FACTS, 0)
        assert study.counts() == {"finished": len(found), "pruned": 0, "failed": 0, "running": 0}
        assert len({one.values["alpha"] for one in study.results()}) == len(found)
