"""Kill a stage where its start-up ends: at the call of one named function, its first useful work.

Installed as `sitecustomize`, so that the commands of a stage and of its worker processes stay the same.
FIRST_WORK names the function as MODULE:NAME or MODULE:CLASS.NAME.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from functools import reduce
from types import ModuleType


def _end(*_: object, **__: object) -> None:
    # A worker may be the one that came here, so kill the whole group; SIGKILL, because nothing may run after this.
    os.killpg(0, signal.SIGKILL)


class _Patch:
    """A finder that imports the named module as usual and then replaces the function by `_end`."""

    def __init__(self, module: str, function: str) -> None:
        self.module, self.function = module, function

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> object:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            *classes, name = self.function.split(".")
            owner = reduce(getattr, classes, module)
            assert hasattr(owner, name), f"{self.module} has no {self.function}"
            setattr(owner, name, _end)

        spec.loader.exec_module = execute_and_patch
        return spec


if "FIRST_WORK" in os.environ:
    sys.meta_path.insert(0, _Patch(*os.environ["FIRST_WORK"].split(":")))
