"""Versions, addresses and folders of the Kubernetes on this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "1.34.4"
KUBERAY = "1.6.2"
KUEUE = "0.17.0"

HERE = Path(__file__).resolve().parent
MODULES = HERE.parent / "modules"
MANIFESTS = HERE.parent / "manifests"
ROOT = HERE.parents[2]

# Binaries and Go's own cache of them: an hour of work, so they outlive `down`.
CACHE = Path(os.environ.get("KUBERNETES_CACHE", Path.home() / ".cache/sat_ray/kubernetes"))
BINARIES = CACHE / "bin"
# All that a cluster writes; `down` removes it. Short, because paths of sockets are limited.
STATE = Path("/var/lib/sat_ray-kubernetes")
LOGS = STATE / "logs"
KUBECONFIG = STATE / "admin.kubeconfig"

ETCD = "http://127.0.0.1:23790"
ETCD_PEERS = "http://127.0.0.1:23800"
HOST = "10.200.0.1"
API_PORT = 6443
API = f"https://{HOST}:{API_PORT}"
NODE_NETWORK = "10.200.0.0/24"
PODS = "10.210.0.0/16"
SERVICES = "10.220.0.0/16"
API_SERVICE = "10.220.0.1"
DNS_SERVICE = "10.220.0.10"
# The port that the manifests' network policies open for object stores.
S3_PORT = 443
BUCKET = "satray"
BRIDGE = "satray0"
CGROUP = "sat_ray-kubernetes"
MEMORY_NEEDED_GIB = 9

PAUSE_IMAGE = "docker.io/library/satray-pause:1"


@dataclass(frozen=True)
class Node:
    """One node: a network namespace with a container runtime and a kubelet of its own."""

    index: int  # 1, 2, …: the last part of its address
    pool: str  # value of the label sat-ray/pool

    @property
    def name(self) -> str:
        """Return the node's name in Kubernetes."""
        return f"node{self.index}"

    @property
    def address(self) -> str:
        """Return the node's address on the bridge."""
        return f"10.200.0.{10 + self.index}"

    @property
    def pods(self) -> str:
        """Return the addresses of the node's pods."""
        return f"10.210.{self.index}.0/24"

    @property
    def namespace(self) -> str:
        """Return the name of the node's network namespace."""
        return f"satray-{self.name}"

    @property
    def folder(self) -> Path:
        """Return where the node keeps what it writes."""
        return STATE / self.name

    @property
    def socket(self) -> Path:
        """Return the socket of the node's containerd."""
        return self.folder / "containerd.sock"


def nodes() -> list[Node]:
    """Return the nodes that KUBERNETES_NODES names by their pools (default: one, `system`)."""
    pools = os.environ.get("KUBERNETES_NODES", "system").split(",")
    return [Node(index, pool) for index, pool in enumerate(pools, start=1)]


def node_memory_gib() -> float:
    """Return how much memory the pods of one node may take together (KUBERNETES_NODE_MEMORY)."""
    return float(os.environ.get("KUBERNETES_NODE_MEMORY", "10"))
