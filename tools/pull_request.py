"""What a change does to the pipeline's figures: run it before and after the change, and write one page of Markdown.

    python tools/pull_request.py --base main [--profile tiny] [--out build/pull-request.md]

Both sides run in worktrees of their own (build/head and build/base), one after the other on the same machine, from the
DVC cache of the workspace: what the change does not touch is restored, and latencies may be compared. The head is the
workspace as it stands, with what is not committed; what lies there for neither git nor DVC to keep, as data and
checkpoints, is linked. They track to an MLflow store of their own, so neither the store nor the registry of the user
hears of it; the workspace keeps its files, and git gets no branch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.yaml_file import read_mapping

BUILD = Path("build")
HEAD, BASE, REPORT = (BUILD / name for name in ("head", "base", "report"))
RAN = re.compile(r"^Running stage '([^']+)'", re.MULTILINE)
RESTORED = re.compile(r"^Stage '([^']+)' is cached", re.MULTILINE)
SUMMARY = "metrics/summary.json"
SHOWN = ("reports/index.html", SUMMARY, "metrics/summary.csv")
BROUGHT = ("data/raw", "checkpoints", "initial_weights")  # where a user's own files lie, beside data.root


class CommandError(Exception):
    """A command that failed, with what it said last."""


def called(*command: str, cwd: Path = Path(), shown: bool = False) -> str:
    """What `command` prints; its stderr goes through. With `shown`, so does what it prints.

    Raises:
        CommandError: it failed.
    """
    # The code of a worktree is its own, whatever package is installed; and so is its store, whatever params.yaml or
    # the environment name: MLFLOW_TRACKING_URI goes before tracking.uri.
    store = f"sqlite:///{(cwd / 'mlflow.db').resolve()}"
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store, "PYTHONPATH": str((cwd / "src").resolve())}
    lines = []
    with subprocess.Popen(command, cwd=cwd, env=os.environ | own, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            if shown:
                print(line, end="", flush=True)
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)} failed ({process.returncode}): {''.join(lines[-3:]).strip()}")
    return "".join(lines)


def git(*arguments: str, cwd: Path = Path()) -> str:
    """What git prints; hooks of the user are for the user's own commits and checkouts."""
    return called("git", "-c", "core.hooksPath=/dev/null", *arguments, cwd=cwd)


def make_worktree(folder: Path, commit: str, profile: str | None, with_edits: bool) -> None:
    """Make `folder` a worktree of `commit` that shares the DVC cache and sees the user's data."""
    remove_worktree(folder)
    git("worktree", "add", "--force", "--detach", str(folder), commit)
    if with_edits:
        copy_edits(folder)
    if profile:
        shutil.copyfile(folder / "profiles" / f"{profile}.yaml", folder / "params.yaml")
    link_data(folder)
    cache = called("dvc", "cache", "dir").strip()
    called("dvc", "cache", "dir", "--local", str(Path(cache).resolve()), cwd=folder)
    # Links where the file system has no cheap copies: the folder is thrown away, and the logits of a city are large.
    called("dvc", "config", "--local", "cache.type", "reflink,hardlink,copy", cwd=folder)


def remove_worktree(folder: Path) -> None:
    """Remove `folder`, also that of an earlier call which was cut short; what it links to stays."""
    shutil.rmtree(folder, ignore_errors=True)
    git("worktree", "prune")


def copy_edits(folder: Path) -> None:
    """Bring what git would commit of the workspace, and has not, into `folder`."""
    edited = git("diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
    added = git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
    brought = data_folders(Path())  # is linked: nobody knows how large it is
    added = [name for name in added if not any(Path(name).is_relative_to(top) for top in brought)]
    for name in filter(None, edited + added):
        ours, theirs = Path(name), folder / name
        theirs.unlink(missing_ok=True)
        if ours.is_symlink() or ours.exists():
            theirs.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ours, theirs, follow_symlinks=False)


