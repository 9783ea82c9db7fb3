"""A real API server of Kubernetes with its store, without nodes and controllers, for tests of what
our commands say about a cluster.

Both programs come from the PATH or from KUBERNETES_CACHE, where `make kubernetes-up` builds them.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_rules import tool
from listeners import free_port

CACHE = Path(os.environ.get("KUBERNETES_CACHE", Path.home() / ".cache/sat_ray/kubernetes"))
TOKEN = "token-of-a-test"


def kubeconfig(folder: Path, address: str) -> Path:
    """Write a kubeconfig with the context `test` for an address and return its path."""
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [
                    {
                        "name": "test",
                        "cluster": {"server": address, "insecure-skip-tls-verify": True},
                    }
                ],
                "users": [{"name": "test", "user": {"token": TOKEN}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path


@contextmanager
def api_server(folder: Path) -> Iterator[Path]:
    """Yield the kubeconfig of an API server; skip where its programs are not here."""
    etcd = tool("etcd")
    server = tool("kube-apiserver", beside=CACHE / "bin")
    store, port = f"http://127.0.0.1:{free_port()}", free_port()
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens = folder / "tokens.csv"
    tokens.write_text(f"{TOKEN},tester,1,system:masters\n")
    with ExitStack() as stack:
        log = stack.enter_context((folder / "server.log").open("w"))
        for command in (
            [
                etcd,
                f"--data-dir={folder}/etcd",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                "--listen-peer-urls=http://127.0.0.1:0",
            ],
            [
                server,
                f"--etcd-servers={store}",
                f"--cert-dir={folder}/certificates",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--token-auth-file={tokens}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-cluster-ip-range=10.220.0.0/16",
            ],
        ):
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        path = kubeconfig(folder, f"https://127.0.0.1:{port}")
        deadline = time.monotonic() + 300
        while kubectl(path, "get", "--raw=/readyz", check=False).returncode:
            assert time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(1)
        yield path


def kubectl(
    config: Path, *arguments: str, given: Any = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run kubectl on a test's API server, with documents or text on its standard input."""
    done = subprocess.run(
        [tool("kubectl"), f"--kubeconfig={config}", *arguments],
        input=given if given is None or isinstance(given, str) else json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def kuberay_crds() -> list[Path]:
    """Return the files of KubeRay's CRDs in Go's cache of modules; skip where there are none."""
    done = subprocess.run([tool("go"), "env", "GOMODCACHE"], capture_output=True, text=True)
    folders = sorted(
        Path(done.stdout.strip()).glob(
            "github.com/ray-project/kuberay/ray-operator@v*/config/crd/bases"
        )
    )
    if not folders:
        pytest.skip("no KubeRay among Go's modules here; `make kubernetes-up` fetches it")
    return sorted(folders[-1].glob("ray.io_ray[cj]*.yaml"))
