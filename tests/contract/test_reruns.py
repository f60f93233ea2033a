"""What an edit reruns: in a finished project, `dvc status` names the stages of the edit and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from segdistill.params.stages import OF_A_RUN
from support.checkout import Checkout
from support.finished_project import CONTROL, RUNS, STUDENT
from support.stage_calls import call_dvc, call_stage
from support.tiny_city import ARCH, tinier_params

pytestmark = pytest.mark.slow
SOURCE = "src/segdistill"
STAGE_FILES = [stage.replace("-", "_") for stage in OF_A_RUN]
# Of each run and of its repetition with seed 1.
DISTILL, FINETUNE, EXPORT = (
    [name for run in RUNS for name in (f"{stage}@{run}", f"{stage}-repeat@{run}-1")]
    for stage in ("distill", "steplr-finetune", "export-onnx")
)
OF_STUDENT = [name for name in DISTILL + FINETUNE + EXPORT if STUDENT in name]
STUDENTS, TEACHER, LOGITS = DISTILL + FINETUNE, ["teacher-check"], ["teacher-logits@views"]
# By edit: the files that get a further line, and the stages that have to rerun.
EDITS = {
    "a distillation loss": (["student/distillation.py"], STUDENTS),
    "the procedure of the students": (["student/run.py"], STUDENTS),
    "the training loop": (["training/loop.py", "training/batches.py"], STUDENTS + TEACHER),
    "checkpoints and evaluation during training": (
        ["training/checkpoint.py", "training/holdout.py"],
        STUDENTS + TEACHER,
    ),
    "the check of the teacher": (["teacher/check.py"], TEACHER),
    "building the cache": (["teacher_logits/build.py"], LOGITS),
    "ONNX export": (
        ["export/run.py", "export/onnx_file.py", "export/argmax_graph.py", "export/wrapper.py"],
        EXPORT,
    ),
    "quantisation": (["export/quantize.py"], EXPORT),
    "latency": (["latency/run.py", "latency/engines.py", "latency/timing.py"], ["benchmark"]),
    "the report": (["report/__init__.py"], ["report"]),
    "the results": (["results/summary.py", "results/champion.py"], ["report"]),
    "tracking": (["tracking/__init__.py"], ["report"]),
    "reading raw data": (["prepare/cityscapes.py", "prepare/synthetic/city.py"], ["prepare"]),
    "the command line": (["cli/__init__.py", "__main__.py"], []),
    "predict": (["predict/run.py", "predict/video.py"], []),
    "compare": (["compare/tables.py"], []),
    "the params model": (["params/model.py", "params/read.py", "params/archs.py"], []),
    "wording of errors, progress, atomic writing, logging": (
        ["core/errors.py", "core/progress.py", "core/files.py", "core/log.py", "core/stage.py"],
        [],
    ),
    "a network that no run names": (["networks/deeplabv3_resnet101.py"], []),
    # Repetitions depend on the results of their run instead, and follow when these change.
    "the network of one run": (
        [f"networks/{RUNS[STUDENT]['student']}.py"],
        [f"{stage}@{STUDENT}" for stage in ("distill", "steplr-finetune", "export-onnx")],
    ),
    "the network of the teacher and of the control": (
        [f"networks/{ARCH}.py"],
        [*TEACHER, *LOGITS, *(f"{stage}@{CONTROL}" for stage in ("distill", "steplr-finetune", "export-onnx"))],
    ),
    "the scoring of val": (["scoring/evaluate.py"], [*STUDENTS, *TEACHER, *EXPORT, "benchmark"]),
}
# By path in params.yaml: another value, and the stages that read it.
VALUES = {
    f"runs.{STUDENT}.alpha": (0.6, [*OF_STUDENT, "benchmark"]),
    f"runs.{STUDENT}.lr": (0.02, [*OF_STUDENT, "benchmark"]),
    f"runs.{STUDENT}.seed": (3, [*OF_STUDENT, "benchmark"]),
    "distill.temperature": (2.0, STUDENTS + EXPORT),
    "distill.scale_range": ([1.0, 2.0], LOGITS + STUDENTS + EXPORT),
    "finetune.steps": (1, FINETUNE),
    "teacher.steps": (3, TEACHER),
    "teacher_logits.dtype": ("uint8", LOGITS),
    "teacher_logits.mirrored": (True, LOGITS),
    "teacher_logits.feature_channels": (16, LOGITS),
    "export.opset": (19, [*EXPORT, "benchmark"]),
    "benchmark.frames": (2, ["benchmark"]),
    "tracking.experiment": ("other", []),
    # A new seed leaves the repetitions that are there as they are.
    "seeds": ([1, 2], [*(f"{stage}-repeat@{run}-2" for stage in OF_A_RUN for run in RUNS), "benchmark"]),
    "seed": (1, ["prepare", *TEACHER, *LOGITS, *STUDENTS, *EXPORT]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Checkout:
    """A clone in which DVC takes every stage for finished.

    Its outputs have made-up bytes: what an edit reruns depends on dvc.yaml, params.yaml and the code alone.
    """
    checkout = Checkout(tmp_path_factory.mktemp("clone") / "project")
    checkout.params = tinier_params(runs=RUNS, seeds=(1,)).model_dump(mode="json", exclude_none=False)
    checkout.save_params()
    checkout.commit("tiny params")
    with Repo(str(checkout.folder)) as repo:
        # The outputs first: a dep that is not there yet is a file in one of them.
        named = [Path(one.fs_path) for one in (*repo.index.outs, *repo.index.deps)]
    for path in named:
        if not path.exists():
            file = path if path.suffix else path / "made-up.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{path.name}\n")
    done = call_dvc(checkout.folder, "commit", "--force", "--quiet")
    assert done.exit_code == 0, done.err
    assert changed_stages(checkout) == []
    return checkout


def changed_stages(checkout: Checkout) -> list[str]:
    """The stages that `dvc repro` would run for their own sake."""
    done = call_dvc(checkout.folder, "status", "--json")
    assert done.exit_code == 0, done.err
    return sorted(json.loads(done.out))


@pytest.mark.parametrize("edit", EDITS)
def test_edit_of_code_reruns_only_the_stages_that_it_changes(finished, edit):
    names, stages = EDITS[edit]
    files = [finished.folder / SOURCE / name for name in names]
    before = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(before[file] + b"# edited\n")
    try:
        assert changed_stages(finished) == sorted(stages)
    finally:
        for file in files:
            file.write_bytes(before[file])


@pytest.mark.parametrize("path", VALUES)
def test_value_in_params_reruns_only_the_stages_that_read_it(finished, path):
    value, stages = VALUES[path]
    file: Path = finished.folder / "params.yaml"
    before = file.read_bytes()
    *sections, key = path.split(".")
    section = json.loads(json.dumps(finished.params))
    changed = section
    for name in sections:
        section = section[name]
    assert section[key] != value
    section[key] = value
    file.write_text(json.dumps(changed), encoding="utf-8")
    try:
        assert changed_stages(finished) == sorted([*stages, "report"])
    finally:
        file.write_bytes(before)


def test_another_number_of_devices_reruns_nothing(finished):
    file = finished.folder / "params.yaml"
    before = file.read_bytes()
    changed = json.loads(json.dumps(finished.params))
    changed["compute"]["devices"] += 1
    file.write_text(json.dumps(changed), encoding="utf-8")
    try:
        assert changed_stages(finished) == []
    finally:
        file.write_bytes(before)


# What the run's stage wrote anew, and which stage of its repetition follows: it names no network's file and no logits.
RESULTS = {
    "a network or logits that train another student": ("models", "distilled.safetensors", "distill"),
    "a network that predicts otherwise with the same weights": ("metrics", "distill.json", "distill"),
    "a finetuned student": ("models", "finetuned.safetensors", "steplr-finetune"),
    "a graph of the same student": ("models", "student.onnx", "export-onnx"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_repetitions_follow_what_their_run_wrote(finished, case):
    top, name, stage = RESULTS[case]
    file = finished.folder / top / "runs" / STUDENT / name
    before = file.read_bytes()
    file.unlink()
    file.write_bytes(before + b" ")
    try:
        repetitions = [name for name in changed_stages(finished) if "-repeat@" in name]
        assert repetitions == [f"{stage}-repeat@{STUDENT}-1"]
    finally:
        file.write_bytes(before)


def own_seed_folders(checkout: Checkout) -> list[Path]:
    return [folder for top in ("models", "metrics") for folder in (checkout.folder / top / "runs").glob("*-0")]


def test_seeds_may_list_the_seed_that_runs_have(finished):
    """`seeds: [0, 1]` with `seed: 0` asks for no training that is not there: the stages of seed 0 copy the run."""
    file: Path = finished.folder / "params.yaml"
    before = file.read_bytes()
    file.write_text(json.dumps(finished.params | {"seeds": [0, 1]}), encoding="utf-8")
    try:
        own = [f"{stage}-repeat@{run}-0" for stage in OF_A_RUN for run in RUNS]
        assert changed_stages(finished) == sorted([*own, "benchmark", "report"])
        for stage in STAGE_FILES:
            done = call_stage(finished.folder, stage, "--run", f"{STUDENT}-0")
            assert done.exit_code == 0, done.err
            assert f"{STUDENT}-0: copied from {STUDENT}, which has this seed" in done.err
        for copy in own_seed_folders(finished):
            assert contents(copy) == contents(copy.with_name(STUDENT))
    finally:
        file.write_bytes(before)
        for folder in own_seed_folders(finished):
            shutil.rmtree(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
