"""A sweep on a Ray cluster: shared stages, benchmark and report here, each run on a machine of the cluster.

Ray places the runs, and repeats those whose process or machine died. DVC's remote carries the artifacts: a machine
makes a clone of this commit, and `segdistill work` there pulls, runs and pushes. Their entries of dvc.lock come back.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from segdistill.core.errors import UserError
from segdistill.core.provenance import settings_hash
from segdistill.params.model import Params
from segdistill.params.stages import shared_stages, student_stages
from segdistill.paths import INITIAL_WEIGHTS, PARAMS
from segdistill.sweep import worker
from segdistill.sweep.plan import in_order, log_of, print_end
from segdistill.sweep.processes import POLL_S, run_alone
from segdistill.sweep.worker import LOCK, Job, default_remote, locked, run_in_clone

FROM_COMMIT = ("src", "stages", "dvc.yaml", ".dvcignore", str(INITIAL_WEIGHTS))  # what workers have of the commit
RETRIES = 3  # of a run whose process or machine died
STOP_S = 120.0  # for trainings to finish their step and save


def sweep(params: Params, address: str, cpus: int | None, gpus: int | None) -> None:
    """Run what changed since the last sweep on the Ray cluster at `address`; raises as `in_order` does.

    Args:
        cpus: of a run; None shares out the machine with the fewest, by its GPUs.
        gpus: of a run; None is `compute.devices` where the cluster has any and `compute.device` allows it.
    """
    if error := next(_not_ready(params, address), None):
        raise UserError(error)
    default_remote()
    # Before the shared stages, which may take hours; and Ray takes the handler of SIGTERM, which in_order sets anew.
    with _connected(address) as ray:
        wanted = 0 if gpus is None and params.compute.device == "cpu" else gpus
        share = _share(ray.nodes(), cpus, wanted, params.compute.devices)

        def run_changed(changed: dict[str, list[str]], signals: list[int]) -> list[str]:
            # Also what earlier sweeps made without a remote: a changed export reads weights that did not change.
            # A repetition reads what its run wrote.
            read = dict.fromkeys(name for student in changed for name in (params.run_of(student), student))
            before = [stage for student in read for stage in student_stages(params)[student]]
            stages = [stage for stage in (*shared_stages(params), *before) if stage in locked()]
            run_alone(["push", "--quiet", *stages], "dvc push failed", signals)
            print(
                f"{len(changed)} of {len(params.students())} runs changed; each gets {share['num_cpus']} CPUs and "
                f"{share['num_gpus']} GPUs of {address}",
                flush=True,
            )
            return _run_on(ray, share, changed, signals)

        in_order(params, run_changed, ["repro", "--pull"])


def _not_ready(params: Params, address: str) -> Iterator[str]:
    """Yield an error for each reason why workers would compute something else, or anyone could run code on them."""
    if changed := _git("status", "--porcelain", "--", *FROM_COMMIT):
        yield f"{changed[0][3:]}: not committed, and workers run the last commit; commit it"
    for file in _git("ls-files", "--others", "--", str(INITIAL_WEIGHTS)):
        yield f"{file}: not in git, so workers do not have it; add it to git, or take it away"
    tracked = _git("ls-files")
    for run in params.runs:
        init = params.distill_settings(run).init
        if init not in ("random", "imagenet") and os.path.normpath(init) not in tracked:
            yield f"runs.{run}.init: found {init}, which is not in git, so workers do not have it; add it to git"
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        yield f"--address: found {address!r}; allowed is HOST:PORT of the head of a Ray cluster, as 127.0.0.1:6379"
    elif not _is_loopback(host) and not _has_token():
        yield (
            f"--address: found {address} without a token, where anyone who reaches it runs code; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, here and on the machines of the cluster"
        )


def _git(*arguments: str) -> list[str]:
    command = ["git", "-c", "core.quotepath=off", *arguments]  # else git writes an umlaut as two numbers
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}; workers make a clone of this repository")
    return done.stdout.splitlines()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _has_token() -> bool:
    """Return whether Ray will present a token, by any of the ways to give it one."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return os.environ.get("RAY_AUTH_MODE") == "token" and bool(given or (Path.home() / ".ray" / "auth_token").exists())


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield the module ray, connected to the cluster at `address`."""
    # Ray reads these when it is imported: report nothing to its makers, give up after 5 s.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    if _is_loopback(address.rpartition(":")[0]):
        # Else Ray takes the machine's own address for that of its node here, and waits for such a node for ever.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--address: ray is not installed; install it: pip install 'segdistill[cluster]'") from None
    with tempfile.TemporaryFile("w+", errors="replace") as said, _stderr_to(said):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            said.seek(0)
            cause = "it refuses the token" if "InvalidAuthToken" in said.read() else " ".join(str(error).split())[:200]
            raise UserError(f"--address: found {address}; no Ray cluster can be reached there ({cause})") from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _stderr_to(file: IO) -> Iterator[None]:
    """Send what this process prints to stderr to `file`, also what Ray's C++ prints, several lines for each try."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _share(nodes: list[dict], cpus: int | None, gpus: int | None, devices: int = 1) -> dict[str, int]:
    """Return the CPUs and GPUs of a run, as Ray names them.

    Raises:
        UserError: no machine has so many, for which Ray would wait for ever.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise UserError("--address: no machine of the cluster has a CPU to run on")
    if gpus is None:
        gpus = devices if any(machine.get("GPU") for machine in machines) else 0
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= gpus]
    if cpus is None and fitting:
        # All of a machine for a run without a GPU: threads of two runs on one core slow each other.
        cpus = min(int(machine["CPU"] // (machine["GPU"] // gpus if gpus else 1)) or 1 for machine in fitting)
    if not any(machine["CPU"] >= (cpus or 0) for machine in fitting):
        most = max((machine["CPU"], machine.get("GPU", 0)) for machine in machines)
        raise UserError(
            f"--cpus, --gpus: found {cpus or 'any'} and {gpus}; no machine of the cluster has as many, the largest has "
            f"{most[0]:g} CPUs and {most[1]:g} GPUs"
        )
    return {"num_cpus": cpus or 1, "num_gpus": gpus}


def _run_on(ray: Any, share: dict[str, int], stages_of: dict[str, list[str]], signals: list[int]) -> list[str]:
    """Run every run on the cluster and bring its outputs here when it ends; return the runs that failed."""
    # By value, so that a worker needs the packages of this project, and not this version of it.
    ray.cloudpickle.register_pickle_by_value(worker)
    job, bundle = _job(share["num_cpus"]), ray.put(_bundle())
    # Ray repeats a task whose process or machine died, not one that returns or raises.
    remote = ray.remote(**share, max_retries=RETRIES)(run_in_clone)
    run_of = {remote.remote(job, bundle, run): run for run in stages_of}
    failed, started_s = [], time.monotonic()
    while run_of and not signals:
        done, _ = ray.wait(list(run_of), num_returns=1, timeout=POLL_S)
        for task in done:
            run, where = run_of.pop(task), ""
            try:
                result = ray.get(task)
            except ray.exceptions.RayError as error:
                log_of(run).write_text(f"error: Ray gave up on it: {' '.join(str(error).split())[:2000]}\n")
                failed.append(run)
            else:
                where = f" on {result.host}"
                log_of(run).write_text(result.log)
                if result.entries is None or not _bring_home(run, result.entries, signals):
                    failed.append(run)
            took = f"after {time.monotonic() - started_s:.0f} s ({len(stages_of) - len(run_of)} of {len(stages_of)})"
            print_end(run, f"{took}{where}", has_failed=run in failed)
    for task in run_of:
        ray.cancel(task)
    stop_by_s = time.monotonic() + STOP_S
    while run_of and len(signals) < 2 and time.monotonic() < stop_by_s:
        done, _ = ray.wait(list(run_of), num_returns=len(run_of), timeout=POLL_S)
        for task in done:
            del run_of[task]
    return failed


def _bring_home(run: str, entries: dict[str, dict], signals: list[int]) -> bool:
    """Put what a worker did into dvc.lock and pull its outputs; return whether that worked."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(LOCK) as data:
        data["stages"].update(entries)
    with log_of(run).open("a") as output:
        try:
            run_alone(["pull", *entries], f"{run}: dvc pull failed", signals, output)
        except UserError as error:
            output.write(f"error: {error}\n")
            return False
    return True


def _job(threads: int) -> Job:
    """Return what every worker gets, besides the commit."""
    from configobj import ConfigObj
    from dvc.repo import Repo

    name = default_remote()
    config = ConfigObj()
    config["core"] = {"remote": name}
    with Repo() as repo:  # with absolute paths, and the secrets of config.local
        config[f'remote "{name}"'] = dict(repo.config["remote"][name])
    return Job(
        project=settings_hash(socket.gethostname(), str(Path.cwd())),
        params=PARAMS.read_text(encoding="utf-8"),
        lock=LOCK.read_text(encoding="utf-8"),
        config="\n".join(config.write()),
        threads=threads,
    )


def _bundle() -> bytes:
    """Return the last commit and its history as a git bundle."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bundle"
        _git("bundle", "create", "--quiet", str(file), "HEAD")
        return file.read_bytes()
