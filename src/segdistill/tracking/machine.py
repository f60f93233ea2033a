"""What a training takes of its machine, looked at from the process that follows it: the training pays nothing.

MLflow's own monitor would log from a thread that knows neither our lock nor our time limits, and it sees the machine as
a whole. Its names are kept where the figure is the same, so that MLflow shows them under "System metrics".
"""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import time

import psutil

MB = 1e6
GPU_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw")
GPU_S = 5.0  # nvidia-smi may hang where a driver is in trouble


class Samples:
    """Figures of a training every `every_s`, kept in `taken` as (time in ms, figures by name) for whoever logs them."""

    def __init__(self, training: int, every_s: float) -> None:
        self._machine, self._every_s = Machine(training), every_s
        self._due_s = time.monotonic() + every_s
        self.taken: list[tuple[int, dict[str, float]]] = []

    def take_when_due(self) -> None:
        """Take a sample if it is time for one."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + self._every_s
        with contextlib.suppress(psutil.Error):  # the training is ending just now
            self.taken.append((int(time.time() * 1000), self._machine.sample()))


class Machine:
    """Samples the process `training` with its children, and the machine it runs on.

    Raises:
        psutil.Error: there is no such process.
    """

    def __init__(self, training: int) -> None:
        self._training = psutil.Process(training)
        self._cpu_s, self._at_s = self._cpu_seconds(), time.monotonic()
        self._has_gpu = True
        psutil.cpu_percent()  # its first call has nothing to compare with

    def sample(self) -> dict[str, float]:
        """Figures by name: means since the last sample for CPU, momentary ones for the rest.

        100% of `system/training_cpu_percentage` is one core busy all the time. Memory is what is resident; pages that
        processes share are counted for each.
        """
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        cpu_s, at_s = self._cpu_seconds(), time.monotonic()
        spent_s = sum(seconds - self._cpu_s.get(process, 0.0) for process, seconds in cpu_s.items())
        share = spent_s / max(at_s - self._at_s, 1e-9)
        self._cpu_s, self._at_s = cpu_s, at_s
        figures = {
            "training_cpu_percentage": 100 * share,
            "training_memory_megabytes": sum(_resident_bytes(process) for process in self._tree()) / MB,
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": used / MB,
            "system_memory_usage_percentage": 100 * used / memory.total,
        }
        return {f"system/{name}": round(value, 1) for name, value in (figures | self._gpus()).items()}

    def _tree(self) -> list[psutil.Process]:
        """The training and its workers, without us."""
        children = self._training.children(recursive=True)
        return [self._training, *(process for process in children if process.pid != os.getpid())]

    def _cpu_seconds(self) -> dict[int, float]:
        found = {}
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # a worker that has just ended
            found[process.pid] = times.user + times.system
        return found

    def _gpus(self) -> dict[str, float]:
        if not self._has_gpu:
            return {}
        command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GPU_S)
        except (OSError, subprocess.SubprocessError):
            self._has_gpu = False
            return {}
        return gpu_figures(done.stdout)


def gpu_figures(csv_text: str) -> dict[str, float]:
    """The figures in what nvidia-smi prints for GPU_QUERY; a cell that is no number, as [N/A], is left out."""
    figures = {}
    for row in csv.reader(csv_text.splitlines(), skipinitialspace=True):
        index, cells = row[0], dict(zip(GPU_QUERY[1:], map(_number, row[1:]), strict=True))
        used_mib, total_mib = cells["memory.used"], cells["memory.total"]
        found = {
            "utilization_percentage": cells["utilization.gpu"],
            "memory_usage_megabytes": None if used_mib is None else used_mib * 2**20 / MB,
            "memory_usage_percentage": None if None in (used_mib, total_mib) else 100 * used_mib / total_mib,
            "power_usage_watts": cells["power.draw"],
        }
        figures |= {f"gpu_{index}_{name}": value for name, value in found.items() if value is not None}
    return figures


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
