"""A PostgreSQL server and, on it, an MLflow server with users, both on loopback and in temporary folders."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "docs" / "mlflow-server"
READY_S = 60
PASSWORDS = {"admin": "an-admin-of-tests", "ann": "ann-writes-tests", "bob": "bob-writes-tests"}


class Server(NamedTuple):
    """The address of an MLflow server, and the database below it."""

    address: str
    database: str


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL, and yield the URI of an empty database; skip the test where there is no PostgreSQL."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgres)")
    places = [*filter(None, [shutil.which("initdb")]), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not places:
        pytest.skip("there is no PostgreSQL (Debian: postgresql)")
    programs = Path(places[-1]).resolve().parent
    # PostgreSQL refuses to run as root, so use the user that its package made.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    port = load_script(ROOT / "tools" / "screenshots.py").free_port()
    with tempfile.TemporaryDirectory(prefix="segdistill-postgresql-", ignore_cleanup_errors=True) as made:
        folder, data = Path(made), Path(made) / "data"
        (folder / "password").write_text("secret")
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        options = {"cwd": folder, **user}
        made_by = [programs / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256"]
        subprocess.run([*made_by, "--pwfile", folder / "password"], check=True, capture_output=True, **options)
        settings = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-F"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([programs / "postgres", "-D", data, *settings], stderr=log, **options)
        try:
            address = f"mlflow:secret@127.0.0.1:{port}"
            deadline = time.monotonic() + READY_S
            while True:
                try:
                    with psycopg.connect(f"postgresql://{address}/postgres", autocommit=True) as database:
                        database.execute("CREATE DATABASE mlflow")
                    break
                except psycopg.OperationalError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError((folder / "log").read_text()) from None
                    time.sleep(0.1)
            yield f"postgresql://{address}/mlflow"
        finally:
            server.send_signal(signal.SIGINT)  # ends the connections and then the server
            server.wait()


@contextlib.contextmanager
def mlflow_server() -> Iterator[Server]:
    """Run the MLflow server of docs/mlflow-server, with the users of PASSWORDS."""
    pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed (the extra postgres)")
    screenshots = load_script(ROOT / "tools" / "screenshots.py")
    port = screenshots.free_port()
    with postgresql() as database, tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        changed = {
            "postgresql://mlflow:DATABASE-PASSWORD@localhost/mlflow": database,
            "ADMIN-PASSWORD": PASSWORDS["admin"],
            "/var/lib/mlflow": made,
            "/etc/mlflow": made,
            "--port 5000": f"--port {port}",
            "/opt/mlflow/bin/mlflow": f"{sys.executable} -m mlflow",
        }
        for name in ("server.env", "auth.ini", "mlflow.service"):
            text = (FILES / name).read_text()
            for old, new in changed.items():
                text = text.replace(old, new)
            (Path(made) / name).write_text(text)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # it calls uvicorn
        for name, value in re.findall(r"^(\w+)=(.*)", (Path(made) / "server.env").read_text(), re.MULTILINE):
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (command,) = re.findall("^ExecStart=(.*)", (Path(made) / "mlflow.service").read_text(), re.MULTILINE)
        address = f"http://127.0.0.1:{port}"
        with screenshots.served(command.split(), f"{address}/health"):
            with as_user("admin"):
                from mlflow.server import get_app_client

                users = get_app_client("basic-auth", tracking_uri=address)
                for name in PASSWORDS.keys() - {"admin"}:
                    users.create_user(name, PASSWORDS[name])
            yield Server(address, database)


@contextlib.contextmanager
def as_user(name: str | None) -> Iterator[None]:
    """Let MLflow's client be `name` in this process; None is nobody."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in (("USERNAME", name), ("PASSWORD", name and PASSWORDS[name])):
            if value is None:
                patch.delenv(f"MLFLOW_TRACKING_{variable}", raising=False)
            else:
                patch.setenv(f"MLFLOW_TRACKING_{variable}", value)
        yield
