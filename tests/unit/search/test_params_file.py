"""Runs that come and go in params.yaml, where all other bytes stay."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from segdistill.core.errors import UserError
from segdistill.params.read import load_params
from segdistill.search.params_file import add_run, remove_run

ROOT = Path(__file__).resolve().parents[3]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]
PARAMS = Path("params.yaml")
ENTRY = {"student": "deeplabv3plus_mobilenet", "alpha": 0.1 + 0.2, "lr": 1e-05, "teacher": "views"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_added_and_removed_run_leaves_the_bytes_of_a_profile(profile):
    from dvc.utils.serialize import load_yaml

    before = profile.read_bytes()
    PARAMS.write_bytes(before)
    add_run("search-000", ENTRY)
    add_run("search-001", ENTRY | {"finetune": {"lr": 3e-07}})
    assert load_params().runs["search-000"].lr == load_yaml(PARAMS)["runs"]["search-000"]["lr"] == 1e-05
    assert load_params().runs["search-000"].alpha == load_yaml(PARAMS)["runs"]["search-000"]["alpha"] == 0.1 + 0.2
    assert load_params().runs["search-001"].finetune == {"lr": 3e-07}
    assert set(before.splitlines()) < set(PARAMS.read_bytes().splitlines())
    remove_run("search-000")
    assert "search-001" in load_params().runs
    remove_run("search-001")
    assert PARAMS.read_bytes() == before


def test_a_link_to_params_stays_one():
    mine = Path("mine.yaml")
    mine.write_bytes(PROFILES[-1].read_bytes())
    PARAMS.symlink_to(mine)
    add_run("search-000", ENTRY)
    assert PARAMS.is_symlink()
    assert "search-000" in load_params(mine).runs
    remove_run("search-000")
    assert mine.read_bytes() == PROFILES[-1].read_bytes()


BLOCK = """\
# at the top
runs:   # all of them
    vanilla:
        alpha: 0.0
        student: a   # of vanilla
    # of taught
    taught: {alpha: 0.3, # in a flow
       student: a}  # behind it
    # at the end of runs

seed: 0
# at the end
"""


@pytest.mark.parametrize("text", [BLOCK, BLOCK.replace("\n", "\r\n"), BLOCK.rstrip("\n"), "\ufeff" + BLOCK])
def test_comments_and_line_ends_stay(text):
    PARAMS.write_bytes(text.encode())
    add_run("search-000", {"alpha": 0.5, "student": "b"})
    found = PARAMS.read_bytes().decode()
    newline = "\r\n" if "\r" in text else "\n"
    line = f"    search-000: {{alpha: 0.5, student: b}}{newline}"
    behind = f"student: a}}  # behind it{newline}"
    assert found == text.replace(behind, behind + line)
    remove_run("search-000")
    assert PARAMS.read_bytes().decode() == text


def test_run_is_removed_with_all_its_lines():
    PARAMS.write_text(BLOCK)
    remove_run("vanilla")
    assert PARAMS.read_text() == BLOCK.replace(
        "    vanilla:\n        alpha: 0.0\n        student: a   # of vanilla\n", ""
    )


def test_last_line_without_its_end_gets_one():
    PARAMS.write_text("seed: 0\nruns:\n  a: {alpha: 0.0}")
    add_run("b", {"alpha": 0.5})
    assert PARAMS.read_text() == "seed: 0\nruns:\n  a: {alpha: 0.0}\n  b: {alpha: 0.5}\n"


def test_same_run_twice_is_one_and_another_of_its_name_is_refused():
    PARAMS.write_text(BLOCK)
    add_run("search-000", {"alpha": 0.5})
    before = PARAMS.read_text()
    add_run("search-000", {"alpha": 0.5})
    assert PARAMS.read_text() == before
    with pytest.raises(UserError, match=r"params.yaml: runs.search-000 is there with other values"):
        add_run("search-000", {"alpha": 0.6})
    remove_run("search-001")
    assert PARAMS.read_text() == before


@pytest.mark.parametrize("text", ["seed: 0\nruns: {a: {alpha: 0.0}}\n", "{seed: 0, runs: {a: {alpha: 0.0}}}\n"])
def test_runs_on_one_line_are_refused_and_stay(text):
    PARAMS.write_text(text)
    for edit in (lambda: add_run("b", {"alpha": 0.5}), lambda: remove_run("a")):
        with pytest.raises(UserError, match="params.yaml: cannot add and remove lines of runs; write one run below"):
            edit()
        assert PARAMS.read_text() == text


def _add_and_remove(first: int) -> None:
    for number in range(first, first + 6):
        add_run(f"search-{number:03d}", ENTRY)
        if number % 2:
            remove_run(f"search-{number:03d}")


def test_four_processes_lose_no_edit():
    before = (ROOT / "profiles" / "tiny.yaml").read_text()
    PARAMS.write_text(before)
    processes = [multiprocessing.get_context("fork").Process(target=_add_and_remove, args=(n * 6,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    added = [run for run in load_params().runs if run.startswith("search-")]
    assert sorted(added) == [f"search-{number:03d}" for number in range(0, 24, 2)]
    for run in added:
        remove_run(run)
    assert PARAMS.read_text() == before
