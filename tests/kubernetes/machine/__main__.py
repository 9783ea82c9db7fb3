"""A Kubernetes on this machine: python -m tests.kubernetes.machine up [ARCHIVE…] | kueue | down |
import ARCHIVE…

Archives of images that `up` is given lie on the disk once, for however many new nodes; `import`
brings them into each node.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import (
    addons,
    build,
    certificates,
    control_plane,
    images,
    network,
    node,
    processes,
    removal,
    requirements,
)
from .settings import KUBECONFIG, Node, node_memory_gib, nodes


def up(archives: list[Path]) -> None:
    """Bring the cluster up, step by step; a step that was done before changes nothing."""
    problem = requirements.missing()
    if problem:
        raise SystemExit(problem)
    wanted = nodes()
    memory = node_memory_gib()
    step("binaries", build.build)
    step("certificates", lambda: certificates.make_all(wanted))
    step("network", lambda: network.connect(wanted))
    step("control plane", control_plane.start)
    if archives:
        step("images of the product", lambda: _share(wanted, archives))
    step("container runtimes", lambda: _each(wanted, node.start_runtime))
    step("images of the cluster", lambda: _each(wanted, images.import_own))
    step("kubelets", lambda: _each(wanted, lambda one: node.start_agents(one, memory_gib=memory)))
    step("nodes ready", lambda: addons.wait_for_nodes(wanted))
    step("DNS and volumes", lambda: addons.install_basics(wanted))
    step("network policies", lambda: _each(wanted, node.start_policies))
    step("KubeRay's operator", addons.install_operator)
    step("DNS and operator run", addons.wait_for_addons)
    step("S3 server", addons.start_storage)
    print(f"ready: export KUBECONFIG={KUBECONFIG}")


def add_kueue() -> None:
    """Add Kueue to the cluster that runs; what is there already stays."""
    if not processes.running("api-server"):
        raise SystemExit("no Kubernetes runs here: run `make kubernetes-up` first")
    step("Kueue's binary", build.build_kueue)
    step("Kueue's image", lambda: _each(nodes(), images.import_kueue))
    step("Kueue", addons.install_kueue)
    step("Kueue runs", addons.wait_for_kueue)


def step(name: str, do: Callable[[], None]) -> None:
    """Run one step and print how long it took."""
    begin = time.monotonic()
    do()
    print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


def _each(wanted: list[Node], do: Callable[[Node], None]) -> None:
    for one in wanted:
        do(one)


def _share(wanted: list[Node], archives: list[Path]) -> None:
    """Bring archives into the first node, and its images into the others, before any has pods."""
    first, *others = wanted
    if (first.folder / "containerd").exists():
        return
    node.start_runtime(first)
    for archive in archives:
        images.import_archive(first, archive)
    node.stop_runtime(first)
    for other in others:
        images.link_all(first, other)


def _import(archive: Path) -> None:
    for one in nodes():
        images.import_archive(one, archive)


def main(arguments: list[str]) -> None:
    """Run one of the commands."""
    match arguments:
        case ["up", *archives]:
            up([Path(archive) for archive in archives])
        case ["kueue"]:
            add_kueue()
        case ["down"]:
            removal.remove()
        case ["import", *archives]:
            for archive in archives:
                step(f"import {archive}", lambda file=Path(archive): _import(file))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
