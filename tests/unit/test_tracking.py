"""MLflow as a view of metrics/: everything exactly once, whatever the store is like, and never at a training's cost."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.follower import PICTURES, followed
from segdistill.params import Params
from segdistill.params_file import load_params
from segdistill.tracking import track
from segdistill.tracking.rows import read_curve, rows_on_disk
from segdistill.tracking.store import find_store, locked, without_passwords

PROFILE = Path(__file__).parents[2] / "profiles" / "tiny.yaml"
HEADER = "step,lr,loss,label_loss,distill_loss,holdout_mean_iou\n"
RUNS = {
    "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "a03-lr01": {"alpha": 0.3, "lr": 0.01, "teacher": "views"},
}
FIGURES = {
    "mean_loss": 1.2,
    "overall_acc": 0.8,
    "mean_iou": 0.3,
    "teacher_agreement": 0.7,
    "class_iou": {"road": 0.9, "traffic_light": 0.1, "train": None},
    "parameters": 5109779,
    "weights_sha256": "ab",
    "data_fingerprint": "24cffebde011c44aa086abf842a3a9b5",
    "git_revision": "0123456789ab-dirty",
}
MILLISECONDS = {"forward_p50_ms": 20.0, "end_to_end_p50_ms": 25.0, "end_to_end_p95_ms": 27.0}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_params(RUNS)
    write_metrics(Path("metrics"), RUNS)
    return tmp_path


def write_params(runs: dict, **tracking) -> Params:
    raw = yaml.safe_load(PROFILE.read_text(encoding="utf-8")) | {"runs": runs}
    raw["tracking"] |= {"model": None} | tracking
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return load_params()


def write_metrics(metrics: Path, runs: dict) -> None:
    network = dict.fromkeys(("torch", "torch_best", "onnx_float32", "onnx_int8"), MILLISECONDS)
    models = dict.fromkeys(["teacher", *runs], "net_os16")
    write(metrics / "benchmark.json", {"conditions": {}, "networks": {"net_os16": network}, "models": models})
    write(metrics / "teacher.json", FIGURES | {"mean_iou": 0.5, "arch": "deeplabv3plus_resnet50"})
    picture(metrics / "pictures" / "00001_image.png")
    write_curve(metrics / "teacher_curve.csv", 3)
    exported = FIGURES | {"max_logit_difference": 1e-5, "class_agreement_with_torch": 0.999, "bytes": 20_000_000}
    for run in runs:
        folder = metrics / "runs" / run
        write(folder / "distill.json", FIGURES | {"mean_iou": 0.2})
        write(folder / "finetune.json", FIGURES)
        write(folder / "export.json", {"torch": FIGURES, "float32": exported, "int8": exported | {"mean_iou": 0.29}})
        write_curve(folder / "distill_curve.csv", 40)
        write_curve(folder / "finetune_curve.csv", 5)
        picture(folder / "pictures" / "00001_student.png")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG" + path.name.encode())


def line(step: int, loss_factor: float = 1.0) -> str:
    return f"{step},0.01,{loss_factor * 3 / (step + 1)},1.5,0.1,{0.2 if step % 5 == 0 else ''}\n"


def write_curve(path: Path, points: int, loss_factor: float = 1.0) -> None:
    path.write_text(HEADER + "".join(line(step, loss_factor) for step in range(1, points + 1)), encoding="utf-8")


def runs_in() -> dict[str, list]:
    """The runs of the experiment by name; none before there is a store, which a look would begin to make."""
    from mlflow import MlflowClient

    if not Path("mlflow.db").exists():
        return {}

    client, found = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db"), {}
    experiment = client.get_experiment_by_name("segdistill")
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        run.histories = {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        run.pictures = sorted(file.path for file in client.list_artifacts(run.info.run_id, "pictures"))
        found.setdefault(run.info.run_name, []).append(run)
    return found


def count(found: dict[str, list]) -> tuple[int, int]:
    runs = [run for same in found.values() for run in same]
    return len(runs), sum(len(points) for run in runs for points in run.histories.values())


def expected_points(points: int) -> list[int]:
    return list(range(1, points + 1))


def test_rows_hold_params_figures_curves_and_pictures(home, capfd):
    assert track(load_params(), Path("metrics"))
    assert capfd.readouterr() == ("", "")
    found = runs_in()
    children = {f"{run}/{phase}" for run in RUNS for phase in ("distill", "finetune")}
    assert found.keys() == {"teacher", "teacher/train", *RUNS, *children}
    assert all(len(same) == 1 for same in found.values())
    (row,) = found["a03-lr01"]
    assert row.data.params | {"alpha": "0.3", "lr": "0.01", "temperature": "1", "crop": "64x64"} == row.data.params
    assert row.data.params["student"] == "deeplabv3plus_mobilenet"
    assert row.data.params["teacher_arch"] == "deeplabv3plus_mobilenet"
    assert found["vanilla"][0].data.params["teacher_arch"] == "-"
    figures = row.data.metrics
    assert (figures["mean_iou"], figures["distilled_mean_iou"], figures["onnx_int8_mean_iou"]) == (0.3, 0.2, 0.29)
    assert (figures["torch_p50_ms"], figures["onnx_int8_forward_p50_ms"]) == (25, 20)
    assert (figures["class_iou_traffic_light"], figures["onnx_float32_bytes"]) == (0.1, 20_000_000)
    assert figures["onnx_int8_mb"] == 20
    assert "class_iou_train" not in figures
    assert row.data.tags["segdistill.current"] == "true"
    assert row.data.tags["git_revision"] == "0123456789ab-dirty"
    assert row.info.status == "FINISHED"
    (data,) = row.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic city", FIGURES["data_fingerprint"][:12])
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    assert row.pictures == ["pictures/00001_image.png", "pictures/00001_student.png"]
    (curve,) = found["a03-lr01/distill"]
    assert curve.data.tags["mlflow.parentRunId"] == row.info.run_id
    assert [step for step, _ in curve.histories["loss"]] == expected_points(40)
    assert [step for step, _ in curve.histories["holdout_mean_iou"]] == list(range(5, 41, 5))
    notes = {name: run.data.tags["mlflow.note.content"] for name, (run,) in found.items()}
    assert {name: len(note.split("  \n")) for name, note in notes.items()} == dict.fromkeys(found, 2)
    assert "**a03-lr01**" in notes["a03-lr01/distill"]


PREDICTED, TRUTH = "holdout frame 12 predicted", "holdout frame 12 truth"


def write_step_pictures(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    for step in (None, *steps):
        name = "truth" if step is None else f"step_{step:06d}"
        Image.fromarray(np.full((4, 8), step or 0, np.uint8)).save(folder / f"00012_{name}.png")


def logged_pictures(run) -> list[tuple[str, int]]:
    """(name, step) of each picture that MLflow's page can slide through, of both its sizes."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")
    paths = [Path(file.path).name.split("+") for file in client.list_artifacts(run.info.run_id, "images")]
    assert {path[-1].split(".")[-1] for path in paths} <= {"png", "webp"}
    return sorted((name, int(step)) for name, _, step, *_ in paths)


