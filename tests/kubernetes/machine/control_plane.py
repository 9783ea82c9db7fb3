"""etcd, the API server, the controllers and the scheduler, as processes of this machine."""

from . import processes
from .certificates import AUTHORITY, FOLDER, kubeconfig
from .settings import (
    API_PORT,
    BINARIES,
    ETCD,
    ETCD_PEERS,
    HOST,
    KUBECONFIG,
    LOGS,
    SERVICES,
    STATE,
)

KUBECTL = str(BINARIES / "kubectl")


def start() -> None:
    """Start the four in order, each once the one before it answers."""
    start_etcd()
    start_api_server()
    start_controllers()


def start_etcd() -> None:
    """Start the store of the cluster's state."""
    processes.start(
        "etcd",
        [
            *("etcd", f"--data-dir={STATE}/etcd", f"--listen-client-urls={ETCD}"),
            *(f"--advertise-client-urls={ETCD}", f"--listen-peer-urls={ETCD_PEERS}"),
            *(f"--initial-advertise-peer-urls={ETCD_PEERS}",),
            f"--initial-cluster=default={ETCD_PEERS}",
            # A shared machine can hold a write back for longer than the default 100 ms.
            *("--heartbeat-interval=1000", "--election-timeout=10000", "--logger=zap"),
        ],
    )
    check = ["curl", "--fail", "--silent", "--show-error", f"{ETCD}/health"]
    processes.wait_until("etcd", check, log=LOGS / "etcd.log")


def start_api_server() -> None:
    """Start the API server; Pod Security and quotas are among its default admission plugins."""
    processes.start(
        "api-server",
        [
            str(BINARIES / "kube-apiserver"),
            *(f"--etcd-servers={ETCD}", f"--service-cluster-ip-range={SERVICES}"),
            *(f"--advertise-address={HOST}", f"--bind-address={HOST}"),
            *(f"--secure-port={API_PORT}", "--authorization-mode=Node,RBAC"),
            *(f"--tls-cert-file={FOLDER}/api.crt", f"--tls-private-key-file={FOLDER}/api.key"),
            f"--client-ca-file={AUTHORITY}",
            f"--kubelet-certificate-authority={AUTHORITY}",
            f"--kubelet-client-certificate={FOLDER}/api-to-kubelet.crt",
            f"--kubelet-client-key={FOLDER}/api-to-kubelet.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={FOLDER}/accounts.pub",
            f"--service-account-signing-key-file={FOLDER}/accounts.key",
            "--kubelet-preferred-address-types=InternalIP",
            *("--enable-admission-plugins=NodeRestriction", "--profiling=false"),
        ],
    )
    ready = [KUBECTL, f"--kubeconfig={KUBECONFIG}", "get", "--raw=/readyz"]
    processes.wait_until("the API server", ready, log=LOGS / "api-server.log")


def start_controllers() -> None:
    """Start the controllers and the scheduler."""
    processes.start(
        "controller-manager",
        [
            str(BINARIES / "kube-controller-manager"),
            f"--kubeconfig={kubeconfig('controller-manager')}",
            f"--root-ca-file={AUTHORITY}",
            f"--service-account-private-key-file={FOLDER}/accounts.key",
            *("--use-service-account-credentials", "--leader-elect=false"),
            *("--bind-address=127.0.0.1", "--profiling=false"),
        ],
    )
    processes.start(
        "scheduler",
        [
            str(BINARIES / "kube-scheduler"),
            f"--kubeconfig={kubeconfig('scheduler')}",
            *("--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"),
        ],
    )
