"""A `python` that has torch loaded when it starts, for stages that DVC runs: each would spend seconds on loading it.

Each call is a fork of a server, which loads packages and none of this project's code: that comes from the PYTHONPATH of
the call. A signal to the call does not reach its fork. As a script, this is the server.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGES = ("torch.onnx", "torchvision", "onnxruntime.quantization", "PIL.Image", "plotly.graph_objects", "pydantic")
CLIENT = """import json, os, socket, sys
if not sys.argv[1].endswith(".py"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(os.path.dirname(__file__), "socket"))
    call = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
    sent = socket.send_fds(server, [call], [0, 1, 2])
    server.sendall(call[sent:])
    server.shutdown(socket.SHUT_WR)
    exit_code = server.recv(1)
sys.exit(exit_code[0] if exit_code else 1)
"""


@functools.cache
def python_folder() -> Path:
    """Start the server, which ends with this process; return a folder with `python`, to be the first of a PATH."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    (folder / "client.py").write_text(CLIENT)
    command = shlex.join([sys.executable, "-IS", str(folder / "client.py")])
    (folder / "python").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (folder / "python").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder / "socket")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return folder


def serve(address: str) -> None:
    """Answer calls until stdin ends."""
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # else the collector would touch, and so copy, every page in each fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            call, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(call)
            call.close()


def answer(call: socket.socket) -> None:
    """Run the call of a client as a process of its own; never returns."""
    exit_code = 1
    try:
        message, descriptors, *_ = socket.recv_fds(call, 1 << 16, 3)
        while part := call.recv(1 << 16):
            message += part
        folder, environment, argv = json.loads(message)
        take_streams(descriptors)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
        sys.path[:0] = [
            str(Path(argv[0]).resolve().parent),
            *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
        ]
        exit_code = exit_code_of(lambda: runpy.run_path(argv[0], run_name="__main__"))
        sys.stdout.flush()
        sys.stderr.flush()
        call.sendall(bytes([exit_code]))
    finally:
        os._exit(exit_code)


def take_streams(descriptors: Iterable[int]) -> None:
    """Make three descriptors stdin, stdout and stderr."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def exit_code_of(work: Callable[[], object]) -> int:
    """Return the exit code of an interpreter that runs `work`."""
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - what it does with the others too
        sys.excepthook(*sys.exc_info())
        return 1
    threads = [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # torch's compiler would print what it leaks
