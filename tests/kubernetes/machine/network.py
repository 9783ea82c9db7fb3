"""The bridge between this machine and its nodes, and one network namespace per node."""

import json
import subprocess
from pathlib import Path

from .processes import run
from .settings import BRIDGE, HOST, SERVICES, STATE, Node


def connect(nodes: list[Node]) -> None:
    """Make the bridge, the namespaces and the routes between all pods."""
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{HOST}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for node in nodes:
        _add_node(node)
    for node in nodes:
        run("ip", "route", "replace", node.pods, "via", node.address)
        for other in nodes:
            if other != node:
                _inside(node, "ip", "route", "replace", other.pods, "via", other.address)
    # The API server calls webhooks by the addresses of services: any node translates them.
    run("ip", "route", "replace", SERVICES, "via", nodes[0].address)


def disconnect() -> None:
    """Remove what `connect` made; routes go with the bridge."""
    for namespace in Path("/run/netns").glob("satray-*"):
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True)
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)


def write_pod_network(node: Node) -> Path:
    """Write how a pod of this node is connected; return the folder of that file."""
    folder = node.folder / "cni"
    folder.mkdir(parents=True, exist_ok=True)
    # No address translation between pods: network policies compare the senders' own addresses.
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(node.folder / "addresses"),
            "ranges": [[{"subnet": node.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
    (folder / "10-pods.conflist").write_text(json.dumps(network, indent=2))
    resolver = STATE / "resolv.conf"
    # Nothing outside the cluster is resolved: no pod may reach it.
    resolver.write_text("nameserver 127.0.0.1\n")
    return folder


def _add_node(node: Node) -> None:
    if Path(f"/run/netns/{node.namespace}").exists():
        return
    run("ip", "netns", "add", node.namespace)
    outside = f"satray{node.index}"
    run(
        *("ip", "link", "add", outside, "type", "veth"),
        *("peer", "name", "eth0", "netns", node.namespace),
    )
    run("ip", "link", "set", outside, "master", BRIDGE, "up")
    _inside(node, "ip", "link", "set", "lo", "up")
    _inside(node, "ip", "address", "add", f"{node.address}/24", "dev", "eth0")
    _inside(node, "ip", "link", "set", "eth0", "up")
    _inside(node, "ip", "route", "add", "default", "via", HOST)
    _inside(node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    # Two pods of one node talk over the node's bridge: services and policies have to see that, too.
    _inside(node, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")


def _inside(node: Node, *command: str) -> None:
    run("nsenter", f"--net=/run/netns/{node.namespace}", *command)
