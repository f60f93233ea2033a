"""make pull-request: two worktrees that are gone afterwards, a store of their own, and a workspace as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[3]
# Stands in for dvc: keeps what its stages would see, and writes what they would write.
DVC = """#!/bin/sh
case "$1 $2" in
"cache dir") mkdir -p "$SEEN/cache"; echo "$SEEN/cache" ;;
repro*)
    side="$SEEN/$(basename "$PWD")"
    mkdir -p "$side" reports metrics
    cp -rL params.yaml code data checkpoints "$side"
    echo "$MLFLOW_TRACKING_URI $MLFLOW_REGISTRY_URI" > "$side/store"
    for name in reports/index.html metrics/summary.json metrics/summary.csv; do cp params.yaml $name; done
    echo "Running stage 'prepare':"
    echo "Stage 'distill@a' is cached - skipping run, checking out outputs" ;;
"metrics diff") git show "$7:metrics/summary.json" > "$SEEN/compared" ;;
esac
"""


@pytest.fixture
def tool():
    return load_script(ROOT / "tools" / "pull_request.py")


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A repository with edits that are in no commit, data that git ignores, and a team's server in its params."""
    programs, seen, workspace = (tmp_path / name for name in ("programs", "seen", "workspace"))
    for folder in (programs, seen, workspace):
        folder.mkdir()
    for name, script in {"dvc": DVC, "segdistill": "#!/bin/sh\necho the table\n"}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("SEEN", str(seen))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "http://team:5000")
    git("init", "--quiet", "-b", "main")
    write(".gitignore", "/build/\n/data/camvid\n/data/raw/*\n!/data/raw/README.md\n/checkpoints/*\n/reports\n")
    write("params.yaml", "data: {root: data/camvid}\ntracking: {uri: 'http://team:5000'}\n")
    write("profiles/tiny.yaml", "data: {root: data/raw}\nalpha: 1\n")
    for name in ("data/raw/README.md", "checkpoints/teacher.pth", "data/camvid/one.png", "data/raw/two.png"):
        write(name, name)
    write("code/kept.py", "old")
    write("code/dropped.py", "old")
    git("add", "--all")
    git("add", "--force", "checkpoints/teacher.pth")
    git("commit", "--quiet", "-m", "start")
    git("rm", "--quiet", "--cached", "checkpoints/teacher.pth")
    git("commit", "--quiet", "-m", "the base")
    write("code/kept.py", "edited")
    write("code/added.py", "new")
    Path("code/dropped.py").unlink()
    write(".git/hooks/post-checkout", "#!/bin/sh\ntouch hooked\n")
    Path(".git/hooks/post-checkout").chmod(0o755)
    return seen


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".git", "build"} & set(path.relative_to(folder).parts)
    }


@pytest.mark.parametrize("profile", [None, "tiny"])
def test_both_sides_run_beside_the_workspace_which_stays_as_it_is(tool, workspace, profile):
    before, status = files(Path()), git("status", "--porcelain")
    page = tool.compare("HEAD", profile)
    assert (files(Path()), git("status", "--porcelain")) == (before, status)
    assert git("worktree", "list").count("\n") == git("branch").count("\n") == 1
    assert {path.name for path in Path("build").iterdir()} == {"report"}
    params = Path("profiles/tiny.yaml" if profile else "params.yaml").read_text()
    assert files(Path("build/report")) == dict.fromkeys(("index.html", "summary.csv", "summary.json"), params)
    assert "1 stages ran, 1 were restored" in page
    assert "with changes that are not committed: 1 stages" in page
    assert "the table" in page
    head, base = (files(workspace / side) for side in ("head", "base"))
    assert (head["code/kept.py"], head["code/added.py"], base["code/kept.py"]) == ("edited", "new", "old")
    assert "code/dropped.py" in base.keys() - head.keys()
    assert "code/added.py" not in base
    for side, seen in (("head", head), ("base", base)):
        store = f"sqlite:///{Path('build').resolve() / side}/mlflow.db"
        assert seen["store"].split() == [store, store], "what a stage tracks, the user's store never hears of"
        assert seen["params.yaml"] == params
        assert seen["checkpoints/teacher.pth"] == "checkpoints/teacher.pth"
        assert seen["data/raw/two.png"] == "data/raw/two.png"
        assert ("data/camvid/one.png" in seen) == (profile is None), "data.root of the params that are run"
    assert (workspace / "compared").read_text() == params, "the results of the base"


def test_a_base_that_does_not_run_is_told_and_leaves_nothing(tool, workspace):
    page = tool.compare("nowhere", None)
    assert "The base could not be run: git" in page
    assert {path.name for path in Path("build").iterdir()} == {"report"}


def test_data_of_the_user_that_git_would_add_are_linked(tool, workspace):
    write("params.yaml", "data: {root: mine}\n")
    write("mine/large.png", "large")
    tool.make_worktree(tool.HEAD, "HEAD", None, with_edits=True)
    assert (tool.HEAD / "mine").resolve() == Path("mine").resolve()
    tool.remove_worktree(tool.HEAD)
    assert Path("mine/large.png").read_text() == "large"


def test_a_params_file_that_is_none_is_one_line(tool, workspace, monkeypatch):
    write("params.yaml", "seed: [")
    monkeypatch.setattr("sys.argv", ["pull_request.py", "--base", "HEAD"])
    with pytest.raises(SystemExit, match="^error: params.yaml: not YAML"):
        tool.main()


def test_a_change_that_moves_nothing_is_told_in_a_word(tool):
    head = "| Path | Metric | HEAD | workspace | Change |\n|---|---|---|---|---|\n"
    assert tool.moved("") == tool.moved(head) == "None."
    assert tool.moved(head + "| a | b | 1 | 2 | 1 |\n").endswith("| 1 | 2 | 1 |")
