"""A Ray cluster of several nodes on this machine, on loopback, which a token guards: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

STARTED_WITHIN_S = 120.0
# Ray reads them when it is imported, here and in each of its processes.
SETTINGS = {
    # Else Ray takes the machine's own address for that of its nodes, and waits for one on 127.0.0.1 for ever.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RAY_memory_monitor_refresh_ms": "0",  # what else runs on this machine is no reason to end a run
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class RayCluster:
    """A head that runs nothing, and nodes that do, each with the environment `variables`."""

    def __init__(self, nodes: int, cpus: int, folder: str, variables: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._cpus, self._variables = cpus, variables
        # 75 MiB is the least store that Ray takes.
        self._common = {"wait": False, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
        self._cluster = Cluster(shutdown_at_exit=True)
        self._cluster.add_node(num_cpus=0, include_dashboard=False, temp_dir=folder, **self._common)
        self.nodes = [self.add_node() for _ in range(nodes)]
        self._cluster.wait_for_nodes(timeout=STARTED_WITHIN_S)

    @property
    def address(self) -> str:
        return self._cluster.address

    def add_node(self) -> Any:
        with _environment(self._variables):
            return self._cluster.add_node(num_cpus=self._cpus, **self._common)

    def kill_node(self, node: Any) -> None:
        """Kill the processes of a node, as when its machine is switched off."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int, **variables: str) -> Iterator[RayCluster]:
    """Yield a cluster whose nodes have `variables`, and end it; until then this process has the variables of Ray."""
    # A short path, for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, _environment(SETTINGS):
        cluster = RayCluster(nodes, cpus, folder, variables)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Have `variables` in the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
