"""What runs inside the cluster from the start: DNS, volumes and KubeRay's operator."""

import shutil
import subprocess

from .build import OPERATOR, module_folder
from .processes import run
from .settings import BINARIES, KUBECONFIG, KUBERAY, MANIFESTS, STATE, Node

KUBECTL = (str(BINARIES / "kubectl"), f"--kubeconfig={KUBECONFIG}")
VOLUMES = 4


def wait_for_nodes(nodes: list[Node]) -> None:
    """Wait until every node is ready for pods."""
    for node in nodes:
        run(*KUBECTL, "wait", "--for=create", f"node/{node.name}", "--timeout=180s")
        run(*KUBECTL, "wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=180s")


def install_basics(nodes: list[Node]) -> None:
    """Install DNS, the permissions of the policies' controller and volumes."""
    apply("--filename", str(MANIFESTS / "access.yaml"))
    apply("--filename", str(MANIFESTS / "dns.yaml"))
    apply("--filename", "-", given=_volumes(nodes[0]))


def install_operator() -> None:
    """Install KubeRay's CRDs and its operator, from the module's own kustomization."""
    folder = STATE / "kuberay"
    if not folder.exists():
        shutil.copytree(module_folder(OPERATOR) / "config", folder, copy_function=shutil.copyfile)
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    (folder / "here").mkdir(exist_ok=True)
    text = (MANIFESTS / "operator.yaml").read_text().replace("KUBERAY", f'"{KUBERAY}"')
    (folder / "here" / "kustomization.yaml").write_text(text)
    namespace = {"given": "{apiVersion: v1, kind: Namespace, metadata: {name: kuberay-operator}}"}
    apply("--filename", "-", **namespace)
    apply("--kustomize", str(folder / "here"))


def wait_for_addons() -> None:
    """Wait until DNS and the operator run."""
    for namespace, name in (("kube-system", "coredns"), ("kuberay-operator", "kuberay-operator")):
        run(
            *(*KUBECTL, "--namespace", namespace, "rollout", "status", f"deployment/{name}"),
            "--timeout=300s",
        )


def apply(*arguments: str, given: str | None = None) -> None:
    """Run `kubectl apply --server-side`."""
    run(*KUBECTL, "apply", "--server-side", "--force-conflicts", *arguments, given=given)


def _volumes(node: Node) -> str:
    parts = []
    for index in range(VOLUMES):
        folder = node.folder / "volumes" / str(index)
        folder.mkdir(parents=True, exist_ok=True)
        parts.append(
            f"""\
apiVersion: v1
kind: PersistentVolume
metadata: {{name: local-{index}}}
spec:
  capacity: {{storage: 20Gi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: standard
  local: {{path: {folder}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions:
            - {{key: kubernetes.io/hostname, operator: In, values: [{node.name}]}}
"""
        )
    return "---\n".join(parts)