def test_pictures_by_step_are_there_once_however_often_it_is_tracked(home):
    folder = Path("metrics/runs/vanilla/distill_pictures")
    write_step_pictures(folder, 5)
    assert track(load_params(), Path("metrics"))
    expected = [(PREDICTED, 5)] * 2 + [(TRUTH, 0)] * 2
    (curve,) = runs_in()["vanilla/distill"]
    assert logged_pictures(curve) == expected
    assert curve.data.tags["mlflow.loggedImages"] == "True"
    write_step_pictures(folder, 5, 10)  # as if it had been cut short before
    assert track(load_params(), Path("metrics"))
    assert track(load_params(), Path("metrics"))
    assert logged_pictures(curve) == sorted(expected + [(PREDICTED, 10)] * 2)


def test_tracking_again_adds_nothing_and_a_changed_figure_one_point(home):
    assert track(load_params(), Path("metrics"))
    first = count(runs_in())
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == first
    write(Path("metrics/runs/vanilla/finetune.json"), FIGURES | {"mean_iou": 0.4})
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == (first[0], first[1] + 1)
    assert runs_in()["vanilla"][0].data.metrics["mean_iou"] == 0.4


def test_a_changed_alpha_is_another_row_and_the_old_one_stays(home):
    track(load_params(), Path("metrics"))
    track(write_params(RUNS | {"a03-lr01": {"alpha": 0.4, "lr": 0.01, "teacher": "views"}}), Path("metrics"))
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "false", "0.4": "true"}
    assert len(found["vanilla"]) == 1
    assert sorted(run.data.tags["segdistill.current"] for run in found["a03-lr01/distill"]) == ["false", "true"]
    track(write_params(RUNS), Path("metrics"))  # back again: the old row is the current one
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "true", "0.4": "false"}


