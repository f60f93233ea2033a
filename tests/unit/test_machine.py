"""System metrics: what nvidia-smi prints is read right, and a training is told from the process that looks at it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from segdistill.tracking.machine import Machine, Samples, gpu_figures

BURN = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\n"


def test_gpus_are_told_apart_and_what_is_no_number_is_left_out():
    printed = "0, 97, 1000, 4000, 312.55\n1, [N/A], 0, 4000, [Not Supported]\n"
    assert gpu_figures(printed) == {
        "gpu_0_utilization_percentage": 97,
        "gpu_0_memory_usage_megabytes": 1048.576,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_power_usage_watts": 312.55,
        "gpu_1_memory_usage_megabytes": 0,
        "gpu_1_memory_usage_percentage": 0,
    }


def test_a_busy_training_is_seen_with_its_workers():
    code = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {BURN + 'time.sleep(60)'!r}])\n"
    code += "print('started', flush=True)\ntime.sleep(60)"
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        training.stdout.readline()
        machine = Machine(training.pid)
        figures = {}
        for _ in range(100):
            time.sleep(0.1)
            figures = machine.sample()
            if figures["system/training_cpu_percentage"] > 0:
                break
        assert figures["system/training_cpu_percentage"] > 0  # the parent only sleeps: it is the worker's
        own_mb = psutil.Process(training.pid).memory_info().rss / 1e6
        assert figures["system/training_memory_megabytes"] > 1.3 * own_mb
        assert 0 < figures["system/system_memory_usage_percentage"] < 100
        assert 0 <= figures["system/cpu_utilization_percentage"] <= 100
    finally:
        for process in [*psutil.Process(training.pid).children(), training]:
            process.kill()
        training.wait()
        training.stdout.close()


def test_samples_are_taken_when_due_and_end_with_the_training():
    training = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    seldom, often = Samples(training.pid, every_s=60), Samples(training.pid, every_s=0)
    for samples in (seldom, often, often):
        samples.take_when_due()
    assert (len(seldom.taken), len(often.taken)) == (0, 2)
    training.kill()
    training.wait()
    often.take_when_due()
    assert len(often.taken) == 2
    with pytest.raises(psutil.NoSuchProcess):
        Samples(training.pid, every_s=0)


def test_the_process_that_looks_is_no_part_of_the_training():
    machine = Machine(os.getppid())
    assert os.getpid() not in {process.pid for process in machine._tree()}
