"""A Ray cluster of several nodes on this machine; run it with the Python that has Ray.

Prints its address, then executes lines from stdin: `add NAME GPUS`, `kill NAME`, `drain NAME`; prints `done`.
"""

import os
import sys
import tempfile
import time

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

STORE_BYTES = 80 * 1024**2
DRAIN_SECONDS = 60


def drain(address: str, node_id: str) -> None:
    """Drain a node, as after a preemption notice of a cloud."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = time.time_ns() // 1_000_000 + DRAIN_SECONDS * 1000
    accepted, why_not = ray._raylet.GcsClient(address=address).drain_node(node_id, reason, "a test", deadline)
    if not accepted:
        raise SystemExit(why_not)


def main() -> None:
    """Serve until stdin ends."""
    # Short, because the paths of its sockets have a maximum length.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        serve()


def serve() -> None:
    """Execute the commands from stdin."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    nodes = {}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["add", name, gpus]:
                nodes[name] = cluster.add_node(num_gpus=int(gpus), object_store_memory=STORE_BYTES)
            case ["kill", name]:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
            case ["drain", name]:
                drain(cluster.address, nodes[name].node_id)
            case words:
                raise SystemExit(f"unknown: {words}")
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
