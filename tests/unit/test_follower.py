"""Curves in MLflow while a training goes on, which never waits for that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdistill.params.read import load_params
from segdistill.tracking import track
from segdistill.training.follower import PICTURES, followed
from sweep_on_disk import (
    FIGURES,
    PREDICTED,
    RUNS,
    TRUTH,
    expected_points,
    line,
    logged_pictures,
    runs_in,
    write,
    write_curve,
    write_params,
    write_step_pictures,
)


@pytest.mark.slow
def test_a_followed_curve_is_live_and_every_point_is_there_once(home, monkeypatch):
    # `--wait-s` is for those who do not want to wait: the training itself never passes it.
    write_params(RUNS, system_metrics=True)
    monkeypatch.setattr("segdistill.training.follower.EXTRA", ("--wait-s", "0", "--sample-s", "0"))
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
    write_step_pictures(curve.with_name("distill_images"), 10)
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


@pytest.mark.parametrize(("wait_s", "training_s"), [("60", 0.2), ("0", 1.5)])
def test_a_training_does_not_wait_for_a_follower_that_has_not_begun(home, monkeypatch, wait_s, training_s):
    monkeypatch.setattr("segdistill.training.follower.EXTRA", ("--wait-s", wait_s))
    write(Path("data/prepared/index.json"), {"fingerprint": FIGURES["data_fingerprint"]})
    with followed("vanilla", "distill", Path("curve.csv"), enabled=True):
        time.sleep(training_s)
        ended = time.monotonic()
    assert time.monotonic() - ended < 20
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
    monkeypatch.setattr("segdistill.training.follower.END_S", 0.3)
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), followed("vanilla", "distill", Path("curve.csv"), enabled=True):
        1 / 0  # noqa: B018
    assert time.monotonic() - started < 20
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("warning: MLflow does not have all of the curve of vanilla/distill after 0.3 s; ")


def test_a_follower_ends_when_the_training_is_killed(home):
    code = "import os, time\nfrom pathlib import Path\nfrom segdistill.training import follower\n"
    code += "with follower.followed('vanilla', 'distill', Path('c.csv'), True):\n"
    code += "    print(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read(), flush=True)\n    time.sleep(60)"
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    (follower,) = map(int, training.stdout.readline().split())
    time.sleep(1)
    training.send_signal(signal.SIGKILL)
    training.wait()
    training.stdout.close()
    assert wait_for(lambda: not is_alive(follower), limit_s=6)


def test_an_early_ctrl_c_is_for_the_training_alone(home):
    code = "import signal, time\nfrom pathlib import Path\nfrom segdistill.training import follower\n"
    code += "signal.signal(signal.SIGINT, lambda *_: None)\n"
    code += "with follower.followed('vanilla', 'distill', Path('c.csv'), True):\n"
    code += "    print('started', flush=True)\n    time.sleep(1)"
    command, both = [sys.executable, "-c", code], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **both, text=True, start_new_session=True) as training:
        assert training.stdout.readline() == "started\n"
        os.killpg(training.pid, signal.SIGINT)
        assert training.stderr.read() == ""
        assert training.wait() == 0


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")


def test_a_training_does_not_import_mlflow():
    code = "import sys, segdistill.training.follower\nassert not {'mlflow', 'segdistill.tracking'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
