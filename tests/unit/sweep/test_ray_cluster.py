"""What `segdistill sweep --address` refuses, and how it shares out machines, without a cluster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.sweeping import commit_and_connect, sleeping_project
from segdistill.cli import app
from segdistill.core.errors import UserError
from segdistill.sweep.cluster import _share


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A committed project with a remote, made once: two calls of dvc take a second."""
    folder = tmp_path_factory.mktemp("committed")
    made = sleeping_project(folder / "project", ["vanilla", "one"], seconds=0)
    (made / "src").mkdir()
    (made / "src/code.py").write_text("")
    commit_and_connect(made, folder / "store")
    return made


@pytest.fixture
def project(committed, tmp_path, monkeypatch):
    """A copy of the committed project, to be changed."""
    folder = shutil.copytree(committed, tmp_path / "project")
    monkeypatch.chdir(folder)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def refusal(address: str = "127.0.0.1:1") -> str:
    """Return the one line that a refused sweep prints."""
    done = CliRunner().invoke(app, ["sweep", "--address", address])
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    return line


def test_changed_code_is_refused(project):
    (project / "src/code.py").write_text("changed")
    assert "src/code.py: not committed, and workers run the last commit; commit it" in refusal()
    git(project, "checkout", "-q", "src")
    (project / "src/new.py").write_text("")
    assert "src/new.py: not committed" in refusal()


def test_untracked_weights_are_refused(project):
    (project / ".gitignore").write_text("/initial_weights/*\n")  # as in this repository
    (project / "initial_weights").mkdir()
    (project / "initial_weights/mine.safetensors").write_text("weights")
    assert "initial_weights/mine.safetensors: not in git, so workers do not have it" in refusal()
    (project / "initial_weights/mine.safetensors").rename(project / "mine.safetensors")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["runs"]["one"]["init"] = "mine.safetensors"
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "runs.one.init: found mine.safetensors, which is not in git" in refusal()


def test_weights_in_git_may_have_any_name(project):
    name = "initial_weights/stra\N{LATIN SMALL LETTER SHARP S}e 1.safetensors"
    (project / "initial_weights").mkdir()
    (project / name).write_text("weights")
    git(project, "add", "-f", name)
    git(project, "commit", "-q", "-m", "weights")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["runs"]["one"]["init"] = name
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
    assert "--address: found 'head'" in refusal("head")  # the check that follows that of weights


def test_project_without_a_remote_is_refused(project):
    (project / ".dvc/config.local").unlink()
    assert "no default DVC remote" in refusal()


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head:10001"])
def test_what_is_no_address_is_refused(project, address):
    assert f"--address: found {address!r}; allowed is HOST:PORT" in refusal(address)


def test_cluster_without_a_token_is_refused_beyond_loopback(project, monkeypatch):
    for address in ("203.0.113.7:6379", "head:6379", "[2001:db8::1]:6379"):
        assert "without a token, where anyone who reaches it runs code" in refusal(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(project))  # where Ray looks for a file with one
    assert "without a token" in refusal("head:6379")


@pytest.mark.parametrize(
    "arguments", [[], ["--jobs", "2", "--address", "127.0.0.1:1"], ["--jobs", "2", "--cpus", "1"], ["--jobs", "0"]]
)
def test_options_that_do_not_go_together_are_wrong_usage(project, arguments):
    assert CliRunner().invoke(app, ["sweep", *arguments]).exit_code == 2


def nodes(*resources: dict) -> list[dict]:
    return [{"Alive": True, "Resources": machine} for machine in resources]


@pytest.mark.parametrize(
    ("machines", "wanted", "share"),
    [
        ([{"CPU": 8.0}, {"CPU": 16.0}], (None, None), (8, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 1.0}], (None, None), (8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], (None, 2), (16, 2)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}], (None, None), (8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], (3, 0), (3, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}], (None, None, 4), (32, 4)),  # compute.devices
        ([{}, {"CPU": 2.0}], (None, None), (2, 0)),  # a head that runs nothing
    ],
)
def test_machines_are_shared_out(machines, wanted, share):
    assert _share(nodes(*machines), *wanted) == {"num_cpus": share[0], "num_gpus": share[1]}


@pytest.mark.parametrize("wanted", [(9, None), (None, 1), (1, 1)])
def test_more_than_any_machine_has_is_refused(wanted):
    with pytest.raises(UserError, match="no machine of the cluster has as many, the largest has 8 CPUs and 0 GPUs"):
        _share(nodes({"CPU": 8.0}), *wanted)
