"""The command line and the tools, as a user calls them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.core.errors import UserError
from segdistill.formats.header import Header
from segdistill.nets.weights import save_net
from segdistill.params import read as params_file
from segdistill.prepare.synthetic.render import render_frame
from segdistill.results.stale import changed_runs
from segdistill.results.summary import summarise, write_summary
from support.fake_metrics import sweep_params, write_metrics
from support.scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "camvid"


def write_sweep_params(folder: Path) -> None:
    raw = sweep_params().model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def tool(name: str):
    return load_script(ROOT / "tools" / f"{name}.py")


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "terminal",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
@pytest.mark.parametrize(
    "command", [["show"], ["show", "--markdown"], ["compare", "vanilla", "a03"], ["predict", "--help"]]
)
def test_any_terminal_can_show_the_results(tmp_path, terminal, command):
    write_metrics(tmp_path / "metrics")
    write_sweep_params(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "segdistill", *command],
        cwd=tmp_path,
        env=os.environ | terminal,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"a03" if command[0] != "predict" else b"--overwrite") in done.stdout


@pytest.mark.parametrize("command", [["show"], ["show", "--markdown"], ["compare", "vanilla", "a03"]])
def test_head_may_stop_reading_before_the_end(tmp_path, command):
    write_metrics(tmp_path / "metrics")
    write_sweep_params(tmp_path)
    shown = subprocess.Popen(
        [sys.executable, "-m", "segdistill", *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    shown.stdout.close()
    assert shown.stderr.read() == b""
    assert shown.wait(timeout=120) == 1


def test_synthesize_writes_a_city_that_prepare_reads(tmp_path):
    out = tmp_path / "city"
    done = call(
        "synthesize", str(out), "--train-frames", "2", "--val-frames", "1", "--height-px", "48", "--width-px", "64"
    )
    assert done.exit_code == 0, done.output
    assert "drawing: frame 3/3" in done.stderr
    (image,) = (out / "leftImg8bit/val").glob("*/*.png")
    assert np.array_equal(np.asarray(Image.open(image)), render_frame(0, "val", 0, (48, 64))[0])


def test_synthesize_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    done = call("synthesize", str(tmp_path))
    assert done.exit_code == 1
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_show_prints_every_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = sweep_params()
    write_metrics(tmp_path / "metrics")
    monkeypatch.setattr(params_file, "load_params", lambda *_: params)
    done = call("show")
    assert done.exit_code == 0, done.output
    assert all(run in done.output for run in params.runs)


def test_metrics_of_other_settings_are_marked_and_not_tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    params, metrics = sweep_params(), write_metrics(tmp_path / "metrics")
    write_summary(summarise(params, metrics), metrics)
    monkeypatch.setattr(params_file, "load_params", lambda *_: params)
    assert "stale" not in call("show").stdout.lower()
    changed = params.runs["a03"].model_copy(update={"alpha": 0.9})
    edited = params.model_copy(update={"runs": params.runs | {"a03": changed}})
    monkeypatch.setattr(params_file, "load_params", lambda *_: edited)
    for arguments in (["show"], ["show", "--markdown"], ["compare", "vanilla", "a03"]):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
        assert "a03 (stale)" in done.stdout
        assert (done.stdout + done.stderr).count("of a03 were computed") == 1
    assert "warning" not in call("compare", "vanilla", "light").stderr
    done = call("track")
    assert done.exit_code == 1
    assert "of a03 were computed" in done.stderr
    assert not (tmp_path / "mlflow.db").exists(), "no row of metrics with other settings"


def test_nothing_to_track_is_one_line_and_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(params_file, "load_params", lambda *_: sweep_params())
    done = call("track")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: metrics: holds no run of params.yaml; dvc repro writes them\n"
    assert not Path("mlflow.db").exists()


def test_headers_of_weights_reveal_metrics_of_other_settings_before_any_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    params, _ = sweep_params(), write_metrics(tmp_path / "metrics")
    for run in params.runs:
        for name, settings in (
            ("distilled", params.distill_settings(run)),
            ("finetuned", params.finetune_settings(run)),
        ):
            header = Header("deeplabv3_mobilenet_lite", 19, 16, params=settings.model_dump(mode="json"))
            save_net(f"models/runs/{run}/{name}.safetensors", torch.nn.Linear(1, 1), header)
    metrics, runs = Path("metrics"), list(params.runs)
    assert not (metrics / "summary.json").exists()
    assert changed_runs(params, metrics, runs) is None
    for change in ({"alpha": 0.9}, {"finetune": {"lr": 0.5}}):
        changed = params.runs["a03"].model_copy(update=change)
        edited = params.model_copy(update={"runs": params.runs | {"a03": changed}})
        monkeypatch.setattr(params_file, "load_params", lambda *_, edited=edited: edited)
        done = call("track")
        assert done.exit_code == 1
        assert "of a03 were computed" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_show_sorts_cuts_and_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path / "metrics")
    write_sweep_params(tmp_path)
    best = call("show", "--markdown", "--sort", "mean_iou", "--top", "2").output.splitlines()
    assert [line.split("|")[1].strip() for line in best[2:5] if line.startswith("|")] == ["teacher", "a03"]
    assert call("show", "--group").output.split()[:2] == ["setting", "seeds"]
    refused = call("show", "--sort", "beauty")
    assert refused.exit_code == 1
    assert "--sort: found 'beauty'; allowed are " in refused.stderr


def camvid(folder: Path, classes: int = 11) -> None:
    for split in ("train", "val"):
        for kind in (split, f"{split}annot"):
            (folder / kind).mkdir(parents=True)
        labels = np.arange(classes + 1, dtype=np.uint8).reshape(1, -1).repeat(4, 0)
        Image.fromarray(labels).save(folder / f"{split}annot" / "0016E5_00390.png")
        Image.fromarray(np.full((*labels.shape, 3), 7, np.uint8)).save(folder / split / "0016E5_00390.png")


def test_camvid_becomes_a_cityscapes_tree(tmp_path):
    camvid(tmp_path / "camvid")
    assert tool("camvid_to_cityscapes").convert(tmp_path / "camvid", tmp_path / "out") == {"train": 1, "val": 1}
    label = tmp_path / "out/gtFine/val/cam0016e5/cam0016e5_000000_000390_gtFine_labelIds.png"
    assert np.asarray(Image.open(label))[0].tolist() == [23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 25, 0]


def test_camvid_with_an_unknown_class_is_refused(tmp_path):
    camvid(tmp_path / "camvid", classes=12)
    with pytest.raises(UserError, match=r"0016E5_00390\.png: holds class 12; allowed are 0 to 11"):
        tool("camvid_to_cityscapes").convert(tmp_path / "camvid", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real street frames are not next to this checkout")
def test_camvid_names_are_those_of_the_shared_converter(tmp_path):
    shared = SHARED.parent.parent / "tools" / "camvid_as_cityscapes.py"
    subprocess.run([sys.executable, shared, tmp_path / "expected", "--limit", "2"], check=True, capture_output=True)
    source = tmp_path / "png"
    for split in ("train", "val"):
        for kind in (split, f"{split}annot"):
            (source / kind).mkdir(parents=True)
        for photograph in sorted((SHARED / split).glob("*.jpg"))[:2]:
            Image.open(photograph).save(source / split / f"{photograph.stem}.png")
            Image.open(photograph.with_suffix(".png")).save(source / f"{split}annot" / f"{photograph.stem}.png")
    tool("camvid_to_cityscapes").convert(source, tmp_path / "converted")
    names = [
        sorted(p.relative_to(tmp_path / who) for p in (tmp_path / who).rglob("*.png"))
        for who in ("converted", "expected")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        converted, expected = (np.asarray(Image.open(tmp_path / who / name)) for who in ("converted", "expected"))
        assert np.array_equal(converted, expected)


def test_the_page_of_params_is_up_to_date():
    page = tool("params_doc")
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_files_that_the_docs_name_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links {link}"


def test_the_default_profile_is_what_a_clone_starts_with():
    assert (ROOT / "params.yaml").read_text() == (ROOT / "profiles/default.yaml").read_text()


def test_the_two_cityscapes_profiles_differ_in_the_teacher_alone():
    one, other = (
        params_file.load_params(ROOT / f"profiles/{name}.yaml") for name in ("cityscapes", "cityscapes-resnet50")
    )
    assert one.teacher.arch == "deeplabv3plus_resnet101"
    assert other.teacher.arch == "deeplabv3plus_resnet50"
    assert one.model_copy(update={"teacher": other.teacher}) == other
    assert one.teacher.model_copy(update={"arch": other.teacher.arch}) == other.teacher


def test_show_as_markdown_is_a_table_of_every_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = sweep_params()
    write_metrics(tmp_path / "metrics")
    monkeypatch.setattr(params_file, "load_params", lambda *_: params)
    lines = call("show", "--markdown").output.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["teacher", *params.runs]
    assert len({line.count("|") for line in lines[:6]}) == 1
