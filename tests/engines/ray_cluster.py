"""A Ray cluster on this machine, for tests: a head without CPUs, and two nodes of one CPU and four make-believe TPUs.

It prints its address, and then does what it is told on standard input, a line a command: "replace K" kills node K, as a
node that loses its power, and adds another. It ends when standard input does. The nodes say that they are the two hosts
of one TPU slice, the second one first. A node that does not answer is given up after some seconds, by Ray's defaults
after a minute.
"""

import os
import sys

HEALTH = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 3}
os.environ |= {f"RAY_health_check_{name}": str(value) for name, value in HEALTH.items()}
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # noqa: E402 - Ray reads the environment when it is imported

SMALL = {"object_store_memory": 80_000_000}


def add_node(cluster, host):
    labels = {"ray.io/tpu-slice-name": "slice", "ray.io/tpu-worker-id": str(host)}
    return cluster.add_node(num_cpus=1, resources={"TPU": 4}, labels=labels, **SMALL)


def main():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    nodes = [add_node(cluster, host) for host in (1, 0)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        node = int(line.split()[1])
        cluster.remove_node(nodes[node], allow_graceful=False)
        nodes[node] = add_node(cluster, 1 - node)
        print("replaced", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
