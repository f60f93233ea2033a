"""The whole pipeline on a tiny city, run by DVC in a copy of the repository: what runs, what stays, what comes out."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml

from support.checkout import RUNNING, Checkout

pytestmark = pytest.mark.slow
QUEUE_S = 600


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("city"), preloaded=True)
    checkout.ran = checkout.dvc("repro")
    checkout.first_lock = checkout.lock()
    checkout.experiments = set()  # commands of the documents that made one: each is run once
    return checkout


def stages_of(run: str) -> set[str]:
    return {f"{stage}@{run}" for stage in ("distill", "steplr-finetune", "export-onnx")}


def test_every_stage_ran(done):
    expected = {"prepare", "teacher-check", "teacher-logits@views", "benchmark", "report"}
    expected |= stages_of("vanilla") | stages_of("a03-lr01") | stages_of("light")
    assert set(done.ran) == expected
    assert len(done.ran) == len(expected)


def test_every_stage_left_its_files(done):
    for run in done.params["runs"]:
        files = {path.name for path in (done.folder / "models/runs" / run).iterdir()}
        assert {"distilled.safetensors", "finetuned.safetensors", "student.onnx", "student.int8.onnx"} <= files
        for name in ("distill", "finetune"):
            assert 0 <= done.metrics(f"runs/{run}/{name}.json")["mean_iou"] <= 1
            with (done.folder / f"metrics/runs/{run}/{name}_curve.csv").open() as curve:
                assert int(list(csv.DictReader(curve))[-1]["step"]) == done.params[name]["steps"]
            images = [path.name for path in (done.folder / f"metrics/runs/{run}/{name}_images").iterdir()]
            assert sum("_step_" in image for image in images) == 2  # before the first step and after the last
        exported = done.metrics(f"runs/{run}/export.json")
        assert exported["float32"]["class_agreement_with_torch"] > 0.999
        assert exported["torch"]["mean_iou"] == pytest.approx(done.metrics(f"runs/{run}/finetune.json")["mean_iou"])
        assert exported["int8"]["bytes"] < exported["float32"]["bytes"] / 2
    timed = done.metrics("benchmark.json")
    for backends in timed["networks"].values():
        assert set(backends) >= {"torch", "torch_best", "onnx_float32", "onnx_int8"}
        assert all(row["end_to_end_p50_ms"] > 0 for row in backends.values())
    report = (done.folder / "reports/index.html").read_text()
    assert all(run in report for run in done.params["runs"])


def test_mlflow_has_a_row_for_each_run(done):
    rows = {row.data.params.get("alpha"): row for row in done.mlflow_rows() if row.info.run_name != "teacher"}
    assert {float(alpha) for alpha in rows} == {0.0, 0.3, 0.6}
    for row in rows.values():
        assert {"val/mean_iou", "onnx_int8/mean_iou", "torch/p50_ms", "onnx_int8/p50_ms"} <= set(row.data.metrics)
        assert float(row.data.params["lr"]) == 0.01


def test_smoke_run_ships_nothing_and_registers_nothing(done):
    assert done.metrics("summary.json")["champion"] is None
    assert done.mlflow_client().search_registered_models() == []


def test_again_runs_nothing(done):
    assert done.dvc("repro") == []


def test_docs_draw_the_stages_as_dvc_does(done):
    drawn = done.call("dvc", "dag", "--collapse-foreach-matrix", "--mermaid").stdout
    assert drawn.strip() in (done.folder / "docs/design.md").read_text()


def test_the_control_depends_on_no_teacher(done):
    for stage in ("distill@vanilla", "steplr-finetune@vanilla"):
        deps = {dep["path"] for dep in done.first_lock[stage]["deps"]}
        assert "data/teacher_logits/none" in deps
        assert not any("views" in dep or dep.startswith("models/teacher") for dep in deps)


def test_another_clone_gives_the_same_bytes(done, tmp_path):
    other = Checkout(tmp_path, preloaded=True)
    other.dvc("repro", "export-onnx@light")  # test_sweep.py compares the other two
    assert stages_of("light") <= other.lock().keys()
    assert other.lock() == {name: entry for name, entry in done.first_lock.items() if name in other.lock()}


def test_metrics_and_plots_are_declared(done):
    shown = done.call("dvc", "metrics", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    assert "mean_iou" in shown.stdout
    plotted = done.call("dvc", "plots", "show", "--json")
    assert plotted.returncode == 0, plotted.stderr
    assert "distill_curve.csv" in plotted.stdout


# Commands of the documents that are not run here, and what replaces them.
NOT_RUN = re.compile(
    r"git (clone|commit)|source |open |mv |cp profiles/"  # the copy is the clone, with params of fewer steps
    r"|make (test|ui|bench|\.venv|pull-request)"  # these tests, a server, half an hour; pull-request is tested below
)


def shell_commands(page: Path) -> list[str]:
    """The commands of a document, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = (re.sub(r"(^|\s+)# .*", "", line) for block in blocks for line in block.splitlines())
    return [line for line in lines if line and not NOT_RUN.match(line)]


