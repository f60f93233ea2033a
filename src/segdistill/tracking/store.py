"""Where the MLflow rows go, and how long a training is willing to wait for that place."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from segdistill.core.errors import passwords_in, without_passwords

CONNECT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Store(NamedTuple):
    """A tracking store: `name` is its URI without passwords; `sqlite` is its file, where it is one."""

    uri: str
    name: str
    sqlite: Path | None = None

    @property
    def artifacts(self) -> str | None:
        """Where pictures go; None leaves it to the server."""
        return (self.sqlite.parent / "mlartifacts").as_uri() if self.sqlite else None


def find_store(configured: str | None) -> Store:
    """MLFLOW_TRACKING_URI, else `configured`, else mlflow.db in the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///:memory:"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()
        return Store(f"sqlite:///{path}", f"sqlite:///{path}", path)
    return Store(uri, _name(uri))


def _name(uri: str) -> str:
    """`uri` without user, password and query; only its scheme where it is unclear at which "@" the password ends."""
    scheme, mark, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    return scheme + mark + ("" if "@" in query and "@" not in place else place.rpartition("@")[2])


def cause(error: Exception, store: Store) -> str:
    """What `error` says, in one line without passwords; libraries quote a URI whole, or the part they stumble over."""
    text = " ".join(without_passwords(str(error).replace(store.uri, store.name)).split())
    passwords = {form for found in passwords_in(store.uri) for form in (found, unquote(found))}
    if any(part in text for password in passwords for part in re.split(r"[^\w.-]", password) if len(part) > 1):
        text = "its own words hold the password"
    return f"{type(error).__name__}: {text[:300]}"


def quiet_and_patient_for(timeout_s: int = 5) -> None:
    """Bound what MLflow does by itself, unless the environment says otherwise. Must come before mlflow is imported."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is told once, by us
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def check_reachable(store: Store) -> None:
    """Raise OSError at once where nobody listens: MLflow would retry, and a database driver wait for minutes.

    Raises ValueError for a store in memory, which would end with this process.
    """
    if store.uri.startswith("sqlite:") and store.sqlite is None:
        raise ValueError("a database in memory ends with the command; allowed is sqlite:///FILE")
    parts = urlsplit(store.uri)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    if store.sqlite or not parts.hostname or not port or parts.scheme in urllib.request.getproxies():
        return
    socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()


@contextlib.contextmanager
def locked(store: Store, wait_s: float) -> Iterator[None]:
    """One process of this machine at a time looks which rows are there and adds the missing ones.

    Raises:
        TimeoutError: another one has kept the lock for `wait_s`.
    """
    with _lock_path(store).open("a") as lock:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process has been writing to it for {wait_s:.0f} s") from None
                time.sleep(0.05)
            except OSError:
                break  # a file system without locks: better two rows than none
        yield


def _lock_path(store: Store) -> Path:
    if store.sqlite:
        store.sqlite.parent.mkdir(parents=True, exist_ok=True)
        return store.sqlite.with_name(f"{store.sqlite.name}.lock")
    key = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"segdistill-{os.getuid()}-{key}.lock"


def within(limit_s: float, work: Callable[[], None]) -> None:
    """Do `work`, and give up on it after `limit_s`: drivers that wait without a timeout cannot be told to stop.

    Raises:
        TimeoutError: it is not done; it ends with the process at the latest.
        Exception: what `work` raised.
    """
    raised: list[Exception] = []

    def doing() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            raised.append(error)

    thread = threading.Thread(target=doing, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"not done after {limit_s:.0f} s")
    if raised:
        raise raised[0]