def test_a_curve_of_another_outcome_replaces_the_old_one(home):
    track(load_params(), Path("metrics"))
    write_curve(Path("metrics/runs/vanilla/distill_curve.csv"), 4, loss_factor=0.5)
    track(load_params(), Path("metrics"))
    (curve,) = runs_in()["vanilla/distill"]
    assert curve.histories["loss"] == [(step, 0.5 * 3 / (step + 1)) for step in range(1, 5)]


def test_the_experiment_offers_views_that_stay_as_a_user_changed_them(home):
    from mlflow import MlflowClient

    track(load_params(), Path("metrics"))
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (found,) = [one for one in client.search_experiments() if one.name == "segdistill"]
    view = json.loads(found.tags["mlflow.sharedViewState.sweep"])
    columns = json.loads(view["state"])["selectedColumns"]
    assert {"params.`alpha`", "params.`lr`", "params.`student`", "metrics.`mean_iou`"} < set(columns)
    row = runs_in()["a03-lr01"][0].data
    shown = {name.split("`")[1] for name in columns}
    assert shown <= row.params.keys() | row.metrics.keys()
    client.set_experiment_tag(found.experiment_id, "mlflow.sharedViewState.sweep", "{}")
    track(load_params(), Path("metrics"))
    assert client.get_experiment(found.experiment_id).tags["mlflow.sharedViewState.sweep"] == "{}"


def test_a_half_logged_curve_is_completed(home, monkeypatch):
    monkeypatch.setattr("segdistill.tracking.curve.POINTS_PER_CALL", 7)
    whole = Path("metrics/runs/vanilla/distill_curve.csv").read_text(encoding="utf-8")
    write_curve(Path("metrics/runs/vanilla/distill_curve.csv"), 15)
    track(load_params(), Path("metrics"))
    Path("metrics/runs/vanilla/distill_curve.csv").write_text(whole, encoding="utf-8")
    track(load_params(), Path("metrics"))
    (curve,) = runs_in()["vanilla/distill"]
    assert [step for step, _ in curve.histories["loss"]] == expected_points(40)


def test_runs_without_metrics_are_left_out(home):
    params = write_params(RUNS | {"new": {"alpha": 0.5, "lr": 0.01, "teacher": "views"}})
    assert [row.run for row in rows_on_disk(params, Path("metrics"))] == ["teacher", *RUNS]


def test_a_line_that_is_still_being_written_is_no_point(tmp_path):
    curve = tmp_path / "curve.csv"
    curve.write_text(HEADER + line(1) + "2,0.01,0.1", encoding="utf-8")
    assert [point.step for point in read_curve(curve)] == [1]


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers everything with 500."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["closed", "silent", "failing", "unknown scheme"])
def bad_address(request):
    if request.param == "unknown scheme":
        yield "gopher://me:secret@127.0.0.1"
        return
    if request.param == "failing":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        return
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen(50)
        yield f"http://me:secret@127.0.0.1:{listening.getsockname()[1]}"


def test_a_store_that_fails_costs_one_line(home, bad_address, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bad_address)
    started = time.monotonic()
    assert not track(load_params(), Path("metrics"))
    assert time.monotonic() - started < 15
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("warning: MLflow at ")
    assert "segdistill track" in err
    assert "secret" not in err


def test_the_whole_effort_is_bounded(home, monkeypatch, capfd):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        assert not track(load_params(), Path("metrics"), limit_s=0.5)
        assert time.monotonic() - started < 2
    assert "not done after" in capfd.readouterr().err


def test_a_damaged_store_or_metrics_file_is_a_warning_too(home, capfd):
    Path("metrics/runs/vanilla/distill.json").write_text("{", encoding="utf-8")
    assert not track(load_params(), Path("metrics"))
    Path("metrics/runs/vanilla/distill.json").write_text(json.dumps(FIGURES), encoding="utf-8")
    Path("mlflow.db").write_text("no database", encoding="utf-8")
    assert not track(load_params(), Path("metrics"))
    assert len(capfd.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@host:5000/path", "http://host:5000/path"),
        ("postgresql+psycopg2://me:p@ss/word@host/db?password=x", "postgresql+psycopg2://host/db"),
        ("request to http://me:secret@host failed", "request to http://host failed"),
        ("http://host", "http://host"),
    ],
)
def test_passwords_are_not_shown(text, shown):
    assert without_passwords(text) == shown


