"""Find the MLflow store, bound how long it may take, and word its errors without passwords."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import filelock

from segdistill.core.errors import UserError, passwords_in, without_passwords

CONNECT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Store(NamedTuple):
    """A tracking store: `name` is its URI without passwords; `sqlite` is its file, where it is one."""

    uri: str
    name: str
    sqlite: Path | None = None

    @property
    def artifacts(self) -> str | None:
        """Return where images go; None leaves it to the server."""
        return (self.sqlite.parent / "mlartifacts").as_uri() if self.sqlite else None


def find_store(configured: str | None) -> Store:
    """Return the store that MLFLOW_TRACKING_URI names, else `configured`, else mlflow.db in the current folder.

    Raises:
        UserError: the path of a SQLite file cannot be written as a URI.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///:memory:"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()
        # SQLAlchemy ends a path at "?" and decodes "%20". MLflow makes folders of the path as it is written, so quoting
        # leaves folders like "what%3F" behind. Below the current folder a relative path avoids both.
        written = str(path)
        if re.search("[?%]", written) and path.is_relative_to(Path.cwd()):
            written = str(path.relative_to(Path.cwd()))
        if re.search("[?%]", written):
            raise UserError(f"tracking.uri: found the SQLite file {path}; ? and % are not allowed in its path")
        return Store(f"sqlite:///{written}", f"sqlite:///{path}", path)
    return Store(uri, _name(uri))


def _name(uri: str) -> str:
    """Return `uri` without user, password and query; only its scheme where the end of the password is unclear."""
    scheme, mark, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    return scheme + mark + ("" if "@" in query and "@" not in place else place.rpartition("@")[2])


def cause(error: Exception, store: Store) -> str:
    """Return what `error` says, in one line without passwords: libraries quote a URI whole or in part."""
    text = " ".join(without_passwords(str(error).replace(store.uri, store.name)).split())
    # MLflow names two revisions of its tables and advises to call `mlflow db upgrade`, which helps an older file only.
    if store.sqlite and re.search("out-of-date database schema|Can't locate revision", text):
        return (
            f"{store.sqlite.name} was made by another version of MLflow; move it away and run segdistill track to make "
            f"it again, or, if that version was older, run: mlflow db upgrade {store.uri}"
        )
    # MLflow takes text without a scheme for a folder, to which it no longer writes, and localhost:5000 for a scheme.
    if re.search("filesystem tracking backend|unsupported URI", text):
        return "MLflow cannot write there; allowed are sqlite:///FILE, another database, and a server, http://HOST:PORT"
    if "error code 401" in text:
        return (
            "the server asks for a user: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD name none that it knows"
        )
    if "error code 403" in text and "Permission denied" in text:
        return "the server refuses this user: to track and replace runs takes the permission MANAGE on the experiment"
    passwords = {form for found in passwords_in(store.uri) for form in (found, unquote(found))}
    if any(part in text for password in passwords for part in re.split(r"[^\w.-]", password) if len(part) > 1):
        text = "its message holds the password"
    return f"{type(error).__name__}: {text[:300]}"


def configure_mlflow(timeout_s: int = 5) -> None:
    """Bound what MLflow does by itself, unless the environment says otherwise. Call it before importing mlflow."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors reach the user once, by our own message
        # Jobs are for features that this store does not use; without them the server takes half the memory.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def check_reachable(store: Store) -> None:
    """Raise OSError at once where nobody listens, or where a SQLite file cannot be written or is a folder.

    MLflow would retry for minutes, and so would a database driver. Raises ValueError for a store in memory, which would
    end with this process.
    """
    if store.uri.startswith("sqlite:") and store.sqlite is None:
        raise ValueError("a database in memory ends with the command; allowed is sqlite:///FILE")
    if store.sqlite and store.sqlite.exists():
        store.sqlite.open("r+b").close()
    parts = urlsplit(store.uri)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    if store.sqlite or not parts.hostname or not port or parts.scheme in urllib.request.getproxies():
        return
    socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()


@contextlib.contextmanager
def locked(store: Store, wait_s: float) -> Iterator[None]:
    """Let one process of this machine at a time look which rows are there and add the missing ones.

    Raises:
        TimeoutError: another process has held the lock for `wait_s`.
    """
    if store.sqlite:
        store.sqlite.parent.mkdir(parents=True, exist_ok=True)
        path = store.sqlite.with_name(f"{store.sqlite.name}.lock")
    else:
        key = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"segdistill-{os.getuid()}-{key}.lock"
    try:
        with filelock.FileLock(path, timeout=wait_s):
            yield
    except filelock.Timeout:
        raise TimeoutError(f"another process has been writing to it for {wait_s:.0f} s") from None


def within(limit_s: float, work: Callable[[], None]) -> None:
    """Call `work` in a thread and give up on it after `limit_s`: some database drivers wait without a timeout.

    Raises:
        TimeoutError: it is not done; it ends with the process at the latest.
        Exception: what `work` raised.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"not done after {limit_s:.0f} s")
    if raised:
        raise raised[0]
