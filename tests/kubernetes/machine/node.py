"""A node: containerd, kubelet, the proxy of services and the controller of network policies."""

import json
import shutil
import subprocess
from pathlib import Path

from . import processes
from .certificates import AUTHORITY, FOLDER, kubeconfig
from .network import write_pod_network
from .processes import run
from .settings import (
    BINARIES,
    CGROUP,
    DNS_SERVICE,
    LOGS,
    PAUSE_IMAGE,
    PODS,
    SERVICES,
    STATE,
    Node,
)

HIERARCHIES = Path("/sys/fs/cgroup")
# The kubelet sets these for the whole machine; `down` writes the old values back.
TUNABLES = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
SAVED_TUNABLES = STATE / "sysctl.json"


def start_runtime(node: Node) -> None:
    """Start the node's containerd."""
    file = node.folder / "containerd.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_containerd(node))
    processes.start(
        f"{node.name}-containerd", ["containerd", "--config", str(file)], namespace=node.namespace
    )
    check = ["ctr", "--address", str(node.socket), "version"]
    processes.wait_until("containerd", check, log=LOGS / f"{node.name}-containerd.log")


def stop_runtime(node: Node) -> None:
    """End the node's containerd."""
    processes.stop(f"{node.name}-containerd")


def start_agents(node: Node, *, memory_gib: float) -> None:
    """Start the kubelet and what makes services and network policies work."""
    save_tunables()
    make_cgroups(f"{CGROUP}/{node.name}")
    kubelet = _write(node.folder / "kubelet.json", _kubelet(node, memory_gib=memory_gib))
    processes.start(
        f"{node.name}-kubelet",
        [
            *(str(BINARIES / "kubelet"), f"--config={kubelet}"),
            *(f"--kubeconfig={kubeconfig(node.name)}", f"--root-dir={node.folder}/kubelet"),
            *(f"--hostname-override={node.name}", f"--node-ip={node.address}"),
            f"--node-labels=sat-ray/pool={node.pool}",
        ],
        namespace=node.namespace,
    )
    proxy = _write(node.folder / "proxy.json", _proxy(node))
    processes.start(
        f"{node.name}-proxy",
        [str(BINARIES / "kube-proxy"), f"--config={proxy}"],
        namespace=node.namespace,
    )


def start_policies(node: Node) -> None:
    """Start the controller of network policies, which needs the node's object."""
    access = kubeconfig("netpol")
    processes.start(
        f"{node.name}-netpol",
        [
            *(str(BINARIES / "netpol"), f"--kubeconfig={access}", f"--node={node.name}"),
            *(f"--services={SERVICES}", "-v=1"),
        ],
        namespace=node.namespace,
    )


def make_cgroups(name: str) -> None:
    """Make one group in every hierarchy."""
    for hierarchy in HIERARCHIES.iterdir():
        group = hierarchy
        for part in name.split("/"):
            parent, group = group, group / part
            group.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (group / setting).exists() and not (group / setting).read_text().strip():
                    (group / setting).write_text((parent / setting).read_text())


def save_tunables() -> None:
    """Remember the settings of the kernel that a kubelet changes."""
    if not SAVED_TUNABLES.exists():
        values = {name: Path(f"/proc/sys/{name}").read_text() for name in TUNABLES}
        SAVED_TUNABLES.write_text(json.dumps(values))


def restore_tunables() -> None:
    """Write the remembered settings back."""
    if SAVED_TUNABLES.exists():
        for name, value in json.loads(SAVED_TUNABLES.read_text()).items():
            Path(f"/proc/sys/{name}").write_text(value)


def end_containers(node: Node) -> None:
    """End every container of a node, and with them the processes that watch them."""
    if not processes.running(f"{node.name}-containerd"):
        return
    ctr = ("ctr", "--address", str(node.socket), "--namespace", "k8s.io")
    for _ in range(10):
        tasks = run(*ctr, "tasks", "list", "--quiet").split()
        if not tasks:
            return
        # A task that ended meanwhile makes this fail; the next round finds what is left.
        subprocess.run([*ctr, "tasks", "delete", "--force", *tasks], capture_output=True)


def _write(file: Path, settings: dict[str, object]) -> Path:
    file.write_text(json.dumps(settings, indent=2))
    return file


def _containerd(node: Node) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{node.folder}/containerd"
state = "{node.folder}/run"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{node.socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{node.folder}/opt"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
# Where root may not lower a process's oom_score_adj, no container would start without this.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{write_pod_network(node)}"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
BinaryName = "{shutil.which("runc")}"
Root = "{node.folder}/runc"
SystemdCgroup = false
"""


def _kubelet(node: Node, *, memory_gib: float) -> dict[str, object]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    reserved_mib = max(0, total_kib // 1024 - int(memory_gib * 1024))
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "address": node.address,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(AUTHORITY)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{FOLDER}/{node.name}.crt",
        "tlsPrivateKeyFile": f"{FOLDER}/{node.name}.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}/{node.name}",
        "failSwapOn": False,
        "failCgroupV1": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": f"{STATE}/resolv.conf",
        "podLogsDir": f"{node.folder}/pod-logs",
        # A node has only a part of the machine's memory; the pods' cgroup is limited to it.
        "systemReserved": {"memory": f"{reserved_mib}Mi"},
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {"memory.available": "300Mi", "nodefs.available": "2Gi"},
        # Images are imported, not pulled: one that was removed would not come back.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _proxy(node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig("proxy"))},
        "hostnameOverride": node.name,
        "bindAddress": node.address,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "iptables",
        "clusterCIDR": PODS,
        "iptables": {"localhostNodePorts": False},
        # Settings of the whole machine, which a network namespace cannot change.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
