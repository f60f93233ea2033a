"""Run the pipeline before and after a change, and write what the change moves as one page of Markdown.

    python tools/pull_request.py --base main [--profile tiny] [--out build/pull-request.md]

Both sides run in git worktrees, build/base and build/head, and share the DVC cache of the workspace, which restores the
stages that the change does not touch. The head is the workspace with its uncommitted edits. The workspace, its MLflow
store and its branches do not change.

A CI matrix would run the sides on two machines, whose latencies do not compare; CML and `dvc exp` do not run the code
of another commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.yaml_file import read_mapping

BUILD = Path("build")
HEAD, BASE = BUILD / "head", BUILD / "base"
SUMMARY, BENCHMARK, REPORT = "metrics/summary.json", "metrics/benchmark.json", "reports/index.html"
USER_FOLDERS = ("data/raw", "checkpoints", "initial_weights")  # and data.root
RAN = re.compile(r"^Running stage '", re.MULTILINE)
RESTORED = re.compile(r"^Stage '[^']+' is cached", re.MULTILINE)
METRICS = {"mean_iou": "mIoU", "int8_mean_iou": "int8 mIoU", "teacher_agreement": "agreement"}
P50, P95 = "end_to_end_p50_ms", "end_to_end_p95_ms"
LATENCY_NOISE = 0.1  # what p50 of one file differs by between two processes on a busy machine
OF_MODELS = ("teacher", "distill", "finetune", "export", "runs")  # sections of params.yaml that set up one model each


class CommandError(Exception):
    """A command failed; the message has its last lines."""


def call(*command: str | Path, cwd: Path = Path(), show: bool = False, env: dict[str, str] | None = None) -> str:
    """Run `command` in `cwd` and return its stdout, without the last newline; `show` prints it too.

    Raises:
        CommandError: the exit code is not 0.
    """
    # A side runs its own code, not what is installed, and tracks to its own store: MLFLOW_TRACKING_URI overrides
    # tracking.uri in params.yaml.
    store = f"sqlite:///{(cwd / 'mlflow.db').resolve()}"
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store, "PYTHONPATH": str((cwd / "src").resolve())}
    lines = []
    with subprocess.Popen(
        command, cwd=cwd, env=os.environ | own | (env or {}), stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if show:
                print(line, end="", flush=True)
    if process.returncode != 0:
        last_lines = "".join(lines[-3:]).strip()
        raise CommandError(f"{' '.join(map(str, command))} failed ({process.returncode}): {last_lines}")
    return "".join(lines).removesuffix("\n")


def git(*arguments: str | Path, cwd: Path = Path(), env: dict[str, str] | None = None) -> str:
    # The user's hooks are for the user's own commits and checkouts.
    return call("git", "-c", "core.hooksPath=/dev/null", *arguments, cwd=cwd, env=env)


def user_folders(folder: Path) -> list[Path]:
    """Return the folders of the user's files that are inside the workspace, by the params.yaml in `folder`."""
    params = read_mapping(folder / "params.yaml", "sections", "take one with: cp profiles/tiny.yaml params.yaml")
    named = [Path(name) for name in dict.fromkeys((*USER_FOLDERS, str(params["data"]["root"])))]
    return [path for path in named if not path.is_absolute() and ".." not in path.parts and path != Path()]


def tree_with_edits() -> str:
    """Return a git tree of the workspace with uncommitted edits and new files, except those in folders of the user.

    It is built in an index of its own, so the user's index does not change.
    """
    BUILD.mkdir(exist_ok=True)
    index = BUILD / "index"
    env = {"GIT_INDEX_FILE": str(index.resolve())}
    try:
        git("read-tree", "HEAD", env=env)
        git("add", "--update", ".", env=env)
        # `git add` fails when it is to exclude a path that .gitignore names, so list the new files first.
        excluded = [f":(exclude){folder}" for folder in user_folders(Path())]
        listed = git("ls-files", "-z", "--others", "--exclude-standard", "--", ".", *excluded, env=env)
        new_files = "".join(f"{name}\0" for name in listed.split("\0") if name and not name.endswith("/"))
        command = ("git", "update-index", "--add", "-z", "--stdin")
        subprocess.run(command, input=new_files, env=os.environ | env, text=True, check=True)
        return git("write-tree", env=env)
    finally:
        index.unlink(missing_ok=True)


