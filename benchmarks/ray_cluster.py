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
    """A head that runs nothing, and nodes that do."""

    def __init__(self, nodes: int, cpus: int, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self._cpus, self._cluster = cpus, Cluster(shutdown_at_exit=True)
        self._cluster.add_node(wait=False, num_cpus=0, include_dashboard=False, temp_dir=folder, **self._common)
        self.nodes = [self.add_node() for _ in range(nodes)]
        self._cluster.wait_for_nodes(timeout=STARTED_WITHIN_S)

    _common = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}  # 75 MiB is Ray's least

    @property
    def address(self) -> str:
        return self._cluster.address

    def add_node(self) -> Any:
        return self._cluster.add_node(wait=False, num_cpus=self._cpus, **self._common)

    def kill_node(self, node: Any) -> None:
        """Kill the processes of a node, as when its machine is switched off."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int, **variables: str) -> Iterator[RayCluster]:
    """Yield a cluster whose nodes have `variables`, and end it; until then this process has the variables of Ray."""
    before = dict(os.environ)
    os.environ |= SETTINGS | variables
    try:
        with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path, for Ray's sockets
            cluster = RayCluster(nodes, cpus, folder)
            for name in variables:
                del os.environ[name]
            try:
                yield cluster
            finally:
                cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ |= before
