"""tools/pull_request.py: it runs both sides in worktrees, leaves the workspace alone and says what changed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[3]
# A fake dvc: it keeps what stages would read, and writes what they would write.
DVC = """#!/bin/sh
case "$1 $2" in
"cache dir") mkdir -p "$SEEN/cache"; echo "$SEEN/cache" ;;
repro*)
    side="$SEEN/$(basename "$PWD")"
    mkdir -p "$side" reports
    cp -rL params.yaml code data checkpoints "$side"
    echo "$MLFLOW_TRACKING_URI $MLFLOW_REGISTRY_URI" > "$side/store"
    for name in reports/index.html metrics/summary.csv; do cp params.yaml $name; done
    cp code/summary.json metrics/summary.json
    echo "Running stage 'prepare':"
    echo "Stage 'distill@a' is cached - skipping run, checking out outputs" ;;
esac
"""


@pytest.fixture
def tool():
    return load_script(ROOT / "tools" / "pull_request.py")


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


def params_of(root: str = "data/raw", runs: dict | None = None, **distill: object) -> dict:
    runs = {"a": {"alpha": 0.3}} if runs is None else runs
    sections = {
        "teacher": {"lr": 0.02},
        "distill": {"temperature": 1.0} | distill,
        "finetune": {"steps": 60},
        "export": {},
    }
    return {"seed": 0, "data": {"root": root}, "runs": runs} | sections


def summary_of(**mean_iou: float) -> dict:
    return {"teacher": {"mean_iou": 0.75}, "runs": {run: {"mean_iou": value} for run, value in mean_iou.items()}}


def benchmark_of(*p50_ms: float) -> dict:
    """Timings of three networks whose p95 is 1.2 times their p50."""
    named = zip("xyz", p50_ms, strict=True)
    return {
        "networks": {
            name: {"onnx_int8": {"end_to_end_p50_ms": ms, "end_to_end_p95_ms": 1.2 * ms}} for name, ms in named
        }
    }


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Make a repository with uncommitted edits, data that git ignores, and a tracking server in the environment."""
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
    write("params.yaml", json.dumps(params_of(root="data/camvid")))
    write("profiles/tiny.yaml", json.dumps(params_of(root="data/raw")))
    write("code/summary.json", json.dumps(summary_of(a=0.25)))
    write("metrics/benchmark.json", json.dumps(benchmark_of(5, 5, 5)))
    for name in ("data/raw/README.md", "checkpoints/teacher.pth", "data/camvid/one.png", "data/raw/two.png"):
        write(name, name)
    write(".dvc/config", "")
    write("code/kept.py", "old")
    write("code/dropped.py", "old")
    git("add", "--all")
    git("add", "--force", "checkpoints/teacher.pth")
    git("commit", "--quiet", "-m", "start")
    git("rm", "--quiet", "--cached", "checkpoints/teacher.pth")
    git("commit", "--quiet", "-m", "the base")
    write("code/summary.json", json.dumps(summary_of(a=0.5)))
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


def test_a_repetition_has_the_settings_of_its_run(tool):
    params = params_of(runs={"a-1": {"alpha": 0.3}, "b": {"alpha": 0.5}})
    assert tool.settings_of(params, "b-1") == tool.settings_of(params, "b")
    assert tool.settings_of(params, "a-1")["alpha"] == 0.3


@pytest.mark.parametrize("profile", [None, "tiny"])
def test_both_sides_run_in_worktrees_and_the_workspace_stays(tool, workspace, profile):
    before, status = files(Path()), git("status", "--porcelain")
    page = tool.compare("HEAD", profile)
    assert (files(Path()), git("status", "--porcelain")) == (before, status)
    assert git("worktree", "list").count("\n") == git("branch").count("\n") == 1
    assert {path.name for path in Path("build").iterdir()} == {"report"}
    params = Path("profiles/tiny.yaml" if profile else "params.yaml").read_text()
    report = files(Path("build/report"))
    assert report.keys() == {"index.html", "summary.csv", "summary.json"}
    assert report["index.html"] == params
    assert json.loads(report["summary.json"]) == summary_of(a=0.5)
    title, _, change = page.splitlines()[:3]
    assert title == "### main with uncommitted edits against main"
    assert change == "- a: mIoU 25.00 -> 50.00 (+25.00)"
    assert page.endswith("the table\n\n1 stages ran, 1 were restored.\n")
    head, base = (files(workspace / side) for side in ("head", "base"))
    assert (head["code/kept.py"], head["code/added.py"], base["code/kept.py"]) == ("edited", "new", "old")
    assert "code/dropped.py" in base.keys() - head.keys()
    assert "code/added.py" not in base
    for side, seen in (("head", head), ("base", base)):
        store = f"sqlite:///{Path('build').resolve() / side}/mlflow.db"
        assert seen["store"].split() == [store, store], "a side tracks to its own store"
        assert seen["params.yaml"] == params
        assert seen["checkpoints/teacher.pth"] == "checkpoints/teacher.pth"
        assert seen["data/raw/two.png"] == "data/raw/two.png"
        assert ("data/camvid/one.png" in seen) == (profile is None), "data.root of the params that run"