def run_side(side: Path, commit: str, profile: str | None, tree: str | None = None) -> str:
    """Run the pipeline of `commit`, or of `tree` on top of it, in a worktree; return how many stages ran."""
    remove_side(side)
    git("worktree", "add", "--force", "--detach", side, commit)
    if tree:
        git("read-tree", "-m", "-u", "HEAD", tree, cwd=side)
    if profile:
        shutil.copyfile(side / "profiles" / f"{profile}.yaml", side / "params.yaml")
    for folder in user_folders(side):
        if folder.is_dir():
            shutil.copytree(folder, side / folder, copy_function=link, dirs_exist_ok=True)
    # Hard links where the file system has no reflinks: the logits of a city take 32 GB.
    cache = Path(call("dvc", "cache", "dir")).resolve()
    (side / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n    type = reflink,hardlink,copy\n")
    printed = call("dvc", "repro", cwd=side, show=True)
    return f"{len(RAN.findall(printed))} stages ran, {len(RESTORED.findall(printed))} were restored"


def link(source: str, target: str) -> None:
    """Link a file of the user, unless the commit has it. DVC does not look into linked folders, so link each file."""
    if os.path.lexists(target):
        return
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system, or a file of another user
        Path(target).symlink_to(Path(source).resolve())


def remove_side(side: Path) -> None:
    shutil.rmtree(side, ignore_errors=True)
    git("worktree", "prune")


def name_of(revision: str) -> str:
    """Return the branch that `revision` is on, as feature or main~2; a short hash where no branch has it."""
    if not re.fullmatch(r"HEAD.*|[0-9a-f]{7,}", revision):
        return revision
    branches = ("--refs=refs/heads/*", "--refs=refs/remotes/*")
    name = git("name-rev", "--name-only", "--no-undefined", "--always", *branches, revision)
    return re.sub(r"^remotes/(origin/)?", "", name)


def changes(base: Path, head: Path) -> Iterator[str]:
    """Yield a line for each model whose settings or metrics changed, and for each latency that moved."""
    old_params, new_params = (read_mapping(side / "params.yaml", "sections", "") for side in (base, head))
    shared = [{key: value for key, value in p.items() if key not in OF_MODELS} for p in (old_params, new_params)]
    if moved := different(*shared):
        yield "all runs: " + ", ".join(f"{key} {old} -> {new}" for key, old, new in moved)

    old_rows, new_rows = (read_rows(side) for side in (base, head))
    for name, row in new_rows.items():
        if name not in old_rows:
            yield f"{name}: new, mIoU {100 * row['mean_iou']:.2f}"
            continue
        settings = different(settings_of(old_params, name), settings_of(new_params, name))
        parts = [f"{key} {old} -> {new}" for key, old, new in settings]
        for key, label in METRICS.items():
            old, new = old_rows[name].get(key), row.get(key)
            if old is not None and new is not None and old != new:
                parts.append(f"{label} {100 * old:.2f} -> {100 * new:.2f} ({100 * (new - old):+.2f})")
        if parts:
            yield f"{name}: {', '.join(parts)}"
    yield from (f"{name}: removed" for name in old_rows if name not in new_rows)

    yield from moved_latencies(*(json.loads((side / BENCHMARK).read_text())["networks"] for side in (base, head)))


def moved_latencies(old: dict, new: dict) -> Iterator[str]:
    """Yield a line for each p50 that moved beyond its spread, relative to the other models."""
    taken = {
        f"{network}, {engine}": (old[network][engine], times)
        for network, engines in new.items()
        for engine, times in engines.items()
        if engine in old.get(network, {})
    }
    ratios = {model: after[P50] / before[P50] for model, (before, after) in taken.items()}
    # The sides run minutes apart: a busy machine slows all models of one side.
    drift = statistics.median(ratios.values()) if ratios else 1.0
    if abs(drift - 1) > LATENCY_NOISE:
        yield f"p50 of all models: {drift:.2f} times the base's, because the machine or all models changed"
    for model, (before, after) in taken.items():
        spread = max(times[P95] / times[P50] - 1 for times in (before, after))
        if abs(ratios[model] / drift - 1) > max(spread, LATENCY_NOISE):
            yield f"{model}: p50 {before[P50]:.2f} -> {after[P50]:.2f} ms (spread {100 * spread:.0f}%)"


def read_rows(side: Path) -> dict[str, dict]:
    summary = json.loads((side / SUMMARY).read_text())
    return {"teacher": summary["teacher"]} | summary["runs"]


def settings_of(params: dict, name: str) -> dict:
    """Return the settings of a run or a repetition of one, with those that it inherits, or of the teacher."""
    if name == "teacher":
        return params["teacher"]
    name = name if name in params["runs"] else name.rpartition("-")[0]  # RUN-SEED
    inherited = params["distill"] | {"finetune": params["finetune"], "export": params["export"]}
    return dict(flat(inherited)) | dict(flat(params["runs"][name]))


def flat(mapping: dict, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def different(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """Return (key, old value, new value) of each key whose value differs."""
    old, new = dict(flat(old)), dict(flat(new))
    return [(key, old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)]


def compare(base: str, profile: str | None) -> str:
    """Run both sides, keep the head's report in build/report, and return the page.

    Raises:
        CommandError, UserError, OSError: the head did not run.
    """
    try:
        how = run_side(HEAD, "HEAD", profile, tree_with_edits())
        report = BUILD / "report"
        shutil.rmtree(report, ignore_errors=True)
        report.mkdir()
        for name in (REPORT, SUMMARY, "metrics/summary.csv"):
            shutil.copyfile(HEAD / name, report / Path(name).name)
        edits = " with uncommitted edits" if git("status", "--porcelain") else ""
        title = f"### {name_of('HEAD')}{edits} against {name_of(base)}"
        table = call("segdistill", "show", "--markdown", cwd=HEAD)
        try:
            run_side(BASE, git("rev-parse", "--verify", f"{base}^{{commit}}"), profile)
            lines = [f"- {line}" for line in changes(BASE, HEAD)] or ["Settings, metrics and latencies are the same."]
        except (CommandError, OSError, ValueError, KeyError) as error:  # not caused by the change
            lines = [f"The base did not run: {error}"]
        return "\n".join([title, "", *lines, "", table, "", f"{how}.", ""])
    finally:
        for side in (HEAD, BASE):
            remove_side(side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="commit or branch to compare with")
    parser.add_argument("--profile", help="a name in profiles/ for both sides; without it, each side's params.yaml")
    parser.add_argument("--out", type=Path, default=BUILD / "pull-request.md")
    arguments = parser.parse_args()
    try:
        page = compare(arguments.base, arguments.profile)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    except (CommandError, UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
