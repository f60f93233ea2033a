"""A folder in which every stage has run, and cheap copies of it in which tests break one thing at a time."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import yaml

from segdistill.core.provenance import file_sha256
from support.city_on_disk import image_path, label_path
from support.stage_calls import Done, call_command, call_stage
from support.tiny_city import tinier_params

CONTROL, STUDENT = "vanilla", "taught"
RUNS = {  # of two networks, so that the student's ONNX files differ from the teacher's
    CONTROL: {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
    STUDENT: {"alpha": 0.5, "lr": 0.01, "teacher": "views", "student": "deeplabv3plus_mobilenet"},
}
# One frame of val and one of the holdout: the minimum.
FRAMES = {"train_frames": 3, "val_frames": 1}
PASSWORD = "hunter2-in-the-uri"  # of the tracking server
# The frames of the tiny Cityscapes that the fixture `city` writes, and the files of one of them.
TRAIN = ("aachen_000000_000019", "bochum_000000_000313", "bochum_000001_000313")
VAL, SIZE_PX = ("ulm_000000_000019",), (8, 16)
IMAGE, LABEL = (f"raw/{path(Path(), 'train', TRAIN[1])}" for path in (image_path, label_path))
KEPT = ("data", "models", "metrics", "reports")


class Project:
    """A working folder with its params.yaml; `params` is its content as JSON."""

    def __init__(self, folder: Path, params: str) -> None:
        self.folder, self._params = folder, params

    def params(self) -> dict:
        return json.loads(self._params)

    def set_params(self, **changed: object) -> None:
        """Change params by their path, its dots written as two underscores: runs__taught__alpha=1.2."""
        raw = self.params()
        for path, value in changed.items():
            *sections, key = path.split("__")
            functools.reduce(dict.__getitem__, sections, raw)[key] = value
        self._params = json.dumps(raw)
        # Parsed again, because YAML would write an object in two places as an alias.
        self.write("params.yaml", yaml.safe_dump(self.params(), sort_keys=False).encode())

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: bytes) -> None:
        """Replace the file `name` by a new one: other copies may link to the old one."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def cut_short(self, name: str, share: float = 0.5) -> None:
        content = self.path(name).read_bytes()
        self.write(name, content[: int(share * len(content))])

    def call(self, name: str, *arguments: str, **options) -> Done:
        """Run a stage, or a command of segdistill, by its name."""
        call = call_command if name in ("show", "track", "ui") else call_stage
        return call(self.folder, name, *arguments, **options)

    def snapshot(self) -> dict[str, tuple[int, str]]:
        """Return size and hash of every file that stages write or read."""
        files = [path for top in KEPT for path in self.path(top).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): (path.stat().st_size, _hash(path)) for path in files}

    def copy(self, folder: Path) -> Project:
        """Return a copy whose files are links; no stage writes into an existing file."""
        shutil.copytree(self.folder, folder, copy_function=os.link, symlinks=True)
        return Project(folder, self._params)


_hashes: dict[tuple, str] = {}


def _hash(path: Path) -> str:
    """Return the hash of a file, computed once for all of its links until someone writes to it."""
    facts = path.stat()
    version = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
    if version not in _hashes:
        _hashes[version] = file_sha256(path)
    return _hashes[version]


TRAINING = ["prepare", "teacher_check", "teacher_logits --kind views"]
TRAINING += [f"{stage} --run {run}" for run in RUNS for stage in ("distill", "steplr_finetune")]
FINISHING = [f"export_onnx --run {STUDENT}", "benchmark", "report", "show", "track", "ui"]


def start_project(folder: Path) -> Project:
    """Return a project of two runs in which no stage has run."""
    params = tinier_params(data={"synthetic": FRAMES}, benchmark={"frames": 1, "warmup_frames": 1}, runs=RUNS)
    project = Project(folder, params.model_dump_json())
    project.set_params()
    return project
