"""A DVC remote on S3, by a server on loopback: push, pull in a clone, and a stage restored without running it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.checkout import Checkout
from support.scripts_as_modules import load_script

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def remote(monkeypatch):
    """Run an S3 server with an empty bucket; return its address and the bucket."""
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed (the extra s3)")
    pytest.importorskip("moto.server", reason="moto is not installed (the dependency group cluster)")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    screenshots = load_script(ROOT / "tools" / "screenshots.py")
    port = screenshots.free_port()
    address, bucket = f"http://127.0.0.1:{port}", f"segdistill-{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with screenshots.served(command, f"{address}/moto-api/"):
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=bucket)
        yield address, bucket


def content(checkout: Checkout) -> dict[str, bytes]:
    prepared = checkout.folder / "data" / "prepared"
    return {str(path.relative_to(prepared)): path.read_bytes() for path in prepared.rglob("*") if path.is_file()}


def test_clones_pull_from_s3_and_restore_stages_without_running_them(remote, tmp_path, monkeypatch):
    address, bucket = remote
    # DVC remembers what a remote has; of this one it has to learn it anew.
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site_cache"))
    home = Checkout(tmp_path / "home")
    home.dvc("remote", "add", "-d", "store", f"s3://{bucket}/segdistill")
    home.dvc("remote", "modify", "store", "endpointurl", address)
    home.commit("a remote")
    before = home.clone(tmp_path / "before")
    assert home.dvc("repro", "prepare") == ["prepare"]
    home.dvc("push", "prepare")
    home.commit("prepared")
    assert len(content(home)) > 4

    pulling = home.clone(tmp_path / "pulling")
    assert not content(pulling)
    pulling.dvc("pull", "prepare")
    assert content(pulling) == content(home)

    # A clone whose dvc.lock does not have the stage finds its inputs in the run cache.
    assert not (before.folder / "dvc.lock").exists()
    home.dvc("push", "--run-cache", "prepare")
    assert before.dvc("repro", "--pull", "prepare") == []
    assert content(before) == content(home)
    assert before.lock()["prepare"] == home.lock()["prepare"]
