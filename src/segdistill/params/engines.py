"""The engines of the benchmark that need a package of their own."""

from __future__ import annotations

import importlib.util

from segdistill.core.errors import UserError
from segdistill.params.model import Params


def check_engines(params: Params) -> None:
    """Raise a UserError when an engine of the benchmark is not installed: first of all, not after the trainings."""
    if "openvino" in params.benchmark.engines and importlib.util.find_spec("openvino") is None:
        raise UserError(
            "benchmark.engines: found openvino, which is not installed; install it with "
            'pip install "segdistill[openvino]", or leave it out of the list'
        )
