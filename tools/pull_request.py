"""What a change does to the pipeline's figures: run it before and after the change, and write one page of Markdown.

    python tools/pull_request.py --base main [--profile tiny] [--out build/pull-request.md]

The base is run in a worktree of its own (build/base), on the same machine and from the same DVC cache: what the change
does not touch is restored on one side or the other, and latencies may be compared. Nothing is committed to a branch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BASE_FOLDER = Path("build/base")
RAN = re.compile(r"^Running stage '([^']+)'", re.MULTILINE)
RESTORED = re.compile(r"^Stage '([^']+)' is cached", re.MULTILINE)
SUMMARY = "metrics/summary.json"


class CommandError(Exception):
    """A command that failed, with what it said last."""


def called(*command: str, cwd: Path = Path(), shown: bool = False) -> str:
    """What `command` prints; its stderr goes through. With `shown`, so does what it prints.

    Raises:
        CommandError: it failed.
    """
    # The code of a worktree is its own, whatever package is installed.
    environment = os.environ | {"PYTHONPATH": str((cwd / "src").resolve())}
    lines = []
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            if shown:
                print(line, end="", flush=True)
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)} failed ({process.returncode}): {''.join(lines[-3:]).strip()}")
    return "".join(lines)


def run_pipeline(folder: Path, profile: str | None) -> str:
    """Run what is not restored in `folder`; a sentence that says how many stages that were."""
    if profile:
        take_profile(folder, profile)
    said = called("dvc", "repro", cwd=folder, shown=True)
    ran, restored = RAN.findall(said), RESTORED.findall(said)
    return f"{len(ran)} stages ran, {len(restored)} were restored"


def take_profile(folder: Path, profile: str) -> None:
    """Make params.yaml the profile of that name.

    Raises:
        CommandError: it holds what neither git nor a profile has, and would be lost.
    """
    params, profiles = folder / "params.yaml", folder / "profiles"
    edited = called("git", "status", "--porcelain", "--", "params.yaml", cwd=folder).strip()
    if edited and params.read_bytes() not in [path.read_bytes() for path in profiles.glob("*.yaml")]:
        raise CommandError("params.yaml: has changes that the profile would replace; commit them, or name no profile")
    shutil.copyfile(profiles / f"{profile}.yaml", params)


def run_base(base: str, profile: str | None) -> str:
    """Run the pipeline of `base` beside the workspace, and return a commit that holds its results."""
    commit = called("git", "rev-parse", "--verify", f"{base}^{{commit}}").strip()
    remove_base()
    called("git", "worktree", "add", "--force", "--detach", str(BASE_FOLDER), commit)
    cache = called("dvc", "cache", "dir").strip()
    called("dvc", "cache", "dir", "--local", str(Path(cache).resolve()), cwd=BASE_FOLDER)
    run_pipeline(BASE_FOLDER, profile)
    called("git", "add", "--all", cwd=BASE_FOLDER)
    identity = ("-c", "user.name=segdistill", "-c", "user.email=segdistill@localhost")
    called("git", *identity, "commit", "--quiet", "--allow-empty", "-m", "results of the base", cwd=BASE_FOLDER)
    return called("git", "rev-parse", "--short", "HEAD", cwd=BASE_FOLDER).strip()


def remove_base() -> None:
    """Remove the worktree of an earlier call, also one that was cut short."""
    shutil.rmtree(BASE_FOLDER, ignore_errors=True)
    called("git", "worktree", "prune")


def moved(table: str) -> str:
    """What `dvc metrics diff --md` printed, or a word where it has no rows below its two lines of head."""
    return table.strip() if len(table.strip().splitlines()) > 2 else "None."


def page(how: str, base: str, difference: str) -> str:
    """The Markdown: the report's answer and table, and the figures that moved."""
    head = called("git", "rev-parse", "--short", "HEAD").strip()
    return "\n".join(
        [
            f"### segdistill at {head}: {how}",
            "",
            called("segdistill", "show", "--markdown").strip(),
            "",
            f"<details><summary>Figures that moved against {base}</summary>\n\n{difference}\n\n</details>",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="commit or branch to compare with")
    parser.add_argument("--profile", help="a name in profiles/ for both sides; else each side's own params.yaml")
    parser.add_argument("--out", type=Path, default=Path("build/pull-request.md"))
    arguments = parser.parse_args()
    try:
        how = run_pipeline(Path(), arguments.profile)
        try:
            commit = run_base(arguments.base, arguments.profile)
            difference = moved(called("dvc", "metrics", "diff", "--md", "--targets", SUMMARY, "--", commit))
        except (CommandError, OSError) as error:  # a base that does not run is no fault of the change
            difference = f"The base could not be run: {error}"
        finally:
            remove_base()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page(how, arguments.base, difference), encoding="utf-8")
    except (CommandError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