def data_folders(folder: Path) -> list[Path]:
    """Where the user's files lie by the params.yaml in `folder`, as far as that is inside the workspace."""
    data = read_mapping(folder / "params.yaml", "sections", "take one with: cp profiles/tiny.yaml params.yaml")["data"]
    named = [Path(name) for name in dict.fromkeys((*BROUGHT, str(data["root"])))]
    return [path for path in named if not path.is_absolute() and ".." not in path.parts]


def link_data(folder: Path) -> None:
    """Link what the user has put into the folders of the data, and `folder` lacks."""
    for top in data_folders(folder):
        if top.is_dir() and not (folder / top).exists():
            (folder / top).parent.mkdir(parents=True, exist_ok=True)
            (folder / top).symlink_to(top.resolve())
        elif top.is_dir():
            for entry in top.iterdir():
                if not (folder / entry).exists():
                    (folder / entry).symlink_to(entry.resolve())


def run_pipeline(folder: Path) -> str:
    """Run what is not restored in `folder`; a sentence that says how many stages that were."""
    said = called("dvc", "repro", cwd=folder, shown=True)
    ran, restored = RAN.findall(said), RESTORED.findall(said)
    return f"{len(ran)} stages ran, {len(restored)} were restored"


def run_base(commit: str, profile: str | None) -> str:
    """What the head's figures are other than those of `commit`, as a table."""
    make_worktree(BASE, commit, profile, with_edits=False)
    run_pipeline(BASE)
    # DVC compares commits; this one is on no branch.
    git("add", SUMMARY, cwd=BASE)
    identity = ("-c", "user.name=segdistill", "-c", "user.email=segdistill@localhost")
    git(*identity, "commit", "--quiet", "--allow-empty", "-m", "results of the base", cwd=BASE)
    results = git("rev-parse", "HEAD", cwd=BASE).strip()
    return moved(called("dvc", "metrics", "diff", "--md", "--targets", SUMMARY, "--", results, cwd=HEAD))


def moved(table: str) -> str:
    """What `dvc metrics diff --md` printed, or a word where it has no rows below its two lines of head."""
    return table.strip() if len(table.strip().splitlines()) > 2 else "None."


def keep_report() -> None:
    """Leave the head's report and summary in build/report, for whoever uploads them."""
    shutil.rmtree(REPORT, ignore_errors=True)
    REPORT.mkdir(parents=True)
    for name in SHOWN:
        shutil.copyfile(HEAD / name, REPORT / Path(name).name)


def page(how: str, base: str, difference: str) -> str:
    """The Markdown: the report's answer and table, and the figures that moved."""
    head = git("describe", "--always", "--exclude=*", "--dirty=, with changes that are not committed").strip()
    return "\n".join(
        [
            f"### segdistill at {head}: {how}",
            "",
            called("segdistill", "show", "--markdown", cwd=HEAD).strip(),
            "",
            f"<details><summary>Figures that moved against {base}</summary>\n\n{difference}\n\n</details>",
            "",
        ]
    )


def compare(base: str, profile: str | None) -> str:
    """Run both sides and keep the head's report; the page.

    Raises:
        CommandError, UserError, OSError: the head could not be run.
    """
    try:
        make_worktree(HEAD, "HEAD", profile, with_edits=True)
        how = run_pipeline(HEAD)
        keep_report()
        try:
            commit = git("rev-parse", "--verify", f"{base}^{{commit}}").strip()
            difference = run_base(commit, profile)
        except (CommandError, UserError, OSError) as error:  # a base that does not run is no fault of the change
            difference = f"The base could not be run: {error}"
        return page(how, base, difference)
    finally:
        for folder in (HEAD, BASE):
            remove_worktree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="commit or branch to compare with")
    parser.add_argument("--profile", help="a name in profiles/ for both sides; else each side's own params.yaml")
    parser.add_argument("--out", type=Path, default=BUILD / "pull-request.md")
    arguments = parser.parse_args()
    try:
        written = compare(arguments.base, arguments.profile)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(written, encoding="utf-8")
    except (CommandError, UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