def test_the_lock_is_waited_for_no_longer_than_asked(home):
    store = find_store(None)
    with locked(store, 1), pytest.raises(TimeoutError), locked(store, 0.2):
        pass


@pytest.mark.slow
def test_a_followed_curve_is_live_and_every_point_is_there_once(home, monkeypatch):
    # `--wait-s` is for those who do not want to wait: the training itself never passes it.
    write_params(RUNS, system_metrics=True)
    monkeypatch.setattr("segdistill.follower.EXTRA", ("--wait-s", "0", "--sample-s", "0"))
    write(Path("data/prepared/index.json"), {"fingerprint": FIGURES["data_fingerprint"]})
    curve = Path("metrics/runs/vanilla/distill_curve.csv")
    write_curve(curve, 0)
    write_step_pictures(curve.parent / PICTURES, 10)
    with followed("vanilla", "distill", curve, enabled=True):
        for step in range(1, 31):
            with curve.open("a", encoding="utf-8") as stream:
                stream.write(line(step))
            time.sleep(0.1)
        assert wait_for(lambda: "vanilla/distill" in runs_in() and runs_in()["vanilla/distill"][0].histories)
        (live,) = runs_in()["vanilla/distill"]
        assert live.info.status == "RUNNING"
        with curve.open("a", encoding="utf-8") as stream:
            stream.write(line(31))
    (ended,) = runs_in()["vanilla/distill"]
    assert ended.info.status == "FINISHED"
    assert [step for step, _ in ended.histories["loss"]] == expected_points(31)
    assert [step for step, _ in ended.histories["system/training_memory_megabytes"]][:1] == [0]
    pictures = logged_pictures(ended)
    assert pictures == [(PREDICTED, 10)] * 2 + [(TRUTH, 0)] * 2
    write_step_pictures(curve.with_name("distill_pictures"), 10)
    track(load_params(), Path("metrics"))
    (tracked,) = runs_in()["vanilla/distill"]
    assert tracked.info.run_id == live.info.run_id
    assert tracked.histories == ended.histories
    assert logged_pictures(tracked) == pictures
    assert len(runs_in()["vanilla"]) == 1


def wait_for(condition, limit_s: float = 40.0) -> bool:
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


@pytest.mark.parametrize(("wait_s", "training_s"), [("8", 0.2), ("0", 1.5)])
def test_a_training_does_not_wait_for_a_follower_that_has_not_begun(home, monkeypatch, wait_s, training_s):
    monkeypatch.setattr("segdistill.follower.EXTRA", ("--wait-s", wait_s))
    write(Path("data/prepared/index.json"), {"fingerprint": FIGURES["data_fingerprint"]})
    with followed("vanilla", "distill", Path("curve.csv"), enabled=True):
        time.sleep(training_s)
        ended = time.monotonic()
    assert time.monotonic() - ended < 3
    assert track(load_params(), Path("metrics"))
    assert not list(home.glob("*.part*"))


def test_a_follower_that_cannot_be_started_or_hangs_is_no_fault(home, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with followed("vanilla", "distill", Path("curve.csv"), enabled=True):
        pass
    assert len(capfd.readouterr().err.splitlines()) == 1
    hanging = home / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    monkeypatch.setattr("segdistill.follower.END_S", 0.3)
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), followed("vanilla", "distill", Path("curve.csv"), enabled=True):
        1 / 0  # noqa: B018
    assert time.monotonic() - started < 3
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("warning: MLflow does not have all of the curve of vanilla/distill after 0.3 s; ")


def test_a_follower_ends_when_the_training_is_killed(home):
    code = "import os, time\nfrom pathlib import Path\nfrom segdistill import follower\n"
    code += "with follower.followed('vanilla', 'distill', Path('c.csv'), True):\n"
    code += "    print(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read(), flush=True)\n    time.sleep(60)"
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    (follower,) = map(int, training.stdout.readline().split())
    time.sleep(1)
    training.send_signal(signal.SIGKILL)
    training.wait()
    training.stdout.close()
    assert wait_for(lambda: not is_alive(follower), limit_s=6)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")


def test_a_training_does_not_import_mlflow():
    code = "import sys, segdistill.follower\nassert not {'mlflow', 'segdistill.tracking'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
