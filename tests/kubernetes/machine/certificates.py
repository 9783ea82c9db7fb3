"""Certificates and kubeconfigs, from an authority that lives as long as the cluster."""

from pathlib import Path

from .processes import run
from .settings import API, API_SERVICE, HOST, STATE, Node

FOLDER = STATE / "certificates"
AUTHORITY = FOLDER / "authority.crt"
API_NAMES = (
    *("kubernetes", "kubernetes.default", "kubernetes.default.svc"),
    "kubernetes.default.svc.cluster.local",
)


def make_all(nodes: list[Node]) -> None:
    """Write every certificate and kubeconfig that is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    FOLDER.chmod(0o700)
    if not AUTHORITY.exists():
        _key(FOLDER / "authority.key")
        run(*_request("authority"), "-x509", "-days", "365", "-subj", "/CN=sat_ray-test")
    if not (FOLDER / "accounts.key").exists():
        run("openssl", "genrsa", "-out", str(FOLDER / "accounts.key"), "2048")
        public = str(FOLDER / "accounts.pub")
        run("openssl", "rsa", "-in", str(FOLDER / "accounts.key"), "-pubout", "-out", public)
    names = ",".join(f"DNS:{name}" for name in API_NAMES)
    certify("api", "/CN=kube-apiserver", f"{names},IP:{API_SERVICE},IP:{HOST},IP:127.0.0.1")
    certify("api-to-kubelet", "/O=system:masters/CN=kube-apiserver")
    clients = {
        "admin": "/O=system:masters/CN=admin",
        "controller-manager": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "proxy": "/CN=system:kube-proxy",
        "netpol": "/CN=sat_ray:netpol",
    }
    for node in nodes:
        clients[node.name] = f"/O=system:nodes/CN=system:node:{node.name}"
    for name, subject in clients.items():
        address = {node.name: node.address for node in nodes}.get(name)
        certify(name, subject, f"IP:{address},DNS:{name}" if address else "")
        write_kubeconfig(name)


def certify(name: str, subject: str, names: str = "") -> None:
    """Write NAME.key and NAME.crt, signed by the authority, unless they exist."""
    certificate = FOLDER / f"{name}.crt"
    if certificate.exists():
        return
    _key(FOLDER / f"{name}.key")
    extensions = "extendedKeyUsage=clientAuth,serverAuth"
    if names:
        extensions += f"\nsubjectAltName={names}"
    (FOLDER / f"{name}.ext").write_text(extensions)
    request = FOLDER / f"{name}.csr"
    run(*_request(name, output=request), "-subj", subject)
    run(
        *("openssl", "x509", "-req", "-in", str(request), "-CA", str(AUTHORITY)),
        *("-CAkey", str(FOLDER / "authority.key"), "-CAcreateserial", "-days", "365"),
        *("-extfile", str(FOLDER / f"{name}.ext"), "-out", str(certificate)),
    )


def kubeconfig(name: str) -> Path:
    """Return the file with which a client of that name reaches the API server."""
    return STATE / f"{name}.kubeconfig"


def write_kubeconfig(name: str) -> None:
    """Write the kubeconfig of a client."""
    file = kubeconfig(name)
    file.write_text(
        f"""\
apiVersion: v1
kind: Config
clusters:
  - name: satray
    cluster: {{server: "{API}", certificate-authority: {AUTHORITY}}}
users:
  - name: {name}
    user: {{client-certificate: {FOLDER}/{name}.crt, client-key: {FOLDER}/{name}.key}}
contexts:
  - name: satray
    context: {{cluster: satray, user: {name}}}
current-context: satray
"""
    )
    file.chmod(0o600)


def _key(file: Path) -> None:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(file))


def _request(name: str, *, output: Path | None = None) -> list[str]:
    target = output or FOLDER / f"{name}.crt"
    return ["openssl", "req", "-new", "-key", str(FOLDER / f"{name}.key"), "-out", str(target)]
