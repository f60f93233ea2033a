"""A copy of the repository in which DVC runs the pipeline on a tiny city, as a user's clone would."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from support.preloaded import python_folder

ROOT = Path(__file__).resolve().parents[2]
RUNNING = re.compile(r"Running stage '([\w@-]+)'")


class Checkout:
    """A copy of the repository with its own git and DVC, and params scaled down to a few steps.

    preloaded: DVC runs stages in a python that has torch loaded. It is for tests that stop no stage.
    """

    def __init__(self, folder: Path, preloaded: bool = False):
        self.folder, self.preloaded = folder, preloaded
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for made in ("dvc.lock", "metrics/summary.json", "metrics/summary.csv", "metrics/benchmark.json"):
            (folder / made).unlink(missing_ok=True)
        self.params = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text())
        self.params["data"]["synthetic"] = {"train_frames": 8, "val_frames": 3}
        self.params["teacher"] |= {"steps": 2, "arch": "deeplabv3plus_mobilenet"}
        self.params["distill"] |= {"steps": 3, "evaluate_every_steps": 3, "batch_size": 2}
        self.params["finetune"] |= {"steps": 2}
        self.params["benchmark"] |= {"frames": 3, "warmup_frames": 1}
        self.params["compute"]["threads"] = 1  # so few steps gain nothing from a second one
        self.save_params()
        self.git("init", "-q")
        self.commit("start")

    def save_params(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    def environment(self, git: bool = False) -> dict[str, str]:
        """Return an environment that finds the package of the copy and no settings of the user."""
        first = [str(python_folder())] if self.preloaded else []
        path = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
        extra = {"PATH": path, "PYTHONPATH": str(self.folder / "src"), "DVC_NO_ANALYTICS": "true"}
        # DVC runs stages through this shell. With dash a further process is between DVC and its stage.
        extra["SHELL"] = "/bin/sh"
        if git:
            # Headers of weights name the revision: two copies of one tree are one commit only at one date.
            extra |= dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")
        # With bytecode, as for a user: else each process compiles the package again.
        removed = ("MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE")
        return {k: v for k, v in os.environ.items() if k not in removed} | extra

    def call(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command in the copy to its end."""
        environment = self.environment(git=command[0] == "git")
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment, check=False)

    def start(self, *command: str) -> subprocess.Popen:
        """Start a command in the copy, in a new process group; its output goes to the file `said`."""
        with self.said.open("w") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=said, stderr=said, start_new_session=True
            )

    @property
    def said(self) -> Path:
        """Return the output of the command that was started last."""
        return self.folder / ".dvc" / "said.txt"

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        done = self.call("git", *identity, *arguments)
        assert done.returncode == 0, done.stderr

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def clone(self, folder: Path) -> Checkout:
        """Return a git clone, as another machine has it: with what is committed, and without DVC's cache."""
        self.git("clone", "-q", str(self.folder), str(folder))
        clone = copy.deepcopy(self)
        clone.folder = folder
        return clone

    def dvc(self, *arguments: str) -> list[str]:
        """Run dvc and return the stages that it ran."""
        done = self.call("dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return RUNNING.findall(done.stdout)

    def metrics(self, name: str) -> dict:
        return json.loads((self.folder / "metrics" / name).read_text())

    def lock(self) -> dict:
        return yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]

    def mlflow_client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}")

    def mlflow_rows(self) -> list:
        client = self.mlflow_client()
        experiment = client.get_experiment_by_name("segdistill")
        return client.search_runs([experiment.experiment_id], "tags.`segdistill.row` LIKE '%'")