@pytest.mark.parametrize("name", ["docs/tutorial.md", "README.md"])
def test_the_commands_of_the_documents_work(done, name):
    done.commit(f"before {name}")
    shutil.copy(done.folder / "metrics/images/00000_image.png", done.folder / "street.png")
    before, said = {row.info.run_id for row in done.mlflow_rows()}, {}
    commands = [command for command in shell_commands(done.folder / name) if command not in done.experiments]
    for command in commands:
        # Packages are those that run this test.
        called = done.call("sh", "-c", re.sub(r"^make ", "make -o .venv/.installed ", command))
        assert called.returncode == 0, f"{command}\n{called.stdout}\n{called.stderr}"
        said[command] = called.stdout
    new = [command for command in commands if command.startswith("dvc exp run -S")]
    assert new
    for experiment in new:
        assert set(RUNNING.findall(said[experiment])) == stages_of("a03-lr01") | {"benchmark", "report"}
    rows = {row.info.run_id: row.info.run_name for row in done.mlflow_rows()}
    assert before < rows.keys(), "the old rows stay"
    assert [rows[run_id] for run_id in rows.keys() - before] == ["a03-lr01"] * len(new)
    done.experiments.update(new)
    assert "up to date" in said.get("dvc status", "up to date"), "what was committed is back, whole"
    assert "ship" in next(
        text.lower() for command, text in said.items() if "show" in command or "make repro" in command
    )


def test_a_change_is_shown_beside_its_base(done):
    """Run what CI writes into a pull request; the workspace holds an experiment of the documents."""
    before, rows = done.call("git", "status", "--porcelain").stdout, len(done.mlflow_rows())
    called = done.call(sys.executable, "tools/pull_request.py", "--base", "HEAD")
    assert called.returncode == 0, called.stdout + called.stderr
    page = (done.folder / "build/pull-request.md").read_text()
    # DVC restores no stage whose outputs are partly in git, as those of the report.
    assert "with uncommitted edits against" in page.splitlines()[0]
    assert "1 stages ran, 12 were restored." in page
    assert "| light |" in page
    assert re.search("^- a03-lr01: .*temperature 1.0 -> 4.*, mIoU .* -> ", page, re.MULTILINE), page
    assert "Nothing to ship yet" in (done.folder / "build/report/index.html").read_text()
    assert (done.call("git", "status", "--porcelain").stdout, len(done.mlflow_rows())) == (before, rows)
    assert not (done.folder / "build/base").exists()
    assert done.call("git", "worktree", "list").stdout.count("\n") == 1


def test_a_profile_for_both_sides_leaves_params_and_the_registry_alone(done):
    params = done.params | {"runs": {name: run for name, run in done.params["runs"].items() if name != "light"}}
    (done.folder / "profiles/small.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done.commit("a profile")
    before = {name: (done.folder / name).read_bytes() for name in ("params.yaml", "dvc.lock", "mlflow.db")}
    called = done.call(sys.executable, "tools/pull_request.py", "--base", "HEAD", "--profile", "small")
    assert called.returncode == 0, called.stdout + called.stderr
    page = (done.folder / "build/pull-request.md").read_text()
    assert "| a03-lr01 |" in page
    assert "| light |" not in page
    assert {name: (done.folder / name).read_bytes() for name in before} == before


def test_a_queued_experiment_is_run_shown_drawn_and_brought_in(done):
    """As docs/experiments.md has it, with an edit that is in no commit and counts all the same."""
    done.commit("before the queue")
    done.params = yaml.safe_load((done.folder / "params.yaml").read_text())
    done.params["runs"]["light"]["lr"] = 0.02
    done.save_params()
    queued = done.call("dvc", "exp", "run", "--queue", "-S", "runs.light.alpha=0.45", "--name", "queued")
    assert queued.returncode == 0, queued.stderr
    try:
        assert done.call("dvc", "queue", "start").returncode == 0
        until, said = time.monotonic() + QUEUE_S, "Queued"
        while "Success" not in said:
            said = done.call("dvc", "queue", "status").stdout
            assert "Failed" not in said, done.call("dvc", "queue", "logs", "queued").stdout
            assert time.monotonic() < until, said
            time.sleep(1)
    finally:
        done.call("dvc", "queue", "stop", "--kill")
    shown = done.call("dvc", "exp", "show", "--md").stdout
    assert "queued" in shown
    assert "0.45" in shown
    curve = "metrics/runs/light/finetune_curve.csv"
    drawn = done.call("dvc", "plots", "diff", "HEAD", "queued", "--targets", curve)
    assert drawn.returncode == 0, drawn.stderr
    assert (done.folder / "dvc_plots/index.html").is_file()

    def settings_in_mlflow() -> set[tuple]:
        return {(row.data.params.get("alpha"), row.data.params.get("lr")) for row in done.mlflow_rows()}

    assert ("0.45", "0.02") not in settings_in_mlflow(), "its folder has a store of its own"
    assert done.call("dvc", "exp", "apply", "queued").returncode == 0
    assert done.call("segdistill", "track").returncode == 0
    assert ("0.45", "0.02") in settings_in_mlflow()


def test_bad_value_is_one_message_and_loses_nothing(done):
    before = (done.folder / "models/runs/light/student.onnx").read_bytes()
    kept = done.params["runs"]["light"]["alpha"]
    done.params["runs"]["light"]["alpha"] = 1.5
    done.save_params()
    failed = done.call(sys.executable, "stages/distill.py", "--run", "light")
    done.params["runs"]["light"]["alpha"] = kept
    done.save_params()
    assert failed.returncode == 1
    assert "runs.light.alpha: found 1.5" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (done.folder / "models/runs/light/student.onnx").read_bytes() == before
