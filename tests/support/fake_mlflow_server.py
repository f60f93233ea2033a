"""An MLflow tracking server of the few calls that tracking makes, in memory; it fails on request."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
DIES_BEFORE, DIES_AFTER, ANSWERS_500, IS_SILENT = "dies before", "dies after", "answers 500", "is silent"


class RefusedError(Exception):
    """A call that the server answers with 400 and this message."""


class Content:
    """What an MLflow server keeps: outlives the server, as its database would."""

    def __init__(self) -> None:
        self.experiments: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.metrics: list[tuple[str, str, int, float]] = []  # run, name, step, value
        self.artifacts: dict[str, bytes] = {}
        self.requests = 0
        self.port = 0  # of the server that is started first, and of those after it

    def active(self) -> list[dict]:
        return [run for run in self.runs.values() if run["info"]["lifecycle_stage"] == "active"]

    def listed(self, folder: str) -> dict:
        """Return the files right below `folder`, as the server of artifacts lists them."""
        paths = [path for path in self.artifacts if path.rpartition("/")[0] == folder]
        files = [{"path": path.rpartition("/")[2], "is_dir": False} for path in sorted(paths)]
        return {"files": files}

    def answer(self, call: str, given: dict) -> dict | None:
        """Return the answer to `call`; None where what it requests is not there."""
        return getattr(self, re.sub(r"\W", "_", call))(given)

    def experiments_get_by_name(self, given: dict) -> dict | None:
        found = [e for e in self.experiments.values() if e["name"] == given["experiment_name"]]
        return {"experiment": found[0]} if found else None

    def experiments_create(self, given: dict) -> dict:
        if self.experiments_get_by_name({"experiment_name": given["name"]}):
            raise RefusedError(f"Experiment(name={given['name']}) already exists.")
        number = str(len(self.experiments) + 1)
        self.experiments[number] = {
            **{"experiment_id": number, "name": given["name"], "tags": []},
            **{"artifact_location": f"mlflow-artifacts:/{number}", "lifecycle_stage": "active"},
        }
        return {"experiment_id": number}

    def experiments_set_experiment_tag(self, given: dict) -> dict:
        _set(self.experiments[given["experiment_id"]]["tags"], given)
        return {}

    def runs_create(self, given: dict) -> dict:
        key = uuid.uuid4().hex  # a client remembers runs, so that those of two servers may not be alike
        info = {"run_id": key, "run_uuid": key, "run_name": given["run_name"], "status": "RUNNING"}
        info |= {"experiment_id": given["experiment_id"], "lifecycle_stage": "active", "start_time": len(self.runs)}
        info |= {"artifact_uri": f"mlflow-artifacts:/{given['experiment_id']}/{key}/artifacts"}
        data = {"tags": list(given.get("tags", [])), "params": [], "metrics": []}
        self.runs[key] = {"info": info, "data": data, "inputs": {}}
        return {"run": self.runs[key]}

    def runs_get(self, given: dict) -> dict:
        return {"run": self.runs[given["run_id"]]}

    def runs_search(self, given: dict) -> dict:
        tag = dict(zip(("key", "value"), re.fullmatch(r"tags\.`(.*)` = '(.*)'", given["filter"]).groups(), strict=True))
        return {"runs": [run for run in reversed(self.active()) if tag in run["data"]["tags"]]}

    def to_write(self, run_id: str) -> dict:
        """Return the run; as MLflow does, refuse one that was deleted."""
        run = self.runs[run_id]
        if run["info"]["lifecycle_stage"] != "active":
            raise RefusedError(f"The run {run_id} must be in the 'active' state. Current state is deleted.")
        return run

    def runs_log_batch(self, given: dict) -> dict:
        run = self.to_write(given["run_id"])
        for metric in given.get("metrics", []):
            point = (given["run_id"], metric["key"], int(metric.get("step", 0)), float(metric["value"]))
            # As MLflow's databases do: the same call made again adds nothing.
            if (point, metric["timestamp"]) not in run.setdefault("seen", []):
                run["seen"].append((point, metric["timestamp"]))
                self.metrics.append(point)
            _set(run["data"]["metrics"], metric)
        for kind in ("params", "tags"):
            for entry in given.get(kind, []):
                _set(run["data"][kind], entry)
        return {}

    def runs_log_inputs(self, given: dict) -> dict:
        self.to_write(given["run_id"])["inputs"] = {"dataset_inputs": given["datasets"]}
        return {}

    def runs_set_tag(self, given: dict) -> dict:
        _set(self.to_write(given["run_id"])["data"]["tags"], given)
        return {}

    def runs_update(self, given: dict) -> dict:
        info = self.to_write(given["run_id"])["info"]
        info["status"] = given.get("status", info["status"])
        return {"run_info": info}

    def runs_delete(self, given: dict) -> dict:
        self.runs[given["run_id"]]["info"]["lifecycle_stage"] = "deleted"
        return {}

    def logged_models_search(self, given: dict) -> dict:
        return {"models": []}

    def metrics_get_history(self, given: dict) -> dict:
        run = self.runs[given["run_id"]]
        points = [
            {"key": point[1], "value": point[3], "timestamp": stamp, "step": point[2]}
            for point, stamp in run.get("seen", [])
            if point[1] == given["metric_key"]
        ]
        return {"metrics": points}


def _set(entries: list[dict], given: dict) -> None:
    entries[:] = [entry for entry in entries if entry["key"] != given["key"]] + [
        {name: given[name] for name in ("key", "value", "timestamp", "step") if name in given}
    ]


def described(content: Content) -> dict[str, dict]:
    """Return everything that a server has, by the name of the run; nothing may be there twice."""
    runs = {run["info"]["run_id"]: run for run in content.active()}
    names = Counter(run["info"]["run_name"] for run in runs.values())
    assert set(names.values()) == {1}, names
    found = {}
    for key, run in runs.items():
        points = [point[1:] for point in content.metrics if point[0] == key]
        assert len({(name, step) for name, step, _ in points}) == len(points), "a point is there twice"
        assert len({param["key"] for param in run["data"]["params"]}) == len(run["data"]["params"])
        artifacts = {path.partition("/artifacts/")[2]: data for path, data in content.artifacts.items() if key in path}
        found[run["info"]["run_name"]] = {
            "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"] if tag["key"] != "segdistill.created_ns"},
            "params": {param["key"]: param["value"] for param in run["data"]["params"]},
            "points": sorted(points),
            # The times in their names are those of the run.
            "images": {re.sub(r"timestamp\+\d+", "", path): data for path, data in artifacts.items()},
            "status": run["info"]["status"],
            "inputs": run["inputs"],
        }
    return found


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._serve({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self) -> None:
        self._serve(json.loads(self._body()))

    def do_PUT(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _serve(self, given: dict | bytes) -> None:
        with self.server.one_at_a_time:
            path = urlsplit(self.path).path
            if path.startswith((API, ARTIFACTS.rstrip("/"))):
                self.server.content.requests += 1
            if self.server.is_broken and self.server.fault != DIES_AFTER:
                return self._fail()
            try:
                status, answer = self._answer(path, given)
            except RefusedError as refused:
                status, answer = 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(refused)}
            if self.server.is_broken:
                return self._fail()
        self._reply(status, json.dumps(answer).encode())
        return None

    def _answer(self, path: str, given: dict | bytes) -> tuple[int, dict]:
        content = self.server.content
        if path == ARTIFACTS.rstrip("/"):
            return 200, content.listed(given["path"])
        if isinstance(given, bytes):
            content.artifacts[path.removeprefix(ARTIFACTS)] = given
            return 200, {}
        found = content.answer(path.removeprefix(API), given) if path.startswith(API) else None
        return (200, found) if found is not None else (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"})

    def _fail(self) -> None:
        if self.server.fault == ANSWERS_500:
            return self._reply(500, b"")
        if self.server.fault == IS_SILENT:
            time.sleep(60)
        self.close_connection = True
        return None

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class FakeServer(http.server.ThreadingHTTPServer):
    """Serves `content`, well for its first `good_requests` calls, and with `fault` from there on."""

    daemon_threads = True

    def __init__(self, content: Content, fault: str = "", good_requests: int = 0) -> None:
        super().__init__(("127.0.0.1", content.port), _Handler)
        content.port = self.server_port
        self.content, self.fault, self.last_good = content, fault, content.requests + good_requests
        self.one_at_a_time = threading.RLock()

    @property
    def is_broken(self) -> bool:
        return bool(self.fault) and self.content.requests > self.last_good

    def handle_error(self, *_: object) -> None:
        """Do nothing: a client that has given up is no news."""


@contextlib.contextmanager
def serving(content: Content, fault: str = "", good_requests: int = 0) -> Iterator[str]:
    """Yield the address of a server on loopback; afterwards nobody listens there."""
    server = FakeServer(content, fault, good_requests)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