def test_base_that_does_not_run_is_reported_and_leaves_nothing(tool, workspace):
    page = tool.compare("nowhere", None)
    assert "The base did not run: git" in page
    assert {path.name for path in Path("build").iterdir()} == {"report"}


def test_new_files_in_folders_of_the_user_are_linked_and_not_added_to_git(tool, workspace):
    write("params.yaml", json.dumps(params_of(root="mine")))
    write("mine/large.png", "large")
    tree = tool.tree_with_edits()
    assert "mine" not in git("ls-tree", "--name-only", tree).split()
    tool.run_side(tool.HEAD, "HEAD", None, tree)
    assert (tool.HEAD / "mine/large.png").samefile("mine/large.png")
    assert not (tool.HEAD / "mine").is_symlink(), "DVC does not look into linked folders"
    tool.remove_side(tool.HEAD)
    assert Path("mine/large.png").read_text() == "large"


def test_params_file_that_is_not_yaml_is_one_line(tool, workspace, monkeypatch):
    write("params.yaml", "seed: [")
    monkeypatch.setattr("sys.argv", ["pull_request.py", "--base", "HEAD"])
    with pytest.raises(SystemExit, match="^error: params.yaml: not YAML"):
        tool.main()


def test_names_are_branches_or_short_hashes(tool, workspace):
    hashes = git("rev-list", "HEAD").split()
    assert [tool.name_of(commit) for commit in hashes] == ["main", "main~1"]
    assert tool.name_of("feature") == "feature"
    git("checkout", "--quiet", "--detach")
    git("branch", "--quiet", "-D", "main")
    assert hashes[0].startswith(tool.name_of("HEAD"))
    assert len(tool.name_of("HEAD")) < 12


BEFORE = params_of(), summary_of(a=0.0295), benchmark_of(5, 5, 5)


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (BEFORE, []),
        (
            (params_of(runs={"a": {"alpha": 0.5}}), summary_of(a=0.0085), benchmark_of(5, 5, 5)),
            ["a: alpha 0.3 -> 0.5, mIoU 2.95 -> 0.85 (-2.10)"],
        ),
        # A run inherits from distill, and keys of finetune have their section's name.
        ((params_of(temperature=4.0), *BEFORE[1:]), ["a: temperature 1.0 -> 4.0"]),
        (
            (params_of(runs={"a": {"alpha": 0.3, "finetune": {"steps": 90}}}), *BEFORE[1:]),
            ["a: finetune.steps 60 -> 90"],
        ),
        ((params_of(root="mine"), *BEFORE[1:]), ["all runs: data.root data/raw -> mine"]),
        (
            (params_of(runs={"b": {"alpha": 0.1}}), summary_of(b=0.5), benchmark_of(5, 5, 5)),
            ["b: new, mIoU 50.00", "a: removed"],
        ),
        ((*BEFORE[:2], benchmark_of(5, 5, 5.9)), []),  # within p95
        ((*BEFORE[:2], benchmark_of(5, 5, 6.5)), ["z, onnx_int8: p50 5.00 -> 6.50 ms (spread 20%)"]),
        (
            (*BEFORE[:2], benchmark_of(10, 10, 11)),
            ["p50 of all models: 2.00 times the base's, because the machine or all models changed"],
        ),
    ],
)
def test_lines_say_what_changed(tool, tmp_path, after, lines):
    for side, (params, summary, benchmark) in {"base": BEFORE, "head": after}.items():
        (tmp_path / side / "metrics").mkdir(parents=True)
        (tmp_path / side / "params.yaml").write_text(json.dumps(params))
        (tmp_path / side / "metrics/summary.json").write_text(json.dumps(summary))
        (tmp_path / side / "metrics/benchmark.json").write_text(json.dumps(benchmark))
    assert list(tool.changes(tmp_path / "base", tmp_path / "head")) == lines
