"""`segdistill sweep --address` on a Ray cluster of several nodes on this machine, on loopback, which a token guards."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.ray_cluster import SETTINGS, ray_cluster
from benchmarks.sweeping import FAILING, commit_and_connect, environment, sleeping_project
from support.checkout import RUNNING, Checkout
from support.waiting import wait_until

pytestmark = pytest.mark.slow
LIMIT_S = 600


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The scratch folder that the nodes of the cluster share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(shared, tmp_path_factory):
    """A cluster of two nodes with two CPUs each."""
    if importlib.util.find_spec("ray") is None:  # without an import, at which Ray would read its settings
        pytest.skip("needs the extra cluster")
    own = {name: str(tmp_path_factory.mktemp("node")) for name in ("XDG_CACHE_HOME", "TMPDIR")}
    with ray_cluster(2, 2, SEGDISTILL_SCRATCH=str(shared), **own) as started:
        yield started


def works(run: str) -> list[psutil.Process]:
    """Return the processes `segdistill work RUN` of this cluster."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-3:] == ["segdistill", "work", run]:
                found += [process] if process.environ().get("RAY_AUTH_TOKEN") == SETTINGS["RAY_AUTH_TOKEN"] else []
    return found


class Sweep:
    """A sweep of a project of sleeping runs, started in the background."""

    def __init__(self, project: Path, address: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "segdistill", "sweep", "--address", address, "--cpus", "1"],
            cwd=project,
            env=environment(project) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def work(self, run: str) -> psutil.Process:
        """Return the process on the cluster that does `run`, when there is one."""
        wait_until(lambda: works(run) or self.process.poll() is not None, f"{run} does not start", LIMIT_S)
        assert self.process.poll() is None, self.process.communicate()
        return works(run)[0]

    def end(self, exit_code: int) -> tuple[str, str]:
        """Return what it printed."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == exit_code, out + err
        assert "Traceback" not in err
        return out, err


def set_run(project: Path, run: str, **changed: object) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["runs"][run] |= changed
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def finished(out: str) -> list[str]:
    return sorted(line.split()[1] for line in out.splitlines() if line.startswith("finished"))


def test_runs_survive_a_killed_worker_and_a_killed_node(cluster, tmp_path):
    runs = [f"run-{number}" for number in range(5)]  # one more than the cluster has CPUs
    project = sleeping_project(tmp_path / "project", runs, seconds=4)
    commit_and_connect(project, tmp_path / "store")
    set_run(project, "run-2", lr=FAILING)

    _, err = Sweep(project, cluster.address, RAY_AUTH_TOKEN="f" * 32).end(exit_code=1)
    assert len(err.splitlines()) == 1, err
    assert (
        f"error: --address: found {cluster.address}; no Ray cluster can be reached there (it refuses the token)" in err
    )

    sweep = Sweep(project, cluster.address)
    work = sweep.work("run-0")
    work.parent().kill()
    wait_until(lambda: not work.is_running(), "the run outlives its worker", LIMIT_S)
    sweep.work("run-0")
    cluster.kill_node(cluster.nodes.pop(0))
    cluster.nodes.append(cluster.add_node())
    out, err = sweep.end(exit_code=1)
    assert finished(out) == sorted({*runs} - {"run-2"})
    assert "(5 of 5)" in out
    assert "1 of 5 runs failed; benchmark and report wait for them; their logs:\n  - run-2: " in err
    log = (project / "scratch/sweep/run-2.log").read_text()
    assert log.count("failed to reproduce 'distill@run-2'") == 1

    # Ctrl-C stops the run on the cluster, and the same command continues. A repetition follows its run.
    set_run(project, "run-2", lr=0.02)
    sweep = Sweep(project, cluster.address)
    work = sweep.work("run-2")
    sweep.process.send_signal(signal.SIGINT)
    out, err = sweep.end(exit_code=130)
    assert "1 of 5 runs changed" in out
    assert err.splitlines()[-1] == "error: stopped; the same command continues with what is not finished"
    assert not work.is_running()
    out, _ = Sweep(project, cluster.address).end(exit_code=0)
    assert finished(out) == ["run-2"]
    assert "Running stage 'distill" not in out
    assert "Running stage 'report'" in out
    assert Sweep(project, cluster.address).end(exit_code=0)[0].startswith("nothing to do: 5 runs")


def test_killed_training_continues_elsewhere_to_the_bytes_of_serial_repro(cluster, shared, tmp_path):
    """Two runs and a repetition with real trainings; one loses its worker in the middle of its first steps."""
    home = checkout_of_two_runs(tmp_path / "home")
    serial = checkout_of_two_runs(tmp_path / "serial", preloaded=True)
    (tmp_path / "store").mkdir()
    home.call("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    sweep = home.start(sys.executable, "-m", "segdistill", "sweep", "--address", cluster.address, "--cpus", "1")
    wait_until(lambda: any(shared.rglob("vanilla/*/state.pt")) or sweep.poll() is not None, "no checkpoint", LIMIT_S)
    assert sweep.poll() is None, home.said.read_text()
    works("vanilla")[0].parent().kill()
    assert sweep.wait(LIMIT_S) == 0, home.said.read_text()
    assert "distill/vanilla: continues after step" in (home.folder / "scratch/sweep/vanilla.log").read_text()
    assert "finished a03-lr01-1 after" in home.said.read_text()
    assert not any(shared.rglob("state.pt")), "checkpoints of finished trainings are left"
    # The stages of the seed that vanilla has already copy its files.
    stages = ["distill", "steplr-finetune", "export-onnx"]
    copies = [f"{stage}-repeat@vanilla-1" for stage in stages]
    ran_here = ["prepare", "teacher-check", "teacher-logits@views", *copies, "benchmark", "report"]
    assert RUNNING.findall(home.said.read_text()) == ran_here
    assert home.dvc("repro") == []

    # Of the run that was killed: test_sweep.py compares a whole sweep.
    trained = [f"{stage}@vanilla" for stage in stages]
    serial.dvc("repro", *trained)
    assert set(trained) <= serial.lock().keys()
    assert serial.lock() == {name: entry for name, entry in home.lock().items() if name in serial.lock()}


def checkout_of_two_runs(folder: Path, preloaded: bool = False) -> Checkout:
    made = Checkout(folder, preloaded)
    del made.params["runs"]["light"]
    made.params["seeds"] = [1]
    # With seed 1 of its own it is not repeated. It trains long enough to be killed in between.
    made.params["runs"]["vanilla"] |= {"seed": 1, "steps": 60}
    made.params["distill"] |= {"crop_px": [32, 64], "checkpoint_every_steps": 2}
    made.save_params()
    return made
