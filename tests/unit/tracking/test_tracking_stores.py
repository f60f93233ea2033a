"""A store that cannot be used costs one line, and no more time than it is given."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from segdistill.core.errors import UserError, without_passwords
from segdistill.params.read import load_params
from segdistill.tracking.mlflow import open_experiment, track
from segdistill.tracking.store import find_store, locked
from support.sweep_on_disk import METRICS, RUNS, write_params


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


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_that_would_not_last_is_a_warning(home, uri, capfd):
    write_params(RUNS, uri=uri)
    assert not track(load_params(), Path("metrics"))
    assert "a database in memory ends with the command; allowed is sqlite:///FILE" in capfd.readouterr().err


def test_a_store_that_is_a_folder_is_a_warning_at_once(home, capfd):
    Path("mlflow.db").unlink(missing_ok=True)
    Path("mlflow.db").mkdir()
    started = time.monotonic()
    assert not track(load_params(), Path("metrics"))
    assert time.monotonic() - started < 15
    assert f"Is a directory: '{Path('mlflow.db').resolve()}'" in capfd.readouterr().err
    with pytest.raises(UserError, match="MLflow cannot open .*Is a directory"):
        open_experiment(find_store(None), "segdistill")


@pytest.mark.parametrize("uri", ["localhost:5000", "127.0.0.1:5000"])
def test_a_server_without_its_scheme_is_a_warning_that_says_so(home, uri, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert not track(load_params(), Path("metrics"))
    assert "allowed are sqlite:///FILE, another database, and a server, http://HOST:PORT" in capfd.readouterr().err


def test_artifacts_that_were_deleted_are_brought_in_again(home):
    assert track(load_params(), Path("metrics"))
    written = sorted(path for path in Path("mlartifacts").rglob("*") if path.is_file())
    assert {path.suffix for path in written} >= {".json", ".png"}
    shutil.rmtree("mlartifacts")
    assert track(load_params(), Path("metrics"))
    assert sorted(path for path in Path("mlartifacts").rglob("*") if path.is_file()) == written


def test_the_whole_effort_is_bounded(home, monkeypatch, capfd):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        assert not track(load_params(), Path("metrics"), limit_s=0.5)
        assert time.monotonic() - started < 20
    assert "not done after" in capfd.readouterr().err


def test_a_damaged_store_or_metrics_file_is_a_warning_too(home, capfd):
    Path("metrics/runs/vanilla/distill.json").write_text("{", encoding="utf-8")
    assert not track(load_params(), Path("metrics"))
    Path("metrics/runs/vanilla/distill.json").write_text(json.dumps(METRICS), encoding="utf-8")
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


def test_the_lock_is_waited_for_no_longer_than_the_limit(home):
    store = find_store(None)
    with locked(store, 1), pytest.raises(TimeoutError), locked(store, 0.2):
        pass
